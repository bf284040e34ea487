"""Filters of a request, as the mask of allowed items that every search takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from features.arrays import Bools
from features.catalog import Catalog, type_name
from features.errors import DataError
from features.ids import id_error
from features.instants import format_instant, parse_instant
from features.schema import CATEGORIES

MAX_VALUES = 10_000
"""Maximum number of ids or values in one list."""

MAX_SHOWN = 100
"""Characters of the values of a filter in an error."""


def _ids(ids: tuple[str, ...]) -> tuple[str, ...]:
    for place, text in enumerate(ids):
        if reason := id_error(text):
            raise ValueError(f"id {place} {reason}")
    return ids


def _time(value: object) -> object:
    """The time of ISO 8601 text; a datetime as it is. Raises ValueError for others, such as numbers."""
    if isinstance(value, datetime):
        return value
    return datetime.fromisoformat(format_instant(parse_instant(str(value))))


Names = Annotated[tuple[str, ...], Field(max_length=MAX_VALUES)]
Ids = Annotated[Names, AfterValidator(_ids)]
Time = Annotated[AwareDatetime, BeforeValidator(_time)]
Value = str | bool | int | float
Bound = Annotated[float, Field(allow_inf_nan=False, strict=True)]  # strict: true is not 1


class Filter(BaseModel):
    """Conditions on items. An item passes if it meets all of them. An unknown price or date meets no range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    categories: Names | None = Field(default=None, description="the item is in at least one of these categories")
    price: tuple[Bound | None, Bound | None] | None = Field(
        default=None, description="[minimum, maximum], both inclusive; null: no bound"
    )
    published: tuple[Time | None, Time | None] | None = Field(
        default=None,
        description="[from, before), ISO 8601 with a time zone; null: no bound",
    )
    items: Ids | None = Field(default=None, description="only items with these ids")
    exclude: Ids = Field(default=(), description="no items with these ids")
    columns: dict[str, Annotated[tuple[Value, ...], Field(max_length=MAX_VALUES)]] = Field(
        default={},
        description="column of the items table -> allowed values; of a list, one of its values is enough; "
        "dates and times in ISO 8601",
    )

    @field_validator("price", "published")
    @classmethod
    def _in_order(cls, bounds: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
        if bounds and None not in bounds and bounds[0] > bounds[1]:
            raise ValueError(f"[{bounds[0]}, {bounds[1]}] is empty: give the smaller bound first")
        return bounds

    def mask(self, catalog: Catalog) -> Bools:
        """(n,): whether each item passes.

        Raises DataError when the catalogue has no such column (the message lists those it has), and when values are
        of another type than their column.
        """
        keep = np.ones(len(catalog), dtype=np.bool_)
        if self.categories is not None:
            keep &= _equals_any(catalog, CATEGORIES, self.categories)
        if self.price is not None:
            keep &= _within(catalog.price.astype(np.float64), *self.price, ~np.isnan(catalog.price))
        if self.published is not None:
            start, end = (None if time is None else parse_instant(time.isoformat()) for time in self.published)
            keep &= _within(catalog.published, start, None if end is None else end - 1, catalog.dated)
        if self.items is not None:
            keep &= _has_id(catalog, self.items)
        if self.exclude:
            keep &= ~_has_id(catalog, self.exclude)
        for name, values in self.columns.items():
            keep &= _equals_any(catalog, name, values)
        return keep


MAX_CHOICES, MAX_COLUMN_CHOICES = 200, 50
"""Largest number of categories, and of values of a column, that a page offers to choose from."""


@dataclass(frozen=True)
class Choices:
    """What filters can choose from among the available items.

    categories: the most frequent first, at most MAX_CHOICES; price: the smallest and the largest, None where no price
    is known; columns: of each declared column of texts or truth values that has at most MAX_COLUMN_CHOICES of them,
    the most frequent first.
    """

    categories: tuple[str, ...]
    price: tuple[float, float] | None
    columns: dict[str, tuple[str | bool, ...]]

    @classmethod
    def of(cls, catalog: Catalog, declared: Sequence[str]) -> "Choices":
        """Of a catalogue. declared: names of its further columns (`data.extra_columns`)."""
        frame, prices = catalog.frame.filter(catalog.available), catalog.price[catalog.available]
        known = prices[~np.isnan(prices)]
        categories = _frequent(frame, CATEGORIES)[:MAX_CHOICES]
        found = {name: _frequent(frame, name) for name in declared if name in frame.columns}
        return cls(
            categories=tuple(str(name) for name in categories),
            price=(float(known.min()), float(known.max())) if len(known) else None,
            columns={name: values for name, values in found.items() if 1 < len(values) <= MAX_COLUMN_CHOICES},
        )


def _frequent(frame: pl.DataFrame, name: str) -> tuple[Any, ...]:
    """The texts or truth values in a column, or in its lists, the most frequent first, ties by value."""
    column = frame.get_column(name)
    if isinstance(column.dtype, pl.List):
        column = column.explode()
    if column.dtype not in (pl.String, pl.Boolean):
        return ()
    counts = column.drop_nulls().rename("value").value_counts()
    return tuple(counts.sort(["count", "value"], descending=[True, False]).get_column("value").to_list())


def _within(values: np.ndarray, minimum: float | None, maximum: float | None, known: Bools) -> Bools:
    """(n,): values that are known and within the bounds, both inclusive."""
    out: Bools = known.copy()
    if minimum is not None:
        out &= values >= minimum
    if maximum is not None:
        out &= values <= maximum
    return out


def _has_id(catalog: Catalog, ids: tuple[str, ...]) -> Bools:
    out = np.zeros(len(catalog), dtype=np.bool_)
    rows = catalog.ids.rows(ids)
    out[rows[rows >= 0]] = True
    return out


def _equals_any(catalog: Catalog, name: str, values: tuple[Value, ...]) -> Bools:
    """(n,): whether the value of a column, or one value of a list column, is among the values."""
    if name not in catalog.frame.columns:
        raise DataError(
            f"filter on column {name!r}: the items have none; there are: {', '.join(catalog.frame.columns)} "
            "(data.extra_columns keeps further ones)"
        )
    column = catalog.frame.get_column(name)
    is_list = isinstance(column.dtype, pl.List)
    kind = column.explode().dtype if is_list else column.dtype
    try:
        # numbers are compared as floats: 1 equals 1.0
        allowed = _as_type(values, pl.Float64() if kind.is_numeric() else kind)
        if is_list:
            element = pl.element().cast(allowed.dtype).is_in(allowed.implode())
            matches = column.list.eval(element).list.any()
        else:
            matches = column.cast(allowed.dtype).is_in(allowed.implode())
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        needed = "a number" if kind.is_numeric() else type_name(kind)
        raise DataError(f"filter on column {name!r}: must be {needed} (got {_shown(values)})") from error
    out: Bools = matches.fill_null(False).to_numpy()
    return out


def _shown(values: tuple[Value, ...]) -> str:
    """The first values for messages."""
    return str(list(values[:3]))[:MAX_SHOWN]


def _as_type(values: tuple[Value, ...], kind: pl.DataType) -> pl.Series:
    """The values as a series of a type. Raises TypeError, ValueError, OverflowError or PolarsError on others."""
    python_types = {pl.Float64: (int, float), pl.Boolean: (bool,)}.get(type(kind), (str,))
    if any(not isinstance(v, python_types) or isinstance(v, bool) != (python_types == (bool,)) for v in values):
        raise TypeError
    if python_types == (int, float):
        return pl.Series([float(v) for v in values], dtype=pl.Float64)
    series = pl.Series(list(values), dtype=pl.Boolean if python_types == (bool,) else pl.String)
    if isinstance(kind, pl.Datetime):
        return series.str.to_datetime(time_unit=kind.time_unit, time_zone=kind.time_zone)
    return series.str.to_date() if isinstance(kind, pl.Date) else series
