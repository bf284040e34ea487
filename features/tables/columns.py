"""How each column of the contract is read: its canonical value, and the faults a field can have.

Everything here is a polars expression over one raw column: nothing is collected, nothing loops over rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import polars as pl

from features.errors import DataError
from features.schema import MAX_ID_BYTES

UTC = pl.Datetime("us", "UTC")

MAX_EXACT_INTEGER = 2**53
"""Whole numbers from here on are not exact as float64."""

EPOCHS = {
    "seconds": (1e11, 1e6),
    "milliseconds": (1e14, 1e3),
    "microseconds": (1e17, 1.0),
    "nanoseconds": (1e20, 1e-3),
}
"""Unit -> (median below which an epoch column is taken for it, microseconds in one). 1e11 s is the year 5138."""

ISO = (
    r"^(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?))?"
    r"\s*([Zz]|UTC|GMT|[+-](?:[01]\d|2[0-3]):?(?:[0-5]\d)?)?$"
)
NUMBER = r"^[+-]?\d+(?:\.\d+)?$"
CONTROL = "[\\x00-\\x1f\\x7f-\\x9f]"


@dataclass(frozen=True)
class Violation:
    """A way in which a field can be wrong. `found` is True where it is; never null.

    The row is set aside, or, where `repaired`, kept with a null in place of the field.
    """

    reason: str
    advice: str
    found: pl.Expr
    repaired: bool = False


@dataclass(frozen=True)
class ColumnRule:
    """One column: its canonical value and its faults, the first that holds names the reason."""

    value: pl.Expr
    faults: tuple[Violation, ...] = ()
    notes: tuple[str, ...] = ()

    def with_violation(self, fault: Violation, *, first: bool = False) -> "ColumnRule":
        """The same with one more fault, looked for after the others or first."""
        return replace(self, faults=(fault, *self.faults) if first else (*self.faults, fault))


def identifier(place: str, name: str, dtype: pl.DataType, *, required: bool) -> ColumnRule:
    """An id as text. Whole floats (an integer column that once held a null) are read as integers, and it is said."""
    raw = pl.col(name)
    notes: tuple[str, ...] = ()
    faults: list[Violation] = []
    if dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        value = raw if isinstance(dtype, pl.String) else raw.cast(pl.String)
    elif dtype == pl.Null:
        value = raw.cast(pl.String)
    elif dtype.is_float():
        whole = raw.is_finite() & (raw == raw.round()) & (raw.abs() < MAX_EXACT_INTEGER)
        value = pl.when(whole).then(raw).cast(pl.Int64, strict=False).cast(pl.String)
        notes = (f"{place}: {name} is a float column; 1.0 is read as '1'. Store ids as integers or text.",)
        faults.append(
            Violation(
                f"{name} not a whole number",
                "store ids as integers or text",
                raw.is_not_null() & ~whole.fill_null(True),
            )
        )
    else:
        raise DataError(f"{place}: {name} has type {dtype}; ids are text or integers: cast the column")
    empty = value.is_null() | (value.str.len_bytes() == 0)
    if required:
        faults.append(Violation(f"null {name}", f"give every row a {name}", empty))
    else:
        value = pl.when(~empty).then(value)
    faults.append(
        Violation(
            f"{name} too long",
            f"ids have at most {MAX_ID_BYTES} bytes in UTF-8: use a shorter key",
            (value.str.len_bytes() > MAX_ID_BYTES).fill_null(False),
        )
    )
    if not (dtype.is_numeric() or dtype == pl.Null):
        control = value.str.contains(CONTROL).fill_null(False)
        faults.append(Violation(f"{name} with control characters", "strip control characters from ids", control))
    return ColumnRule(value, tuple(faults), notes)


def text(place: str, name: str, dtype: pl.DataType, *, required: bool = False) -> ColumnRule:
    """Free text; "" is null. Required: a null sets the row aside."""
    if dtype.is_nested() or isinstance(dtype, pl.Binary):
        raise DataError(f"{place}: {name} has type {dtype}; it must be text: cast the column")
    raw = pl.col(name).cast(pl.String)
    empty = raw.is_null() | (raw.str.len_bytes() == 0)
    faults = (Violation(f"null {name}", f"give every row its {name}", empty),) if required else ()
    return ColumnRule(raw if required else pl.when(~empty).then(raw), faults)


def number(
    place: str,
    name: str,
    dtype: pl.DataType,
    *,
    allowed: Callable[[pl.Expr], pl.Expr] | None = None,
    rule: str = "a finite number",
    repaired: bool = True,
) -> ColumnRule:
    """A finite number that `allowed` holds for; null is fine."""
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
        raise DataError(f"{place}: {name} has type {dtype}; it must be a number: cast the column")
    raw = pl.col(name)
    given = raw.is_not_null() & (raw.str.strip_chars() != "") if dtype == pl.String else raw.is_not_null()
    if dtype == pl.String:
        raw = raw.str.strip_chars()
    value = raw.cast(pl.Float64, strict=False)
    good = value.is_finite().fill_null(False)
    if allowed is not None:
        good &= allowed(value).fill_null(False)
    kept = pl.when(good).then(value) if repaired else value
    fault = Violation(f"{name} not {rule}", f"write {rule}, or leave the field empty", given & ~good, repaired)
    return ColumnRule(kept, (fault,))


def flag(place: str, name: str, dtype: pl.DataType) -> ColumnRule:
    """True or false; null is true."""
    raw = pl.col(name)
    if dtype == pl.String:
        word = raw.str.strip_chars().str.to_lowercase()
        value: pl.Expr = (
            pl.when(word.is_in(["true", "t", "yes", "y", "1", "1.0"]))
            .then(True)
            .when(word.is_in(["false", "f", "no", "n", "0", "0.0"]))
            .then(False)
        )
        bad = value.is_null() & raw.is_not_null() & (word != "")
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        value, bad = raw.cast(pl.Boolean), pl.lit(False)
    else:
        raise DataError(f"{place}: {name} has type {dtype}; it must be true or false: cast the column")
    advice = "write true or false; the item is taken as available"
    return ColumnRule(
        value.fill_null(True), (Violation(f"{name} not true or false", advice, bad.fill_null(False), True),)
    )


def labels(place: str, name: str, dtype: pl.DataType) -> ColumnRule:
    """A list of words: a list column, or text with "|" between them, or a JSON array as text."""
    raw = pl.col(name)
    if isinstance(dtype, pl.List) and not dtype.inner.is_nested():
        words = raw.cast(pl.List(pl.String))
    elif dtype in (pl.String, pl.Null, pl.Categorical, pl.Enum):
        line = raw.cast(pl.String).str.strip_chars()
        inside = line.str.strip_prefix("[").str.strip_suffix("]")
        quoted = (
            inside.str.extract_all(r'"(?:[^"\\]|\\.)*"')
            .list.eval(pl.element().str.strip_prefix('"').str.strip_suffix('"'))
            .list.eval(pl.element().str.replace_all(r"\"", '"', literal=True))
        )
        words = (
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
    clean = words.list.eval(pl.element().str.strip_chars())
    return ColumnRule(clean.list.eval(pl.element().filter(pl.element().str.len_bytes() > 0)))


def epoch(dtype: pl.DataType, name: str) -> pl.Expr | None:
    """Numbers since 1970 in a column as float64, null where a field is none; None where the type rules them out."""
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
    """An instant, as microseconds UTC.

    Zoned datetimes, ISO 8601 text with an offset, or numbers since 1970 whose `median` tells the unit.
    Not later than `now`, where given. A datetime without a zone is never guessed at; `dates`: a bare date means
    midnight UTC.
    Raises DataError for a whole column of another type or without a zone.
    """
    raw = pl.col(name)
    no, plain = pl.lit(False), pl.lit(None, UTC)
    naive = no
    notes: tuple[str, ...] = ()
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is None:
            raise DataError(
                f"{place}: {name} has no time zone ({dtype}). Write it with one: if it is UTC, "
                f'pl.col("{name}").dt.replace_time_zone("UTC")'
            )
        missing, value = raw.is_null(), raw.dt.convert_time_zone("UTC").cast(UTC)
    elif isinstance(dtype, pl.Date):
        if not dates:
            raise DataError(f"{place}: {name} holds dates only; events need the time of day, with a zone")
        missing, value = raw.is_null(), raw.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    elif dtype == pl.Null:
        missing, value = pl.lit(True), plain
    elif (since := epoch(dtype, name)) is not None:
        unit = next((u for u, (bound, _) in EPOCHS.items() if abs(median or 0.0) < bound), "nanoseconds")
        if median is not None:
            notes = (f"{place}: numbers in {name} are read as {unit} since 1970-01-01 UTC (median {median:,.0f})",)
        micros = (since * EPOCHS[unit][1]).round()
        value = pl.when(micros.abs() < 2.0**62).then(micros).cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
        value = value.dt.replace_time_zone("UTC")
        missing = raw.is_null() | (since.is_nan() if dtype.is_float() else no)
        if dtype == pl.String:
            field = raw.str.strip_chars()
            missing = raw.is_null() | (field == "")
            parts = field.str.extract_groups(ISO).struct
            day, clock, zone = (parts.field(str(i)) for i in (1, 2, 3))
            local = pl.coalesce(
                pl.concat_str([day, clock], separator=" ").str.to_datetime(form, time_unit="us", strict=False)
                for form in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
            )
            digits = zone.str.replace_all(r"\D", "")
            minutes = digits.str.slice(0, 2).cast(pl.Int64, strict=False).fill_null(0) * 60 + digits.str.slice(
                2, 2
            ).cast(pl.Int64, strict=False).fill_null(0)
            offset = pl.duration(minutes=pl.when(zone.str.starts_with("-")).then(-minutes).otherwise(minutes))
            zoned = pl.when(zone.is_not_null()).then(local - offset).dt.replace_time_zone("UTC")
            naive = (local.is_not_null() & zone.is_null()).fill_null(False)
            bare = day.str.to_datetime("%Y-%m-%d", time_unit="us", strict=False).dt.replace_time_zone("UTC")
            bare = pl.when(clock.is_null() & zone.is_null()).then(bare)
            if not dates:
                naive |= bare.is_not_null()
            value = pl.coalesce(value, zoned, bare if dates else plain)
    else:
        raise DataError(f"{place}: {name} has type {dtype}; it must be a zoned datetime, ISO 8601 text or an epoch")
    wrong = f"write {name} as ISO 8601 with an offset, e.g. 2024-05-01T12:00:00Z"
    faults = [
        Violation(f"{name} without zone", wrong, naive, repaired),
        Violation(f"{name} not parseable", wrong, value.is_null() & ~missing & ~naive, repaired),
    ]
    if not repaired:
        faults.insert(0, Violation(f"null {name}", f"give every event its {name}", missing))
    if now is not None:
        late = (value > pl.lit(now).cast(UTC)).fill_null(False)
        faults.append(
            Violation(f"{name} in the future", f"later than {now:%Y-%m-%dT%H:%M:%SZ}: check clock and unit", late)
        )
    return ColumnRule(value, tuple(faults), notes)
