"""Instants: requests and tables read the same text as the same time, and refuse the same text."""

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.instants import EARLIEST, LATEST, format_instant, parse_instant
from features.schema import DataConfig, EventRules
from features.tables.read import check_tables
from features.tables.times import moment

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def column(times: pl.Series, now: datetime | None) -> list[tuple[int | None, list[str]]]:
    """(instant or None, reasons) of each time, as a column of the tables. now: of events; None: of publications."""
    rule = moment("file", "time", times.dtype, numbers=None, now=now, repaired=now is None, dates=now is None)
    conditions = {violation.reason: violation.condition for violation in rule.violations}
    frame = pl.DataFrame({"time": times}).select(rule.value.cast(pl.Int64).alias("value"), **conditions)
    return [(row["value"], [reason for reason in conditions if row[reason]]) for row in frame.to_dicts()]


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.0000019Z", 1),
        ("1970-01-01 01:00+01:00", 0),
        ("1970-01-01t01:00:00.5+0100", 500_000),
        ("1969-12-31T23:59:59.9999999 UTC", -1),
        ("1970-01-01T05:30:00 +05:30", 0),
        ("19700101T010000.5+0100", 500_000),
        ("0001-01-01T00:00:00Z", EARLIEST),
        ("9999-12-31T23:59:59.999999Z", LATEST),
    ],
)
def test_an_instant_is_read_and_written(text: str, instant: int) -> None:
    assert parse_instant(text) == instant
    assert parse_instant(format_instant(instant)) == instant


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2024-05-01", "has no zone"),
        ("2024-05-01T12:00:00", "has no zone"),
        ("2024-05-01Z", "has no time of day"),
        ("2023-02-29T12:00:00Z", "not a day of the calendar"),
        ("0000-01-01T00:00:00Z", "not a day of the calendar"),
        ("0001-01-01T00:00:00+14:00", "before the year 1 or after 9999"),
        ("9999-12-31T23:59:59-14:00", "before the year 1 or after 9999"),
        *((text, "not an ISO 8601 time") for text in ("", "now", "0", "2024", "20240501T12Z", "2024-W01-1T00:00Z")),
        *((f"2024-05-01T{clock}Z", "not an ISO 8601 time") for clock in ("24:00:00", "12:60:00", "12:00:60", "12")),
        ("2024-05-01T12:00:00Z\n", "not an ISO 8601 time"),
        ("２０２４-05-01T12:00:00Z", "not an ISO 8601 time"),
    ],
)
def test_other_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_instant(text)


DAY = r"[0-9]{4}-?[01][0-9]-?[0-3][0-9]"
CLOCK = r"[012][0-9]:?[0-6][0-9](:?[0-6][0-9](\.[0-9]{1,12})?)?"
TIMES = st.one_of(
    st.from_regex(DAY + rf"([Tt ]{CLOCK} ?([Zz]|[+-][012][0-9]:?([0-5][0-9])?)?)?", fullmatch=True),
    st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    st.text(alphabet="0123456789-+:.TZ ", max_size=30),
).map(str.strip)


@given(text=TIMES, dates=st.booleans())
@example(text="0000-01-01T00:00:00Z", dates=False)
@example(text="0001-01-01T00:00:00+14:00", dates=True)
@example(text="2024-05-01", dates=True)
def test_requests_and_tables_read_the_same_instants(text: str, dates: bool) -> None:
    if text.lstrip("+-").replace(".", "", 1).isdecimal() or not text:
        return  # a number since 1970, or null, which only tables have
    rule = moment("file", "time", pl.String(), numbers=None, now=None, repaired=True, dates=dates)
    read = pl.DataFrame({"time": [text]}, schema={"time": pl.String}).select(rule.value.cast(pl.Int64)).item()
    try:
        assert parse_instant(text, dates=dates) == read
    except ValueError:
        assert read is None


def test_the_range_of_events_and_of_publications() -> None:
    day, second = timedelta(days=1), timedelta(seconds=1)
    times = pl.Series(
        [NOW + day, NOW + day + second, datetime(1970, 1, 1, tzinfo=UTC), datetime(1969, 1, 1, tzinfo=UTC)]
    )
    assert [reasons for _, reasons in column(times, NOW)] == [[], ["time in the future"], [], ["time before 1970"]]
    assert [reasons for _, reasons in column(times, None)] == [[], [], [], []]


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_a_datetime_out_of_range_is_reported(unit: str) -> None:
    ticks = pl.Series([2**63 - 1, 1 - 2**63, None])
    outside = "time not parseable"
    times = ticks.cast(pl.Datetime(unit, "UTC"))  # type: ignore[arg-type]
    assert column(times, None) == [(None, [outside]), (None, [outside]), (None, [])]


def test_dates_out_of_range_are_reported() -> None:
    days = pl.Series([2**31 - 1, 0, 1 - 2**31], dtype=pl.Int32).cast(pl.Date)
    outside = ["time not parseable"]
    assert column(days, None) == [(None, outside), (0, []), (None, outside)]


def test_the_zone_of_a_column_is_kept() -> None:
    noon = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    times = pl.Series([noon]).dt.convert_time_zone("Europe/Berlin")
    assert column(times, NOW) == [(1_714_557_600_000_000, [])]


def test_events_that_lie_ahead_are_noted() -> None:
    events = pl.LazyFrame({"timestamp": ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"]}).with_columns(
        user_id=pl.lit("u"), item_id=pl.lit("a"), event=pl.lit("buy")
    )
    config = DataConfig(source="folder", path="nowhere", events=EventRules(positive={"buy": None}))
    tables = check_tables(pl.LazyFrame({"item_id": ["a"]}), events, None, config, now=NOW)
    assert len(tables.events) == 2
    assert tables.report.notes == (
        "1 events have a time after now, up to a day: clocks that are ahead, or local times written as UTC",
    )
