"""Every type of polars in every column of the contract: it is read, or refused with a DataError."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.errors import DataError
from features.schema import DataConfig, EventRules
from features.tables.read import EVENTS, ITEMS, check_tables

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
CONFIG = DataConfig(source="folder", path="unused", events=EventRules(positive={"buy": None}))
SECONDS = 1_714_564_805

INTEGERS = {f"Int{n}": (-(2 ** (n - 1)), 2 ** (n - 1) - 1) for n in (8, 16, 32, 64, 128)}
INTEGERS |= {f"UInt{n}": (0, 2**n - 1) for n in (8, 16, 32, 64, 128)}
VALUES = (0, 1, -1, 2024, 20_240_501, SECONDS, SECONDS * 1000, SECONDS * 10**6, SECONDS * 10**9)
FLOATS = (0.0, 1.0, -1.0, 0.5, SECONDS, SECONDS * 1e3, 1e30, float("inf"), float("nan"), None)
TEXTS = (
    "0",
    "1",
    "0.5",
    "-1",
    "1.71e9",
    "1e999",
    "NaN",
    "inf",
    "12,50",
    "$5",
    str(SECONDS),
    "9" * 40,
    "",
    " 7 ",
    "٣",
    "x",
)


def columns() -> dict[str, pl.Series]:
    """Type -> a column of it with ordinary, extreme and missing values."""
    out = {
        name: pl.Series([*(v for v in VALUES if low <= v <= high), low, high, None], dtype=getattr(pl, name))
        for name, (low, high) in INTEGERS.items()
    }
    out |= {f"Float{n}": pl.Series(FLOATS).cast(getattr(pl, f"Float{n}")) for n in (16, 32, 64)}
    out["Decimal"] = pl.Series([*VALUES, None], dtype=pl.Int64).cast(pl.Decimal(38, 2))
    out["String"] = pl.Series([*TEXTS, "", " 7 ", "٣", "x", "2024-05-01T12:00:00Z", "0000-01-01", None])
    out["Categorical"] = pl.Series(["0", "1", "x", None]).cast(pl.Categorical)
    out["Enum"] = pl.Series(["0", "1", None]).cast(pl.Enum(["0", "1"]))
    out["Boolean"] = pl.Series([True, False, None])
    out["Date"] = pl.Series([0, 19_844, 2**31 - 1, -(2**31), None], dtype=pl.Int32).cast(pl.Date)
    instants = pl.Series([0, 2**63 - 1, -(2**63), None], dtype=pl.Int64)
    for unit in ("ms", "us", "ns"):
        out[f"Datetime {unit}"] = instants.cast(pl.Datetime(unit))
        out[f"Datetime {unit} zoned"] = instants.cast(pl.Datetime(unit)).dt.replace_time_zone("UTC")
        out[f"Duration {unit}"] = instants.cast(pl.Duration(unit))
    out["Time"] = pl.Series([time(1, 2, 3), None])
    out["Null"] = pl.Series([None, None])
    out["Binary"] = pl.Series([b"0", b"\xff", None])
    out["List"] = pl.Series([["0", "x"], [], None], dtype=pl.List(pl.String))
    out["List of integers"] = pl.Series([[0, 1], None], dtype=pl.List(pl.Int64))
    out["Array"] = pl.Series([[0, 1]], dtype=pl.Array(pl.Int64, 2))
    out["Struct"] = pl.Series([{"a": 0}, None])
    return out


COLUMNS = columns()
NUMERIC = {*INTEGERS, "Float16", "Float32", "Float64", "Decimal"}
WORDS = {"String", "Categorical", "Enum", "Null"}
NESTED = {"List", "List of integers", "Array", "Struct"}
ZONED = {"Datetime ms zoned", "Datetime us zoned", "Datetime ns zoned"}
INSTANTS = {*INTEGERS, "Float64", "Decimal", "String", "Null", *ZONED}

TEXTUAL = {*COLUMNS} - NESTED - {"Binary", "Duration ms", "Duration us", "Duration ns"}

ACCEPTED = {
    **dict.fromkeys(("item_id", "user_id", "event_id", "request_id"), (NUMERIC - {"Decimal"}) | WORDS),
    **dict.fromkeys(("value", "price", "position", "propensity"), NUMERIC | {"String", "Null"}),
    "timestamp": INSTANTS,
    "published_at": INSTANTS | {"Date"},
    "available": NUMERIC | {"String", "Null", "Boolean"},
    "categories": WORDS | {"List", "List of integers", "Array"},
    **dict.fromkeys(("title", "description", "image", "audio", "video", "group_id", "event"), TEXTUAL),
}
"""Column -> types that are read; a column of another type is refused as a whole."""

REFUSED = ("has type", "no time zone", "dates only", "rounds times")
"""What the errors say that refuse a column."""

PAIRS = [(table, name) for table, names in (("items", ITEMS), ("events", EVENTS)) for name in names]


@pytest.mark.parametrize(("table", "name"), PAIRS)
@pytest.mark.parametrize("kind", COLUMNS)
def test_every_type_in_every_column(table: str, name: str, kind: str, tmp_path: Path) -> None:
    column = COLUMNS[kind]
    n = len(column)
    items: dict[str, Any] = {"item_id": [str(i) for i in range(n)]}
    events: dict[str, Any] = {"user_id": ["u"] * n, "item_id": ["0"] * n, "event": ["buy"] * n}
    events["timestamp"] = [NOON + timedelta(seconds=i) for i in range(n)]
    (items if table == "items" else events)[name] = column
    tables = error = None
    try:
        tables = check_tables(pl.LazyFrame(items), pl.LazyFrame(events), None, CONFIG, rejected=tmp_path)
    except DataError as refusal:
        error = str(refusal)
    if error is not None:
        refused = any(words in error for words in REFUSED)
        assert refused == (kind not in ACCEPTED[name]), error
        assert refused or "nothing usable is left" in error
        return
    assert tables is not None
    assert kind in ACCEPTED[name]
    for count in tables.report.counts:
        assert count.read == n == count.kept + count.rejected
    assert tables.items.to_dicts()  # every value can be printed
    assert tables.events.to_dicts()


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_type_in_a_column_of_no_meaning_is_kept_with_the_rejected_rows(kind: str, tmp_path: Path) -> None:
    column = COLUMNS[kind]
    n = len(column)
    events: dict[str, Any] = {"user_id": [""] * (n - 1) + ["u"], "item_id": ["0"] * n, "event": ["buy"] * n}
    events |= {"timestamp": [NOON] * n, "more": column.reverse()}
    tables = check_tables(pl.LazyFrame({"item_id": ["0"]}), pl.LazyFrame(events), None, CONFIG, rejected=tmp_path)
    assert tables.report.counts[1].rejected == n - 1
    if n > 1:
        assert len(pl.read_parquet(tmp_path / "events.parquet")["more"]) == n - 1


CASES: list[tuple[str, Any, Any, Any]] = [
    # column, type, values, what is read (None where a field is repaired)
    ("price", pl.Float32, [12.5, -1.0, float("nan"), float("inf"), 1e30, None], [12.5, None, None, None, None, None]),
    ("price", pl.Decimal(12, 2), ["12.50", "-0.01"], [12.5, None]),
    (
        "price",
        pl.String,
        ["12.50", "12,50", "1.234,50", "$5", "1e3", "1e999"],
        [12.5, None, None, None, 1000.0, None],
    ),
    ("price", pl.UInt64, [0, 10**12, 10**12 + 1, 2**64 - 1], [0.0, 1e12, None, None]),
    ("position", pl.Float64, [3.0, 3.5, -1.0, 2.0**31, float("nan")], [3, None, None, None, None]),
    ("position", pl.Int128, [3, -1, 10_000, 2**100], [3, None, 10_000, None]),
    ("position", pl.String, ["3", "3.0", "three"], [3, 3, None]),
    ("propensity", pl.Float32, [0.5, 0.0, 1.5, 1.0], [0.5, None, None, 1.0]),
    ("propensity", pl.Decimal(4, 2), ["0.25", "2.00"], [0.25, None]),
    ("available", pl.Int8, [0, 1, 2, -1, None], [False, True, True, True, True]),
    ("available", pl.Float64, [0.0, 1.0, float("nan"), 0.5], [False, True, True, True]),
    ("available", pl.String, ["FALSE", "yes", "maybe", ""], [False, True, True, True]),
]


@pytest.mark.parametrize(("name", "dtype", "values", "expected"), CASES)
def test_optional_fields_of_every_numeric_type(name: str, dtype: Any, values: list[Any], expected: list[Any]) -> None:
    column = pl.Series(values, strict=False).cast(dtype, strict=False)
    n = len(values)
    items: dict[str, Any] = {"item_id": [str(i) for i in range(n)]}
    events: dict[str, Any] = {"user_id": ["u"] * n, "item_id": ["0"] * n, "event": ["buy"] * n}
    events["timestamp"] = [NOON + timedelta(seconds=i) for i in range(n)]
    (items if name in ITEMS else events)[name] = column
    tables = check_tables(pl.LazyFrame(items), pl.LazyFrame(events), None, CONFIG)
    read = (tables.items if name in ITEMS else tables.events)[name].to_list()
    assert read == expected
    default = True if name == "available" else None
    doubtful = sum(
        got is default and raw not in (None, "", "yes", 1, 1.0) for raw, got in zip(values, read, strict=True)
    )
    assert sum(p.count for p in tables.report.problems if p.action == "repaired") == doubtful


def test_values_of_events_are_finite() -> None:
    values = [1.5, float("inf"), float("-inf"), float("nan"), None, 1e300]
    for cast in (pl.Float64, pl.String):
        n = len(values)
        events: dict[str, Any] = {"user_id": ["u"] * n, "item_id": ["0"] * n, "event": ["buy"] * n}
        events["timestamp"] = [NOON + timedelta(seconds=i) for i in range(n)]
        events["value"] = pl.Series(values).cast(cast)
        tables = check_tables(pl.LazyFrame({"item_id": ["0"]}), pl.LazyFrame(events), None, CONFIG)
        assert tables.events["value"].to_list() == [1.5, None, 1e300]
        assert [(p.reason, p.count) for p in tables.report.problems] == [("value not a finite number", 3)]
