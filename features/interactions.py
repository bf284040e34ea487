"""Events as arrays: the log sorted by user and time, and point-in-time states of users.

All times are int64 microseconds since 1970-01-01 UTC.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from features.arrays import Bools, Floats, Ints, Keys
from features.errors import DataError
from features.history_rules import beginning, kept, newest_seen, seen_entries, seen_since
from features.schema import EventRules

NO_TARGET = "no user has a positive event after an earlier one"

SAME_TIME = (
    "the events of each user all have one time, and none is predicted from another of the same time; "
    "where only their order is known, write times one second apart"
)


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
        if len(self) == 1:  # one request has one history, and asks often
            positions = np.arange(self.begin[0], self.end[0], dtype=np.int64)
            return np.zeros(len(positions), dtype=np.int64), positions
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
    """How much of a user's history counts: what the feature store would hold of it.

    The store does not know which items a catalogue has: events of other items take places in a history, too.
    max_events, max_seen, max_days: `EventRules.history`, `seen_items`, `history_days`. The arrays have all n events,
    sorted as `Interactions` are. users, items, times (n,) int64, items -1 for those of no row; item_keys (n,) uint64:
    of `features.ids.id_keys`; positive, seen (n,) bool. until: time (µs) from which on events do not exist.
    """

    max_events: int
    max_seen: int
    max_days: int | None
    users: Ints
    items: Ints
    item_keys: Keys
    times: Ints
    positive: Bools
    seen: Bools
    until: int = int(np.iinfo(np.int64).max)

    def slices(self, users: Ints, as_of: Ints) -> Ragged:
        """The events of users (b,) before as_of (b,), as slices of `items`."""
        begin = np.searchsorted(self.users, users).astype(np.int64)
        end = np.searchsorted(self.users, users, side="right").astype(np.int64)
        return Ragged(self.items, begin, first_from(self.times, begin, end, np.minimum(as_of, self.until)))

    def are_reached(self, histories: Ragged) -> bool:
        """Whether some of the histories is cut."""
        longest = int(histories.lengths.max(initial=0))
        return self.max_days is not None or longest > min(self.max_events, self.max_seen)

    def kept(self, histories: Ragged, as_of: Ints, owner: Ints, places: Ints) -> Bools:
        """(e,) bool: which events of the histories as of (b,) are kept.

        owner, places (e,): of each event its history, and its index in `items`.
        """
        history, at = histories.places()  # of all events, those of no row included
        keep = kept(self.positive[at], histories.lengths, self.max_events)
        if self.max_days is not None:
            keep &= self.times[at] >= beginning(as_of, self.max_days)[history]
        starts = np.cumsum(histories.lengths) - histories.lengths  # (b,): of each history in `keep`
        return np.asarray(keep[starts[owner] + places - histories.begin[owner]], dtype=np.bool_)

    def seen_rows(self, histories: Ragged, as_of: Ints) -> Ragged:
        """Distinct rows of the items that count as seen in the histories as of (b,)."""
        history, at = histories.places()
        history, at = history[self.seen[at]], at[self.seen[at]]
        entries = seen_entries(self.item_keys[at], self.times[at])
        newest = newest_seen(history, entries, self.max_seen)
        if self.max_days is not None:
            newest = newest[seen_since(entries[newest], beginning(as_of, self.max_days)[history[newest]])]
        newest = newest[self.items[at[newest]] >= 0]
        ends = np.cumsum(np.bincount(history[newest], minlength=len(histories)), dtype=np.int64)
        return Ragged(self.items[at[newest]], np.append(np.zeros(1, np.int64), ends)[: len(ends)], ends)


def first_from(times: Ints, begin: Ints, end: Ints, start: Ints) -> Ints:
    """(b,) int64: of each slice begin:end of ascending times, the first index whose time is `start` or later.

    begin, end, start (b,). `end` where there is none. A binary search in all slices at once.
    """
    low, high = begin, end
    while (is_open := low < high).any():
        middle = (low + high) // 2
        earlier = is_open & (times[np.minimum(middle, len(times) - 1)] < start)
        low, high = np.where(earlier, middle + 1, low), np.where(is_open & ~earlier, middle, high)
    return low


@dataclass(frozen=True)
class UserStates:
    """Point-in-time states of b users: the events of each user strictly before its `as_of`, oldest first.

    users (b,) int64 row of the user, -1 = unknown; as_of (b,) int64 µs; items: Ragged of item rows;
    times (n,) int64 µs, positive, seen (n,) bool and types (n,) int64 are aligned with ``items.flat``; their meaning
    is that of `Interactions`.
    limits: what `compact` keeps, None for all; histories: all events of each state, as slices of `limits.items`;
    places (n,) int64: index of each event there; seen_rows: the items that count as seen, None: those of the events.
    """

    users: Ints
    as_of: Ints
    items: Ragged
    times: Ints
    positive: Bools
    seen: Bools
    types: Ints | None = None
    limits: HistoryLimits | None = None
    histories: Ragged | None = None
    places: Ints | None = None
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
            histories=None if self.histories is None else self.histories[index],
            seen_rows=None if self.seen_rows is None else self.seen_rows[index],
        )

    def compact(self) -> "UserStates":
        """The states as the models get them: within `limits`, over arrays that hold only their own events.

        The cost of an operation then depends on the events of these states, not on the size of the log.
        """
        owner, positions = self.items.places()
        lengths, seen_rows = self.items.lengths, self.seen_rows
        if (cut := self._cut()) is not None:
            limits, histories, places = cut
            seen_rows = limits.seen_rows(histories, self.as_of)
            keep = limits.kept(histories, self.as_of, owner, places[positions])
            positions, lengths = positions[keep], np.bincount(owner[keep], minlength=len(self)).astype(np.int64)
        ends = np.cumsum(lengths)
        return replace(
            self,
            items=Ragged(self.items.flat[positions], ends - lengths, ends),
            times=self.times[positions],
            positive=self.positive[positions],
            seen=self.seen[positions],
            types=None if self.types is None else self.types[positions],
            limits=None,
            histories=None,
            places=None,
            seen_rows=seen_rows,
        )

    def _cut(self) -> tuple[HistoryLimits, Ragged, Ints] | None:
        """`limits`, `histories` and `places` where some history is cut; otherwise None."""
        if self.limits is None or self.histories is None or self.places is None:
            return None
        return (self.limits, self.histories, self.places) if self.limits.are_reached(self.histories) else None

    def _only(self, keep: Bools, flat: Ints) -> Ragged:
        """The slices of `flat` (n,) reduced to the elements where keep (n,) is True."""
        # before (n + 1,): number of kept elements before each index, which is the index after filtering
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])
        return Ragged(flat[keep], before[self.items.begin], before[self.items.end])

    def positives(self) -> Ragged:
        """Item rows of the positive events."""
        return self._positives

    def positive_times(self) -> Ragged:
        """Times (µs) of the positive events, aligned with `positives`."""
        return replace(self._positives, flat=self.times[self.positive])

    @cached_property
    def _positives(self) -> Ragged:  # one request asks for them several times
        return self._only(self.positive, self.items.flat)

    def seen_items(self) -> Ragged:
        """Item rows of the events that count as seen. A placement without repeats excludes these items."""
        if self.seen_rows is not None:
            return self.seen_rows
        if (cut := self._cut()) is not None:
            limits, histories, _ = cut
            return limits.seen_rows(histories, self.as_of)
        return self._only(self.seen, self.items.flat)


@dataclass(frozen=True)
class Interactions:
    """The event log as arrays, sorted by user, then time, then order in the log (stable).

    users, items, times (n,) int64; positive, seen (n,) bool. Items are rows of the catalogue, 0..n_items-1.
    weights (n,) float32 > 0: the training weight of each positive event; None: all weights are equal.
    types (n,) int64, 0..n_types-1: 1 + index of the event's type in `EventRules.types`, 0 for a type that is not in
    it; None: all types are 0. limits: of the histories, None for none; places (n,) int64: index of each event in its
    arrays.
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
    places: Ints | None = None

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
        rules: EventRules | None = None,
        item_keys: Keys | None = None,
    ) -> "Interactions":
        """From arrays in log order. Events of equal user and time keep that order.

        rules, item_keys (n,) uint64, `features.ids.id_keys`: for histories as the store would hold them; events of
        items without a row, -1, count there and are then left out.
        """
        order = np.lexsort((times, users))  # lexsort is stable
        log = cls(users, items, times, positive, seen, n_users, n_items, weights, types, n_types).where(order)
        if rules is None or item_keys is None:
            return log
        limits = HistoryLimits(
            rules.history,
            rules.seen_items,
            rules.history_days,
            log.users,
            log.items,
            item_keys[order],
            log.times,
            log.positive,
            log.seen,
        )
        log = replace(log, limits=limits, places=np.arange(len(log), dtype=np.int64))
        return log if (log.items >= 0).all() else log.where(log.items >= 0)

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
            places=None if self.places is None else self.places[keep],
        )

    def before(self, cut: int) -> "Interactions":
        """The events strictly before `cut` (µs)."""
        past = self.where(self.times < cut)
        return replace(past, limits=past.limits and replace(past.limits, until=min(cut, past.limits.until)))

    def renumbered(self, rows: Ints, n_items: int) -> "Interactions":
        """The events in the rows of another catalogue of n_items items. rows: the new row of each, -1 for none."""
        kept = self.where(rows[self.items] >= 0)
        limits = kept.limits
        if limits is not None:  # -1 stays -1
            limits = replace(limits, items=np.append(rows, -1)[limits.items])
        return replace(kept, items=rows[kept.items], n_items=n_items, limits=limits)

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

        Events are sorted by (user, time): a binary search in the events of the user finds the end of a slice.
        """
        offsets = self.offsets
        known = users >= 0
        safe = np.where(known, users, 0)
        begin = np.where(known, offsets[safe], 0)
        end = first_from(self.times, begin, np.where(known, offsets[safe + 1], 0), as_of)
        return self.states_at(users, as_of, begin, end)

    def states_at(self, users: Ints, as_of: Ints, begin: Ints, end: Ints) -> UserStates:
        """States of users (b,) at as_of (b,) whose events are the slices begin:end, (b,) each."""
        items, limits, places = Ragged(self.items, begin, end), self.limits, self.places
        histories = None
        if limits is not None and places is not None and len(places):
            histories = limits.slices(users, as_of)
            last = np.where(items.lengths > 0, places[end - 1] + 1, histories.end)  # a slice may hold events of as_of
            histories = replace(histories, end=np.maximum(histories.end, last))
        return UserStates(
            users, as_of, items, self.times, self.positive, self.seen, self.types, limits, histories, places
        )
