"""User-item counts: how often and when each user took each item, or items of each category."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Doubles, Ints
from features.interactions import Ragged, UserStates
from recsys.histories import ages
from recsys.interfaces import in_slices

DECAY = 0.995
"""Weight of an event in `UserItemCounts.recency` relative to the next newer one in the history."""


@dataclass(frozen=True)
class UserItemCounts:
    """One entry for each (history, kind) pair of b histories of positive events, sorted by key.

    A kind is an item or a category. key (m,) int64: history * width + kind; the others are (m,) float64: count:
    events; recency: sum of DECAY ** age, where age is the number of later events in the history; first, last: times
    in µs of the oldest and the newest event.
    """

    width: int
    key: Ints
    count: Doubles
    recency: Doubles
    first: Doubles
    last: Doubles

    @classmethod
    def of(cls, states: UserStates, width: int, kinds: Ints | None = None) -> "UserItemCounts":
        """Of the positive events of b states.

        kinds (n,): kind of each item, less than width, -1 for none; None: the kind is the item.
        """
        positives = states.positives()
        history, items = positives.pairs()  # (events,)
        kind = items if kinds is None else kinds[items]
        order = np.argsort(history * width + kind, kind="stable")  # the events of a pair stay oldest first
        order = order[kind[order] >= 0]
        key, times = (history * width + kind)[order], states.positive_times().pairs()[1][order].astype(np.float64)
        start = np.flatnonzero(np.diff(key, prepend=-1))  # (m,): first event of each pair
        size = np.diff(start, append=len(key))
        weights = np.power(DECAY, ages(positives))[order]
        recency = np.add.reduceat(weights, start) if len(start) else np.zeros(0)
        return cls(width, key[start], size.astype(np.float64), recency, times[start], times[start + size - 1])

    def find(self, kinds: Ints) -> Ints:
        """The entry of each of kinds (b, k) in its history: (b, k) int64, m where there is none."""
        query = np.arange(len(kinds))[:, None] * self.width + kinds
        at = np.searchsorted(self.key, query)
        exists = (kinds >= 0) & (np.append(self.key, -1)[at] == query)
        return np.where(exists, at, len(self.key))

    def favourites(self, b: int, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Ints:
        """Up to k items of each of b histories, largest recency first: (b, k) int64, -1 = padding.

        Only where kinds are items. allow and exclude as in `Retriever.search`.
        """
        history, item = np.divmod(self.key, self.width)
        keep = np.ones(len(item), dtype=np.bool_) if allow is None else allow[item]
        if exclude is not None:
            keep &= ~in_slices(exclude, history, item)
        history, item = history[keep], item[keep]
        order = np.lexsort((-self.recency[keep], history))
        history, item = history[order], item[order]
        position = np.arange(len(history)) - np.searchsorted(history, history)
        out = np.full((b, k), -1, dtype=np.int64)
        inside = position < k
        out[history[inside], position[inside]] = item[inside]
        return out
