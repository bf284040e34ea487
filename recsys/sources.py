"""Sources of candidates besides the vectors of the towers, and the merging of all sources by their quotas."""

from collections.abc import Mapping

import numpy as np

from features.arrays import Bools, Ints
from features.interactions import Ragged, UserStates
from recsys.config import SourceQuotas
from recsys.histories import latest_items, recency_weights
from recsys.interfaces import SOURCES, Candidates, first_occurrences
from recsys.ranking.pair_features import LONG_DECAY, PairFeatures
from recsys.retrieval.popular import Popular


def neighbour_items(
    features: PairFeatures, positives: Ragged, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
) -> Ints:
    """The k items with the largest neighbours_long of b histories: (b, k) int64, largest first, -1 = padding.

    Only items with a score above 0; ties by row. allow and exclude as in `Retriever.search`. One history at a time:
    the scores of all items are made for each.
    """
    history, items, ages = latest_items(positives, len(features.vectors))
    starts = np.searchsorted(history, np.arange(len(positives) + 1))
    weights = recency_weights(ages, LONG_DECAY)  # (m,)
    out = np.full((len(positives), k), -1, dtype=np.int64)
    for b, rows in enumerate(out):
        own = slice(starts[b], starts[b + 1])
        scores = features.neighbour_scores(items[own], weights[own])  # (n,)
        if allow is not None:
            scores[~allow] = 0
        if exclude is not None:
            scores[exclude[b : b + 1].pairs()[1]] = 0
        near = np.flatnonzero(scores > 0)
        if len(near) > k:
            near = near[scores[near] >= np.partition(scores[near], -k)[-k]]
        best = near[np.argsort(-scores[near], kind="stable")[:k]]
        rows[: len(best)] = best
    return out


def popular_items(
    popular: Popular, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
) -> Ints:
    """The k most popular items with a positive event in the period: (b, k) int64, -1 = padding."""
    found = popular.recommend(states, k, allow=allow, exclude=exclude)
    return np.where(found.scores >= 1, found.rows, -1)  # below 1 are tie-breaks only


def merge_sources(found: Mapping[str, Ints], quotas: SourceQuotas, k: int) -> Candidates:
    """The candidates of several sources: (b, k) with scores of 0. found: name -> item rows (b, m), -1 = padding.

    Own items come first, then those of the others in turn, by their quotas. An item that several sources bring is
    that of the first; at the same turn, of the first in SOURCES.
    """
    names = sorted(found, key=SOURCES.index)
    shares = {"own": np.inf, **quotas.model_dump()}
    order = np.argsort(
        np.concatenate([np.arange(found[name].shape[1]) / shares[name] for name in names]), kind="stable"
    )  # (w,)
    rows = np.concatenate([found[name] for name in names], axis=1)[:, order]  # (b, w)
    sources = np.concatenate([np.full(found[name].shape[1], SOURCES.index(name)) for name in names])
    places = np.concatenate([np.arange(found[name].shape[1]) for name in names])
    both = (np.broadcast_to(values[order].astype(np.int32), rows.shape) for values in (sources, places))
    return Candidates(rows, np.zeros(rows.shape, np.float32), *both).where(first_occurrences(rows), k)
