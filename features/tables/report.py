"""What reading the tables found: counts, problems with their first places, and what to do."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

REJECTED, REPAIRED = "set aside", "repaired"

PLACES = 3
"""Places named of each problem, the first ones."""


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
    """One kind of fault: the rows are set aside, or kept with the one bad field nulled (repaired)."""

    table: str
    reason: str
    action: str
    count: int
    places: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Report:
    """Everything that was not taken as it stood. Rows are numbered from 1, a header is not a row."""

    counts: tuple[Count, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    """Table -> parquet file with its rows set aside: reason, row, the original fields as text."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def render(self) -> Group:
        """For a rich console."""
        counts = Table("table", "file", *(_right(c) for c in ("read", "kept", "set aside")), title="rows")
        for c in self.counts:
            counts.add_row(c.table, Text(c.file), f"{c.read:,}", f"{c.kept:,}", f"{c.rejected:,}")
        parts: list[Table | Text] = [counts]
        if self.problems:
            found = Table(
                "table", "problem", "action", _right("count"), "first places", "what to do", title="problems"
            )
            for p in self.problems:
                places = Text("\n".join(p.places))
                found.add_row(p.table, Text(p.reason), p.action, f"{p.count:,}", places, Text(p.advice))
            parts.append(found)
        parts += [Text(f"note: {note}") for note in self.notes]
        parts += [Text(f"rows of {table} set aside: {file}") for table, file in self.files.items()]
        return Group(*parts)


def _right(header: str) -> Any:
    from rich.table import Column

    return Column(header, justify="right")
