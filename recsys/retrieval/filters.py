"""Filters: which items of a catalogue a request lets through, as the mask that every search takes."""

from datetime import datetime
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from features.arrays import Bools
from features.catalog import Catalog
from features.errors import DataError
from features.schema import CATEGORIES

MAX_VALUES = 10_000
"""Ids or values that one list may have."""

Names = Annotated[tuple[str, ...], Field(max_length=MAX_VALUES)]
Value = str | bool | int | float


class Filter(BaseModel):
    """Everything given must hold. What is not known of an item, such as its price, holds for no bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    categories: Names | None = Field(default=None, description="in one of these")
    price: tuple[float | None, float | None] | None = Field(default=None, description="[least, most]; null: no bound")
    published: tuple[AwareDatetime | None, AwareDatetime | None] | None = Field(
        default=None, description="[from, before], ISO 8601 with a zone; null: no bound"
    )
    items: Names | None = Field(default=None, description="one of these, by id")
    exclude: Names = Field(default=(), description="none of these, by id")
    columns: dict[str, Annotated[tuple[Value, ...], Field(max_length=MAX_VALUES)]] = Field(
        default={},
        description="a column of the items table -> its value, or one of a list, is one of these; times in ISO 8601",
    )

    @field_validator("price", "published")
    @classmethod
    def _in_order(cls, bounds: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
        if bounds and None not in bounds and bounds[0] > bounds[1]:
            raise ValueError(f"[{bounds[0]}, {bounds[1]}] is empty: give the smaller bound first")
        return bounds

    def mask(self, catalog: Catalog) -> Bools:
        """(n,): the items that are let through.

        Raises DataError naming a column that the catalogue does not have, and those it has, and values that are of
        another type than the column.
        """
        keep = np.ones(len(catalog), dtype=np.bool_)
        if self.categories is not None:
            keep &= _equals_any(catalog, CATEGORIES, self.categories)
        if self.price is not None:
            keep &= _within(catalog.price.astype(np.float64), *self.price, ~np.isnan(catalog.price))
        if self.published is not None:
            begin, end = (_micros(moment) for moment in self.published)
            keep &= _within(catalog.published, begin, None if end is None else end - 1, catalog.dated)
        if self.items is not None:
            keep &= _has_id(catalog, self.items)
        if self.exclude:
            keep &= ~_has_id(catalog, self.exclude)
        for name, values in self.columns.items():
            keep &= _equals_any(catalog, name, values)
        return keep


def _within(values: np.ndarray, least: float | None, most: float | None, known: Bools) -> Bools:
    out: Bools = known.copy()
    if least is not None:
        out &= values >= least
    if most is not None:
        out &= values <= most
    return out


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1e6)


def _has_id(catalog: Catalog, ids: tuple[str, ...]) -> Bools:
    out = np.zeros(len(catalog), dtype=np.bool_)
    rows = catalog.ids.rows(ids)
    out[rows[rows >= 0]] = True
    return out


def _equals_any(catalog: Catalog, name: str, values: tuple[Value, ...]) -> Bools:
    if name not in catalog.frame.columns:
        raise DataError(
            f"filter on column {name!r}: the items have none; there are: {', '.join(catalog.frame.columns)} "
            "(data.extra_columns keeps further ones)"
        )
    column = catalog.frame.get_column(name)
    listed = isinstance(column.dtype, pl.List)
    try:
        # numbers as numbers: 1 and 1.0 are one
        kind = column.explode().dtype if listed else column.dtype
        wanted = _as_type(values, pl.Float64() if kind.is_numeric() else kind)
        inner = pl.element().cast(wanted.dtype).is_in(wanted.implode())
        found = column.list.eval(inner).list.any() if listed else column.cast(wanted.dtype).is_in(wanted.implode())
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        why = str(error).partition("\n")[0]
        raise DataError(f"filter on column {name!r} of type {column.dtype}: {list(values)[:3]}: {why}") from error
    out: Bools = found.fill_null(False).to_numpy()
    return out


def _as_type(values: tuple[Value, ...], kind: pl.DataType) -> pl.Series:
    """Raises TypeError, ValueError, OverflowError or PolarsError where they are not of that type."""
    needed: dict[type, str] = {pl.Float64: "numbers", pl.Boolean: "true or false"}
    kinds = {pl.Float64: (int, float), pl.Boolean: (bool,)}.get(type(kind), (str,))
    if any(not isinstance(v, kinds) or isinstance(v, bool) != (kinds == (bool,)) for v in values):
        raise TypeError(f"{needed.get(type(kind), 'texts')} are needed")
    if kinds == (int, float):
        return pl.Series([float(v) for v in values], dtype=pl.Float64)
    given = pl.Series(list(values), dtype=pl.Boolean if kinds == (bool,) else pl.String)
    if isinstance(kind, pl.Datetime):
        return given.str.to_datetime(time_unit=kind.time_unit, time_zone=kind.time_zone)
    return given.str.to_date() if isinstance(kind, pl.Date) else given
