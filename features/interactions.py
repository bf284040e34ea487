"""Events as arrays: the log by user and time, and what was known of users just before a moment.

Times are int64 microseconds since 1970-01-01 UTC everywhere inside.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from features.arrays import Bools, Floats, Ints

DAY = 86_400_000_000
"""One day in µs."""


def now_micros() -> int:
    """µs since 1970 UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class Ragged:
    """b slices of one flat array: slice i is ``flat[begin[i]:end[i]]``. Slices may overlap (nothing is copied).

    flat (n,) int64, begin (b,) int64, end (b,) int64.
    """

    flat: Ints
    begin: Ints
    end: Ints

    @classmethod
    def of(cls, lists: list[list[int]]) -> "Ragged":
        """From Python lists."""
        ends = np.cumsum([len(x) for x in lists], dtype=np.int64)
        begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if lists else ends
        return cls(np.array([v for x in lists for v in x], dtype=np.int64), begins, ends)

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def lengths(self) -> Ints:
        """(b,) int64."""
        return self.end - self.begin

    def __getitem__(self, index: "slice | Ints") -> "Ragged":
        """The slices of a range or of chosen rows."""
        return Ragged(self.flat, self.begin[index], self.end[index])

    def places(self) -> tuple[Ints, Ints]:
        """(row of the slice, place in `flat`) of every element, in order: two (sum of lengths,) int64 arrays."""
        lengths = self.lengths
        which = np.repeat(np.arange(len(self), dtype=np.int64), lengths)
        within = np.arange(lengths.sum(), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return which, self.begin[which] + within

    def pairs(self) -> tuple[Ints, Ints]:
        """(row of the slice, value) of every element, as `places`."""
        which, at = self.places()
        return which, self.flat[at]

    def tail(self, length: int, fill: int = -1) -> Ints:
        """The last `length` values of each slice, right-aligned, `fill` on the left: (b, length) int64."""
        at = self.end[:, None] - np.arange(length, 0, -1, dtype=np.int64)[None, :]  # (b, length)
        inside = at >= self.begin[:, None]
        if len(self.flat) == 0:
            return np.full(at.shape, fill, dtype=np.int64)
        return np.where(inside, self.flat[np.where(inside, at, 0)], fill)

    def mask(self, width: int) -> Bools:
        """True where a value occurs in a slice: (b, width) bool; values outside 0..width-1 are left out."""
        out = np.zeros((len(self), width), dtype=np.bool_)
        which, values = self.pairs()
        ok = (values >= 0) & (values < width)
        out[which[ok], values[ok]] = True
        return out


@dataclass(frozen=True)
class UserStates:
    """What was known of b users just before `as_of`: their own events strictly before it, oldest first.

    users (b,) int64 row of the user, -1 unknown; as_of (b,) int64 µs;
    items: Ragged of item rows; times (n,) int64 µs, positive, seen (n,) bool and types (n,) int64 lie beside
    ``items.flat``, see `Interactions`.
    """

    users: Ints
    as_of: Ints
    items: Ragged
    times: Ints
    positive: Bools
    seen: Bools
    types: Ints | None = None

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: "slice | Ints") -> "UserStates":
        """A range or chosen rows of the states."""
        return replace(self, users=self.users[index], as_of=self.as_of[index], items=self.items[index])

    def compact(self) -> "UserStates":
        """The same states over arrays of their own events alone: what is asked of them costs what they hold, and not
        what the log holds that they were cut from."""
        _, at = self.items.places()
        ends = np.cumsum(self.items.lengths)
        return replace(
            self,
            items=Ragged(self.items.flat[at], ends - self.items.lengths, ends),
            times=self.times[at],
            positive=self.positive[at],
            seen=self.seen[at],
            types=None if self.types is None else self.types[at],
        )

    def _only(self, keep: Bools, flat: Ints) -> Ragged:
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])
        return Ragged(flat[keep], before[self.items.begin], before[self.items.end])

    def positives(self) -> Ragged:
        """Item rows of the positive events."""
        return self._only(self.positive, self.items.flat)

    def positive_times(self) -> Ragged:
        """Times (µs) of the positive events, aligned with `positives`."""
        return self._only(self.positive, self.times)

    def seen_items(self) -> Ragged:
        """Item rows of the events that count as seen: what a placement without repeats excludes."""
        return self._only(self.seen, self.items.flat)


@dataclass(frozen=True)
class Interactions:
    """The event log as rows, sorted by user, then time, then order in the log (stable).

    users, items, times (n,) int64; positive, seen (n,) bool. Every item is of the catalogue: rows 0..n_items-1.
    weights (n,) float32 above 0: how much each counts in training where it is positive; None: all alike.
    types (n,) int64, 0..n_types-1: which event type each is of, 1 + its place in `EventRules.types`; 0, as where it
    is None: one that is not told apart.
    """

    users: Ints
    items: Ints
    times: Ints
    positive: Bools
    seen: Bools
    n_users: int
    n_items: int
    weights: Floats | None = None
    types: Ints | None = None
    n_types: int = 1

    @classmethod
    def sort(
        cls,
        users: Ints,
        items: Ints,
        times: Ints,
        positive: Bools,
        seen: Bools,
        n_users: int,
        n_items: int,
        weights: Floats | None = None,
        types: Ints | None = None,
        n_types: int = 1,
    ) -> "Interactions":
        """From arrays in log order; ties in time keep it."""
        order = np.lexsort((times, users))  # lexsort is stable
        return cls(users, items, times, positive, seen, n_users, n_items, weights, types, n_types).where(order)

    def __len__(self) -> int:
        return len(self.users)

    def where(self, keep: Bools | Ints) -> "Interactions":
        """The events where keep (n,) is True, or of these rows in their order."""
        return replace(
            self,
            users=self.users[keep],
            items=self.items[keep],
            times=self.times[keep],
            positive=self.positive[keep],
            seen=self.seen[keep],
            weights=None if self.weights is None else self.weights[keep],
            types=None if self.types is None else self.types[keep],
        )

    def before(self, cut: int) -> "Interactions":
        """The events strictly before `cut` (µs)."""
        return self.where(self.times < cut)

    def positives(self) -> "Interactions":
        """The positive events."""
        return self.where(self.positive)

    @property
    def offsets(self) -> Ints:
        """(n_users + 1,) int64: events of user u are offsets[u]:offsets[u+1]."""
        return np.searchsorted(self.users, np.arange(self.n_users + 1)).astype(np.int64)

    @property
    def latest(self) -> int:
        """Time (µs) of the latest event; the smallest int64 when there is none."""
        return int(self.times.max()) if len(self) else int(np.iinfo(np.int64).min)

    def states(self, users: Ints, as_of: Ints) -> UserStates:
        """Point-in-time states of users (b,) at as_of (b,): events with time < as_of, never at it.

        Sorting is by (user, time), so that both ends of a slice are found by binary search.
        """
        offsets = self.offsets
        known = users >= 0
        safe = np.where(known, users, 0)
        begin = np.where(known, offsets[safe], 0)
        rank = np.unique(np.concatenate([self.times, as_of]), return_inverse=True)[1].astype(np.int64)
        width = int(rank.max(initial=0)) + 1
        keys = self.users * width + rank[: len(self)]
        end = np.searchsorted(keys, safe * width + rank[len(self) :], side="left").astype(np.int64)
        return self.states_at(users, as_of, begin, np.where(known, end, 0))

    def states_at(self, users: Ints, as_of: Ints, begin: Ints, end: Ints) -> UserStates:
        """States of users (b,) at as_of (b,) that know the events begin:end (b,) each."""
        items = Ragged(self.items, begin, end)
        return UserStates(users, as_of, items, self.times, self.positive, self.seen, self.types)
