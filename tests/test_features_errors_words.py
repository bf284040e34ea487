"""Words of errors: each remedy of an error of the operating system, and what each kind of invalid value needs."""

import errno
import json
import sqlite3
from contextlib import closing
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from features.errors import (
    SQLITE,
    describe_invalid,
    describe_os_error,
    describe_read_error,
    describe_sqlite_error,
    describe_write_error,
    detail,
    missing_package,
)

RIGHT = "give this user the right to it, or choose another path"
FILE_STANDS = "a file stands where a folder is needed: move it, or choose another path"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space on its disk"),
        (errno.EDQUOT, "free space within the user's quota"),
        (errno.EROFS, "its file system is read-only: choose another folder"),
        (errno.EACCES, RIGHT),
        (errno.EPERM, RIGHT),
        (errno.ENOENT, "check the path"),
        (errno.EEXIST, FILE_STANDS),
        (errno.ENOTDIR, FILE_STANDS),
        (errno.EISDIR, "a folder stands where a file is needed: move it, or choose another path"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EMFILE, "raise the limit of open files (ulimit -n)"),
        (errno.EIO, "the disk reports a fault: check it"),
    ],
)
def test_each_remedy(number: int, remedy: str) -> None:
    assert describe_os_error(OSError(number, "Reason", "a/b")) == f"a/b: Reason; {remedy}"
    assert describe_os_error(OSError(number, "Reason")) == f"Reason; {remedy}"


def test_an_error_that_says_nothing_is_named_by_its_class() -> None:
    assert describe_os_error(ConnectionResetError()) == "ConnectionResetError"
    assert describe_os_error(OSError("text")) == "text"


def test_why_a_file_of_the_product_cannot_be_read() -> None:
    assert describe_read_error(OSError(errno.ENOENT, "No such", "x")) == "No such; check the path"
    assert describe_read_error(UnicodeDecodeError("utf-8", b"abc", 2, 3, "bad")) == "not UTF-8 at byte 2"
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads('{\n "a": x}')
    assert describe_read_error(caught.value) == "not JSON at line 2, column 7"
    assert describe_read_error(KeyError("format")) == "not what this version writes"


def test_what_a_library_says_stands_in_parentheses() -> None:
    assert detail(ValueError("first\nsecond")) == " (ValueError: first)"
    assert detail(ValueError("\n  first  \n")) == " (ValueError: first)"
    assert detail(KeyError()) == " (KeyError)"
    assert detail(RuntimeError("x" * 300)) == f" (RuntimeError: {'x' * 200})"
    assert detail(OSError("cannot identify <_io.BytesIO object at 0x7f00Ab>")) == (
        " (OSError: cannot identify <_io.BytesIO object>)"
    )


def test_why_a_database_file_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database" * 100)
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, pytest.raises(sqlite3.DatabaseError) as caught:
        connection.execute("SELECT * FROM sqlite_master")
    assert describe_sqlite_error(caught.value).startswith("it is no database of SQLite, or damaged: move it away")
    with pytest.raises(sqlite3.OperationalError) as other:
        sqlite3.connect(tmp_path / "none" / "a.db")
    assert describe_sqlite_error(other.value).startswith("it cannot be opened: check its folder")
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.OperationalError) as last:
        connection.execute("SELECT * FROM runs")
    assert describe_sqlite_error(last.value) == (
        "its tables are not those that are needed: move it away (OperationalError: no such table: runs)"
    )
    codes = {name: getattr(sqlite3, f"SQLITE_{name}") for name in NAMES}
    assert sorted(codes.values()) == sorted(SQLITE)


NAMES = ("PERM", "BUSY", "LOCKED", "READONLY", "IOERR", "CORRUPT", "FULL", "CANTOPEN", "NOTADB")


def test_why_a_table_cannot_be_written() -> None:
    full = "a/b.parquet: No space left on device; free space on its disk"
    assert describe_write_error("a/b.parquet", OSError(errno.ENOSPC, "No space left on device")) == full
    text = "parquet: File out of specification: underlying IO error: No space left on device (os error 28)"
    assert describe_write_error("a/b.parquet", pl.exceptions.ComputeError(text)) == full
    assert describe_write_error("a/b.parquet", OSError("No space left on device (os error 28)")) == full
    assert describe_write_error("a/b.parquet", OSError(errno.ENOSPC, "No space left on device", "c")) == (
        "c: No space left on device; free space on its disk"
    )
    assert describe_write_error(Path("a/b"), RuntimeError("another\ncause")) == (
        "a/b: it cannot be written there as it is; choose another path (RuntimeError: another)"
    )


def test_a_missing_package() -> None:
    assert str(missing_package("a plot", "matplotlib", "track")) == (
        "a plot needs the package matplotlib: install this project with the extra `track`"
    )


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int


class A(BaseModel):
    kind: Literal["a"]


class B(BaseModel):
    kind: Literal["b"]


NAMED = "must be named values"


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (str, 1, "must be a text"),
        (bytes, 1, "must be a text"),
        (int, "x", "must be a whole number"),
        (int, 1.5, "must be a whole number"),
        (int, "9" * 5000, "must be a smaller number"),
        (float, "x", "must be a number"),
        (bool, "x", "must be true or false"),
        (dict[str, int], 1, NAMED),
        (Inner, 1, NAMED),
        (list[int], 1, "must be a list"),
        (tuple[int, ...], 1, "must be a list"),
        (set[int], 1, "must be a list"),
        (frozenset[int], 1, "must be a list"),
        (Path, 1, "must be a path"),
        (date, "x", "must be a date"),
        (datetime, "x", "must be a time"),
        (AwareDatetime, datetime(2024, 1, 1), "must be a time with its zone"),
        (None, 1, "must be null"),
        (Annotated[int, Field(gt=1_000)], 1_000, "must be more than 1,000"),
        (Annotated[float, Field(ge=0.5)], 0, "must be 0.5 or more"),
        (Annotated[float, Field(lt=1)], 1, "must be less than 1"),
        (Annotated[int, Field(le=2**31)], 2**32, "must be 2,147,483,648 or less"),
        (Annotated[int, Field(multiple_of=4)], 3, "must be a multiple of 4"),
        (Annotated[float, Field(allow_inf_nan=False)], float("inf"), "must be a finite number"),
        (Literal["x", "y"], "z", "must be 'x' or 'y'"),
        (Annotated[A | B, Field(discriminator="kind")], {"kind": "c"}, "must be one of 'a', 'b'"),
        (Annotated[A | B, Field(discriminator="kind")], {}, "must be named values with the key 'kind'"),
        (Annotated[list[int], Field(max_length=1)], [1, 2], "must be a list of at most 1"),
        (Annotated[list[int], Field(min_length=2)], [1], "must be a list of at least 2"),
        (Annotated[str, Field(max_length=1_000)], "x" * 1_001, "must be a text of at most 1,000 characters"),
        (Annotated[str, Field(min_length=2)], "x", "must be a text of at least 2 characters"),
        (Annotated[bytes, Field(max_length=3)], b"1234", "must be a text of at most 3 bytes"),
        (Colour, "blue", "must be 'red'"),
        (int | None, "x", "must be a whole number"),
        (int | float, "x", "must be a number"),
        (str | bool, [], "must be a text or true or false"),
    ],
)
def test_what_a_value_must_be(kind: Any, value: Any, reason: str) -> None:
    strict = kind in (int, float, bool, str, bytes) and not isinstance(value, str)
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value, strict=strict or None)
    assert [each.reason for each in describe_invalid(caught.value.errors()) if each.place == ()] == [reason]


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner
    number: int | str = 0

    @field_validator("number")
    @classmethod
    def _check(cls, value: int | str) -> int | str:
        if value == 13:
            raise ValueError("13, is not lucky")
        return value


def invalid(value: Any) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    return {each.place: each.reason for each in describe_invalid(caught.value.errors())}


def test_places_and_whole_reasons() -> None:
    assert invalid({"inner": {"n": 1, "m": 2}, "x": 1}) == {("inner", "m"): "unknown key", ("x",): "unknown key"}
    assert invalid({}) == {("inner",): "missing; add it"}
    assert invalid({"inner": {}}) == {("inner", "n"): "missing; add it"}
    assert invalid({"inner": {"n": 1}, "number": []}) == {("number",): "must be a whole number or a text"}
    assert invalid({"inner": {"n": 1}, "number": 13}) == {("number",): "13, is not lucky"}
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json("{")
    assert [(each.place, each.reason) for each in describe_invalid(caught.value.errors())] == [((), "not valid JSON")]
