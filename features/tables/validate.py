"""Sift one table: the good rows in canonical types, the others set aside as they came, each with its reason."""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from features.arrays import Bools, Ints
from features.errors import DataError
from features.progress import StartProgress, Step
from features.schema import AUDIO, EVENT, EVENT_ID, IMAGE, ITEM, TIME, USER, VALUE, VIDEO
from features.tables.columns import ColumnRule, Violation
from features.tables.report import PLACES, REJECTED, REPAIRED, Count, Problem
from features.tables.scan import LINE, reading

REQUIRED = {"items": (ITEM,), "events": (USER, ITEM, EVENT, TIME), "users": (USER,)}

IDENTITY = (USER, ITEM, EVENT, TIME, VALUE)
"""Events without an event_id that agree in all of these are one event."""

MEDIA = (IMAGE, AUDIO, VIDEO)

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RawTable:
    """A table as it came: its name in the contract, its file for messages, its rows, the types of its columns."""

    name: str
    file: str
    rows: pl.LazyFrame
    types: dict[str, pl.DataType]

    @classmethod
    def of(cls, name: str, file: str, rows: pl.LazyFrame) -> "RawTable":
        with reading(file):
            raw = cls(name, file, rows, dict(rows.collect_schema()))
        raw.require(REQUIRED[name], f"{name} needs")
        return raw

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the file has."""
        return [name for name in self.types if name != LINE]

    def require(self, names: Iterable[str], who: str) -> None:
        """DataError, with the columns there are, when one of `names` is missing."""
        if missing := [name for name in names if name not in self.types]:
            near = difflib.get_close_matches(missing[0], self.columns, n=1, cutoff=0.5)
            hint = f"; is {near[0]!r} meant? Rename it" if near else ""
            raise DataError(
                f"{self.file}: no column {', '.join(missing)}, which {who}. "
                f"The columns there are: {', '.join(self.columns)}{hint}"
            )

    def collect(self, *columns: pl.Expr, progress: StartProgress | None = None) -> pl.DataFrame:
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
    """kept: the good rows; codes (read,) uint8: 0 where a row is kept; aside: the others as they came."""

    kept: pl.DataFrame
    codes: Codes
    count: Count
    problems: list[Problem]
    rejected: pl.DataFrame


def validate(raw: RawTable, reads: dict[str, ColumnRule], progress: StartProgress | None = None) -> Validated:
    """One pass over the rows: values, the first fault of each row, the fields repaired; then duplicates."""
    fatal = [fault for read in reads.values() for fault in read.faults if not fault.repaired]
    mended = [fault for read in reads.values() for fault in read.faults if fault.repaired]
    code = reduce(
        lambda otherwise, k: pl.when(fatal[k].found).then(pl.lit(k + 1, pl.UInt8)).otherwise(otherwise),
        reversed(range(len(fatal))),
        pl.lit(0, pl.UInt8),
    )
    frame = raw.collect(
        *(read.value.alias(name) for name, read in reads.items()),
        code.alias("__code__"),
        *(fault.found.alias(f"__mended_{k}__") for k, fault in enumerate(mended)),
        progress=progress,
    )
    codes: Codes = frame.get_column("__code__").to_numpy().copy()
    marks = [frame.get_column(f"__mended_{k}__").to_numpy() for k in range(len(mended))]
    frame = frame.select(list(reads))

    good: Bools = codes == 0
    repeated = repeated_events(frame, good) if raw.name == "events" else _repeated(frame, frame.columns[:1], good)
    codes[repeated] = len(fatal) + 1
    duplicate = "duplicate event" if raw.name == "events" else f"duplicate {next(iter(reads))}"
    fatal.append(Violation(duplicate, "the first is kept; write each only once", pl.lit(False)))

    problems = []
    for k, fault in enumerate(fatal):
        problems += _problem(raw.name, raw.file, fault, REJECTED, np.flatnonzero(codes == k + 1))
    for fault, mark in zip(mended, marks, strict=True):
        problems += _problem(raw.name, raw.file, fault, REPAIRED, np.flatnonzero(mark & (codes == 0)))
    bad = np.flatnonzero(codes)
    if len(bad) == 0:
        return Validated(frame, codes, Count(raw.name, raw.file, len(frame), len(frame), 0), problems, pl.DataFrame())
    reasons = np.array([fault.reason for fault in fatal])[codes[bad] - 1]
    kept = frame.filter(pl.Series(codes == 0))
    count = Count(raw.name, raw.file, len(frame), len(kept), len(bad))
    return Validated(kept, codes, count, problems, _rejected_rows(raw, bad, reasons))


def _problem(table: str, file: str, fault: Violation, action: str, rows: Ints) -> list[Problem]:
    if len(rows) == 0:
        return []
    places = tuple(f"{file} row {row + 1}" for row in rows[:PLACES])
    return [Problem(table, fault.reason, action, len(rows), places, fault.advice)]


def repeated_events(events: pl.DataFrame, good: Bools) -> Bools:
    """(n,) bool: the good rows that repeat an earlier good one. An event_id, where given, decides within its user."""
    ids = events.get_column(EVENT_ID)
    if ids.null_count() == len(ids):
        return _repeated(events, IDENTITY, good)
    named = ids.is_not_null().to_numpy()
    return _repeated(events, (USER, EVENT_ID), good & named) | _repeated(events, IDENTITY, good & ~named)


def _repeated(frame: pl.DataFrame, keys: Sequence[str], among: Bools) -> Bools:
    """Rows of `among` equal in all keys to an earlier one: candidates by a 64-bit hash, then compared exactly."""
    out = np.zeros(len(frame), dtype=np.bool_)
    if not among.any():
        return out
    hashes = frame.select(keys).hash_rows().to_numpy()
    ordered = np.sort(hashes[among])
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice) == 0:
        return out
    at = np.minimum(np.searchsorted(twice, hashes), len(twice) - 1)
    rows = np.flatnonzero(among & (twice[at] == hashes))
    first = frame.select(keys)[rows].with_columns(pl.Series("__row__", rows)).unique(subset=keys, keep="first")
    out[rows] = True
    out[first.get_column("__row__").to_numpy()] = False
    return out


def _rejected_rows(raw: RawTable, rows: Ints, reasons: npt.NDArray[np.str_]) -> pl.DataFrame:
    """The rows set aside as they came: reason, row (from 1), every field as text."""
    why = pl.DataFrame({"row": rows + 1, "reason": pl.Series(reasons.tolist(), dtype=pl.String)})
    taken = {"row": "row_original", "reason": "reason_original"}
    fields = [_as_text(name, kind).alias(taken.get(name, name)) for name, kind in raw.types.items()]
    numbered = raw.rows.select(fields).with_row_index("row", offset=1).with_columns(pl.col("row").cast(pl.Int64))
    with reading(raw.file):
        found = numbered.join(why.lazy(), on="row", how="inner").sort("row").collect(engine="streaming")
    return found.select("reason", "row", *(c for c in found.columns if c not in ("reason", "row")))


def _as_text(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(kind, pl.List | pl.Array | pl.Struct):
        return pl.struct(column).struct.json_encode()
    return column.cast(pl.String, strict=False)


def write_rejected(sifted: Validated, folder: Path, notes: list[str]) -> dict[str, str]:
    """Write, or remove what an earlier check left; a folder that cannot be written is said, not fatal."""
    path = folder / f"{sifted.count.table}.parquet"
    try:
        if sifted.count.rejected == 0:
            path.unlink(missing_ok=True)
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        sifted.rejected.write_parquet(part)
        os.replace(part, path)
    except OSError as error:
        notes.append(f"rows set aside of {sifted.count.table} could not be written to {path}: {error}")
        return {}
    return {sifted.count.table: str(path)}


def find_media(sifted: Validated, root: Path) -> tuple[pl.DataFrame, list[Problem]]:
    """Paths whose file is not there become null. Folders are listed once each; URLs are taken as they are."""
    items, problems = sifted.kept, []
    for name in MEDIA:
        column = items.get_column(name)
        if column.null_count() == len(column):
            continue
        local = pl.col(name).is_not_null() & ~pl.col(name).str.contains(r"^[A-Za-z][A-Za-z0-9+.-]+://")
        paths = items.select(pl.col(name).filter(local).unique()).to_series().to_list()
        missing = column.is_in(pl.Series(_not_there(root, paths), dtype=pl.String).implode())
        missing = missing.fill_null(False)
        fault = Violation(f"missing file in {name}", f"relative paths start from {root}", pl.lit(False))
        problems += _problem(
            "items", sifted.count.file, fault, REPAIRED, np.flatnonzero(sifted.codes == 0)[missing.to_numpy()]
        )
        items = items.with_columns(pl.when(~missing).then(pl.col(name)).alias(name))
    return items, problems


def _not_there(root: Path, paths: Iterable[str]) -> list[str]:
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
