"""How each column of the contract is read: its canonical value, and the violations that a field can have.

All values and conditions are polars expressions over one raw column: nothing is collected, nothing loops over rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import polars as pl

from features.errors import DataError
from features.ids import ID_RULES, TextRule
from features.instants import BASIC, EARLIEST, EARLIEST_EVENT, ISO, LATEST, MAX_CLOCK_SKEW
from features.interactions import DAY

UTC = pl.Datetime("us", "UTC")

MAX_EXACT_INTEGER = 2**53
"""From this value on, float64 does not represent every integer."""

EPOCHS = {
    "seconds": (1e11, 1e6),
    "milliseconds": (1e14, 1e3),
    "microseconds": (1e17, 1.0),
    "nanoseconds": (1e20, 1e-3),
}
"""Unit -> (a column whose median is below this has the unit, microseconds per unit). 1e11 s is the year 5138."""

NUMBER = r"^[+-]?\d+(?:\.\d+)?$"


@dataclass(frozen=True)
class Violation:
    """A way in which a field can violate the contract.

    condition: boolean expression, never null, True for the rows that violate it;
    repaired: keep these rows with a null in place of the field; otherwise they are rejected.
    """

    reason: str
    advice: str
    condition: pl.Expr
    repaired: bool = False


@dataclass(frozen=True)
class ColumnRule:
    """One column: its canonical value and its violations. The first violation that holds is the reported reason."""

    value: pl.Expr
    violations: tuple[Violation, ...] = ()
    notes: tuple[str, ...] = ()

    def with_violation(self, violation: Violation, *, first: bool = False) -> "ColumnRule":
        """This rule with one more violation, which is checked last, or first."""
        violations = (violation, *self.violations) if first else (*self.violations, violation)
        return replace(self, violations=violations)


def identifier(place: str, name: str, dtype: pl.DataType, *, required: bool) -> ColumnRule:
    """An id as text. Whole floats (an integer column that once held a null) are read as integers, with a note."""
    raw = pl.col(name)
    notes: tuple[str, ...] = ()
    violations: list[Violation] = []
    if dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        value = raw if isinstance(dtype, pl.String) else raw.cast(pl.String)
    elif dtype == pl.Null:
        value = raw.cast(pl.String)
    elif dtype.is_float():
        integral = raw.is_finite() & (raw == raw.round()) & (raw.abs() < MAX_EXACT_INTEGER)
        value = pl.when(integral).then(raw).cast(pl.Int64, strict=False).cast(pl.String)
        notes = (f"{place}: {name} is a float column; 1.0 is read as '1'. Store ids as integers or text.",)
        violations.append(
            Violation(
                f"{name} not a whole number",
                "store ids as integers or text",
                raw.is_not_null() & ~integral.fill_null(True),
            )
        )
    else:
        raise DataError(f"{place}: {name} has type {dtype}; ids are text or integers: cast the column")
    empty = value.is_null() | (value.str.len_bytes() == 0)
    if required:
        violations.append(Violation(f"null {name}", f"give every row a {name}", empty))
    else:
        value = pl.when(~empty).then(value)
    if not (dtype.is_numeric() or dtype == pl.Null):
        violations += _text_violations(name, value, ID_RULES)
    return ColumnRule(value, tuple(violations), notes)


def _text_violations(
    name: str, value: pl.Expr, rules: Sequence[TextRule], *, repaired: bool = False
) -> list[Violation]:
    """One violation for each rule that text can break."""
    return [
        Violation(f"{name} {rule.reason}", rule.advice, rule.condition(value).fill_null(False), repaired)
        for rule in rules
    ]


def text(
    place: str, name: str, dtype: pl.DataType, *, required: bool = False, rules: Sequence[TextRule] = ()
) -> ColumnRule:
    """Text that keeps the rules; "" is null. required: a row with null, or that breaks a rule, is rejected."""
    if dtype.is_nested() or isinstance(dtype, pl.Binary):
        raise DataError(f"{place}: {name} has type {dtype}; it must be text: cast the column")
    raw = pl.col(name).cast(pl.String)
    empty = raw.is_null() | (raw.str.len_bytes() == 0)
    broken = _text_violations(name, raw, rules, repaired=not required)
    if required:
        return ColumnRule(raw, (Violation(f"null {name}", f"give every row its {name}", empty), *broken))
    bad = pl.any_horizontal(empty, *(violation.condition for violation in broken))
    return ColumnRule(pl.when(~bad).then(raw), tuple(broken))


def number(
    place: str,
    name: str,
    dtype: pl.DataType,
    *,
    allowed: Callable[[pl.Expr], pl.Expr] | None = None,
    rule: str = "a finite number",
    repaired: bool = True,
) -> ColumnRule:
    """A finite number for which `allowed` holds; null is valid. rule: the condition in words, for the report."""
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
        raise DataError(f"{place}: {name} has type {dtype}; it must be a number: cast the column")
    raw = pl.col(name)
    present = raw.is_not_null() & (raw.str.strip_chars() != "") if dtype == pl.String else raw.is_not_null()
    if dtype == pl.String:
        raw = raw.str.strip_chars()
    value = raw.cast(pl.Float64, strict=False)
    valid = value.is_finite().fill_null(False)
    if allowed is not None:
        valid &= allowed(value).fill_null(False)
    kept = pl.when(valid).then(value) if repaired else value
    violation = Violation(f"{name} not {rule}", f"write {rule}, or leave the field empty", present & ~valid, repaired)
    return ColumnRule(kept, (violation,))


def flag(place: str, name: str, dtype: pl.DataType) -> ColumnRule:
    """True or false; null is read as true."""
    raw = pl.col(name)
    if dtype == pl.String:
        text_value = raw.str.strip_chars().str.to_lowercase()
        value: pl.Expr = (
            pl.when(text_value.is_in(["true", "t", "yes", "y", "1", "1.0"]))
            .then(True)
            .when(text_value.is_in(["false", "f", "no", "n", "0", "0.0"]))
            .then(False)
        )
        invalid = value.is_null() & raw.is_not_null() & (text_value != "")
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        value, invalid = raw.cast(pl.Boolean), pl.lit(False)
    else:
        raise DataError(f"{place}: {name} has type {dtype}; it must be true or false: cast the column")
    advice = "write true or false; the item is taken as available"
    return ColumnRule(
        value.fill_null(True), (Violation(f"{name} not true or false", advice, invalid.fill_null(False), True),)
    )


def labels(place: str, name: str, dtype: pl.DataType) -> ColumnRule:
    """A list of labels: a list column, text with "|" between the labels, or a JSON array as text."""
    raw = pl.col(name)
    if isinstance(dtype, pl.List) and not dtype.inner.is_nested():
        values = raw.cast(pl.List(pl.String))
    elif dtype in (pl.String, pl.Null, pl.Categorical, pl.Enum):
        line = raw.cast(pl.String).str.strip_chars()
        inside = line.str.strip_prefix("[").str.strip_suffix("]")
        quoted = (
            inside.str.extract_all(r'"(?:[^"\\]|\\.)*"')
            .list.eval(pl.element().str.strip_prefix('"').str.strip_suffix('"'))
            .list.eval(pl.element().str.replace_all(r"\"", '"', literal=True))
        )
        values = (
            pl.when(line.str.starts_with("[") & line.str.ends_with("]") & inside.str.contains('"', literal=True))
            .then(quoted)
            .when(line.str.starts_with("[") & line.str.ends_with("]"))
            .then(inside.str.split(","))
            .otherwise(line.str.split("|"))
        )
    else:
        raise DataError(
            f"{place}: {name} has type {dtype}; it must be a list of text, or text with '|' between: cast it"
        )
    clean = values.list.eval(pl.element().str.strip_chars())
    return ColumnRule(clean.list.eval(pl.element().filter(pl.element().str.len_bytes() > 0)))


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
    median: float | None,
    now: datetime | None,
    repaired: bool,
    dates: bool = False,
) -> ColumnRule:
    """An instant, in microseconds UTC.

    Accepts zoned datetimes, ISO 8601 text with an offset, and numbers since 1970, whose `median` determines the unit.
    now: of an event, which lies between 1970 and MAX_CLOCK_SKEW after now; None: the years 1 to 9999 are accepted. A
    datetime without a zone is a violation; dates: a date without a time of day is accepted as midnight UTC.
    Raises DataError when the whole column has another type or no zone.
    """
    raw = pl.col(name)
    naive = pl.lit(False)
    notes: tuple[str, ...] = ()
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is None:
            raise DataError(
                f"{place}: {name} has no time zone ({dtype}). Write it with one: if it is UTC, "
                f'pl.col("{name}").dt.replace_time_zone("UTC")'
            )
        micros = {"ms": 1000, "us": 1}.get(dtype.time_unit, 0)
        missing, value = raw.is_null(), _instant_of(raw, micros) if micros else (raw.cast(pl.Int64) // 1000).cast(UTC)
    elif isinstance(dtype, pl.Date):
        if not dates:
            raise DataError(f"{place}: {name} holds dates only; events need the time of day, with a zone")
        missing, value = raw.is_null(), _instant_of(raw.cast(pl.Int32), DAY)
    elif dtype == pl.Null:
        missing, value = pl.lit(True), pl.lit(None, UTC)
    elif (since := epoch(dtype, name)) is not None:
        value, notes = _epoch_instant(place, name, since, median)
        if dtype == pl.String:
            field = raw.str.strip_chars()
            missing = raw.is_null() | (field == "")
            zoned, midnight, naive = _text_instant(field, dates)
            value = pl.coalesce(value, zoned, midnight)
        else:
            missing = raw.is_null() | (since.is_nan() if dtype.is_float() else pl.lit(False))
    else:
        raise DataError(f"{place}: {name} has type {dtype}; it must be a zoned datetime, ISO 8601 text or an epoch")
    violations = _instant_violations(name, value, missing, naive, now, repaired)
    in_range = value.cast(pl.Int64).is_between(EARLIEST, LATEST)  # else no datetime of Python can hold it
    return ColumnRule(pl.when(in_range).then(value), violations, notes)


def _instant_of(ticks: pl.Expr, micros: int) -> pl.Expr:
    """The instants of ticks since 1970 of so many microseconds each. Ticks out of range stay so, without overflow."""
    clipped = ticks.cast(pl.Int64).clip(EARLIEST // micros - 1, LATEST // micros + 1)
    return (clipped * micros).cast(UTC)


def _epoch_instant(place: str, name: str, since: pl.Expr, median: float | None) -> tuple[pl.Expr, tuple[str, ...]]:
    """The instants of numbers since 1970, and the note that says in which unit they are read."""
    unit = next((u for u, (bound, _) in EPOCHS.items() if abs(median or 0.0) < bound), "nanoseconds")
    notes: tuple[str, ...] = ()
    if median is not None:
        notes = (f"{place}: numbers in {name} are read as {unit} since 1970-01-01 UTC (median {median:,.0f})",)
    micros = (since * EPOCHS[unit][1]).round()
    value = pl.when(micros.abs() < 2.0**62).then(micros).cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
    return value.dt.replace_time_zone("UTC"), notes


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


def _instant_violations(
    name: str, value: pl.Expr, missing: pl.Expr, naive: pl.Expr, now: datetime | None, repaired: bool
) -> tuple[Violation, ...]:
    advice = f"write {name} as ISO 8601 with an offset, e.g. 2024-05-01T12:00:00Z"
    violations = [
        Violation(f"{name} without zone", advice, naive, repaired),
        Violation(f"{name} not parseable", advice, value.is_null() & ~missing & ~naive, repaired),
    ]
    if not repaired:
        violations.insert(0, Violation(f"null {name}", f"give every event its {name}", missing))
    instant = value.cast(pl.Int64)
    if now is None:
        outside = ~instant.is_between(EARLIEST, LATEST)
        violations.append(Violation(f"{name} before the year 1 or after 9999", advice, _true(outside), repaired))
    else:
        latest = now + timedelta(microseconds=MAX_CLOCK_SKEW)
        checks = f"later than {latest:%Y-%m-%dT%H:%M:%SZ}, a day from now: check clock and unit"
        late = value > pl.lit(latest).cast(UTC)
        violations += [
            Violation(f"{name} before 1970", "check the unit and the missing times", _true(instant < EARLIEST_EVENT)),
            Violation(f"{name} in the future", checks, _true(late)),
        ]
    return tuple(violations)


def _true(condition: pl.Expr) -> pl.Expr:
    """The condition; False where it is null."""
    return condition.fill_null(False)
