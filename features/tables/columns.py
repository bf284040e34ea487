"""How each column of the contract is read: its canonical value, and the violations that a field can have.

All values and conditions are polars expressions over one raw column: nothing is collected, nothing loops over rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from features.errors import DataError
from features.ids import ID_RULES, NO_NULL, TextRule
from features.tables.files.text_lists import ENCLOSED, text_lists

UTC = pl.Datetime("us", "UTC")

MAX_EXACT_INTEGER: dict[type[pl.DataType], int] = {pl.Float16: 2**11, pl.Float32: 2**24, pl.Float64: 2**53}
"""Float type -> the value from which on it does not represent every integer."""


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
        integral = raw.is_finite() & (raw == raw.round()) & (raw.abs() < MAX_EXACT_INTEGER[type(dtype)])
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


def as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column that is not nested as text: bytes in base64; durations, and dates outside the years 1 to 9999, as the
    integers that store them."""
    raw = pl.col(name)
    if isinstance(dtype, pl.Binary):
        return raw.bin.encode("base64")
    if isinstance(dtype, pl.Duration):
        return raw.to_physical().cast(pl.String)
    if not isinstance(dtype, pl.Date | pl.Datetime):
        return raw.cast(pl.String, strict=False)
    per_day = 1 if isinstance(dtype, pl.Date) else 86_400 * {"ms": 10**3, "us": 10**6, "ns": 10**9}[dtype.time_unit]
    stored = raw.to_physical().cast(pl.Int64)
    days = stored // per_day
    known = days.is_between(-719_162, 2_932_896)  # 0001-01-01, 9999-12-31; the library panics on dates far outside
    return pl.coalesce(pl.when(known).then(raw).cast(pl.String), stored.cast(pl.String))


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
    if dtype.is_nested() or isinstance(dtype, pl.Binary | pl.Duration):
        raise DataError(f"{place}: {name} has type {dtype}; it must be text: cast the column")
    raw = as_text(name, dtype)
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
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Null)):
        raise DataError(f"{place}: {name} has type {dtype}; it must be a number: cast the column")
    raw = pl.col(name)
    present = raw.is_not_null()
    advice = f"write {rule}, or leave the field empty"
    if dtype == pl.String:
        raw = raw.str.strip_chars()
        present &= raw != ""
        advice = f"write {rule} in digits with a decimal point, such as 1250.5, or leave the field empty"
    value = raw.cast(pl.Float64, strict=False)
    valid = value.is_finite().fill_null(False)
    if allowed is not None:
        valid &= allowed(value).fill_null(False)
    kept = pl.when(valid).then(value) if repaired else value
    return ColumnRule(kept, (Violation(f"{name} not {rule}", advice, present & ~valid, repaired),))


def at_most(rule: ColumnRule, name: str, most: float) -> ColumnRule:
    """A rule for numbers that also repairs numbers above `most`."""
    large = (rule.value > most).fill_null(False)
    violation = Violation(
        f"{name} larger than {most:,.0f}", "check its source, or leave the field empty", large, True
    )
    return replace(rule.with_violation(violation), value=pl.when(~large).then(rule.value))


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
    elif dtype.is_numeric():
        value = pl.when(raw == 1).then(True).when(raw == 0).then(False)
        invalid = value.is_null() & raw.is_not_null()
    elif dtype in (pl.Boolean, pl.Null):
        value, invalid = raw.cast(pl.Boolean), pl.lit(False)
    else:
        raise DataError(f"{place}: {name} has type {dtype}; it must be true or false: cast the column")
    advice = "write true or false; the item is taken as available"
    return ColumnRule(
        value.fill_null(True), (Violation(f"{name} not true or false", advice, invalid.fill_null(False), True),)
    )


def labels(place: str, name: str, dtype: pl.DataType) -> ColumnRule:
    """A list of labels: a list column, text with "|" between the labels, or a list as text in JSON or of Python.

    Blanks around a label are cut off; empty labels, and those with a null character, are left out.
    """
    raw = pl.col(name)
    violations: tuple[Violation, ...] = ()
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    if inner is not None and not (inner.is_nested() or inner.is_temporal() or inner == pl.Binary):
        values = raw.cast(pl.List(pl.String))
    elif dtype in (pl.String, pl.Null, pl.Categorical, pl.Enum):
        line = raw.cast(pl.String).str.strip_chars()
        enclosed = line.str.contains(ENCLOSED).fill_null(False)
        listed = line.map_batches(text_lists, return_dtype=pl.List(pl.String), is_elementwise=True)
        values = pl.when(enclosed).then(listed).otherwise(line.str.split("|"))
        advice = 'write ["A", "B"], or A|B; the item is kept without them'
        unread = enclosed & listed.is_null()
        violations = (Violation(f"{name} in brackets but no list of text", advice, unread, repaired=True),)
    else:
        raise DataError(
            f"{place}: {name} has type {dtype}; it must be a list of text, or text with '|' between: cast it"
        )
    element = pl.element().str.strip_chars()
    with_null = values.list.eval(NO_NULL.condition(element)).list.any().fill_null(False)
    violations += (Violation(f"{name} {NO_NULL.reason}", NO_NULL.advice, with_null, repaired=True),)
    kept = element.filter((element.str.len_bytes() > 0) & ~NO_NULL.condition(element))
    return ColumnRule(values.list.eval(kept), violations)
