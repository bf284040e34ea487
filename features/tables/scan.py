"""Table files as LazyFrames: parquet, CSV and JSON lines. Every error names the file and the remedy.

All CSV and JSON fields are read as text. A reader that infers types loses leading zeros and fails on the first
unusual row, whereas `features.tables.columns` can reject that row alone.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import polars as pl

from features import schema
from features.errors import DataError

SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")

LINE = "__line__"
"""Additional column of JSON lines: the line itself, so that a malformed line can be rejected unchanged."""

KEYS_FROM = 1000
"""Number of first JSON lines whose keys become columns. Contract columns are searched in all lines."""

CONTRACT = (
    *(schema.USER, schema.ITEM, schema.EVENT, schema.TIME, schema.VALUE),
    *(schema.EVENT_ID, schema.REQUEST_ID, schema.POSITION, schema.PROPENSITY),
    *(schema.TITLE, schema.DESCRIPTION, schema.CATEGORIES, schema.PRICE),
    *(schema.IMAGE, schema.AUDIO, schema.VIDEO, schema.PUBLISHED, schema.AVAILABLE, schema.GROUP),
)
"""Names of all contract columns."""

ADVICE = {
    "more fields": "a row has more fields than the header: quote fields that contain the separator",
    "utf-8": "save the file as UTF-8",
    "could not parse": "a quotation mark is opened and not closed",
    "malformed": "a quotation mark is opened and not closed: quote the field, and write a mark inside it twice",
}


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn errors of polars into DataError with the place and, where known, the remedy."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        message = str(error).strip()
        advice = next((a for sign, a in ADVICE.items() if sign in message.lower()), "write the file again")
        raise DataError(f"{place} cannot be read: {message.splitlines()[0]}; {advice}") from error


def find_table(folder: Path, name: str) -> Path | None:
    """The file of a table in a folder; None when there is none. Raises DataError when there are two."""
    paths = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(paths) > 1:
        raise DataError(f"{folder}: {' and '.join(p.name for p in paths)} both exist; keep one file of {name}")
    return paths[0] if paths else None


def scan(path: Path, extra: Sequence[str] = ()) -> pl.LazyFrame:
    """A LazyFrame of one file, read according to its suffix. extra: columns to read besides the contract columns.

    Raises DataError when the file is empty or does not have the format of its suffix.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); write at least a header and one row")
    if path.suffix == ".parquet":
        with reading(str(path)):
            frame = pl.scan_parquet(path)
            frame.collect_schema()
        return frame
    return _csv(path) if path.suffix == ".csv" else _json_lines(path, extra)


def _csv(path: Path) -> pl.LazyFrame:
    with reading(str(path)):
        frame = pl.scan_csv(path, infer_schema=False)
        names = frame.collect_schema().names()
    if len(names) == 1 and (separator := next((c for c in ";\t|" if c in names[0]), None)):
        raise DataError(
            f"{path}: the header {names[0]!r} is one column; fields seem to be separated by {separator!r}. "
            "Write the file with commas"
        )
    return frame


def _json_lines(path: Path, extra: Sequence[str]) -> pl.LazyFrame:
    """One text column per key, and the column LINE."""
    keys: dict[str, None] = {}
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for text in islice(file, KEYS_FROM):
            try:
                row = json.loads(text)
            except ValueError:
                continue
            keys |= dict.fromkeys(row) if isinstance(row, dict) else {}
    names = [key for key in keys if _addressable(key)]
    if not names:
        raise DataError(f"{path}: none of the first {KEYS_FROM} lines is a JSON object; write one object a line")
    line = pl.col(LINE)
    with reading(str(path)):
        lines = pl.scan_lines(path, name=LINE).with_columns(line.str.strip_chars("\ufeff \t\r"))
        lines = lines.filter(line != "")
        names += _later_keys(lines, [name for name in dict.fromkeys((*CONTRACT, *extra)) if name not in keys])
    return lines.with_columns(_field(line, name).alias(name) for name in names)


def _later_keys(lines: pl.LazyFrame, names: Sequence[str]) -> list[str]:
    """The names that are a key of at least one line."""
    line = pl.col(LINE)
    present = lines.select(
        # most names occur in no line, and a text search is far cheaper than parsing every line as JSON
        _field(line.filter(line.str.contains(f'"{name}"', literal=True)), name).is_not_null().any().alias(name)
        for name in names
        if _addressable(name)
    ).collect(engine="streaming")
    return [column.name for column in present if column.item()]


def _addressable(key: str) -> bool:
    """Whether a JSON path can name the key."""
    return key.isprintable() and "'" not in key and "\\" not in key


def _field(line: pl.Expr, name: str) -> pl.Expr:
    return line.str.json_path_match(f"$['{name}']")
