"""Table files as LazyFrames: parquet, CSV and JSON lines, with every message naming the file and the way out.

CSV and JSON fields come as text, whatever they look like: a reader that guesses types loses leading zeros and fails
on the first odd row, while `features.tables.columns` can set that row aside.
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
"""Extra column of JSON lines: the line itself, so that a broken one can be set aside whole."""

KEYS_FROM = 1000
"""JSON lines whose keys make the columns; those of the contract are looked for in all lines."""

CONTRACT = (
    *(schema.USER, schema.ITEM, schema.EVENT, schema.TIME, schema.VALUE),
    *(schema.EVENT_ID, schema.REQUEST_ID, schema.POSITION, schema.PROPENSITY),
    *(schema.TITLE, schema.DESCRIPTION, schema.CATEGORIES, schema.PRICE),
    *(schema.IMAGE, schema.AUDIO, schema.VIDEO, schema.PUBLISHED, schema.AVAILABLE, schema.GROUP),
)
"""Names of all columns of the contract."""

ADVICE = {
    "more fields": "a row has more fields than the header: quote fields that contain the separator",
    "utf-8": "save the file as UTF-8",
    "could not parse": "a quotation mark is opened and not closed",
    "malformed": "a quotation mark is opened and not closed: quote the field, and write a mark inside it twice",
}


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Polars' errors as DataError with the place and, where known, what to do."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        what = str(error).strip()
        advice = next((a for sign, a in ADVICE.items() if sign in what.lower()), "write the file again")
        raise DataError(f"{place} cannot be read: {what.splitlines()[0]}; {advice}") from error


def find_table(folder: Path, name: str) -> Path | None:
    """The one file of a table in a folder, None where there is none; DataError where there are two."""
    found = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: {' and '.join(p.name for p in found)} are both there; keep one file of {name}")
    return found[0] if found else None


def scan(path: Path, extra: Sequence[str] = ()) -> pl.LazyFrame:
    """A lazy reader of one file by its suffix; extra: columns wanted besides those of the contract.

    Raises DataError when it is empty or not what its suffix says.
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
    if len(names) == 1 and (wrong := next((c for c in ";\t|" if c in names[0]), None)):
        raise DataError(
            f"{path}: the header {names[0]!r} is one column; fields seem to be separated by {wrong!r}. "
            "Write the file with commas"
        )
    return frame


def _json_lines(path: Path, extra: Sequence[str]) -> pl.LazyFrame:
    keys: dict[str, None] = {}
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for text in islice(file, KEYS_FROM):
            try:
                row = json.loads(text)
            except ValueError:
                continue
            keys |= dict.fromkeys(row) if isinstance(row, dict) else {}
    names = [key for key in keys if _plain(key)]
    if not names:
        raise DataError(f"{path}: none of the first {KEYS_FROM} lines is a JSON object; write one object a line")
    line = pl.col(LINE)
    with reading(str(path)):
        lines = pl.scan_lines(path, name=LINE).with_columns(line.str.strip_chars("\ufeff \t\r"))
        lines = lines.filter(line != "")
        names += _late(lines, [name for name in dict.fromkeys((*CONTRACT, *extra)) if name not in keys])
    return lines.with_columns(_field(line, name).alias(name) for name in names)


def _late(lines: pl.LazyFrame, wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` that are a key of any line."""
    line = pl.col(LINE)
    found = lines.select(
        # most names are in no line at all, and looking for a text is far cheaper than reading every line as JSON
        _field(line.filter(line.str.contains(f'"{name}"', literal=True)), name).is_not_null().any().alias(name)
        for name in wanted
        if _plain(name)
    ).collect(engine="streaming")
    return [column.name for column in found if column.item()]


def _plain(key: str) -> bool:
    """Whether a JSON path can name it."""
    return key.isprintable() and "'" not in key and "\\" not in key


def _field(line: pl.Expr, name: str) -> pl.Expr:
    return line.str.json_path_match(f"$['{name}']")
