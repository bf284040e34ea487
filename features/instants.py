"""The rule of instants: which text is a time, and which times the product accepts. One rule holds at every door.

An instant is an int64 number of microseconds since 1970-01-01 UTC.
"""

import re
import time
from datetime import UTC, datetime, timedelta

DAY, MINUTE = 86_400_000_000, 60_000_000
"""One day in µs."""

ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]+)?)?))?"
    r" *([Zz]|UTC|GMT|[+-](?:[01][0-9]|2[0-3]):?(?:[0-5][0-9])?)?$"
)
"""ISO 8601 in the syntax that the regular expressions of Python and polars share. Groups: date, time of day, zone."""

BASIC = r"^([0-9]{4})([0-9]{2})([0-9]{2})[Tt]([0-9]{2})([0-9]{2})([0-9]{2})"
"""The date and time of ISO 8601 without signs between: year, month, day, hour, minute, second."""

_EPOCH = datetime(1970, 1, 1)

EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""First and last instant of all: the years 1 to 9999 in UTC."""

EARLIEST_EVENT = 0
"""First instant of an event. An earlier one comes from a missing time or a wrong unit."""

MAX_CLOCK_SKEW = DAY
"""How far (µs) an event may lie ahead of the clock: devices with wrong clocks, and local times written as UTC."""


def now_micros() -> int:
    """The current time in µs since 1970 UTC."""
    return time.time_ns() // 1000


def parse_instant(text: str, *, dates: bool = False) -> int:
    """The instant of ISO 8601 text with a zone, cut to whole microseconds.

    dates: a date without a time of day is midnight UTC. Raises ValueError with the reason.
    """
    match = re.fullmatch(ISO, re.sub(BASIC, r"\1-\2-\3T\4:\5:\6", text))
    if match is None:
        raise ValueError("is not an ISO 8601 time such as 2026-01-31T12:00:00Z")
    day, clock, zone = match.groups()
    if zone is None and not (dates and clock is None):
        raise ValueError("has no zone: add Z or an offset such as +01:00")
    if clock is None and zone is not None:
        raise ValueError("has no time of day: write it as 2026-01-31T12:00:00Z")
    whole, _, fraction = (clock or "00:00").partition(".")
    try:
        local = datetime.fromisoformat(f"{day}T{whole}")
    except ValueError:
        raise ValueError("is not a day of the calendar") from None
    elapsed = (local - _EPOCH) // timedelta(microseconds=1) + int(fraction[:6].ljust(6, "0"))
    instant = elapsed - _offset_minutes(zone or "Z") * 60_000_000
    if not EARLIEST <= instant <= LATEST:
        raise ValueError("is before the year 1 or after 9999 in UTC")
    return instant


def _offset_minutes(zone: str) -> int:
    digits = re.sub("[^0-9]", "", zone).ljust(4, "0")
    minutes = int(digits[:2]) * 60 + int(digits[2:])
    return -minutes if zone[0] == "-" else minutes


def format_instant(instant: int) -> str:
    """ISO 8601 text of an instant, in UTC."""
    return (_EPOCH + timedelta(microseconds=instant)).replace(tzinfo=UTC).isoformat()
