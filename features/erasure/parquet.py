"""Rows of a person in parquet files that the product wrote: exports of the log, rejected rows, slates, outcomes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from features.errors import FileError, describe_write_error
from features.files import put_file
from features.log.erasure.person import Person
from features.schema import USER
from features.tables.erased import users_of_rejected
from features.tables.files.json_lines import LINE
from features.tables.scan import UNREADABLE

PERSON_COLUMNS = (USER, "from_id", "user")
"""Columns that hold users: in copies of the log and slates; of merged users; in outcomes of an evaluation."""

PLACES_COUNT = "manifest.json"
"""Key of the metadata of a file whose shards count its rows: a row of the person stays, without the id."""

_SCHEMA = "ARROW:schema"
"""Key of the metadata that polars writes itself."""


def parquet_files(root: Path) -> list[Path]:
    """The parquet files of a folder and its folders, also unfinished ones; a file is itself. Raises OSError."""
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*.parquet") if path.is_file())


def is_abandoned(path: Path) -> bool:
    """Whether a file is the unfinished one of a process that has ended."""
    name = next((part for part in path.parts if part.startswith(".writing-")), None)
    if name is None:
        return False
    process = name.split("-")[1]
    return not (process.isdecimal() and Path(f"/proc/{process}").exists())


def count_rows(path: Path, person: Person) -> int:
    """Number of rows of a person. Raises FileError."""
    with _reading(path):
        frame = pl.scan_parquet(path)
        mine = _mine(path, frame, person)
        return 0 if mine is None else int(frame.select(mine.sum()).collect(engine="streaming").item() or 0)


def rows_of(path: Path, person: Person) -> pl.DataFrame:
    """The rows of a person. Raises FileError."""
    with _reading(path):
        frame = pl.scan_parquet(path)
        mine = _mine(path, frame, person)
        return pl.DataFrame() if mine is None else frame.filter(mine).collect(engine="streaming")


def erase_rows(path: Path, person: Person) -> int:
    """Replace a file by one without the person's rows, where it has any; their number.

    The metadata stays, the order too. Raises FileError.
    """
    if not (n := count_rows(path, person)):
        return 0
    with _reading(path):
        frame = pl.scan_parquet(path)
        mine = _mine(path, frame, person)
        assert mine is not None
        metadata = {name: text for name, text in pl.read_parquet_metadata(path).items() if name != _SCHEMA}
        if PLACES_COUNT in metadata:
            left = frame.with_columns(pl.when(~mine).then(pl.col(USER)).alias(USER))
        else:
            left = frame.filter(~mine)
        put_file(path, lambda part: left.sink_parquet(part, metadata=metadata))
    return n


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        number = isinstance(error, OSError) and error.errno
        if number or "(os error" in str(error):
            raise FileError(describe_write_error(path, error)) from error
        raise FileError(
            f"{path} is no parquet file that can be read, and what it holds of a user is not known: delete it if it "
            "was one; if not, name another file"
        ) from error


def _mine(path: Path, frame: pl.LazyFrame, person: Person) -> pl.Expr | None:
    """Whether a row is of the person, never null; None where no column of the file holds users."""
    schema = frame.collect_schema()
    tests = [pl.col(name).cast(pl.String) == person.user for name in PERSON_COLUMNS if name in schema]
    if LINE in schema:
        quoted = [form.decode() for form in person.quoted]
        in_line = pl.any_horizontal(pl.col(LINE).str.contains(text, literal=True) for text in quoted)
        user = pl.struct(USER, LINE).map_batches(_users, return_dtype=pl.String)
        tests += [in_line & pl.col(USER).is_null(), user == person.user]
    return pl.any_horizontal(test.fill_null(False) for test in tests) if tests else None


def _users(rows: pl.Series) -> pl.Series:
    return users_of_rejected(rows.struct.unnest())
