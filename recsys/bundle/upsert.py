"""Items put since a bundle was trained, taken into a copy of it that shares its indexes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from features.arrays import Bools, Floats, Ints
from features.catalog import Catalog, Categories, item_texts
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
"""Items by content whose behaviour stands for that of an item nobody has touched."""

ROUNDING = 1e-3
"""What a coordinate of a content vector may differ by when the same content is encoded again."""

MAX_FRESH, MAX_FRESH_SHARE = 1000, 0.05
"""An index is built anew when it has more than so many vectors beside it, and more than this share of its items."""


def upsert_items(bundle: Bundle, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> Bundle:
    """The bundle with m checked items more, or in place of its own.

    channels: what the bundle's encoders made of them (`embed_items`), empty where it has no content. Known items keep
    their rows. Vectors by the towers stay where an item has events, or is as it was; those of others are the mean of
    what is near by content (`neighbour_vectors`). Indexes are shared with the bundle given: whoever goes on asking
    that one says what is allowed (n,), or finds rows that it does not have.
    """
    stage, index = bundle.recommender, bundle.recommender.index
    if not isinstance(index, MutableIndex):
        raise TypeError(f"items are put into the index of a loaded bundle, given {type(index).__name__}")
    placed = bundle.content.place(channels) if bundle.content is not None and channels else None
    catalog, rows = upsert_catalog(bundle.catalog, items, placed)
    total = len(catalog)
    popularity = extended(stage.fallback.popularity, total)
    moved = (popularity[rows] == 0) & ~_unchanged(bundle.catalog, catalog, rows)
    placed_at = neighbour_vectors(bundle, catalog, rows, placed)[moved]
    vectors = with_rows(stage.vectors, total, rows[moved], placed_at)
    reranker = stage.reranker
    if isinstance(reranker, Reranker):
        reranker = Reranker(reranker.booster, _upsert_features(reranker.features, catalog, vectors, rows))
    recommender = replace(
        stage, vectors=vectors, fallback=replace(stage.fallback, popularity=popularity), reranker=reranker
    )
    content = None if bundle.content is None else upsert_content_space(bundle.content, total, rows, channels)
    index.upsert(rows[moved], placed_at)  # last, when nothing can fail any more
    bundle.contents.upsert(rows, catalog.content[rows])
    return replace(bundle, catalog=catalog, recommender=recommender, content=content)


def merge_indexes(bundle: Bundle) -> None:
    """Build anew those indexes of a bundle that have too much beside them; searches and changes go on meanwhile."""
    for index in (bundle.recommender.index, bundle.contents):
        if isinstance(index, MutableIndex) and index.fresh > max(MAX_FRESH, MAX_FRESH_SHARE * len(index)):
            index.merge()


def upsert_catalog(old: Catalog, items: pl.DataFrame, content: Embedded | None) -> tuple[Catalog, Ints]:
    """The catalogue with m items more, or in place of its own, and their rows (m,) in it.

    content: (m, D) in the space of old.content; None: they have none. Categories keep their numbers, new ones follow.
    """
    names = items.get_column(ITEM).to_list()
    rows, n = old.ids.rows(names), len(old)
    fresh = rows < 0
    rows[fresh] = n + np.arange(fresh.sum())
    ids = IdMap((*old.ids.ids, *(name for name, new in zip(names, fresh, strict=True) if new)))
    total, m = len(ids), len(rows)
    vectors = np.zeros((m, old.content.shape[1]), np.float32) if content is None else content.vectors
    present = np.zeros(m, np.bool_) if content is None else content.present
    shown = _in_columns_of(old.frame, items)
    mine = Catalog.of(shown, IdMap(tuple(names)), vectors, present)
    category_names, categories = _upsert_categories(old, mine, rows, total)
    order = with_rows(np.arange(n), total, rows, n + np.arange(m))
    catalog = Catalog(
        ids=ids,
        frame=pl.concat([old.frame, shown])[order],
        categories=categories,
        category_names=category_names,
        price=with_rows(old.price, total, rows, mine.price),
        available=with_rows(old.available, total, rows, mine.available),
        published=with_rows(old.published, total, rows, mine.published),
        content=with_rows(old.content, total, rows, mine.content),
        has_content=with_rows(old.has_content, total, rows, mine.has_content),
    )
    return catalog, rows


def upsert_content_space(old: ContentSpace, total: int, rows: Ints, channels: Mapping[str, Embedded]) -> ContentSpace:
    """The space around a catalogue of `total` items, rows (m,) of which have these channels, in encoders' spaces."""
    kept = {}
    for name, channel in old.channels.items():
        mine = channels.get(name)
        if mine is None:
            mine = absent(old.space, len(rows))
        elif old.alignment is not None:
            mine = old.alignment.channel(mine)
        vectors = with_rows(channel.vectors, total, rows, mine.vectors)
        kept[name] = Embedded(old.space, vectors, with_rows(channel.present, total, rows, mine.present))
    return replace(old, channels=kept)


def neighbour_vectors(bundle: Bundle, catalog: Catalog, rows: Ints, content: Embedded | None) -> Floats:
    """Vectors (m, d) for items of rows (m,) of a grown catalogue, from those that the bundle had before.

    The mean of the NEAREST items by content, each as heavy as its cosine; where there is none, the mean of the items
    of the same first category; where there is none either, of all. Of length 1, which lifts them as far as training
    lifts its newcomers (experiments/LOG.md); as short as means are they would be in no list.
    """
    vectors, n = bundle.recommender.vectors, len(bundle.catalog)
    others = np.ones(n, dtype=np.bool_)
    others[rows[rows < n]] = False
    sums = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
    if content is not None:
        found = bundle.contents.search(content.vectors, NEAREST, allow=others & bundle.catalog.has_content)
        weights = np.where(found.rows >= 0, found.scores, 0).clip(min=0)
        sums = np.einsum("mk,mkd->md", weights, vectors[np.maximum(found.rows, 0)], optimize=True)
    of_all = np.flatnonzero(others)
    main, first = bundle.catalog.categories[:, 0], catalog.categories[rows, 0]
    for category in np.unique(first[~sums.any(axis=1)]):
        alike = of_all[main[of_all] == category] if category >= 0 else of_all[:0]
        mean = vectors[alike if len(alike) else of_all].sum(axis=0)
        sums[(first == category) & ~sums.any(axis=1)] = mean
    return unit(sums)


def _unchanged(old: Catalog, new: Catalog, rows: Ints) -> Bools:
    """(m,): whether items of rows (m,) were there before, with the same categories and what content says the same."""
    known = np.flatnonzero(rows < len(old))
    at, width = rows[known], old.categories.shape[1]
    categories = new.categories[at]
    alike = (categories[:, :width] == old.categories[at]).all(axis=1) & (categories[:, width:] < 0).all(axis=1)
    # computed again, vectors differ by rounding
    alike &= (np.abs(new.content[at] - old.content[at]) < ROUNDING).all(axis=1)
    out = np.zeros(len(rows), dtype=np.bool_)
    out[known] = alike
    return out


def extended(values: npt.NDArray[T], total: int, fill: float = 0) -> npt.NDArray[T]:
    """(total, ...): the values (n, ...), then `fill`."""
    out = np.empty((total, *values.shape[1:]), dtype=values.dtype)
    out[: len(values)], out[len(values) :] = values, fill
    return out


def with_rows(values: npt.NDArray[T], total: int, rows: Ints, new: npt.NDArray[T]) -> npt.NDArray[T]:
    """(total, ...): the values (n, ...), with new ones (m, ...) in rows (m,)."""
    out = extended(values, total)
    out[rows] = new
    return out


def _in_columns_of(frame: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """The items with the columns of a frame and their types; null where they have none or another type's value."""
    return items.select(
        (pl.col(name) if name in items.columns else pl.lit(None)).cast(kind, strict=False).alias(name)
        for name, kind in frame.schema.items()
    )


def _upsert_categories(old: Catalog, mine: Catalog, rows: Ints, total: int) -> tuple[tuple[str, ...], Categories]:
    index = {name: at for at, name in enumerate(old.category_names)}
    for name in mine.category_names:
        index.setdefault(name, len(index))
    renamed = np.array([*(index[name] for name in mine.category_names), -1], dtype=np.int32)  # -1 stays -1
    width = max(old.categories.shape[1], mine.categories.shape[1])
    out = np.full((total, width), -1, dtype=np.int32)
    out[: len(old), : old.categories.shape[1]] = old.categories
    out[rows] = -1
    out[rows, : mine.categories.shape[1]] = renamed[mine.categories]
    return tuple(index), out


def _upsert_features(features: PairFeatures, catalog: Catalog, vectors: Floats, rows: Ints) -> PairFeatures:
    """Features of pairs over more items: nothing is counted of the new ones, and nothing goes with them.

    rows (m,): those that are new, or in place of others, whose words are read.
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
    words = features.tfidf.put(total, rows, item_texts(catalog.frame[rows]))
    return PairFeatures(catalog, vectors, statistics, words, neighbours)
