"""Filters: which items of a catalogue a request lets through, as the mask that every search takes."""

from datetime import datetime
from typing import Annotated, Self

import numpy as np
import polars as pl
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from features.catalog import Catalog
from features.errors import DataError
from features.interactions import Bools

MOST = 10_000
"""Ids or values that one list may have."""

Names = Annotated[tuple[str, ...], Field(max_length=MOST)]
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
    columns: dict[str, Annotated[tuple[Value, ...], Field(max_length=MOST)]] = Field(
        default={}, description="a column of the items table -> its value is one of these"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name, bounds in (("price", self.price), ("published", self.published)):
            if bounds and None not in bounds and bounds[0] > bounds[1]:  # type: ignore[operator]
                raise ValueError(f"{name}: [{bounds[0]}, {bounds[1]}] is empty: give the smaller bound first")
        return self

    def mask(self, catalog: Catalog) -> Bools:
        """(n,): the items that are let through.

        Raises DataError naming a column that the catalogue does not have, and those it has, and values that are of
        another type than the column.
        """
        keep = np.ones(len(catalog), dtype=np.bool_)
        if self.categories is not None:
            wanted = [at for at, name in enumerate(catalog.category_names) if name in set(self.categories)]
            keep &= np.isin(catalog.categories, wanted).any(1)
        if self.price is not None:
            keep &= _within(catalog.price.astype(np.float64), *self.price, ~np.isnan(catalog.price))
        if self.published is not None:
            begin, end = (_micros(moment) for moment in self.published)
            known = catalog.published != np.iinfo(np.int64).min
            keep &= _within(catalog.published, begin, None if end is None else end - 1, known)
        if self.items is not None:
            keep &= _among(catalog, self.items)
        if self.exclude:
            keep &= ~_among(catalog, self.exclude)
        for name, values in self.columns.items():
            keep &= _equals(catalog, name, values)
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


def _among(catalog: Catalog, ids: tuple[str, ...]) -> Bools:
    out = np.zeros(len(catalog), dtype=np.bool_)
    rows = catalog.ids.rows(ids)
    out[rows[rows >= 0]] = True
    return out


def _equals(catalog: Catalog, name: str, values: tuple[Value, ...]) -> Bools:
    if name not in catalog.frame.columns:
        raise DataError(
            f"filter on column {name!r}: the items have none; there are: {', '.join(catalog.frame.columns)} "
            "(data.extra_columns keeps further ones)"
        )
    column = catalog.frame.get_column(name)
    try:
        if isinstance(column.dtype, pl.List):
            found = column.list.eval(pl.element().is_in(list(values))).list.any()
        else:
            found = column.is_in(list(values))
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise DataError(f"filter on column {name!r} of type {column.dtype}: {list(values)[:3]}: {error}") from error
    out: Bools = found.fill_null(False).to_numpy()
    return out
