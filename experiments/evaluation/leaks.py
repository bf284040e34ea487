"""The guard against leaks into what is fitted: no part may know an event at or after the cut of its split.

A part that says until when it was fitted is not believed: the counts that it holds are counted again, from the events
before the cut.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from experiments.dataset import Dataset
from experiments.splits import refuse_leaks
from features.arrays import Ints
from features.instants import DAY
from features.interactions import Interactions
from recsys.dense_recommender import DenseRecommender
from recsys.histories import user_item_matrix
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import Reranker
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.popular import Popular
from recsys.towers.model import TwoTowers
from recsys.towers.training import FittedTowers

CHECKED_ITEMS = 512
"""Items whose neighbours are compared with the items that users have in common with them: all would take long."""


def check_no_leak(past: Interactions, cut: int | None, **parts: object) -> None:
    """Raise LeakError that names every part that knows other events than those before the cut (µs).

    past: the events before the cut, from the data set itself; cut: None for leave-last-out.
    """
    wrong = []
    for name, part in parts.items():
        until = getattr(part, "fitted_until", None)
        if cut is not None and until is not None and until >= cut:
            wrong.append(f"{name} has seen {np.datetime64(until, 'us')}")
            continue
        differing = [what for what, held, counted in _held(part, past) if not _equal(held, counted)]
        if differing:
            wrong.append(f"{name} holds other values than the events before the cut give: {', '.join(differing)}")
    refuse_leaks(cut, wrong)


def check_vocabulary(dataset: Dataset, cut: int | None, least: int) -> None:
    """Raise LeakError when the catalogue has an item with fewer than `least` positive events before the cut (µs)."""
    if cut is None:
        return
    counts = _counts(dataset.events.before(cut))
    if (few := counts < least).any():
        item = dataset.catalog.ids.ids[int(few.argmax())]
        text = (
            f"the vocabulary has {int(few.sum()):,} items with fewer than {least} events before it, such as {item!r}"
        )
        refuse_leaks(cut, [text])


def _counts(events: Interactions, days: float | None = None) -> Ints:
    """(n_items,): positive events of each item, of all time or of the last days before the latest event."""
    keep = events.positive
    if days is not None:
        keep = keep & (events.times > events.latest - int(days * DAY))
    return np.bincount(events.items[keep], minlength=events.n_items)


def _held(part: object, past: Interactions) -> Iterator[tuple[str, Any, Any]]:
    """What a part holds of the events: (name, what it holds, what the events give)."""
    count = partial(_counts, past)
    if isinstance(part, ItemStatistics):
        yield from (
            ("all counts", part.total, count()),
            ("counts of 30 days", part.recent, count(30)),
            ("counts of 7 days", part.newest, count(7)),
            ("times of the latest events", part.last, _latest(past)),
        )
    elif isinstance(part, PairFeatures):
        yield from _held(part.statistics, past)
        yield "neighbours", _unknown_neighbours(part, past), 0
    elif isinstance(part, Popular) and part.days is not None:
        total = count()  # which breaks ties
        yield f"counts of {part.days:g} days", part.popularity, count(part.days) + total / (total.max(initial=0) + 1)
    elif isinstance(part, DenseRecommender):
        yield "all counts", part.popularity, count()
    elif isinstance(part, FittedTowers):
        yield from _held(part.model, past)
    elif isinstance(part, TwoTowers):
        yield "known items", part.items.known.cpu().numpy(), count() > 0
        yield "counts of items", part.items.counts.cpu().numpy(), ItemStatistics.of(past).logs()
    elif isinstance(part, TwoStageRecommender):
        for inner in (part.towers, part.fallback, *([part.reranker] if isinstance(part.reranker, Reranker) else [])):
            yield from _held(inner.features if isinstance(inner, Reranker) else inner, past)


def _latest(events: Interactions) -> Ints:
    latest = np.full(events.n_items, np.iinfo(np.int64).min)
    np.maximum.at(latest, events.items[events.positive], events.times[events.positive])
    return latest


def _unknown_neighbours(features: PairFeatures, past: Interactions) -> int:
    """Number of weights between items that no user has in common, of CHECKED_ITEMS items at most."""
    n = past.n_items
    rows = np.unique(np.linspace(0, n - 1, min(n, CHECKED_ITEMS)).astype(np.int64))
    x = user_item_matrix(past)
    common = (x[:, rows].T @ x).tocsr()  # (r, n)
    held = features.neighbours[rows].tocoo()
    shared = np.asarray(common[held.row, held.col]).ravel() if held.nnz else np.zeros(0)
    return int((shared == 0).sum())


def _equal(held: Any, counted: Any) -> bool:
    """Whether both are equal; up to the rounding of float32 where one is not of integers."""
    held, counted = np.asarray(held), np.asarray(counted)
    if held.dtype.kind == counted.dtype.kind == "i":
        return np.array_equal(held, counted)
    return bool(np.allclose(held.astype(np.float64), counted.astype(np.float64), rtol=1e-6, atol=1e-5))
