"""The state of a user in the feature store: the events and seen items that count, and their bytes.

A state is small whatever its user has done: `EventRules` bound its events and its seen items. `join` makes one state
of several. It is commutative, associative and idempotent: processes may add the same events in any order, and again.

What the user was shown is a value of its own, `Shown`: it comes from answers, and is in no table.

Bytes of a state: a digest of the rest; numbers of events, of seen items and of event types; columns of the events;
seen entries; names of types, then of items, as text.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.arrays import Doubles, Ints, Keys
from features.history_rules import (
    Labels,
    column_keys,
    columns_of,
    event_keys,
    in_order,
    kept,
    newest_seen,
    seen_entries,
    seen_since,
    without_ignored,
)
from features.ids import id_keys
from features.instants import DAY
from features.log.records import Event
from features.schema import EVENT_ID, ITEM, ROW, TIME, USER, EventRules

LAYOUT = 4
"""Version of the bytes. Other versions are kept under other keys."""

DIGEST_BYTES = 8
_HEAD = struct.Struct("<IIHB")
"""Numbers of events, of seen items and of types; 1 where events have values."""

_TIME = struct.Struct("<q")
LATEST_AT = DIGEST_BYTES + _HEAD.size
"""Where the times of the events begin, in ascending order."""

_INT64, _UINT64, _FLOAT64 = np.dtype("<i8"), np.dtype("<u8"), np.dtype("<f8")
_UINT32, _UINT16 = np.dtype("<u4"), np.dtype("<u2")

ROWS = 500_000
"""Minimum number of events of a table whose states are made at once; they are those of whole users."""

MAX_SHOWN = 500
"""Showings that are kept of a user, the newest: rules choose among as many candidates."""

_SHOWN = np.dtype([("key", "<u8"), ("time", "<i8")])
SHOWN_BYTES = _SHOWN.itemsize
"""Bytes of one showing."""

_SEPARATOR = "\x1f"  # ids and types never contain control characters
_LOGGED = 1 << 31
"""Added to the order of a logged event: events of a table come before logged ones of the same time."""

Orders = npt.NDArray[np.uint32]
_NO_ENTRIES: Keys = np.zeros(0, dtype=np.uint64)


class UserStateStatus(StrEnum):
    """Whether the store has a value, and whether the value can be incomplete."""

    PRESENT = "present"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True)
class Shown:
    """What a user was shown, m showings, those that were added last at the end.

    keys (m,) uint64: `features.ids.id_keys` of the items; times (m,) int64 µs.
    """

    keys: Keys = field(default_factory=lambda: _NO_ENTRIES)
    times: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, items: Sequence[str], time: int) -> "Shown":
        """Of the items of one answer."""
        return cls(id_keys(items), np.full(len(items), time, dtype=np.int64))

    def to_bytes(self) -> bytes:
        """The bytes that the store keeps: of each showing the key, then the time."""
        entries = np.empty(len(self.keys), dtype=_SHOWN)
        entries["key"], entries["time"] = self.keys, self.times
        return entries.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes | None) -> "Shown":
        """The inverse of `to_bytes`; of None no showings."""
        entries = np.frombuffer(data or b"", _SHOWN, count=len(data or b"") // SHOWN_BYTES)
        return cls(entries["key"].astype(np.uint64), entries["time"].astype(np.int64))


@dataclass(frozen=True)
class UserState:
    """What the store knows of one user: the h events that count, oldest first, and m seen items.

    items: external ids (h); names: event types; kinds (h,) int64: index of each event's type; times (h,) int64 µs;
    values (h,) float64, NaN = no value; keys (h,) uint64: identity of each event; orders (h,) uint32: order of the
    events of one time; seen (m,) uint64: `features.history_rules.seen_entries`;
    shown: read only where it is asked for;
    status: PRESENT; MISSING when the store has nothing of the user; STALE when the store has been emptied and not yet
    refilled, and when all that it has of the user is too old.
    """

    items: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    kinds: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    times: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    values: Doubles = field(default_factory=lambda: np.zeros(0))
    keys: Keys = field(default_factory=lambda: _NO_ENTRIES)
    orders: Orders = field(default_factory=lambda: np.zeros(0, np.uint32))
    seen: Keys = field(default_factory=lambda: _NO_ENTRIES)
    status: UserStateStatus = UserStateStatus.MISSING
    shown: Shown = field(default_factory=Shown)

    @classmethod
    def of(cls, events: Sequence[Event], rules: EventRules) -> "UserState":
        """The state of a user with these accepted events."""
        data = next((data for _, data in states_of_log(events, rules)), None)
        return cls() if data is None else cls.from_bytes(data)

    def with_events(self, events: Sequence[Event], rules: EventRules) -> "UserState":
        """The state with accepted events of this user added."""
        added = [data for _, data in states_of_log(events, rules)]
        if not added:
            return self
        (data,) = joined([self.to_bytes()], added, rules)
        return replace(UserState.from_bytes(data, self.status), shown=self.shown)

    @property
    def events(self) -> tuple[str, ...]:
        """The type of each event (h)."""
        return tuple(self.names[kind] for kind in self.kinds)

    def labels(self, rules: EventRules) -> Labels:
        """What the events mean."""
        return Labels.of(self.names, self.kinds, self.values, rules)

    def within(self, days: int | None, now: int) -> "UserState":
        """What counts at `now` (µs) with `EventRules.history_days`."""
        if days is None or not (len(self.times) or len(self.seen)):
            return self
        start = np.array([now - days * DAY])
        first = int(np.searchsorted(self.times, start[0]))
        seen = self.seen[seen_since(self.seen, start)]
        if not first and len(seen) == len(self.seen):
            return self
        return UserState(
            items=self.items[first:],
            names=self.names,
            kinds=self.kinds[first:],
            times=self.times[first:],
            values=self.values[first:],
            keys=self.keys[first:],
            orders=self.orders[first:],
            seen=seen,
            status=self.status if first < len(self.times) or len(seen) else UserStateStatus.STALE,
        )

    def to_bytes(self) -> bytes:
        """The bytes that the store keeps."""
        text = _SEPARATOR.join((*self.names, *self.items)).encode()
        values = self.values if not np.isnan(self.values).all() else self.values[:0]
        columns = (self.times, self.keys, self.orders, self.kinds.astype(np.uint16), values, self.seen)
        counts = (len(self.items), len(self.seen), len(self.names), bool(len(values)))
        return _framed(counts, [column.tobytes() for column in columns], text)

    @classmethod
    def from_bytes(cls, data: bytes, status: UserStateStatus = UserStateStatus.PRESENT) -> "UserState":
        """The inverse of `to_bytes`. Raises ValueError, LookupError or struct.error for other bytes."""
        (n, _, n_names, has_values), columns, text = _split(data)
        times, keys, orders, kinds, values, seen = columns
        texts = tuple(text.decode().split(_SEPARATOR)) if text else ()
        return cls(
            items=texts[n_names:],
            names=texts[:n_names],
            kinds=np.frombuffer(kinds, _UINT16).astype(np.int64),
            times=np.frombuffer(times, _INT64),
            values=np.frombuffer(values, _FLOAT64) if has_values else np.full(n, np.nan),
            keys=np.frombuffer(keys, _UINT64),
            orders=np.frombuffer(orders, _UINT32),
            seen=np.frombuffer(seen, _UINT64),
            status=status,
        )


def readable(data: bytes) -> UserState | None:
    """The state of these bytes; None when this version has not written them."""
    try:
        return UserState.from_bytes(data)
    except (ValueError, LookupError, struct.error):
        return None


def _split(data: bytes) -> tuple[tuple[int, int, int, bool], list[memoryview], bytes]:
    """The parts of the bytes of a state: see `_framed`. Raises ValueError or struct.error for other bytes."""
    n, n_seen, n_names, has_values = counts = _HEAD.unpack_from(data, DIGEST_BYTES)
    view, at, columns = memoryview(data), LATEST_AT, list[memoryview]()
    for size in (8 * n, 8 * n, 4 * n, 2 * n, 8 * n * has_values, 8 * n_seen):
        columns.append(view[at : at + size])
        at += size
    text = data[at:]
    if (n_texts := text.count(_SEPARATOR.encode()) + bool(text)) != n_names + n:
        raise ValueError(f"{n_texts} texts for {n_names} types and {n} events")
    return counts, columns, text


def _framed(counts: tuple[int, int, int, bool], columns: Iterable[bytes | memoryview], text: bytes) -> bytes:
    """The bytes of a state. counts: of `_HEAD`; columns: times, keys, orders, kinds, values, seen."""
    body = b"".join((_HEAD.pack(*counts), *columns, text))
    return blake2b(body, digest_size=DIGEST_BYTES).digest() + body


@dataclass(frozen=True)
class _Events:
    """n events of several users, in any order. owner (n,): index of the user; items: n texts; the other arrays as
    in `UserState`, kinds of ascending `names`."""

    owner: Ints
    items: list[str]
    names: tuple[str, ...]
    kinds: Ints
    times: Ints
    values: Doubles
    keys: Keys
    orders: Orders


def states_of_table(events: pl.DataFrame, rules: EventRules) -> Iterator[tuple[str, bytes]]:
    """(user, bytes of the state) of every user of canonical events with ROW, each user once, in any order."""
    events = without_ignored(events, rules)
    code = pl.col(USER).cast(pl.Categorical).to_physical().alias("__user__")  # numbers are sorted faster than texts
    by_user = events.with_columns(code).sort("__user__", TIME, ROW).drop("__user__")
    # ends (u,): row behind the last event of each user
    ends = np.cumsum(by_user.get_column(USER).rle().struct.field("len").to_numpy(), dtype=np.int64)
    start = 0
    while start < len(by_user):
        end = int(ends[min(int(np.searchsorted(ends, start + ROWS)), len(ends) - 1)])
        yield from _states_by_user(by_user.slice(start, end - start), rules)
        start = end


def _states_by_user(events: pl.DataFrame, rules: EventRules) -> Iterator[tuple[str, bytes]]:
    """As `states_of_table`, of events by user, time and row."""
    users = events.get_column(USER)
    owner = users.rle_id().cast(pl.Int64).to_numpy()  # (n,): index of the user
    names, kinds, values = columns_of(events)
    times = events.get_column(TIME).to_physical().cast(pl.Int64).to_numpy()
    items = events.get_column(ITEM).cast(pl.String)
    item_keys = column_keys(items)
    event_ids = events.get_column(EVENT_ID).cast(pl.String).fill_null("")
    keys = event_keys(event_ids, item_keys, names, kinds, times, values)
    orders = events.get_column(ROW).clip(0, _LOGGED - 1).cast(pl.UInt32).to_numpy()
    columns = _Events(owner, items.to_list(), names, kinds, times, values, keys, orders)
    first = np.flatnonzero(np.diff(owner, prepend=-1))  # (b,): the first event of each user
    yield from zip(users.gather(first).to_list(), _states_of(columns, item_keys, len(first), rules), strict=True)


def states_of_log(events: Sequence[Event], rules: EventRules) -> Iterator[tuple[str, bytes]]:
    """(user, bytes of the state) of every user of accepted events, users in order of first appearance."""
    events = [event for event in events if not rules.ignores(event.event)]
    index: dict[str, int] = {}
    owner = np.array([index.setdefault(e.user_id, len(index)) for e in events], dtype=np.int64)
    names = tuple(sorted({e.event for e in events}))
    kinds = np.array([names.index(e.event) for e in events], dtype=np.int64)
    times = np.array([e.timestamp for e in events], dtype=np.int64)
    values = np.array([np.nan if e.value is None else e.value for e in events], dtype=np.float64)
    items = [e.item_id for e in events]
    item_keys = id_keys(items)
    event_ids = pl.Series([e.event_id for e in events], dtype=pl.String)
    keys = event_keys(event_ids, item_keys, names, kinds, times, values)
    orders = np.array([_LOGGED + e.order for e in events], dtype=np.uint32)
    columns = _Events(owner, items, names, kinds, times, values, keys, orders)
    yield from zip(index, _states_of(columns, item_keys, len(index), rules), strict=True)


def _states_of(events: _Events, item_keys: Keys, n_users: int, rules: EventRules) -> Iterator[bytes]:
    """The bytes of the state of each user of some events. item_keys (n,): of `id_keys`."""
    seen = Labels.of(events.names, events.kinds, events.values, rules).seen
    return _states(events, events.owner[seen], seen_entries(item_keys[seen], events.times[seen]), n_users, rules)


def join(states: Sequence[Sequence[bytes]], rules: EventRules) -> Iterator[bytes]:
    """The bytes of the state of each of b users, of whom the bytes of one state or of several are known.

    Raises ValueError, LookupError or struct.error for other bytes.
    """
    parts = [_split(data) for known in states for data in known]
    users = np.repeat(np.arange(len(states)), [len(known) for known in states])  # (p,): of each part
    sizes = np.array([counts for counts, _, _ in parts], dtype=np.int64).reshape(-1, 4)
    n, n_seen, n_names, has_values = sizes.T
    times, keys, orders, kinds, values, seen = (
        b"".join(column) for column in zip(*(c for _, c, _ in parts), strict=True)
    )
    texts = _SEPARATOR.join(text.decode() for _, _, text in parts if text).split(_SEPARATOR)
    part = np.repeat(np.arange(len(parts)), n)  # (e,): of each event
    # where the names and the items are among the texts: those of a part are its names, then the items of its events
    name_at = np.arange(n_names.sum()) + np.repeat(np.cumsum(n) - n, n_names)
    item_at = np.arange(n.sum()) + np.repeat(np.cumsum(n_names), n)
    used = [texts[i] for i in name_at.tolist()]
    names = tuple(sorted(set(used)))
    number = {name: i for i, name in enumerate(names)}
    codes = np.array([number[name] for name in used], dtype=np.int64)  # of each part's names
    all_values = np.full(len(part), np.nan)
    all_values[has_values.astype(np.bool_)[part]] = np.frombuffer(values, _FLOAT64)
    events = _Events(
        owner=users[part],
        items=[texts[i] for i in item_at.tolist()],
        names=names,
        kinds=codes[np.frombuffer(kinds, _UINT16) + (np.cumsum(n_names) - n_names)[part]],
        times=np.frombuffer(times, _INT64),
        values=all_values,
        keys=np.frombuffer(keys, _UINT64),
        orders=np.frombuffer(orders, _UINT32),
    )
    return _states(events, np.repeat(users, n_seen), np.frombuffer(seen, _UINT64), len(states), rules)


def joined(stored: Sequence[bytes | None], added: Sequence[bytes], rules: EventRules) -> list[bytes]:
    """The bytes of the states of b users after `added`, the bytes of one state each. stored: None for no state.

    What is stored and cannot be read is replaced: one damaged value must not stop the events of all others.
    """
    both = [(old, new) for old, new in zip(stored, added, strict=True) if old is not None and old != new]
    try:
        states = join(both, rules) if both else iter(())
    except (ValueError, LookupError, struct.error):
        return joined([old if old is not None and readable(old) else None for old in stored], added, rules)
    return [new if old is None or old == new else next(states) for old, new in zip(stored, added, strict=True)]


def _states(events: _Events, seen_owner: Ints, entries: Keys, n_users: int, rules: EventRules) -> Iterator[bytes]:
    """The bytes of the state of each user. seen_owner, entries (m,): user and seen entry of each seen event."""
    e = events
    order = in_order(e.owner, e.times, e.orders, e.keys, e.kinds, e.values)
    positive = Labels.of(e.names, e.kinds, e.values, rules).positive[order]
    order = order[kept(positive, np.bincount(e.owner[order], minlength=n_users), rules.history)]
    owner, values = e.owner[order], e.values[order]
    # (u,): pairs of a user and a type of its events, ascending; (n,): index of each event's pair
    pairs, pair = np.unique(owner * len(e.names) + e.kinds[order], return_inverse=True)
    pair_owner, used = np.divmod(pairs, max(1, len(e.names)))
    first = np.searchsorted(pair_owner, np.arange(n_users + 1))  # of the pairs of each user
    codes = (pair - first[owner]).astype(np.uint16)  # of the type among those of the user
    has_values = np.bincount(owner, ~np.isnan(values), minlength=n_users) > 0
    newest = newest_seen(seen_owner, entries, rules.seen_items)
    columns = [_bytes(array) for array in (e.times[order], e.keys[order], e.orders[order], codes, values)]
    times, keys, orders, kinds, packed_values = columns
    seen, items = _bytes(entries[newest]), [e.items[i] for i in order.tolist()]
    names = [e.names[kind] for kind in used.tolist()]
    bounds = zip(
        *(pairwise(ends) for ends in (_ends(owner, n_users), _ends(seen_owner[newest], n_users), first.tolist())),
        has_values.tolist(),
        strict=True,
    )
    for (a, b), (c, d), (f, g), valued in bounds:
        text = _SEPARATOR.join((*names[f:g], *items[a:b])).encode()
        parts = (times[8 * a : 8 * b], keys[8 * a : 8 * b], orders[4 * a : 4 * b], kinds[2 * a : 2 * b])
        own_values = packed_values[8 * a : 8 * b] if valued else b""
        yield _framed((b - a, d - c, g - f, valued), (*parts, own_values, seen[8 * c : 8 * d]), text)


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return memoryview(array.tobytes())


def _ends(owner: Ints, n: int) -> list[int]:
    """(n + 1,): the first row of each of n owners, and the number of rows. owner ascends."""
    ends: list[int] = np.searchsorted(owner, np.arange(n + 1)).tolist()
    return ends


def latest_time(data: bytes) -> int:
    """Time (µs) of the latest event in the bytes of a state; 0 without events."""
    if not (n := int(_HEAD.unpack_from(data, DIGEST_BYTES)[0])):
        return 0
    return int(_TIME.unpack_from(data, LATEST_AT + 8 * (n - 1))[0])
