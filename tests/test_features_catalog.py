"""The catalogue: rows in the order of the id map, padded category indexes, item texts for encoders."""

from datetime import UTC, datetime

import numpy as np
import polars as pl

from features.catalog import Catalog, item_texts
from features.ids import IdMap
from features.tables.read import ITEMS

ROWS = {
    "item_id": ["a", "b", "c"],
    "title": ["A", None, ""],
    "description": ["About a.", "About b.", None],
    "image": [None, None, None],
    "audio": [None, None, None],
    "video": [None, None, None],
    "categories": [["y", "x"], None, []],
    "price": [1.5, None, 0.0],
    "published_at": [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), None, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)],
    "available": [True, False, True],
    "group_id": [None, "g", "g"],
}


def items() -> pl.DataFrame:
    return pl.DataFrame(ROWS, schema=ITEMS)


def catalog(*ids: str) -> Catalog:
    n = len(ids)
    return Catalog.of(items(), IdMap(ids), np.zeros((n, 2), np.float32), np.zeros(n, np.bool_))


def test_rows_follow_the_id_map() -> None:
    built = catalog("c", "a", "b")
    assert len(built) == 3
    assert built.frame["item_id"].to_list() == ["c", "a", "b"]
    np.testing.assert_array_equal(built.price, np.array([0.0, 1.5, np.nan], np.float32))
    assert built.available.tolist() == [True, True, False]
    assert built.published.tolist() == [-1_000_000, 1_000_000, np.iinfo(np.int64).min]
    assert built.frame["group_id"].to_list() == ["g", None, "g"]


def test_categories_are_indexes_padded_at_the_end() -> None:
    built = catalog("c", "a", "b")
    assert built.category_names == ("x", "y")
    assert built.categories.tolist() == [[-1, -1], [1, 0], [-1, -1]]
    assert built.categories.dtype == np.int32


def test_categories_beyond_the_limit_are_the_last_ones() -> None:
    many = [f"c{i}" for i in range(10)]
    frame = items().with_columns(pl.Series("categories", [many, ["c0"], None]))
    built = Catalog.of(frame, IdMap(("a", "b", "c")), np.zeros((3, 1), np.float32), np.zeros(3, np.bool_))
    assert built.categories.shape == (3, 8)
    assert built.category_names == tuple(many[:8])
    assert built.categories[0].tolist() == list(range(8))


def test_no_items_at_all() -> None:
    built = catalog()
    assert len(built) == 0
    assert built.categories.shape == (0, 1)


def test_texts_are_title_categories_description() -> None:
    assert item_texts(items()) == ["A. y, x. About a.", "About b.", ""]
