"""Edges of each column: spellings of flags, times, numbers and ids that are read or refused, and bounds of values."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import polars as pl
import pytest

from features.errors import DataError
from features.schema import MAX_ID_BYTES, DataConfig, EventRules
from features.tables.read import Tables, check_tables

NOW = datetime(2025, 1, 1, tzinfo=UTC)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
CONFIG = DataConfig(source="folder", path="unused", events=EventRules(positive={"buy": None}))


def check(items: Any, events: Any, now: datetime = NOW) -> Tables:
    return check_tables(pl.LazyFrame(items), pl.LazyFrame(events), None, CONFIG, now=now)


def items_with(name: str, values: Any) -> tuple[list[Any], dict[str, int]]:
    """(canonical values, count of rows by problem) of one column of the items table."""
    items = {"item_id": [f"i{row}" for row in range(len(values))], name: values}
    tables = check(items, {"user_id": ["u"], "item_id": ["i0"], "event": ["buy"], "timestamp": [NOON]})
    return tables.items[name].to_list(), {p.reason: p.count for p in tables.report.problems}


def events_with(name: str, values: Any, now: datetime = NOW) -> tuple[list[Any], dict[str, int]]:
    """(canonical values of the kept rows, count of rows by problem) of one column of the events table.

    A valid row comes first, so that something is kept.
    """
    n = len(values)
    events = {"user_id": [f"u{row}" for row in range(n)], "item_id": ["a"] * n, "event": ["buy"] * n}
    columns = events | {"timestamp": [NOON] * n} | {name: values}
    tables = check({"item_id": ["a"]}, columns, now)
    return tables.events[name].to_list(), {p.reason: p.count for p in tables.report.problems}


# --- flags


@pytest.mark.parametrize("text", ["true", "t", "yes", "y", "1", "1.0", "TRUE", " Yes "])
def test_each_spelling_of_true(text: str) -> None:
    assert items_with("available", [text, "no"]) == ([True, False], {})


@pytest.mark.parametrize("text", ["false", "f", "no", "n", "0", "0.0", "FALSE", " No "])
def test_each_spelling_of_false(text: str) -> None:
    assert items_with("available", [text, "yes"]) == ([False, True], {})


@pytest.mark.parametrize("text", ["2", "01", "0.00", "on", "-", "truee", "none"])
def test_other_texts_are_reported_and_taken_as_true(text: str) -> None:
    assert items_with("available", [text, "no"]) == ([True, False], {"available not true or false": 1})


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_flag_is_true_and_no_problem(text: str | None) -> None:
    assert items_with("available", [text, "no"]) == ([True, False], {})


def test_flags_of_numbers_and_booleans() -> None:
    assert items_with("available", [0, 1, None]) == ([False, True, True], {})
    assert items_with("available", [0.0, 1.0, None]) == ([False, True, True], {})
    assert items_with("available", [False, True, None]) == ([False, True, True], {})
    assert items_with("available", pl.Series([None, None], dtype=pl.Null)) == ([True, True], {})


# --- times


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-01T12:00:00Z",
        "2024-05-01t12:00:00z",
        "2024-05-01 12:00:00 UTC",
        "2024-05-01 12:00 GMT",
        "2024-05-01T12:00:00+00",
        "2024-05-01T12:00:00.000000+00:00",
        "2024-05-01T21:30:00+09:30",
        "2024-05-01T21:30:00+0930",
        "2024-05-01T07:00-05",
        "2024-05-01T06:15:00-05:45",
        "2024-05-02T11:59:00+23:59",
        " 2024-05-01T12:00:00Z ",
        "1714564800",
        "1714564800.0",
        "+1714564800",
    ],
)
def test_each_spelling_of_noon(text: str) -> None:
    assert events_with("timestamp", [text, "1714564800"]) == ([NOON, NOON], {})


@pytest.mark.parametrize(
    "text",
    [
        "1e9",
        "1714564800.",
        ".5",
        "0x10",
        "2024-05-01+02:00",  # a date with an offset, without a time of day
        "2024-05-01Z",
        "2024-05-01T12:00:00+24:00",
        "2024-05-01T12:00:00+02:60",
        "2024-05-01T12:00:00+2",
        "2024-05-01T24:30:00Z",
        "2024-02-30T12:00:00Z",
        "2024-05-01T12Z",
        "2024-05-01T12:00:00.Z",
        "24-05-01T12:00:00Z",
        "2024/05/01T12:00:00Z",
        "x2024-05-01T12:00:00Z",
        "2024-05-01T12:00:00Zx",
    ],
)
def test_each_text_that_is_no_time(text: str) -> None:
    kept, problems = events_with("timestamp", ["1714564800", text])
    assert (kept, list(problems.values())) == ([NOON], [1])
    kept, problems = items_with("published_at", ["1714564800", text])
    assert (kept, list(problems.values())) == ([NOON, None], [1])


def test_a_date_is_a_publication_time_and_no_time_of_an_event() -> None:
    midnight = datetime(2024, 5, 1, tzinfo=UTC)
    assert items_with("published_at", ["2024-05-01", " 2024-05-01"]) == ([midnight, midnight], {})
    assert events_with("timestamp", ["1714564800", "2024-05-01"]) == ([NOON], {"timestamp without zone": 1})
    for text in ("2024-05-01T12:00:00", "2024-05-01 12:00"):
        assert events_with("timestamp", ["1714564800", text]) == ([NOON], {"timestamp without zone": 1})
        assert items_with("published_at", ["1714564800", text]) == ([NOON, None], {"published_at without zone": 1})


def test_fractions_of_a_second_are_kept_to_the_microsecond() -> None:
    texts = ["2024-05-01T12:00:00.5Z", "2024-05-01T12:00:00.123456Z"]
    assert events_with("timestamp", texts)[0] == [NOON + timedelta(seconds=0.5), NOON + 123_456 * MICROSECOND]


def test_unknown_publication_times_are_no_problem() -> None:
    seconds = NOON.timestamp()
    assert items_with("published_at", [seconds, seconds, float("nan"), None]) == ([NOON, NOON, None, None], {})
    assert items_with("published_at", [str(int(seconds)), "", " ", None]) == ([NOON, None, None, None], {})
    assert items_with("published_at", pl.Series([None], dtype=pl.Null)) == ([None], {})
    kept, problems = items_with("published_at", [seconds, seconds, float("inf")])
    assert (kept, list(problems.values())) == ([NOON, NOON, None], [1])


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_an_event_without_a_time_is_rejected(missing: float | None) -> None:
    seconds = NOON.timestamp()
    assert events_with("timestamp", [seconds, seconds, missing]) == ([NOON, NOON], {"null timestamp": 1})


def test_an_event_exactly_a_day_ahead_is_kept() -> None:
    latest = NOON + timedelta(days=1)
    times = [NOON, latest, latest + MICROSECOND]
    assert events_with("timestamp", times, NOON) == ([NOON, latest], {"timestamp in the future": 1})


def test_an_item_may_be_published_in_the_future() -> None:
    assert items_with("published_at", [NOW + MICROSECOND]) == ([NOW + MICROSECOND], {})


# --- numbers


def test_bounds_of_numbers() -> None:
    problem = "price not a finite number of 0 or more"
    assert items_with("price", [0.0, -0.5, float("nan"), float("inf")]) == ([0.0, None, None, None], {problem: 3})
    assert items_with("price", [" 1.5 ", "", " ", None]) == ([1.5, None, None, None], {})
    assert items_with("price", ["1.5", "1,5"]) == ([1.5, None], {problem: 1})
    assert events_with("propensity", [1.0, 0.001, 0.0, 1.001])[0] == [1.0, 0.001, None, None]
    assert events_with("propensity", [1.0, 0.001, 0.0, 1.001])[1] == {"propensity not in (0, 1]": 2}


def test_a_value_that_is_no_finite_number_rejects_its_event() -> None:
    assert events_with("value", [1.0, float("inf"), float("-inf"), None]) == (
        [1.0, None],
        {"value not a finite number": 2},
    )
    assert events_with("value", ["-2.5", "x", ""]) == ([-2.5, None], {"value not a finite number": 1})


# --- ids


def test_bounds_of_ids() -> None:
    long = "é" * (MAX_ID_BYTES // 2)
    assert events_with("user_id", [long, long + "a"]) == ([long], {"user_id too long": 1})
    for character in ("\x00", "\x1f", "\x7f", "\x9f", "\n"):
        assert events_with("user_id", ["u", f"a{character}"]) == (["u"], {"user_id with control characters": 1})
    for character in (" ", "~", "\xa0", "é"):
        assert events_with("user_id", [f"a{character}"]) == ([f"a{character}"], {})


def test_whole_floats_are_ids_up_to_the_largest_exact_integer() -> None:
    largest = 2.0**53 - 1
    assert events_with("user_id", [1.0, -2.0, largest]) == (["1", "-2", "9007199254740991"], {})
    assert events_with("user_id", [1.0, 2.0**53]) == (["1"], {"user_id not a whole number": 1})
    assert events_with("user_id", [1.0, 0.5]) == (["1"], {"user_id not a whole number": 1})
    assert events_with("user_id", [1.0, None]) == (["1"], {"null user_id": 1})


def test_an_empty_optional_id_is_null() -> None:
    assert events_with("request_id", ["r", "", None]) == (["r", None, None], {})


# --- labels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", ["a", "b"]),
        (" a | b ", ["a", "b"]),
        ("a||b|", ["a", "b"]),
        ("a,b", ["a,b"]),
        ('["a", "b|c"]', ["a", "b|c"]),
        (' ["a"] ', ["a"]),
        ("[a, b]", None),
        ("[1,2]", ["1", "2"]),
        ("[]", []),
        ("", []),
        ("[a", ["[a"]),
        ("a]|b", ["a]", "b"]),
        ('["x \\"y\\" z"]', ['x "y" z']),
    ],
)
def test_labels(text: str, expected: list[str] | None) -> None:
    assert items_with("categories", [text, "other"])[0] == [expected, ["other"]]


def test_labels_of_other_types_are_refused() -> None:
    for values in ([[["a"]]], [1], [True], [[date(2024, 5, 1)]], [[time(12)]], [[timedelta(1)]]):
        with pytest.raises(DataError, match="categories has type"):
            items_with("categories", values)
    assert items_with("categories", [["a", " b ", "", None]])[0] == [["a", "b"]]


@pytest.mark.parametrize(("stored", "kind"), [(2**30, pl.List(pl.Date)), (2**62, pl.Array(pl.Datetime("ms"), 1))])
def test_labels_that_are_times_outside_the_calendar_are_refused(stored: int, kind: pl.DataType) -> None:
    with pytest.raises(DataError, match=r"categories has type .*; it must be a list of text"):
        items_with("categories", pl.Series([[stored]]).cast(kind))


def test_a_null_character_is_reported_and_its_text_is_left_out() -> None:
    assert items_with("title", ["a\0b", "a\tb"]) == ([None, "a\tb"], {"title with a null character": 1})
    assert items_with("description", ["\0", "a"]) == ([None, "a"], {"description with a null character": 1})
    values, problems = items_with("categories", [["a", "\0"], ["b"], None, []])
    assert (values, problems) == ([["a"], ["b"], None, []], {"categories with a null character": 1})
