"""Features of (user, item) pairs: what the reranker reads."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from features.arrays import Doubles, Floats, Ints
from features.catalog import UNDATED, Catalog, item_texts
from features.interactions import DAY, Interactions, Ragged, UserStates
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
"""Newest positive events of a user that similarities are taken with."""


NEIGHBOURS = 200
"""Items that each item is foretold from."""


LONG_DECAY, SHORT_DECAY = 0.99, 0.8
"""Weight of an event in neighbours_long and neighbours_short against the next one in the history."""


@dataclass(frozen=True)
class PairFeatures:
    """Makes the feature matrix of (state, candidate) pairs from arrays fixed at training.

    vectors (n, d) item vectors of the towers that found the candidates; statistics and words of the items;
    neighbours (n, n) sparse: how much the item of a column goes with that of a row (`fit_local_ease`).
    """

    catalog: Catalog
    vectors: Floats
    statistics: ItemStatistics
    tfidf: TfidfIndex
    neighbours: sp.csr_array

    @classmethod
    def of(cls, catalog: Catalog, vectors: Floats, events: Interactions) -> "PairFeatures":
        """From the events of a time. Raises DataError when none is positive."""
        words = TfidfIndex.of(item_texts(catalog.frame))
        return cls(catalog, vectors, ItemStatistics.of(events), words, fit_local_ease(events, k=NEIGHBOURS))

    @property
    def fitted_until(self) -> int:
        """µs of the latest event that the features have seen."""
        return self.statistics.fitted_until

    def _neighbours(self, positives: Ragged, decay: float, rows: Ints) -> Doubles:
        """(b, k): sums over b histories of decay ** age times how much the items of rows (b, k) go with theirs."""
        n = len(self.vectors)
        sums = sp.csr_array(profile(positives, n, decay) @ self.neighbours)
        sums.sort_indices()
        key = np.repeat(np.arange(len(rows)), np.diff(sums.indptr)) * n + sums.indices
        asked = np.arange(len(rows))[:, None] * n + rows
        at = np.searchsorted(key, asked)
        return np.where(np.append(key, -1)[at] == asked, np.append(sums.data, 0.0)[at], 0.0)

    def _ages(self, as_of: Ints, rows: Ints) -> Doubles:
        """(b, k): days from the publication of items rows (b, k) to the moments as_of (b,), NaN where it is unknown.

        Of what nobody has touched yet, the new is wanted far more often than what has lain there for long. They end
        when it is asked for, not with the statistics: what is put tomorrow is new tomorrow.
        """
        published = self.catalog.published[rows]
        return np.where(published == UNDATED, np.nan, (as_of[:, None] - published.astype(np.float64)) / DAY)

    @cached_property
    def finest_category(self) -> Ints:
        """(n,) int64: the last category of each item, the finest where they are a path; -1 for none."""
        depth = (self.catalog.categories >= 0).sum(1)
        last = self.catalog.categories[np.arange(len(depth)), depth - 1]
        return np.where(depth > 0, last, -1).astype(np.int64)

    def matrix(self, states: UserStates, candidates: Candidates) -> Floats:
        """(b, k, len(FEATURES)) float32; NaN where a feature does not exist; padding rows are meaningless."""
        s, positives = self.statistics, states.positives()
        rows = np.maximum(candidates.rows, 0)  # (b, k)
        recent = positives.tail(RECENT_EVENTS)  # (b, h), right-aligned
        there = recent >= 0
        known = np.maximum(recent, 0)
        count = there.sum(1).clip(min=1)[:, None]
        similar = np.einsum("bkd,bhd->bkh", self.vectors[rows], self.vectors[known], optimize=True)
        similar[np.broadcast_to(~there[:, None, :], similar.shape)] = np.nan
        text = (self.catalog.content[known] * there[:, :, None]).sum(1)  # (b, m)
        text /= np.linalg.norm(text, axis=1, keepdims=True).clip(min=1e-9)
        main = self.catalog.categories[:, 0]
        same = (main[rows][:, :, None] == main[known][:, None, :]) & there[:, None, :]
        same &= (main[rows] >= 0)[:, :, None]  # items without a category share none
        popularity = np.log1p(s.total[rows])  # of the candidates only, not of the catalogue
        recently = np.log1p(s.recent[rows])
        # until the statistics were taken, not until now: a bundle orders tomorrow as it was judged today
        days = (s.fitted_until - s.last[rows].astype(np.float64)) / DAY
        empty = ~there.any(1)
        mean_popularity = (np.log1p(s.total[known]) * there).sum(1) / count[:, 0]
        filled = np.where(np.isnan(similar), -1.0, similar)
        columns = {
            "retrieval_score": candidates.scores,
            "retrieval_rank": np.arange(candidates.rows.shape[1]),
            "similarity_last": filled[:, :, -1],
            "similarity_max": filled.max(2),
            "similarity_mean": np.where(there[:, None, :], filled, 0).sum(2) / count,
            "text_similarity": np.einsum("bkm,bm->bk", self.catalog.content[rows], text, optimize=True),
            "word_similarity": self.tfidf.similarity(positives, rows),
            "category_share": same.sum(2) / count,
            "neighbours_long": self._neighbours(positives, LONG_DECAY, rows),
            "neighbours_short": self._neighbours(positives, SHORT_DECAY, rows),
            "item_log_count": popularity,
            "item_log_recent": recently,
            "item_log_newest": np.log1p(s.newest[rows]),
            "item_trend": np.log1p(s.newest[rows] * (30 / 7)) - recently,
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
    """Those of FEATURES that the positive events of b states tell by name: arrays (b, k) of pairs, (b, 1) of users.

    finest (n,): a category of each item, -1 for none. A moment is all that happened at one time, as a basket; share:
    events with the item for each moment.
    """
    items = UserItemCounts.of(states, len(finest))
    categories = UserItemCounts.of(states, int(finest.max(initial=0)) + 1, finest)
    of_item = _taken(items, rows, states.as_of)
    of_category = _taken(categories, finest[rows], states.as_of)
    positives = states.positive_times()
    which, times = positives.pairs()
    begins = np.append(True, (which[1:] != which[:-1]) | (times[1:] != times[:-1]))[: len(which)]
    moments = np.bincount(which[begins], minlength=len(rows))[:, None]  # (b, 1)
    events = np.bincount(which, minlength=len(rows))[:, None]
    distinct = np.bincount(items.key // len(finest), minlength=len(rows))[:, None]
    return {
        **{f"user_item_{name}": values for name, values in of_item.items()},
        **{f"user_category_{name}": values for name, values in of_category.items()},
        "user_item_share": np.expm1(of_item["log_count"]) / moments.clip(min=1),
        "user_log_moments": np.log1p(moments),
        "user_repeat_share": np.where(events > 0, 1 - distinct / events.clip(min=1), np.nan),
        "user_days_since_last": np.where(events > 0, (states.as_of[:, None] - positives.tail(1)) / DAY, np.nan),
    }


def _taken(tally: UserItemCounts, kinds: Ints, as_of: Ints) -> dict[str, Doubles]:
    """How often kinds (b, k) were taken, by recency, days since, and whether they are due: (b, k) each.

    due: days since the last time over the mean of the days from one to the next, half a day at least.
    """
    at = tally.find(kinds)
    between = np.where(tally.count > 1, (tally.last - tally.first) / (tally.count - 1).clip(min=1), np.nan)

    def of(values: Doubles, without: float) -> Doubles:
        return np.append(values, without)[at]

    since = (as_of[:, None] - of(tally.last, np.nan)) / DAY
    return {
        "log_count": np.log1p(of(tally.count, 0)),
        "recency": of(tally.recency, 0),
        "days_since_last": since,
        "due": since / (of(between, np.nan) / DAY).clip(min=0.5),
    }
