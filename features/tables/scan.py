"""Table files as LazyFrames: parquet, CSV and JSON lines. Every error names the file and the remedy.

All CSV and JSON fields are read as text. A reader that infers types loses leading zeros and fails on the first
unusual row, whereas `features.tables.columns` can reject that row alone.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa

from features.errors import DataError, detail
from features.files import not_a_file
from features.schema import CONTRACT
from features.tables.files.csv_records import check_records
from features.tables.files.file_format import check_format
from features.tables.files.json_lines import scan_json_lines
from features.tables.files.parquet import scan_parquet

SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")

SEPARATORS = ";\t|\x01: "
"""Characters other than the comma that may separate the fields of a text file."""

ADVICE = {
    "more fields": "a row has more fields than the header: quote fields that contain the separator",
    "utf-8": "save the file as UTF-8",
    "could not parse": "a quotation mark is opened and not closed",
    "malformed": "a quotation mark is opened and not closed: quote the field, and write a mark inside it twice",
}

DAMAGED = "it is damaged, or a column holds values of several types: write the file again"
"""What is said where no sign of ADVICE stands in an error."""

UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError, csv.Error)
"""What polars, Arrow and the module csv raise where a file cannot be read."""


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn errors of polars and Arrow into DataError with the place and, where known, the remedy."""
    try:
        yield
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's: it names path and reason
        advice = next((a for sign, a in ADVICE.items() if sign in str(error).lower()), DAMAGED)
        raise DataError(f"{place} cannot be read: {advice}{detail(error)}") from error


def tables_folder(path: str) -> Path:
    """The folder of the tables, which may be missing. Raises DataError where something else stands there."""
    folder = Path(path)
    if os.path.lexists(folder) and not folder.is_dir():
        what = (not_a_file(folder) or "a file").partition(";")[0]
        raise DataError(f"data.path {path} is {what}: give the folder that holds the tables")
    return folder


def find_table(folder: Path, name: str) -> Path | None:
    """Where a table lies: FOLDER/NAME.SUFFIX, or the folder FOLDER/NAME of parquet files; None when there is none.

    Raises DataError when there are two, and when something else has their name.
    """
    paths = [path for suffix in SUFFIXES if os.path.lexists(path := folder / f"{name}{suffix}")]
    if os.path.lexists(parts := folder / name):
        paths.append(parts)
    if len(paths) > 1:
        raise DataError(f"{folder}: {' and '.join(p.name for p in paths)} both exist; keep one of them for {name}")
    if not paths:
        return None
    if paths[0] == parts and not parts.is_dir():
        raise DataError(f"{parts}: a table is a file with one of the suffixes {', '.join(SUFFIXES)}, or a folder")
    if paths[0] != parts and (wrong := not_a_file(paths[0])):
        raise DataError(f"{paths[0]}: {wrong}")
    return paths[0]


def table_files(folder: Path, name: str) -> list[Path]:
    """The files of a table, in the order of their rows; none when there is no table. Raises like `find_table`."""
    path = find_table(folder, name)
    if path is None or not path.is_dir():
        return [] if path is None else [path]
    return _parts(path)


def _parts(folder: Path) -> list[Path]:
    """The parquet files of a table that is a folder, by name. Raises DataError for none, and for other files."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    if odd := [path.name for path in paths if path.suffix != ".parquet"]:
        raise DataError(f"{folder}: a table that is a folder holds parquet files only; move {odd[0]} away")
    for path in paths:
        if wrong := not_a_file(path):
            raise DataError(f"{path}: {wrong}")
    if not paths:
        raise DataError(f"{folder} has no parquet file: put the files of the table there")
    return paths


def scan_table(path: Path, extra: Sequence[str] = ()) -> pl.LazyFrame:
    """A LazyFrame of a table: of one file, or of the files of a folder, one after the other. See `scan`.

    A column that a file lacks is null there. Raises DataError when a column has different types in two files.
    """
    if not path.is_dir():
        return scan(path, extra)
    types, frames = dict[str, tuple[pl.DataType, Path]](), list[pl.LazyFrame]()
    for part in _parts(path):
        frames.append(scan(part, extra))
        for name, kind in frames[-1].collect_schema().items():
            first, where = types.setdefault(name, (kind, part))
            if first != kind:
                raise DataError(
                    f"{part}: {name} has type {kind}, and {first} in {where.name}: write it with one type"
                )
    return pl.concat(frames, how="diagonal")


def scan(path: Path, extra: Sequence[str] = ()) -> pl.LazyFrame:
    """A LazyFrame of one file, read according to its suffix. extra: columns to read besides the contract columns.

    Raises DataError when the file is empty or does not have the format of its suffix.
    """
    wanted = list(dict.fromkeys((*CONTRACT, *extra)))
    with reading(str(path)):
        check_format(path)
        if path.suffix == ".parquet":
            frame = scan_parquet(path)
        else:
            frame = scan_csv(path, wanted) if path.suffix == ".csv" else scan_json_lines(path, wanted)
        frame.collect_schema()
    return frame


def scan_csv(path: Path, wanted: Sequence[str] = ()) -> pl.LazyFrame:
    """A LazyFrame of a CSV file, all columns as text. wanted: names that may occur only once in the header.

    Raises DataError when a record breaks the format, fields are separated by another character, or a name repeats.
    """
    with reading(str(path)):
        names = check_records(path)
        separator = next((c for c in SEPARATORS if c in names[0] and {*names[0].split(c)} & {*wanted}), None)
        separator = separator or next((c for c in ";\t|" if len(names) == 1 and c in names[0]), None)
        if separator:
            raise DataError(
                f"{path}: the header {names[0]!r} is one column; fields seem to be separated by {separator!r}. "
                "Write the file with commas"
            )
        if twice := [name for name in wanted if names.count(name) > 1]:
            raise DataError(f"{path} has the column {twice[0]!r} twice; rename one of them")
        return pl.scan_csv(path, infer_schema=False)
