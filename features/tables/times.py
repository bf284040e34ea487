"""Times in tables: zoned datetimes, ISO 8601 text, and numbers since 1970, which are believed only where plausible.

A number says neither its unit nor whether it is a time at all. A time between 1991 and 2100 is written with other
numbers in each unit. The unit of a column is the one in which the most of its numbers are plausible times. A number
that is not plausible in that unit is a violation, whose advice says what the number looks like.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC as PYTHON_UTC
from datetime import datetime, timedelta

import polars as pl

from features.errors import DataError
from features.instants import BASIC, EARLIEST, EARLIEST_EVENT, ISO, LATEST, MAX_CLOCK_SKEW
from features.tables.columns import UTC, ColumnRule, Violation
from features.tables.validate import RawTable

UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
"""Unit -> units per second."""

RECENT = (662_688_000, 4_102_444_800)
"""Seconds of 1991-01-01 and 2100-01-01 UTC: the range of plausible numbers for events, and the range that tells units
apart. The ranges of two units do not meet. The ticks of .NET (100 ns since year 1) lie outside all of them."""

CALENDAR = (EARLIEST / 1e6, (LATEST + 1) / 1e6)
"""The range of all instants, in seconds."""

NEVER = 253_370_764_800
"""Seconds of 9999-01-01 UTC: some tables write a date of this year for "never"."""

AROUND_1970 = 30 * 86_400
"""Seconds around 1970-01-01 in which numbers land that are no times of this unit, or no times at all."""

NUMBER = r"^[+-]?\d+(?:\.\d+)?$"
EXPONENT = r"^[+-]?\d+(?:\.\d*)?[eE][+-]?\d+$"

SMALLEST = 366 * 86_400
"""Seconds. A column of published_at with a smaller median holds no times of this unit: its times would be of 1970.
Counts of minutes and dates written as one number would."""

WRITE = "write {} as ISO 8601 with an offset, of the years 1 to 9999, e.g. 2024-05-01T12:00:00Z"

ADD_ZONE = 'Write it with one: if it is UTC, pl.col("{}").dt.replace_time_zone("UTC")'

DIGIT_DATES = {"seconds": 8, "milliseconds": 12}
"""Unit -> digits of a date written as one number (20240501, 202405011200) that is a plausible time in this unit."""

COUNTS = (
    (20_000, 80_000, "a count of days, of a spreadsheet or since 1970"),
    (7_000, 20_000, "a count of days since 1970"),
    (170_000, 1_150_000, "a count of hours since 1970"),
    (10_000_000, 70_000_000, "a count of minutes since 1970"),
    (0, 170_000, "a place in an order; where only the order is known, write times one second apart"),
)
"""(from, to, what a number in this range looks like), the first that holds."""


@dataclass(frozen=True)
class EpochNumbers:
    """How the numbers of a time column are read.

    unit: key of UNITS; None when no unit makes them plausible. median: of their magnitudes, zeros left out.
    odd: the first number that is not plausible in the unit; None when all are. events: whether they are times of
    events, which lie in RECENT; times of publication may be older or later.
    """

    unit: str | None
    median: float
    odd: float | None
    events: bool

    @classmethod
    def of(cls, raw: RawTable, name: str, *, events: bool) -> "EpochNumbers | None":
        """From all rows of a column; None when it holds no number.

        Raises DataError for a float type that cannot hold times.
        """
        dtype = raw.types[name]
        if (since := epoch(dtype, name)) is None:
            return None
        number = since.filter(since.is_finite())
        facts = raw.collect(
            number.len().alias("count"),
            number.filter(number != 0).abs().median().alias("median"),
            *(_plausible(number, unit, events).sum().alias(unit) for unit in UNITS),
        ).row(0, named=True)
        if not facts["count"]:
            return None
        if dtype in (pl.Float16, pl.Float32):
            raise DataError(
                f"{raw.file}: {name} has type {dtype}, which rounds times to minutes or worse; write the column "
                "again from its source, as Int64 or as a datetime with a zone"
            )
        best, median = max(UNITS, key=lambda u: int(facts[u])), facts["median"] or 0.0
        believed = facts[best] and (events or median >= SMALLEST * UNITS[best])
        numbers = cls(best if believed else None, median, None, events)
        if believed and facts[best] == facts["count"]:
            return numbers
        odd = raw.collect(number.filter(~numbers.plausible(number)).first()).item()
        return replace(numbers, odd=odd)

    def plausible(self, since: pl.Expr) -> pl.Expr:
        """Mask of the numbers that are plausible times."""
        return pl.lit(False) if self.unit is None else _plausible(since, self.unit, self.events)

    def micros(self, since: pl.Expr) -> pl.Expr:
        """Microseconds since 1970, Int64, null where a number is not plausible."""
        per = UNITS[self.unit] if self.unit else 1.0
        plausible = pl.when(self.plausible(since)).then(since)
        return (plausible * (1e6 / per)).round().cast(pl.Int64, strict=False)

    def notes(self, place: str, name: str) -> tuple[str, ...]:
        """A note that names the unit."""
        if self.unit is None:
            return ()
        read = f"{place}: numbers in {name} are read as {self.unit} since 1970-01-01 UTC"
        return (f"{read} (median {self.median:,.0f})",)

    def advice(self, name: str) -> str:
        """What the first implausible number looks like, and what to do."""
        if self.odd is None:
            return ""
        reading = f" ({_reading(self.odd, self.unit)} as {self.unit})" if self.unit else ""
        return f"{_digits(self.odd)}{reading} {_looks_like(self.odd, self.unit)}; or write {name} as ISO 8601 text"


def _between(since: pl.Expr, seconds: tuple[float, float], per: float) -> pl.Expr:
    return since.is_between(seconds[0] * per, seconds[1] * per, closed="left")


def _plausible(since: pl.Expr, unit: str, events: bool) -> pl.Expr:
    per = UNITS[unit]
    if events:
        return _between(since, RECENT, per)
    known = _between(since, (CALENDAR[0], RECENT[1]), per) | _between(since, (NEVER, CALENDAR[1]), per)
    near = (since != 0) & (since.abs() < AROUND_1970 * per)
    return known & ~near & ~_digit_date(since, DIGIT_DATES.get(unit))


def _digit_date(since: pl.Expr, digits: int | None) -> pl.Expr:
    """Whether a number of that many digits starts with year, month and day, as 20240501 does."""
    if digits is None:
        return pl.lit(False)
    day = since // 10.0 ** (digits - 8)
    month = (day // 100) % 100
    return day.is_between(19_000_101, 21_001_231) & month.is_between(1, 12) & (day % 100).is_between(1, 31)


def _digits(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else repr(number)


def _reading(number: float, unit: str) -> str:
    try:
        return f"{datetime(1970, 1, 1, tzinfo=PYTHON_UTC) + timedelta(seconds=number / UNITS[unit]):%Y-%m-%d}"
    except OverflowError:
        return "no date"


def _looks_like(number: float, unit: str | None) -> str:
    """What an implausible number looks like, as the end of a sentence with its remedy."""
    size = abs(number)
    if other := next(
        (u for u, per in UNITS.items() if RECENT[0] * per <= size < RECENT[1] * per and u != unit), None
    ):
        return f"looks like {other}: write one unit"
    if re.match(r"^(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d\d){0,3}(?:\d{3})?$", _digits(number)):
        return "looks like a date written as one number: write 2024-05-01T12:00:00Z"
    if size == round(size) and 1000 <= size < 2200:
        return "looks like a year: write a date"
    if unit is not None and size >= AROUND_1970 * UNITS[unit]:
        return "is not plausible: check its unit"
    like = next((text for low, high, text in COUNTS if low <= number < high), "no time in any unit")
    return f"looks like {like}"


def epoch(dtype: pl.DataType, name: str) -> pl.Expr | None:
    """The numbers since 1970 of a column as float64, null for other fields; None when the type holds no numbers."""
    if dtype.is_numeric():
        return pl.col(name).cast(pl.Float64)
    if dtype == pl.String:
        field = pl.col(name).str.strip_chars()
        return pl.when(field.str.contains(NUMBER)).then(field).cast(pl.Float64, strict=False)
    return None


def moment(
    place: str,
    name: str,
    dtype: pl.DataType,
    *,
    numbers: EpochNumbers | None,
    now: datetime | None,
    repaired: bool,
    dates: bool = False,
) -> ColumnRule:
    """An instant, in microseconds UTC.

    Accepts zoned datetimes, ISO 8601 text with an offset, and numbers since 1970, read as `numbers` says.
    now: of an event, which lies between 1970 and MAX_CLOCK_SKEW after now; None: the years 1 to 9999 are accepted. A
    datetime without a zone is a violation; dates: a date without a time of day is accepted as midnight UTC.
    Raises DataError when the whole column has another type or no zone.
    """
    raw = pl.col(name)
    naive = odd = exponent = pl.lit(False)
    notes: tuple[str, ...] = ()
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is None:
            raise DataError(f"{place}: {name} has no time zone ({dtype}). {ADD_ZONE.format(name)}")
        missing, value = raw.is_null(), _of_physical(raw, dtype.time_unit)
    elif isinstance(dtype, pl.Date):
        if not dates:
            raise DataError(f"{place}: {name} holds dates only; events need the time of day, with a zone")
        missing, value = raw.is_null(), _of_physical(raw, "days")
    elif dtype == pl.Null:
        missing, value = pl.lit(True), pl.lit(None, UTC)
    elif (since := epoch(dtype, name)) is not None:
        value = pl.lit(None, UTC)
        if numbers is not None:
            value, notes = _instant(numbers.micros(since)), numbers.notes(place, name)
            odd = (since.is_finite() & ~numbers.plausible(since)).fill_null(False)
        if dtype == pl.String:
            field = raw.str.strip_chars()
            missing = raw.is_null() | (field == "")
            zoned, midnight, naive = _text_instant(field, dates)
            value = pl.coalesce(value, zoned, midnight)
            exponent = field.str.contains(EXPONENT).fill_null(False)
        else:
            missing = raw.is_null() | (since.is_nan() if dtype.is_float() else pl.lit(False))
    else:
        raise DataError(f"{place}: {name} has type {dtype}; it must be a zoned datetime, ISO 8601 text or an epoch")
    value = pl.when(_between(value.to_physical(), CALENDAR, 1e6)).then(value)  # an offset may lead out of it
    doubts = [
        Violation(f"{name} not plausible", numbers.advice(name) if numbers else "", odd, repaired),
        Violation(f"{name} in exponent form", "digits are lost in this form: write all digits", exponent, repaired),
        Violation(f"{name} without zone", WRITE.format(name), naive, repaired),
    ]
    unread = value.is_null() & ~missing & ~naive & ~odd & ~exponent
    violations = [*doubts, Violation(f"{name} not parseable", WRITE.format(name), unread, repaired)]
    if not repaired:
        violations.insert(0, Violation(f"null {name}", f"give every event its {name}", missing))
    if now is not None:
        violations += _outside(name, value, now)
    return ColumnRule(value, tuple(violations), notes)


def _outside(name: str, value: pl.Expr, now: datetime) -> list[Violation]:
    """The violations of an event that lies before 1970, or too far after now."""
    latest = now + timedelta(microseconds=MAX_CLOCK_SKEW)
    late = (value > pl.lit(latest).cast(UTC)).fill_null(False)
    early = (value.to_physical() < EARLIEST_EVENT).fill_null(False)
    checks = f"later than {latest:%Y-%m-%dT%H:%M:%SZ}, a day from now: check clock and unit"
    return [
        Violation(f"{name} before 1970", "check the unit and the missing times", early),
        Violation(f"{name} in the future", checks, late),
    ]


PHYSICAL = {"ms": (1000, 1), "us": (1, 1), "ns": (1, 1000), "days": (86_400_000_000, 1)}
"""Unit of a temporal column -> (factor, divisor) that make microseconds of its integers."""


def _of_physical(raw: pl.Expr, unit: str) -> pl.Expr:
    """The instants of a temporal column; null outside `CALENDAR`, where the library panics on many operations."""
    factor, divisor = PHYSICAL[unit]
    since = raw.to_physical().cast(pl.Int64) // divisor
    return _instant(pl.when(_between(since, CALENDAR, 1e6 / factor)).then(since * factor))


def _instant(micros: pl.Expr) -> pl.Expr:
    return micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _text_instant(field: pl.Expr, dates: bool) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Parse ISO 8601 text.

    Returns the instants of text with an offset; the midnights of dates without a time of day, null unless `dates`;
    and a mask of the fields that lack a zone.
    """
    parts = field.str.replace(BASIC, "${1}-${2}-${3}T${4}:${5}:${6}").str.extract_groups(ISO).struct
    day, clock, zone = (parts.field(str(i)) for i in (1, 2, 3))
    local = pl.coalesce(
        pl.concat_str([day, clock], separator=" ").str.to_datetime(form, time_unit="us", strict=False)
        for form in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
    )
    digits = zone.str.replace_all(r"\D", "")
    minutes = digits.str.slice(0, 2).cast(pl.Int64, strict=False).fill_null(0) * 60 + digits.str.slice(2, 2).cast(
        pl.Int64, strict=False
    ).fill_null(0)
    offset = pl.duration(minutes=pl.when(zone.str.starts_with("-")).then(-minutes).otherwise(minutes))
    zoned = pl.when(zone.is_not_null()).then(local - offset).dt.replace_time_zone("UTC")
    naive = (local.is_not_null() & zone.is_null()).fill_null(False)
    midnight = day.str.to_datetime("%Y-%m-%d", time_unit="us", strict=False).dt.replace_time_zone("UTC")
    midnight = pl.when(clock.is_null() & zone.is_null()).then(midnight)
    if not dates:
        return zoned, pl.lit(None, UTC), naive | midnight.is_not_null()
    return zoned, midnight, naive
