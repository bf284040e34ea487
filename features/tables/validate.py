"""Validate one table: valid rows in canonical types, rejected rows unchanged, each with its reason."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from features.arrays import Bools, Ints
from features.errors import DataError, describe_os_error
from features.progress import StartProgress, Step
from features.schema import AUDIO, EVENT, EVENT_ID, IMAGE, ITEM, TIME, USER, VALUE, VIDEO
from features.tables.columns import ColumnRule, Violation, as_text
from features.tables.files.json_lines import LINE
from features.tables.report import PLACES, REJECTED, REPAIRED, Count, Problem
from features.tables.scan import reading
from features.tables.usual_names import column_meant

UNKNOWN = "unknown item"
"""Reason of the rows whose item is unknown."""

REQUIRED = {"items": (ITEM,), "events": (USER, ITEM, EVENT, TIME), "users": (USER,)}

IDENTITY = (USER, ITEM, EVENT, TIME, VALUE)
"""Events without an event_id that are equal in all these columns are duplicates."""

MEDIA = (IMAGE, AUDIO, VIDEO)

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RawTable:
    """A table before validation: its name in the contract, its file for messages, its rows, its column types."""

    name: str
    file: str
    rows: pl.LazyFrame
    types: dict[str, pl.DataType]

    @classmethod
    def of(cls, name: str, file: str, rows: pl.LazyFrame) -> "RawTable":
        """From a LazyFrame. Raises DataError when it cannot be read or lacks a required column."""
        with reading(file):
            raw = cls(name, file, rows, dict(rows.collect_schema()))
        raw.require(REQUIRED[name], f"{name} needs")
        return raw

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the file."""
        return [name for name in self.types if not name.startswith(LINE)]

    def require(self, names: Iterable[str], demand: str) -> None:
        """Raises DataError, which names the existing columns, when one of `names` is missing.

        demand: the end of the sentence "no column …, which …", e.g. "events needs".
        """
        if missing := [name for name in names if name not in self.types]:
            meant = {name: column_meant(name, self.name, self.columns) for name in missing}
            hint = "".join(f"; is {column!r} meant? Rename it to {name}" for name, column in meant.items() if column)
            raise DataError(
                f"{self.file}: no column {', '.join(missing)}, which {demand}. "
                f"The columns there are: {', '.join(self.columns)}{hint}"
            )

    def collect(self, *columns: pl.Expr, progress: StartProgress | None = None) -> pl.DataFrame:
        """The values of expressions over all rows. Raises DataError when the file cannot be read."""
        with reading(self.file):
            rows = self.rows.select(columns)
            if progress is not None:
                step = progress(self.file, self.rows.select(pl.len()).collect(engine="streaming").item())
                rows = rows.map_batches(partial(_count, step), streamable=True, validate_output_schema=False)
            return rows.collect(engine="streaming")


def _count(step: Step, rows: pl.DataFrame) -> pl.DataFrame:
    step(len(rows))
    return rows


@dataclass(frozen=True)
class Validated:
    """The result for one table.

    kept: the valid rows; codes (n,) uint8 of the n rows read: 0 = kept, otherwise 1 + index of the violation;
    rejected: the other rows, unchanged; usable: the kept rows, and those
    whose one violation is that their item is unknown.
    """

    kept: pl.DataFrame
    codes: Codes
    count: Count
    problems: list[Problem]
    rejected: pl.DataFrame
    usable: pl.DataFrame


def validate(raw: RawTable, rules: dict[str, ColumnRule], progress: StartProgress | None = None) -> Validated:
    """Validate a table in one pass: values, the first violation of each row, repaired fields; then duplicates."""
    fatal = [violation for rule in rules.values() for violation in rule.violations if not violation.repaired]
    repairs = [violation for rule in rules.values() for violation in rule.violations if violation.repaired]
    frame = raw.collect(
        *(rule.value.alias(name) for name, rule in rules.items()),
        first_violation(fatal).alias("__code__"),
        *(violation.condition.alias(f"__repaired_{k}__") for k, violation in enumerate(repairs)),
        progress=progress,
    )
    codes: Codes = frame.get_column("__code__").to_numpy().copy()
    masks = [frame.get_column(f"__repaired_{k}__").to_numpy() for k in range(len(repairs))]
    frame = frame.select(list(rules))

    valid: Bools = codes == 0
    repeated = repeated_events(frame, valid) if raw.name == "events" else _repeated(frame, frame.columns[:1], valid)
    codes[repeated] = len(fatal) + 1
    duplicate = "duplicate event" if raw.name == "events" else f"duplicate {next(iter(rules))}"
    fatal.append(Violation(duplicate, "the first is kept; write each only once", pl.lit(False)))

    problems = []
    for k, violation in enumerate(fatal):
        problems += problem_of(raw.name, raw.file, violation, REJECTED, np.flatnonzero(codes == k + 1))
    for violation, mask in zip(repairs, masks, strict=True):
        problems += problem_of(raw.name, raw.file, violation, REPAIRED, np.flatnonzero(mask & (codes == 0)))
    rejected = np.flatnonzero(codes)
    if len(rejected) == 0:
        count = Count(raw.name, raw.file, len(frame), len(frame), 0)
        return Validated(frame, codes, count, problems, pl.DataFrame(), frame)
    reasons = np.array([violation.reason for violation in fatal])[codes[rejected] - 1]
    kept = frame.filter(pl.Series(codes == 0))
    count = Count(raw.name, raw.file, len(frame), len(kept), len(rejected))
    unknown: Bools = np.isin(codes, [k + 1 for k, violation in enumerate(fatal) if violation.reason == UNKNOWN])
    usable = kept
    if unknown.any():
        usable = frame.filter(pl.Series((codes == 0) | (unknown & ~repeated_events(frame, unknown))))
    return Validated(kept, codes, count, problems, _rejected_rows(raw, rejected, reasons), usable)


def first_violation(fatal: Sequence[Violation]) -> pl.Expr:
    """UInt8: 1 + index of the first violation that holds for a row, 0 when none does."""
    return reduce(  # built from the last violation outwards
        lambda otherwise, k: pl.when(fatal[k].condition).then(pl.lit(k + 1, pl.UInt8)).otherwise(otherwise),
        reversed(range(len(fatal))),
        pl.lit(0, pl.UInt8),
    )


def problem_of(table: str, file: str, violation: Violation, action: str, rows: Ints) -> list[Problem]:
    """The problem of the rows (n,), numbered from 0, that violate the contract in one way; none without rows."""
    if len(rows) == 0:
        return []
    places = tuple(f"{file} row {row + 1}" for row in rows[:PLACES])
    return [Problem(table, violation.reason, action, len(rows), places, violation.advice)]


def repeated_events(events: pl.DataFrame, valid: Bools) -> Bools:
    """(n,) bool: the valid rows that repeat an earlier valid row. valid (n,) bool.

    Events with an event_id are equal when user and event_id are equal; other events when `IDENTITY` is equal.
    """
    ids = events.get_column(EVENT_ID)
    if ids.null_count() == len(ids):
        return _repeated(events, IDENTITY, valid)
    has_id = ids.is_not_null().to_numpy()
    return _repeated(events, (USER, EVENT_ID), valid & has_id) | _repeated(events, IDENTITY, valid & ~has_id)


def _repeated(frame: pl.DataFrame, keys: Sequence[str], among: Bools) -> Bools:
    """(n,) bool: the rows of mask `among` that are equal in all keys to an earlier row of `among`.

    A 64-bit hash selects the candidates, which are then compared exactly.
    """
    out = np.zeros(len(frame), dtype=np.bool_)
    if not among.any():
        return out
    hashes = frame.select(keys).hash_rows().to_numpy()
    ordered = np.sort(hashes[among])
    duplicated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])  # hashes that occur more than once
    if len(duplicated) == 0:
        return out
    position = np.minimum(np.searchsorted(duplicated, hashes), len(duplicated) - 1)
    rows = np.flatnonzero(among & (duplicated[position] == hashes))
    first = frame.select(keys)[rows].with_columns(pl.Series("__row__", rows)).unique(subset=keys, keep="first")
    out[rows] = True
    out[first.get_column("__row__").to_numpy()] = False
    return out


def _rejected_rows(raw: RawTable, rows: Ints, reasons: npt.NDArray[np.str_]) -> pl.DataFrame:
    """The rejected rows unchanged: reason, row (from 1), every field as text."""
    numbers = pl.DataFrame({"row": rows + 1, "reason": pl.Series(reasons.tolist(), dtype=pl.String)})
    renamed = {"row": "row_original", "reason": "reason_original"}
    fields = [
        _as_text(name, kind).alias(renamed.get(name, name))
        for name, kind in raw.types.items()
        if name == LINE or not name.startswith(LINE)  # the others say what is wrong with a line
    ]
    numbered = raw.rows.select(fields).with_row_index("row", offset=1).with_columns(pl.col("row").cast(pl.Int64))
    with reading(raw.file):
        rows_read = numbered.join(numbers.lazy(), on="row", how="inner").sort("row").collect(engine="streaming")
    return rows_read.select("reason", "row", *(c for c in rows_read.columns if c not in ("reason", "row")))


def _as_text(name: str, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, pl.List | pl.Array | pl.Struct):
        return pl.struct(pl.col(name)).struct.json_encode()
    return as_text(name, kind)


def write_rejected(validated: Validated, folder: Path, notes: list[str]) -> dict[str, str]:
    """Write the rejected rows, or remove the file of an earlier check when there are none; table -> path.

    A folder that cannot be written adds to `notes` and raises nothing.
    """
    path = folder / f"{validated.count.table}.parquet"
    try:
        if validated.count.rejected == 0:
            path.unlink(missing_ok=True)
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        validated.rejected.write_parquet(part)
        os.replace(part, path)
    except OSError as error:
        notes.append(f"rejected rows of {validated.count.table} could not be written: {describe_os_error(error)}")
        return {}
    return {validated.count.table: str(path)}


def find_media(validated: Validated, root: Path) -> tuple[pl.DataFrame, list[Problem]]:
    """The items with null in place of media paths whose file is missing, and the problems. URLs are not checked.

    Each folder is listed once. root: the folder that relative paths start from.
    """
    items, problems = validated.kept, []
    for name in MEDIA:
        column = items.get_column(name)
        if column.null_count() == len(column):
            continue
        local = pl.col(name).is_not_null() & ~pl.col(name).str.contains(r"^[A-Za-z][A-Za-z0-9+.-]+://")
        paths = items.select(pl.col(name).filter(local).unique()).to_series().to_list()
        missing = column.is_in(pl.Series(_missing_files(root, paths), dtype=pl.String).implode())
        missing = missing.fill_null(False)
        rows = np.flatnonzero(validated.codes == 0)[missing.to_numpy()]
        violation = Violation(f"missing file in {name}", f"relative paths start from {root}", pl.lit(False))
        problems += problem_of("items", validated.count.file, violation, REPAIRED, rows)
        items = items.with_columns(pl.when(~missing).then(pl.col(name)).alias(name))
    return items, problems


def _missing_files(root: Path, paths: Iterable[str]) -> list[str]:
    listed: dict[str, set[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(os.path.join(root, path))
        if folder not in listed:
            try:
                with os.scandir(folder) as entries:
                    listed[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                listed[folder] = set()
        if name not in listed[folder]:
            absent.append(path)
    return absent
