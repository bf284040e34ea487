"""Features of (user, item) pairs, the input of the reranker."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from features.arrays import Doubles, Floats, Ints
from features.catalog import UNDATED, Catalog, item_texts
from features.instants import DAY
from features.interactions import Interactions, Ragged, UserStates
from recsys.histories import profile
from recsys.interfaces import Candidates
from recsys.item_statistics import ItemStatistics
from recsys.ranking.local_ease import fit_local_ease
from recsys.ranking.tfidf import TfidfIndex
from recsys.ranking.user_item_counts import UserItemCounts

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


RECENT_EVENTS = 50
"""Number of newest positive events of a user that similarities are computed with."""


NEIGHBOURS = 200
"""Number of neighbours that predict each item in `fit_local_ease`."""


LONG_DECAY, SHORT_DECAY = 0.99, 0.8
"""Weight of an event relative to the next newer one, in neighbours_long and neighbours_short."""


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

    def _neighbours(self, positives: Ragged, decay: float, rows: Ints) -> Doubles:
        """Sums over b histories of decay ** age times the weights of the items of rows (b, k): (b, k)."""
        n = len(self.vectors)
        sums = sp.csr_array(profile(positives, n, decay) @ self.neighbours)  # (b, n)
        sums.sort_indices()
        key = np.repeat(np.arange(len(rows)), np.diff(sums.indptr)) * n + sums.indices  # ascending: state * n + item
        query = np.arange(len(rows))[:, None] * n + rows  # (b, k)
        at = np.searchsorted(key, query)
        return np.where(np.append(key, -1)[at] == query, np.append(sums.data, 0.0)[at], 0.0)

    def _ages(self, as_of: Ints, rows: Ints) -> Doubles:
        """Days from the publication of the items of rows (b, k) to the times as_of (b,): (b, k), NaN if unknown.

        Among cold items, users choose new ones far more often than old ones. Ages are counted to the request, not to
        the end of the statistics: an item that is published tomorrow is new tomorrow.
        """
        published = self.catalog.published[rows]
        return np.where(published == UNDATED, np.nan, (as_of[:, None] - published.astype(np.float64)) / DAY)

    @cached_property
    def finest_category(self) -> Ints:
        """The last category of each item, the finest if its categories are a path; -1 if it has none: (n,) int64."""
        depth = (self.catalog.categories >= 0).sum(1)
        last = self.catalog.categories[np.arange(len(depth)), depth - 1]
        return np.where(depth > 0, last, -1).astype(np.int64)

    def matrix(self, states: UserStates, candidates: Candidates) -> Floats:
        """Features of candidates (b, k): (b, k, len(FEATURES)) float32, NaN where undefined; padding is arbitrary."""
        s, positives = self.statistics, states.positives()
        rows = np.maximum(candidates.rows, 0)  # (b, k)
        recent = positives.tail(RECENT_EVENTS)  # (b, h), right-aligned
        valid = recent >= 0
        recent = np.maximum(recent, 0)
        count = valid.sum(1).clip(min=1)[:, None]  # (b, 1)
        similar = np.einsum("bkd,bhd->bkh", self.vectors[rows], self.vectors[recent], optimize=True)
        similar[np.broadcast_to(~valid[:, None, :], similar.shape)] = np.nan
        text = (self.catalog.content[recent] * valid[:, :, None]).sum(1)  # (b, m)
        text /= np.linalg.norm(text, axis=1, keepdims=True).clip(min=1e-9)
        main = self.catalog.categories[:, 0]  # (n,)
        same = (main[rows][:, :, None] == main[recent][:, None, :]) & valid[:, None, :]  # (b, k, h)
        same &= (main[rows] >= 0)[:, :, None]  # items without a category have none in common
        popularity = np.log1p(s.total[rows])  # of the candidates only, not of the whole catalogue
        recent_popularity = np.log1p(s.recent[rows])
        # days to the end of the statistics, not to the request: the ranking stays the one that was evaluated
        days = (s.fitted_until - s.last[rows].astype(np.float64)) / DAY
        empty = ~valid.any(1)  # (b,)
        mean_popularity = (np.log1p(s.total[recent]) * valid).sum(1) / count[:, 0]  # (b,)
        filled = np.where(np.isnan(similar), -1.0, similar)  # (b, k, h): -1, the minimum of a cosine
        columns = {
            "retrieval_score": candidates.scores,
            "retrieval_rank": np.arange(candidates.rows.shape[1]),
            "similarity_last": filled[:, :, -1],
            "similarity_max": filled.max(2),
            "similarity_mean": np.where(valid[:, None, :], filled, 0).sum(2) / count,
            "text_similarity": np.einsum("bkm,bm->bk", self.catalog.content[rows], text, optimize=True),
            "word_similarity": self.tfidf.similarity(positives, rows),
            "category_share": same.sum(2) / count,
            "neighbours_long": self._neighbours(positives, LONG_DECAY, rows),
            "neighbours_short": self._neighbours(positives, SHORT_DECAY, rows),
            "item_log_count": popularity,
            "item_log_recent": recent_popularity,
            "item_log_newest": np.log1p(s.newest[rows]),
            "item_trend": np.log1p(s.newest[rows] * (30 / 7)) - recent_popularity,
            "item_days_since_last": np.where(s.total[rows] > 0, days, np.nan),
            "item_days_since_published": self._ages(states.as_of, rows),
            "user_log_history": np.log1p(positives.lengths)[:, None],
            "user_popularity_gap": popularity - np.where(empty, np.nan, mean_popularity)[:, None],
            **repeat_consumption_features(states, rows, self.finest_category),
        }
        return np.stack(
            [np.broadcast_to(np.asarray(columns[name], np.float32), rows.shape) for name in FEATURES], axis=-1
        )


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
    at = counts.find(kinds)  # (b, k)
    mean_gap = np.where(counts.count > 1, (counts.last - counts.first) / (counts.count - 1).clip(min=1), np.nan)

    def values_of(values: Doubles, default: float) -> Doubles:
        return np.append(values, default)[at]

    days = (as_of[:, None] - values_of(counts.last, np.nan)) / DAY
    return {
        "log_count": np.log1p(values_of(counts.count, 0)),
        "recency": values_of(counts.recency, 0),
        "days_since_last": days,
        "due": days / (values_of(mean_gap, np.nan) / DAY).clip(min=0.5),
    }
