"""Numbers as times: each is read in the unit of its column, or set aside and named."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.schema import DataConfig, EventRules
from features.tables.read import Tables, check_tables

NOW = datetime(2025, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CONFIG = DataConfig(source="folder", path="unused", events=EventRules(positive={"buy": None}))
PER_SECOND = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}

DAY = 1_714_564_805
"""2024-05-01 12:00:05 UTC."""


def events(times: Any, **more: Any) -> Tables:
    """Events of one item at these times, of users "0", "1", …"""
    n = len(times)
    frame = {"user_id": [str(i) for i in range(n)], "item_id": ["a"] * n, "event": ["buy"] * n, "timestamp": times}
    return check_tables(pl.LazyFrame({"item_id": ["a"]}), pl.LazyFrame(frame | more), None, CONFIG, now=NOW)


def items(times: Any) -> Tables:
    """Items "0", "1", … published at these times, and one event."""
    n = len(times)
    one = {"user_id": ["u"], "item_id": ["0"], "event": ["buy"], "timestamp": [NOW]}
    frame = {"item_id": [str(i) for i in range(n)], "published_at": times}
    return check_tables(pl.LazyFrame(frame), pl.LazyFrame(one), None, CONFIG, now=NOW)


def only_problem(tables: Tables) -> Any:
    (problem,) = tables.report.problems
    return problem


# --- mixtures of units


def test_seconds_among_milliseconds_are_rejected_and_named() -> None:
    tables = events([DAY * 1000 + k for k in range(4)] + [DAY + k for k in range(3)])
    assert tables.events["timestamp"].to_list() == [EPOCH + timedelta(seconds=DAY, milliseconds=k) for k in range(4)]
    problem = only_problem(tables)
    assert (problem.reason, problem.action, problem.count) == ("timestamp not plausible", "rejected", 3)
    assert problem.places == ("events row 5", "events row 6", "events row 7")
    assert "1714564805 (1970-01-20 as milliseconds) looks like seconds: write one unit" in problem.advice


@pytest.mark.parametrize("cast", [pl.Int64, pl.UInt64, pl.Int128, pl.Float64, pl.Decimal(38, 0), pl.String])
@pytest.mark.parametrize("most", PER_SECOND)
@pytest.mark.parametrize("few", PER_SECOND)
def test_every_mixture_of_two_units_keeps_the_unit_of_most(cast: Any, most: str, few: str) -> None:
    if most == few:
        return
    numbers = [DAY * PER_SECOND[few], *(int((DAY + k) * PER_SECOND[most]) for k in range(3))]
    column = pl.Series(numbers, dtype=pl.Int128).cast(cast)
    expected = [EPOCH + timedelta(seconds=DAY + k) for k in range(3)]
    tables = events(column)
    assert tables.events["timestamp"].to_list() == expected
    assert f"looks like {few}" in only_problem(tables).advice
    tables = items(column)
    assert tables.items["published_at"].to_list() == [None, *expected]
    assert (only_problem(tables).action, only_problem(tables).count) == ("repaired", 1)


moments = st.integers(662_688_000, int(NOW.timestamp()))
units = st.sampled_from(list(PER_SECOND))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(moments, units), min_size=1, max_size=30))
def test_no_number_is_read_as_another_time(rows: list[tuple[int, str]]) -> None:
    """Every event that is kept has its true time, and every other event is counted, whatever the mixture."""
    tables = events([pl.Series([s * PER_SECOND[u]], dtype=pl.Int64)[0] for s, u in rows])
    kept = dict(zip(tables.events["user_id"], tables.events["timestamp"], strict=True))
    assert all(time == EPOCH + timedelta(seconds=rows[int(user)][0]) for user, time in kept.items())
    counts = {u: sum(u == other for _, other in rows) for u in PER_SECOND}
    assert len(kept) == max(counts.values())
    assert sum(p.count for p in tables.report.problems if p.action == "rejected") == len(rows) - len(kept)


old = st.integers(-2_500_000_000, -3000 * 86_400) | st.integers(3000 * 86_400, 4_000_000_000)  # until 1961, from 1978


@settings(max_examples=100, deadline=None)
@given(st.lists(old, min_size=3, max_size=30), units, st.lists(st.tuples(moments, units), max_size=2))
def test_publication_may_be_old_and_other_units_become_null(
    times: list[int], unit: str, others: list[tuple[int, str]]
) -> None:
    numbers = [s * PER_SECOND[unit] for s in times] + [s * PER_SECOND[u] for s, u in others]
    published = items(pl.Series(numbers, dtype=pl.Int128)).items["published_at"].to_list()
    assert published[: len(times)] == [EPOCH + timedelta(seconds=s) for s in times]
    for (seconds, other), got in zip(others, published[len(times) :], strict=True):
        assert got == (EPOCH + timedelta(seconds=seconds) if other == unit else None)


# --- numbers that are no times


@pytest.mark.parametrize(
    ("numbers", "like"),
    [
        ([1, 2, 3], "1 looks like a place in an order; where only the order is known"),
        ([2023, 2024], "2023 looks like a year"),
        ([20240501, 20240502], "20240501 looks like a date written as one number"),
        ([20240501123000], "looks like a date written as one number"),
        ([45413, 45414], "a count of days, of a spreadsheet or since 1970"),
        ([19844, 19845], "19844 looks like a count of days since 1970"),
        ([476268], "a count of hours since 1970"),
        ([28576080], "a count of minutes since 1970"),
        ([0, -1], "0 looks like a place in an order"),
    ],
)
@pytest.mark.parametrize("cast", [pl.Int64, pl.Float64, pl.String])
def test_other_numbers_in_place_of_times_are_refused(numbers: list[int], like: str, cast: Any) -> None:
    column = pl.Series(numbers).cast(cast)
    text = column.cast(pl.Int64).cast(pl.String) if cast == pl.String else column
    with pytest.raises(DataError, match="nothing usable is left") as error:
        events(text)
    assert "timestamp not plausible" in str(error.value)
    assert like in str(error.value)
    assert "write timestamp as ISO 8601" in str(error.value)
    tables = items(text)
    assert tables.items["published_at"].null_count() == len(numbers)
    assert (only_problem(tables).reason, only_problem(tables).action) == ("published_at not plausible", "repaired")


@pytest.mark.parametrize("ticks", [638_501_616_050_000_000, 133_590_384_050_000_000])
def test_ticks_of_100_ns_since_year_1_or_1601_are_not_read_as_nanoseconds(ticks: int) -> None:
    with pytest.raises(DataError, match=f"{ticks} looks like no time in any unit"):
        events([ticks])


def test_films_of_1930_and_dates_to_come_are_read() -> None:
    times = [-1_262_304_000, -631_152_000, 0, 86_400 * 365, DAY, 4_000_000_000, 253_402_300_799]
    assert items(times).items["published_at"].to_list() == [EPOCH + timedelta(seconds=s) for s in times]
    assert items(times).report.problems == ()
    odd = [*times, 2024, 45413, 20240501, 10**11, 60]
    assert items(odd).items["published_at"].to_list()[len(times) :] == [None] * 5


def test_times_of_events_before_1991_are_read_from_text_only() -> None:
    assert "500000000 (1985-11-05 as seconds) is not plausible" in only_problem(events([DAY, 500_000_000])).advice
    tables = events(["1985-11-05T00:53:20Z", "2024-05-01T12:00:05Z"])
    assert len(tables.events) == 2
    assert (only_problem(tables).reason, only_problem(tables).action) == ("timestamp before 1991", "kept")
    assert only_problem(tables).places == ("events row 1",)


def test_published_at_close_to_1970_is_doubted() -> None:
    tables = items(["1970-01-20T20:16:04.805Z", "1970-01-20", "1930-05-01"])
    assert tables.items["published_at"].null_count() == 0
    assert (only_problem(tables).reason, only_problem(tables).count) == ("published_at close to 1970", 1)


# --- precision


@pytest.mark.parametrize("dtype", [pl.Float32, pl.Float16])
def test_floats_that_cannot_hold_times_are_refused(dtype: Any) -> None:
    column = pl.Series([1000.0, 60000.0]).cast(dtype)
    for read in (events, items):
        with pytest.raises(DataError, match="rounds times to minutes or worse; write the column again"):
            read(column)
    assert items(pl.Series([None, None], dtype=dtype)).report.problems == ()


def test_float64_holds_nanoseconds_to_a_microsecond() -> None:
    (time,) = events([1_714_564_805_123_456_789.0]).events["timestamp"]
    assert abs(time - datetime(2024, 5, 1, 12, 0, 5, 123457, tzinfo=UTC)) <= timedelta(microseconds=1)


def test_numbers_in_exponent_form_have_lost_digits() -> None:
    tables = events(["1.71e9", "1.714565E+09", str(DAY)])
    assert tables.events["user_id"].to_list() == ["2"]
    problem = only_problem(tables)
    assert (problem.reason, problem.count) == ("timestamp in exponent form", 2)
    assert "write all digits" in problem.advice


def test_float32_ids_are_exact_to_2_to_the_24() -> None:
    ids = pl.Series([16_777_215.0, 16_777_216.0, 16_777_218.0, 7.0]).cast(pl.Float32)
    tables = events([DAY] * 4, user_id=ids)
    assert tables.events["user_id"].to_list() == ["16777215", "7"]
    assert only_problem(tables).reason == "user_id not a whole number"


def test_ids_that_are_no_ids_are_doubted() -> None:
    tables = events([DAY + k for k in range(5)], user_id=["nan", "NULL", "1.71457E+15", "null-island", "1e5"])
    assert {p.reason: (p.action, p.count) for p in tables.report.problems} == {
        "user_id is a word for a missing value": ("kept", 2),
        "user_id in exponent form": ("kept", 1),
    }


# --- instants that the library cannot print


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_datetimes_outside_the_calendar(unit: Any, zone: str) -> None:
    per = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    extreme = [2**63 - 1, -(2**63), DAY * per]
    column = pl.Series(extreme, dtype=pl.Int64).cast(pl.Datetime(unit)).dt.replace_time_zone("UTC")
    column = column.dt.convert_time_zone(zone)
    published = items(column).items["published_at"].to_list()
    assert published[2] == EPOCH + timedelta(seconds=DAY)
    if unit != "ns":
        assert published[:2] == [None, None]
        assert events(column).events["user_id"].to_list() == ["2"]


def test_dates_outside_the_calendar() -> None:
    column = pl.Series([2**31 - 1, -(2**31), 19_844], dtype=pl.Int32).cast(pl.Date)
    assert items(column).items["published_at"].to_list() == [None, None, datetime(2024, 5, 1, tzinfo=UTC)]
    assert items(["0000-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00"]).items["published_at"].null_count() == 2
