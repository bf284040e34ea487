"""Features of (user, item) pairs, the input of the reranker."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from features.arrays import Bools, Doubles, Floats, Ints
from features.catalog import UNDATED, Catalog, item_texts
from features.instants import DAY
from features.interactions import Interactions, Ragged, UserStates
from recsys.histories import latest_items, recency_weights
from recsys.interfaces import Candidates
from recsys.item_statistics import ItemStatistics
from recsys.ranking.local_ease import fit_local_ease
from recsys.ranking.tfidf import DECAY as TFIDF_DECAY
from recsys.ranking.tfidf import TfidfIndex
from recsys.ranking.user_item_counts import UserItemCounts
from recsys.retrieval.popular import Popular

FEATURES = (
    "retrieval_score",
    "retrieval_rank",
    "similarity_last",
    "similarity_max",
    "similarity_mean",
    "text_similarity",
    "word_similarity",
    "category_share",
    "neighbours_long",
    "neighbours_short",
    "item_log_count",
    "item_log_recent",
    "item_log_newest",
    "item_trend",
    "item_days_since_last",
    "item_days_since_published",
    "user_log_history",
    "user_popularity_gap",
    "user_item_log_count",
    "user_item_recency",
    "user_item_days_since_last",
    "user_item_due",
    "user_category_log_count",
    "user_category_recency",
    "user_category_days_since_last",
    "user_category_due",
    "user_item_share",
    "user_log_moments",
    "user_repeat_share",
    "user_days_since_last",
)
"""Columns of the feature matrix, in order."""

PARTS = (*FEATURES, "cold_lift")
"""What adds up to the score of a candidate, with the expected value: the features, and the lift of a cold item."""


RECENT_EVENTS = 50
"""Number of newest positive events of a user that similarities are computed with."""


NEIGHBOURS = 200
"""Number of neighbours that predict each item in `fit_local_ease`."""


LONG_DECAY, SHORT_DECAY = 0.99, 0.8
"""Weight of an event relative to the next newer one, in neighbours_long and neighbours_short."""


FRESH_DAYS = 30
"""Number of days for which an item is new."""


@dataclass(frozen=True)
class PairFeatures:
    """Computes the feature matrix of (state, candidate) pairs from arrays that are fixed at training.

    vectors (n, d): item vectors of the towers that retrieved the candidates; statistics, tfidf: event counts and
    TF-IDF rows of the items; neighbours (n, n) sparse: weights of local EASE, row = item of the history, column =
    scored item (`fit_local_ease`).
    """

    catalog: Catalog
    vectors: Floats
    statistics: ItemStatistics
    tfidf: TfidfIndex
    neighbours: sp.csr_array

    @classmethod
    def of(cls, catalog: Catalog, vectors: Floats, events: Interactions) -> "PairFeatures":
        """Fitted on events. Raises DataError when no event is positive."""
        tfidf = TfidfIndex.of(item_texts(catalog.frame))
        return cls(catalog, vectors, ItemStatistics.of(events), tfidf, fit_local_ease(events, k=NEIGHBOURS))

    @property
    def fitted_until(self) -> int:
        """Time in µs of the latest event that the features are fitted on."""
        return self.statistics.fitted_until

    def _history_scores(self, positives: Ragged, rows: Ints) -> dict[str, Doubles]:
        """word_similarity, neighbours_long and neighbours_short of rows (b, k) with b histories: name -> (b, k).

        One history at a time: the products of a single one are small enough to stay in the cache.
        """
        history, items, ages = latest_items(positives, len(self.vectors))
        starts = np.searchsorted(history, np.arange(len(rows) + 1))
        weights = np.stack([recency_weights(ages, decay) for decay in (LONG_DECAY, SHORT_DECAY)], axis=1)  # (m, 2)
        near = recency_weights(ages, TFIDF_DECAY)  # (m,)
        words, neighbours = np.zeros(rows.shape), np.zeros((*rows.shape, 2))
        for b, candidates in enumerate(rows):
            own = slice(starts[b], starts[b + 1])
            recent = np.flatnonzero(near[own])
            words[b] = self.tfidf.similarity(items[own][recent], near[own][recent], candidates)
            neighbours[b] = self.neighbour_scores(items[own], weights[own])[candidates]
        return {
            "word_similarity": words,
            "neighbours_long": neighbours[:, :, 0],
            "neighbours_short": neighbours[:, :, 1],
        }

    def neighbour_scores(self, items: Ints, weights: Floats) -> Floats:
        """The weights of local EASE from history items (h,) to all items, summed with weights (h, ...): (n, ...)."""
        scores: Floats = self.neighbours[items].T @ weights
        return scores

    def _ages(self, as_of: Ints, rows: Ints) -> Doubles:
        """Days from the publication of the items of rows (b, k) to the times as_of (b,): (b, k), NaN if unknown.

        Among cold items, users choose new ones far more often than old ones. Ages are counted to the request, not to
        the end of the statistics: an item that is published tomorrow is new tomorrow.
        """
        published = self.catalog.published[rows]
        return np.where(published == UNDATED, np.nan, (as_of[:, None] - published.astype(np.float64)) / DAY)

    @cached_property
    def is_cold(self) -> Bools:
        """Whether each item has no positive event: (n,) bool."""
        return np.asarray(self.statistics.total == 0)

    @cached_property
    def is_fresh(self) -> Bools:
        """Whether each item is new: (n,) bool. Published in the FRESH_DAYS before `fitted_until`, or later.

        Where the date is not known: whether it has no positive event.
        """
        published = self.catalog.published
        return np.where(published == UNDATED, self.is_cold, published > self.fitted_until - FRESH_DAYS * DAY)

    @cached_property
    def trending(self) -> Popular:
        """The popularity of the 7 days before `fitted_until`; ties by that of 30 days."""
        s = self.statistics
        popularity = (s.newest + s.recent / (s.recent.max(initial=0) + 1)).astype(np.float32)
        return Popular(popularity, s.fitted_until, 7)

    @cached_property
    def finest_category(self) -> Ints:
        """The last category of each item, the finest if its categories are a path; -1 if it has none: (n,) int64."""
        depth = (self.catalog.categories >= 0).sum(1)
        last = self.catalog.categories[np.arange(len(depth)), depth - 1]
        return np.where(depth > 0, last, -1).astype(np.int64)

    @cached_property
    def _of_items(self) -> dict[str, Floats]:
        """The features that depend on the item alone: name -> (n,).

        Days are counted to the end of the statistics, not to the request: the ranking stays the one that was
        evaluated.
        """
        s = self.statistics
        recent, days = np.log1p(s.recent), (s.fitted_until - s.last.astype(np.float64)) / DAY
        columns = {
            "item_log_count": np.log1p(s.total),
            "item_log_recent": recent,
            "item_log_newest": np.log1p(s.newest),
            "item_trend": np.log1p(s.newest * (30 / 7)) - recent,
            "item_days_since_last": np.where(s.total > 0, days, np.nan),
        }
        return {name: values.astype(np.float32) for name, values in columns.items()}

    def _similarities(self, positives: Ragged, rows: Ints) -> dict[str, Floats]:
        """The features that compare rows (b, k) with the newest positive items of b histories: name -> (b, k)."""
        newest = positives.tail(int(positives.lengths.max(initial=1).clip(1, RECENT_EVENTS)))  # (b, h), right-aligned
        valid = newest >= 0
        newest = np.maximum(newest, 0)
        weights = (valid / valid.sum(1, keepdims=True).clip(min=1)).astype(np.float32)[:, :, None]  # (b, h, 1)
        similar = self.vectors[rows] @ self.vectors[newest].transpose(0, 2, 1)  # (b, k, h)
        mean = (similar @ weights)[:, :, 0]
        np.copyto(similar, -1, where=~valid[:, None, :])  # the minimum of a cosine
        text = (weights * self.catalog.content[newest]).sum(1)[:, :, None]  # (b, m, 1)
        text /= np.linalg.norm(text, axis=1, keepdims=True).clip(min=1e-9)
        main = self.catalog.categories[:, 0]  # (n,), -1: the item has none
        same = main[rows][:, :, None] == np.where(valid & (main[newest] >= 0), main[newest], -2)[:, None, :]
        popularity = (weights[:, :, 0] * self._of_items["item_log_count"][newest]).sum(1, keepdims=True)
        gap = self._of_items["item_log_count"][rows] - np.where(valid[:, -1:], popularity, np.nan)
        return {
            "similarity_last": similar[:, :, -1],
            "similarity_max": similar.max(2),
            "similarity_mean": mean,
            "text_similarity": (self.catalog.content[rows] @ text)[:, :, 0],
            "category_share": np.count_nonzero(same, axis=2) / valid.sum(1).clip(min=1)[:, None],
            "user_popularity_gap": gap,
        }

    def matrix(self, states: UserStates, candidates: Candidates, ranks: Ints | None = None) -> Floats:
        """Features of candidates (b, k): (b, k, len(FEATURES)) float32, NaN where undefined; padding is arbitrary.

        ranks (b, k): place of each in the retrieval, from 0; None: its place in its line.
        """
        positives, rows = states.positives(), np.maximum(candidates.rows, 0)  # (b, k)
        columns = {
            "retrieval_score": candidates.scores,
            "retrieval_rank": np.arange(candidates.rows.shape[1]) if ranks is None else ranks,
            **self._similarities(positives, rows),
            **self._history_scores(positives, rows),
            **{name: values[rows] for name, values in self._of_items.items()},
            "item_days_since_published": self._ages(states.as_of, rows),
            "user_log_history": np.log1p(positives.lengths)[:, None],
            **repeat_consumption_features(states, rows, self.finest_category),
        }
        out = np.empty((len(FEATURES), *rows.shape), dtype=np.float32)
        for values, name in zip(out, FEATURES, strict=True):
            values[:] = columns[name]
        return np.ascontiguousarray(np.moveaxis(out, 0, -1))


def repeat_consumption_features(states: UserStates, rows: Ints, finest: Ints) -> dict[str, Doubles]:
    """The repeat-consumption features: name -> (b, k) for pairs, (b, 1) for users. rows (b, k): the candidates.

    finest (n,): category of each item, -1 for none. A moment is all positive events at one time, such as a basket.
    user_item_share: events with the item for each moment of the user.
    """
    items = UserItemCounts.of(states, len(finest))
    categories = UserItemCounts.of(states, int(finest.max(initial=0)) + 1, finest)
    item_features = _consumption(items, rows, states.as_of)
    category_features = _consumption(categories, finest[rows], states.as_of)
    positives = states.positive_times()
    owner, times = positives.pairs()  # state and time of each positive event
    starts = np.append(True, (owner[1:] != owner[:-1]) | (times[1:] != times[:-1]))[: len(owner)]
    moments = np.bincount(owner[starts], minlength=len(rows))[:, None]  # (b, 1)
    events = np.bincount(owner, minlength=len(rows))[:, None]
    distinct = np.bincount(items.key // len(finest), minlength=len(rows))[:, None]
    return {
        **{f"user_item_{name}": values for name, values in item_features.items()},
        **{f"user_category_{name}": values for name, values in category_features.items()},
        "user_item_share": np.expm1(item_features["log_count"]) / moments.clip(min=1),
        "user_log_moments": np.log1p(moments),
        "user_repeat_share": np.where(events > 0, 1 - distinct / events.clip(min=1), np.nan),
        "user_days_since_last": np.where(events > 0, (states.as_of[:, None] - positives.tail(1)) / DAY, np.nan),
    }


def _consumption(counts: UserItemCounts, kinds: Ints, as_of: Ints) -> dict[str, Doubles]:
    """Log count, recency, days since the last event and due ratio of kinds (b, k): name -> (b, k).

    due = days since the last event / mean days between two events, of at least half a day.
    """
    mean_gap = np.where(counts.count > 1, (counts.last - counts.first) / (counts.count - 1).clip(min=1), np.nan)
    known = (np.log1p(counts.count), counts.recency, counts.last, (mean_gap / DAY).clip(min=0.5))  # (m,) each
    table = np.vstack((np.stack(known, axis=1), [0, 0, np.nan, np.nan]))  # (m + 1, 4): the last row is of no entry
    log_count, recency, last, gap = np.moveaxis(table[counts.find(kinds)], -1, 0)
    days = (as_of[:, None] - last) / DAY
    return {"log_count": log_count, "recency": recency, "days_since_last": days, "due": days / gap}
