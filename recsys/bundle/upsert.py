"""Upserts of items into a trained bundle: a new bundle that shares the mutable indexes of the old one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from features.arrays import Bools, Floats, Ints
from features.catalog import Catalog, Categories, as_type, item_texts
from features.content.spaces import Embedded, absent, unit
from features.ids import IdMap
from features.schema import ITEM
from recsys.bundle.model import Bundle
from recsys.content.content_space import ContentSpace
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import Reranker
from recsys.retrieval.mutable_index import MutableIndex

T = TypeVar("T", bound=np.generic)

NEAREST = 20
"""Number of nearest items by content whose vectors are averaged into the vector of a cold item."""

ROUNDING = 1e-3
"""Maximum difference between coordinates of content vectors that encode the same content."""

MAX_FRESH, MAX_FRESH_SHARE = 1000, 0.05
"""An index is merged when it has more fresh vectors than both this number and this share of its items."""


def upsert_items(bundle: Bundle, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> Bundle:
    """The bundle with m validated items added, or replaced where their ids exist.

    channels: the items' vectors by the bundle's encoders (`embed_items`), empty where the bundle has no content.
    Existing items keep their rows. An item with events keeps its vector of the towers, and so does an item whose
    categories and content did not change. The others get the mean of their neighbours by content
    (`cold_item_vectors`). Both bundles share the indexes: later searches in the old one must pass `allow` (n,), or
    they return rows that it does not have.
    """
    index = bundle.recommender.index
    if not isinstance(index, MutableIndex):
        raise TypeError(f"items are upserted into a loaded bundle, with a MutableIndex, given {type(index).__name__}")
    placed, rows, moved = _with_items(bundle, items, channels)
    index.upsert(moved, placed.recommender.vectors[moved])  # last: nothing after it can fail
    bundle.contents.upsert(rows, placed.catalog.content[rows])
    return placed


def place_items(bundle: Bundle, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> Bundle:
    """The bundle that `upsert_items` returns, for one list: it scores the items, and no search finds them.

    The indexes of the bundle are not changed.
    """
    return _with_items(bundle, items, channels)[0]


def _with_items(bundle: Bundle, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> tuple[Bundle, Ints, Ints]:
    """The bundle with m items, their rows (m,), and those of them that have another vector of the towers."""
    recommender = bundle.recommender
    placed = bundle.content.place(channels) if bundle.content is not None and channels else None
    catalog, rows = upsert_catalog(bundle.catalog, items, placed)
    total = len(catalog)
    popularity = extended(recommender.fallback.popularity, total)
    needs_vector = (popularity[rows] == 0) & ~_unchanged(bundle.catalog, catalog, rows)  # (m,)
    new_vectors = cold_item_vectors(bundle, catalog, rows, placed)[needs_vector]
    vectors = with_rows(recommender.vectors, total, rows[needs_vector], new_vectors)
    reranker = recommender.reranker
    if isinstance(reranker, Reranker):
        reranker = replace(reranker, features=_upsert_features(reranker.features, catalog, vectors, rows))
    fallback = replace(recommender.fallback, popularity=popularity)
    recommender = replace(recommender, vectors=vectors, fallback=fallback, reranker=reranker)
    content = None if bundle.content is None else upsert_content_space(bundle.content, total, rows, channels)
    return replace(bundle, catalog=catalog, recommender=recommender, content=content), rows, rows[needs_vector]


def merge_indexes(bundle: Bundle) -> None:
    """Merge the indexes of a bundle that have too many fresh vectors. Searches and changes continue meanwhile."""
    for index in (bundle.recommender.index, bundle.contents):
        if isinstance(index, MutableIndex) and index.fresh > max(MAX_FRESH, MAX_FRESH_SHARE * len(index)):
            index.merge()


def upsert_catalog(old: Catalog, items: pl.DataFrame, content: Embedded | None) -> tuple[Catalog, Ints]:
    """The catalogue with m items added, or replaced where their ids exist, and the rows (m,) of these items.

    content: (m, D) in the space of old.content; None: no item has content. Categories keep their numbers; new
    categories get the next ones.
    """
    names = items.get_column(ITEM).to_list()
    rows, n = old.ids.rows(names), len(old)
    added = rows < 0
    rows[added] = n + np.arange(added.sum())
    ids = IdMap((*old.ids.ids, *(name for name, is_new in zip(names, added, strict=True) if is_new)))
    total, m = len(ids), len(rows)
    vectors = np.zeros((m, old.content.shape[1]), np.float32) if content is None else content.vectors
    present = np.zeros(m, np.bool_) if content is None else content.present
    frame = _in_columns_of(old.frame, items)
    new = Catalog.of(frame, IdMap(tuple(names)), vectors, present)
    category_names, categories = _upsert_categories(old, new, rows, total)
    order = with_rows(np.arange(n), total, rows, n + np.arange(m))  # (total,): row in old, then new
    catalog = Catalog(
        ids=ids,
        frame=pl.concat([old.frame, frame])[order],
        categories=categories,
        category_names=category_names,
        price=with_rows(old.price, total, rows, new.price),
        available=with_rows(old.available, total, rows, new.available),
        published=with_rows(old.published, total, rows, new.published),
        content=with_rows(old.content, total, rows, new.content),
        has_content=with_rows(old.has_content, total, rows, new.has_content),
    )
    return catalog, rows


def upsert_content_space(old: ContentSpace, total: int, rows: Ints, channels: Mapping[str, Embedded]) -> ContentSpace:
    """The content space of a catalogue of `total` items, with new channels of rows (m,).

    channels: name -> (m, d) in the space of the channel's encoder; a missing channel makes the rows absent in it.
    """
    upserted = {}
    for name, channel in old.channels.items():
        new = channels.get(name)
        if new is None:
            new = absent(old.space, len(rows))
        elif old.alignment is not None:
            new = old.alignment.channel(new)
        vectors = with_rows(channel.vectors, total, rows, new.vectors)
        upserted[name] = Embedded(old.space, vectors, with_rows(channel.present, total, rows, new.present))
    return replace(old, channels=upserted)


def cold_item_vectors(bundle: Bundle, catalog: Catalog, rows: Ints, content: Embedded | None) -> Floats:
    """Unit vectors (m, d) for the items of rows (m,) of a catalogue, from the vectors of the bundle's other items.

    The mean of the NEAREST items by content, weighted by cosine. Without such items: the mean of the items with the
    same first category. Without those: the mean of all items. Means are short and would be in no list; length 1 lifts
    cold items as much as training does (experiments/LOG.md).
    """
    vectors, n = bundle.recommender.vectors, len(bundle.catalog)
    usable = np.ones(n, dtype=np.bool_)
    usable[rows[rows < n]] = False
    sums = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)  # (m, d)
    if content is not None:
        nearest = bundle.contents.search(content.vectors, NEAREST, allow=usable & bundle.catalog.has_content)
        weights = np.where(nearest.rows >= 0, nearest.scores, 0).clip(min=0)  # (m, NEAREST)
        sums = np.einsum("mk,mkd->md", weights, vectors[np.maximum(nearest.rows, 0)], optimize=True)
    usable_rows = np.flatnonzero(usable)
    old_category, new_category = bundle.catalog.categories[:, 0], catalog.categories[rows, 0]  # (n,), (m,)
    for category in np.unique(new_category[~sums.any(axis=1)]):
        same = usable_rows[old_category[usable_rows] == category] if category >= 0 else usable_rows[:0]
        total = vectors[same if len(same) else usable_rows].sum(axis=0)
        sums[(new_category == category) & ~sums.any(axis=1)] = total
    return unit(sums)


def _unchanged(old: Catalog, new: Catalog, rows: Ints) -> Bools:
    """(m,): whether the items of rows (m,) existed before, with the same categories and the same content."""
    known = np.flatnonzero(rows < len(old))
    known_rows, width = rows[known], old.categories.shape[1]
    categories = new.categories[known_rows]  # (known, new width)
    same = (categories[:, :width] == old.categories[known_rows]).all(axis=1) & (categories[:, width:] < 0).all(axis=1)
    # two encodings of one content differ by rounding
    same &= (np.abs(new.content[known_rows] - old.content[known_rows]) < ROUNDING).all(axis=1)
    out = np.zeros(len(rows), dtype=np.bool_)
    out[known] = same
    return out


def extended(values: npt.NDArray[T], total: int, fill: float = 0) -> npt.NDArray[T]:
    """The values (n, ...) extended to (total, ...) by `fill`."""
    out = np.empty((total, *values.shape[1:]), dtype=values.dtype)
    out[: len(values)], out[len(values) :] = values, fill
    return out


def with_rows(values: npt.NDArray[T], total: int, rows: Ints, new: npt.NDArray[T]) -> npt.NDArray[T]:
    """The values (n, ...) extended to (total, ...), with new values (m, ...) in rows (m,)."""
    out = extended(values, total)
    out[rows] = new
    return out


def _in_columns_of(frame: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """The items with the columns and types of a frame; null where a column is missing or a value cannot be cast."""
    return items.select(as_type(items, name, kind) for name, kind in frame.schema.items())


def _upsert_categories(old: Catalog, new: Catalog, rows: Ints, total: int) -> tuple[tuple[str, ...], Categories]:
    """Names and numbers (total, width) of the categories, with those of the new items in rows (m,)."""
    category_codes = {name: number for number, name in enumerate(old.category_names)}
    for name in new.category_names:
        category_codes.setdefault(name, len(category_codes))
    renumbered = np.array([*(category_codes[name] for name in new.category_names), -1], dtype=np.int32)  # -1 stays -1
    width = max(old.categories.shape[1], new.categories.shape[1])
    out = np.full((total, width), -1, dtype=np.int32)
    out[: len(old), : old.categories.shape[1]] = old.categories
    out[rows] = -1
    out[rows, : new.categories.shape[1]] = renumbered[new.categories]
    return tuple(category_codes), out


def _upsert_features(features: PairFeatures, catalog: Catalog, vectors: Floats, rows: Ints) -> PairFeatures:
    """Pair features of an extended catalogue. New items have no events and no neighbours.

    rows (m,): the new and the replaced items, whose texts are read.
    """
    total, s, old = len(catalog), features.statistics, features.neighbours
    never = np.iinfo(np.int64).min
    statistics = replace(
        s,
        total=extended(s.total, total),
        recent=extended(s.recent, total),
        newest=extended(s.newest, total),
        last=extended(s.last, total, never),
    )
    indptr = extended(old.indptr, total + 1, old.indptr[-1])
    neighbours = sp.csr_array((old.data, old.indices, indptr), shape=(total, total))
    tfidf = features.tfidf.put(total, rows, item_texts(catalog.frame[rows]))
    return PairFeatures(catalog, vectors, statistics, tfidf, neighbours)
