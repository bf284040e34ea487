"""The catalogue of one run: everything known of items, row-aligned."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.arrays import Bools, Floats, Ints
from features.ids import IdMap
from features.schema import AVAILABLE, CATEGORIES, DESCRIPTION, ITEM, PRICE, PUBLISHED, TITLE

Categories = npt.NDArray[np.int32]

MAX_CATEGORIES = 8
"""Categories kept of one item, the first in its list."""

UNDATED = int(np.iinfo(np.int64).min)
"""In place of a time of publication that is not known."""


@dataclass(frozen=True)
class Catalog:
    """n items.

    ids: IdMap; frame: the items table in row order, for showing;
    categories (n, c) int32 indexes into category_names, -1 = padding at the end;
    price (n,) float32, NaN unknown; available (n,) bool; published (n,) int64 µs, UNDATED where it is not known;
    content (n, m) float32 unit rows: what there is to see, hear and read; zeros where has_content (n,) is False.
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
        """From checked items (one row an item, any order; all of `ids` among them) and their content in row order."""
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
        """(n,): whether it is known when an item was published."""
        known: Bools = self.published != UNDATED
        return known

    def published_by(self, moment: int) -> Bools:
        """(n,): what was published by then (µs), and all of which that is not known."""
        there: Bools = self.published <= moment  # UNDATED comes before every moment
        return there

    def take(self, rows: Ints) -> "Catalog":
        """The chosen rows, in that order, as a catalogue of its own."""
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


def item_texts(frame: pl.DataFrame) -> list[str]:
    """What an encoder reads of each item: title, categories, description; "" where there is none of them."""
    parts = [
        pl.col(TITLE).fill_null(""),
        pl.col(CATEGORIES).fill_null([]).list.join(", "),
        pl.col(DESCRIPTION).fill_null(""),
    ]
    joined = pl.concat_list([pl.when(p.str.len_chars() > 0).then(p) for p in parts]).list.drop_nulls().list.join(". ")
    return frame.select(joined.alias("t")).get_column("t").to_list()
