"""The catalogue of one run: all item data as row-aligned arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.arrays import Bools, Floats, Ints
from features.ids import IdMap
from features.schema import AVAILABLE, CATEGORIES, DESCRIPTION, ITEM, PRICE, PUBLISHED, TITLE

Categories = npt.NDArray[np.int32]

MAX_CATEGORIES = 8
"""Categories kept per item, the first of its list."""

UNDATED = int(np.iinfo(np.int64).min)
"""The value of `Catalog.published` for an unknown publication time."""


@dataclass(frozen=True)
class Catalog:
    """The items of one run, n rows.

    ids: id <-> row; frame: the items table in row order, for display;
    categories (n, c) int32 indexes into category_names, -1 = padding at the end;
    price (n,) float32, NaN = unknown; available (n,) bool; published (n,) int64 µs, UNDATED = unknown;
    content (n, m) float32: the content vector of each item, unit length; zeros where has_content (n,) is False.
    """

    ids: IdMap
    frame: pl.DataFrame
    categories: Categories
    category_names: tuple[str, ...]
    price: Floats
    available: Bools
    published: Ints
    content: Floats
    has_content: Bools

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, items: pl.DataFrame, ids: IdMap, content: Floats, has_content: Bools) -> "Catalog":
        """From validated items (one row per item in any order; every id has a row) and content in row order."""
        frame = pl.DataFrame({ITEM: pl.Series(ids.ids, dtype=pl.String)}).join(
            items, on=ITEM, how="left", maintain_order="left"
        )
        lists = frame.get_column(CATEGORIES).fill_null([]).list.head(MAX_CATEGORIES)
        names = tuple(sorted(set(lists.explode().drop_nulls().to_list())))
        index = {name: i for i, name in enumerate(names)}
        width = max(1, *lists.list.len().to_list()) if len(ids) else 1
        categories = np.full((len(ids), width), -1, dtype=np.int32)
        flat = frame.select(pl.int_range(pl.len()).alias("row"), lists.alias("name")).explode("name").drop_nulls()
        rows = flat.get_column("row").to_numpy()
        # index of each category in its item's list: rows (e,) is sorted
        slot = np.arange(len(rows)) - np.searchsorted(rows, rows)
        categories[rows, slot] = [index[n] for n in flat.get_column("name")]
        return cls(
            ids=ids,
            frame=frame,
            categories=categories,
            category_names=names,
            price=frame.get_column(PRICE).cast(pl.Float32).fill_null(np.nan).to_numpy().copy(),
            available=frame.get_column(AVAILABLE).fill_null(True).to_numpy().copy(),
            published=frame.get_column(PUBLISHED).to_physical().cast(pl.Int64).fill_null(UNDATED).to_numpy().copy(),
            content=content,
            has_content=has_content,
        )

    @property
    def dated(self) -> Bools:
        """(n,) bool: whether the publication time of each item is known."""
        known: Bools = self.published != UNDATED
        return known

    def published_by(self, moment: int) -> Bools:
        """(n,) bool: the items published by `moment` (µs), and the items of unknown publication time."""
        mask: Bools = self.published <= moment  # UNDATED is the smallest int64
        return mask

    def take(self, rows: Ints) -> "Catalog":
        """A catalogue of the given rows, in that order."""
        return Catalog(
            ids=IdMap(tuple(self.ids.ids[row] for row in rows)),
            frame=self.frame[rows],
            categories=self.categories[rows],
            category_names=self.category_names,
            price=self.price[rows],
            available=self.available[rows],
            published=self.published[rows],
            content=self.content[rows],
            has_content=self.has_content[rows],
        )


def type_name(kind: pl.DataType) -> str:
    """What a value of a column's type is, for messages, e.g. a list of texts."""
    if isinstance(kind, pl.List):
        return f"a list of {type_name(pl.Series(dtype=kind).explode().dtype).removeprefix('a ')}s"
    if kind.is_numeric():
        return "a whole number" if kind.is_integer() else "a number"
    if isinstance(kind, pl.Boolean):
        return "true or false"
    return "a time" if isinstance(kind, pl.Datetime) else "a date" if isinstance(kind, pl.Date) else "a text"


def as_type(frame: pl.DataFrame, name: str, kind: pl.DataType) -> pl.Expr:
    """A column of a frame as another type. Null where the frame lacks it, or a value cannot be cast; times and dates
    are read from ISO 8601 text."""
    column = pl.col(name) if name in frame.columns else pl.lit(None)
    if frame.schema.get(name) == pl.String and isinstance(kind, pl.Datetime):
        read = column.str.to_datetime(time_unit=kind.time_unit, time_zone=kind.time_zone, strict=False)
    elif frame.schema.get(name) == pl.String and isinstance(kind, pl.Date):
        read = column.str.to_date(strict=False)
    else:
        read = column.cast(kind, strict=False)
    return read.alias(name)


def item_texts(frame: pl.DataFrame) -> list[str]:
    """The text that an encoder reads of each item: title, categories, description; "" when it has none of them."""
    fields = [
        pl.col(TITLE).fill_null(""),
        pl.col(CATEGORIES).fill_null([]).list.join(", "),
        pl.col(DESCRIPTION).fill_null(""),
    ]
    present = [pl.when(field.str.len_chars() > 0).then(field) for field in fields]
    joined = pl.concat_list(present).list.drop_nulls().list.join(". ")
    return frame.select(joined.alias("t")).get_column("t").to_list()
