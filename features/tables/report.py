"""The report of reading the tables: row counts, problems with their first places, and remedies."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

REJECTED, REPAIRED, KEPT = "rejected", "repaired", "kept"

PLACES = 3
"""Number of places that the report names per problem, the first ones."""


@dataclass(frozen=True)
class Count:
    """Rows of one table: read == kept + rejected, always."""

    table: str
    file: str
    read: int
    kept: int
    rejected: int


@dataclass(frozen=True)
class Problem:
    """One kind of violation.

    action: its rows are rejected; or repaired, that is kept with a null in place of the field; or kept as they are,
    although they are doubtful.
    """

    table: str
    reason: str
    action: str
    count: int
    places: tuple[str, ...]
    advice: str

    @property
    def line(self) -> str:
        """The problem as one line of text."""
        first = f"first {self.places[0]}; " if self.places else ""
        return f"{self.table}: {self.reason}: {self.count:,} {self.action} ({first}{self.advice})"


@dataclass(frozen=True)
class Report:
    """All rows that were not read unchanged. Rows are numbered from 1; a header is not a row."""

    counts: tuple[Count, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    """Table -> parquet file of its rejected rows: reason, row, the original fields as text."""

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can represent."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        counts = [f"{c.table}: {c.read:,} rows read, {c.kept:,} kept, {c.rejected:,} rejected" for c in self.counts]
        return [*counts, *(p.line for p in self.problems), *(f"note: {note}" for note in self.notes)]

    def render(self) -> Group:
        """The report as a renderable of rich."""
        counts = Table("table", "file", *(_right(c) for c in ("read", "kept", "rejected")), title="rows")
        for c in self.counts:
            counts.add_row(c.table, Text(c.file), f"{c.read:,}", f"{c.kept:,}", f"{c.rejected:,}")
        parts: list[Table | Text] = [counts]
        if self.problems:
            table = Table(
                "table", "problem", "action", _right("count"), "first places", "what to do", title="problems"
            )
            for p in self.problems:
                places = Text("\n".join(p.places))
                table.add_row(p.table, Text(p.reason), p.action, f"{p.count:,}", places, Text(p.advice))
            parts.append(table)
        parts += [Text(f"note: {note}") for note in self.notes]
        parts += [Text(f"rejected rows of {name}: {file}") for name, file in self.files.items()]
        return Group(*parts)


def _right(header: str) -> Any:
    from rich.table import Column

    return Column(header, justify="right")
