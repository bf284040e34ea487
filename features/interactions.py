"""Events as arrays: the log sorted by user and time, and point-in-time states of users.

All times are int64 microseconds since 1970-01-01 UTC.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.errors import DataError
from features.history_rules import kept, newest_seen, seen_entries
from features.ids import IdMap, id_keys

NO_TARGET = "no user has a positive event after an earlier one"

SAME_TIME = (
    "the events of each user all have one time, and none is predicted from another of the same time; "
    "where only their order is known, write times one second apart"
)


def now_micros() -> int:
    """The current time in µs since 1970 UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class Ragged:
    """b slices of one flat array: slice i is ``flat[begin[i]:end[i]]``. Nothing is copied, slices may overlap.

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
        """(b,) int64: the length of each slice."""
        return self.end - self.begin

    def __getitem__(self, index: "slice | Ints") -> "Ragged":
        """The slices of a range or of the given rows."""
        return Ragged(self.flat, self.begin[index], self.end[index])

    def places(self) -> tuple[Ints, Ints]:
        """(slice index, index into `flat`) of every element, in order: two (e,) int64 arrays, e = sum of lengths."""
        lengths = self.lengths
        slices = np.repeat(np.arange(len(self), dtype=np.int64), lengths)  # (e,)
        # offset of each element in its slice: its running index minus the running index of the slice's first element
        offsets = np.arange(lengths.sum(), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return slices, self.begin[slices] + offsets

    def pairs(self) -> tuple[Ints, Ints]:
        """(slice index, value) of every element, in the order of `places`."""
        slices, positions = self.places()
        return slices, self.flat[positions]

    def compact(self) -> "Ragged":
        """The same slices, one after another in an array of their own."""
        ends = np.cumsum(self.lengths)
        return Ragged(self.flat[self.places()[1]], ends - self.lengths, ends)

    def tail(self, length: int, fill: int = -1) -> Ints:
        """(b, length) int64: the last `length` values of each slice, right-aligned, with `fill` on the left."""
        positions = self.end[:, None] - np.arange(length, 0, -1, dtype=np.int64)[None, :]  # (b, length)
        inside = positions >= self.begin[:, None]  # (b, length): False is padding
        if len(self.flat) == 0:
            return np.full(positions.shape, fill, dtype=np.int64)
        return np.where(inside, self.flat[np.where(inside, positions, 0)], fill)


@dataclass(frozen=True)
class HistoryLimits:
    """How much of a user's history counts.

    events, seen: `EventRules.history` and `EventRules.seen_items`; items: the ids of the rows.
    """

    events: int
    seen: int
    items: IdMap

    def newest_seen(self, rows: Ints, times: Ints) -> Ints:
        """Distinct rows of at most `seen` items, the latest ones, of seen events (n,) of one user."""
        distinct, at = np.unique(rows, return_inverse=True)
        keys = id_keys(self.items.ids[row] for row in distinct)
        entries = seen_entries(keys[at], times)
        return rows[newest_seen(np.zeros(len(rows), np.int64), entries, self.seen)]


@dataclass(frozen=True)
class UserStates:
    """Point-in-time states of b users: the events of each user strictly before its `as_of`, oldest first.

    users (b,) int64 row of the user, -1 = unknown; as_of (b,) int64 µs; items: Ragged of item rows;
    times (n,) int64 µs, positive, seen (n,) bool and types (n,) int64 are aligned with ``items.flat``; their meaning
    is that of `Interactions`.
    limits: what `compact` keeps, None for all; seen_rows: the items that count as seen, where not all seen events are
    among the events.
    """

    users: Ints
    as_of: Ints
    items: Ragged
    times: Ints
    positive: Bools
    seen: Bools
    types: Ints | None = None
    limits: HistoryLimits | None = None
    seen_rows: Ragged | None = None

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: "slice | Ints") -> "UserStates":
        """The states of a range or of the given rows."""
        return replace(
            self,
            users=self.users[index],
            as_of=self.as_of[index],
            items=self.items[index],
            seen_rows=None if self.seen_rows is None else self.seen_rows[index],
        )

    def compact(self) -> "UserStates":
        """The states as the models get them: within `limits`, over arrays that hold only their own events.

        The cost of an operation then depends on the events of these states, not on the size of the log.
        """
        owner, positions = self.items.places()
        lengths, seen_rows = self.items.lengths, self.seen_rows
        if self.limits is not None and lengths.max(initial=0) > self.limits.events:
            seen_rows = self.seen_items().compact()
            keep = kept(self.positive[positions], lengths, self.limits.events)
            positions, lengths = positions[keep], np.bincount(owner[keep], minlength=len(self)).astype(np.int64)
        ends = np.cumsum(lengths)
        return replace(
            self,
            items=Ragged(self.items.flat[positions], ends - lengths, ends),
            times=self.times[positions],
            positive=self.positive[positions],
            seen=self.seen[positions],
            types=None if self.types is None else self.types[positions],
            seen_rows=seen_rows,
        )

    def _only(self, keep: Bools, flat: Ints) -> Ragged:
        """The slices of `flat` (n,) reduced to the elements where keep (n,) is True."""
        # before (n + 1,): number of kept elements before each index, which is the index after filtering
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])
        return Ragged(flat[keep], before[self.items.begin], before[self.items.end])

    def positives(self) -> Ragged:
        """Item rows of the positive events."""
        return self._only(self.positive, self.items.flat)

    def positive_times(self) -> Ragged:
        """Times (µs) of the positive events, aligned with `positives`."""
        return self._only(self.positive, self.times)

    def seen_items(self) -> Ragged:
        """Item rows of the events that count as seen. A placement without repeats excludes these items."""
        if self.seen_rows is not None:
            return self.seen_rows
        seen = self._only(self.seen, self.items.flat)
        if self.limits is None or seen.lengths.max(initial=0) <= self.limits.seen:
            return seen
        times = self._only(self.seen, self.times)
        rows = [seen.flat[begin:end] for begin, end in zip(seen.begin, seen.end, strict=True)]
        for i in np.flatnonzero(seen.lengths > self.limits.seen):
            rows[i] = self.limits.newest_seen(rows[i], times.flat[times.begin[i] : times.end[i]])
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        ends = np.cumsum(lengths, dtype=np.int64)
        return Ragged(np.concatenate(rows), ends - lengths, ends)


@dataclass(frozen=True)
class Interactions:
    """The event log as arrays, sorted by user, then time, then order in the log (stable).

    users, items, times (n,) int64; positive, seen (n,) bool. Items are rows of the catalogue, 0..n_items-1.
    weights (n,) float32 > 0: the training weight of each positive event; None: all weights are equal.
    types (n,) int64, 0..n_types-1: 1 + index of the event's type in `EventRules.types`, 0 for a type that is not in
    it; None: all types are 0. limits: of the histories, None for none.
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
    limits: HistoryLimits | None = None

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
        limits: HistoryLimits | None = None,
    ) -> "Interactions":
        """From arrays in log order. Events of equal user and time keep that order."""
        order = np.lexsort((times, users))  # lexsort is stable
        log = cls(users, items, times, positive, seen, n_users, n_items, weights, types, n_types, limits)
        return log.where(order)

    def __len__(self) -> int:
        return len(self.users)

    def where(self, keep: Bools | Ints) -> "Interactions":
        """The events where keep (n,) bool is True, or the events of the given rows in the given order."""
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
        """(n_users + 1,) int64: the events of user u are offsets[u]:offsets[u+1]."""
        return np.searchsorted(self.users, np.arange(self.n_users + 1)).astype(np.int64)

    @property
    def latest(self) -> int:
        """Time (µs) of the latest event; the smallest int64 for an empty log."""
        return int(self.times.max()) if len(self) else int(np.iinfo(np.int64).min)

    @property
    def follows(self) -> Bools:
        """(n,) bool: the events with a strictly earlier event of their user. Only they have a history."""
        return np.asarray(self.times > self.times[self.offsets[self.users]], dtype=np.bool_)

    def check_targets(self) -> None:
        """Raises DataError, which names the cause, when no positive event has a history: nothing can be learned."""
        if (self.positive & self.follows).any():
            return
        nothing = f"{NO_TARGET} among {len(self)} events: nothing to train on; "
        if not self.positive.any():
            raise DataError(nothing + "no event is positive: check data.events.positive")
        n_users = len(np.unique(self.users))
        if n_users == len(self):
            raise DataError(nothing + f"each of the {n_users} users has one event only: check user_id")
        if not self.follows.any():
            raise DataError(f"nothing to train on: {SAME_TIME}")
        raise DataError(nothing + "add events, or check data.events.positive")

    def states(self, users: Ints, as_of: Ints) -> UserStates:
        """Point-in-time states of users (b,) at as_of (b,): the events with time < as_of, never time == as_of.

        Events are sorted by (user, time): one binary search for the key of (user, as_of) finds the end of a slice.
        """
        offsets = self.offsets
        known = users >= 0
        safe = np.where(known, users, 0)
        begin = np.where(known, offsets[safe], 0)
        # rank (n + b,): dense ranks of all times, so that key = user * width + rank orders by (user, time) in int64
        rank = np.unique(np.concatenate([self.times, as_of]), return_inverse=True)[1].astype(np.int64)
        width = int(rank.max(initial=0)) + 1
        keys = self.users * width + rank[: len(self)]  # (n,)
        end = np.searchsorted(keys, safe * width + rank[len(self) :], side="left").astype(np.int64)
        return self.states_at(users, as_of, begin, np.where(known, end, 0))

    def states_at(self, users: Ints, as_of: Ints, begin: Ints, end: Ints) -> UserStates:
        """States of users (b,) at as_of (b,) whose events are the slices begin:end, (b,) each."""
        items = Ragged(self.items, begin, end)
        return UserStates(users, as_of, items, self.times, self.positive, self.seen, self.types, self.limits)
