"""Histories added up: how often and when each user took each item, or items of each kind."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Doubles, Ints
from features.interactions import Ragged, UserStates
from recsys.histories import ages

DECAY = 0.995
"""Weight of an event in `UserItemCounts.recency` against the next one in the history."""


@dataclass(frozen=True)
class UserItemCounts:
    """One entry for each (history, kind of item) pair of b histories of positive events, ordered by it.

    key (m,) int64: history * width + kind; the rest (m,) float64. count: events; recency: the sum of DECAY ** age,
    age being the events of the history since then; first, last: µs of the oldest and the newest.
    """

    width: int
    key: Ints
    count: Doubles
    recency: Doubles
    first: Doubles
    last: Doubles

    @classmethod
    def of(cls, states: UserStates, width: int, kinds: Ints | None = None) -> "UserItemCounts":
        """From the positive events of b states. kinds (n,): of each item, below width, -1 for none; None: itself."""
        positives = states.positives()
        which, items = positives.pairs()
        kind = items if kinds is None else kinds[items]
        order = np.argsort(which * width + kind, kind="stable")  # histories are oldest first: so is each pair's run
        order = order[kind[order] >= 0]
        ordered, times = (which * width + kind)[order], states.positive_times().pairs()[1][order].astype(np.float64)
        start = np.flatnonzero(np.diff(ordered, prepend=-1))
        size = np.diff(start, append=len(ordered))
        weights = np.power(DECAY, ages(positives))[order]
        recency = np.add.reduceat(weights, start) if len(start) else np.zeros(0)
        return cls(width, ordered[start], size.astype(np.float64), recency, times[start], times[start + size - 1])

    def find(self, kinds: Ints) -> Ints:
        """Which entry each of kinds (b, k) has in its history: (b, k) int64, m where it has none."""
        asked = np.arange(len(kinds))[:, None] * self.width + kinds
        at = np.searchsorted(self.key, asked)
        there = (kinds >= 0) & (np.append(self.key, -1)[at] == asked)
        return np.where(there, at, len(self.key))

    def favourites(self, b: int, most: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Ints:
        """Up to `most` items of each of b histories, the largest recency first: (b, most) int64, -1 = padding.

        For a tally of items. allow and exclude as in `Retriever.search`.
        """
        user, item = np.divmod(self.key, self.width)
        keep = np.ones(len(item), dtype=np.bool_) if allow is None else allow[item]
        if exclude is not None:
            which, items = exclude.pairs()
            keep &= ~np.isin(self.key, which * self.width + items)
        user, item = user[keep], item[keep]
        order = np.lexsort((-self.recency[keep], user))
        user, item = user[order], item[order]
        place = np.arange(len(user)) - np.searchsorted(user, user)
        out = np.full((b, most), -1, dtype=np.int64)
        inside = place < most
        out[user[inside], place[inside]] = item[inside]
        return out
