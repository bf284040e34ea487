"""The state of a user in the feature store: the events and seen items that count, and their bytes.

A state is small whatever its user has done: `EventRules` bound its events and its seen items. `join` makes one state
of two. It is commutative, associative and idempotent: processes may add the same events in any order, and again.

Bytes of a state: a digest of the rest; numbers of events, of seen items and of event types; columns of the events;
seen entries; names of types, then of items, as text.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

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
)
from features.ids import id_keys
from features.log.records import Event
from features.schema import EVENT_ID, ITEM, ROW, TIME, USER, EventRules

LAYOUT = 4
"""Version of the bytes. Other versions are kept under other keys."""

DIGEST_BYTES = 8
_HEAD = struct.Struct("<IIHB")
"""Numbers of events, of seen items and of types; 1 where events have values."""

_INT64, _UINT64, _FLOAT64 = np.dtype("<i8"), np.dtype("<u8"), np.dtype("<f8")
_UINT32, _UINT16 = np.dtype("<u4"), np.dtype("<u2")

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
class UserState:
    """What the store knows of one user: the h events that count, oldest first, and m seen items.

    items: external ids (h); names: event types; kinds (h,) int64: index of each event's type; times (h,) int64 µs;
    values (h,) float64, NaN = no value; keys (h,) uint64: identity of each event; orders (h,) uint32: order of the
    events of one time; seen (m,) uint64: `features.history_rules.seen_entries`;
    status: PRESENT; MISSING when the store has nothing of the user; STALE when the store has been emptied and not yet
    refilled.
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

    @classmethod
    def of(cls, events: Sequence[Event], rules: EventRules) -> "UserState":
        """The state of a user with these accepted events."""
        return cls.from_bytes(next(states_of_log(events, rules))[1]) if events else cls()

    @property
    def events(self) -> tuple[str, ...]:
        """The type of each event (h)."""
        return tuple(self.names[kind] for kind in self.kinds)

    def labels(self, rules: EventRules) -> Labels:
        """What the events mean."""
        return Labels.of(self.names, self.kinds, self.values, rules)

    def to_bytes(self) -> bytes:
        """The bytes that the store keeps."""
        text = _SEPARATOR.join((*self.names, *self.items)).encode()
        columns = (self.times, self.keys, self.orders, self.kinds.astype(np.uint16), self.values, self.seen)
        return _packed([column.tobytes() for column in columns], len(self.names), text, self.values)

    @classmethod
    def from_bytes(cls, data: bytes, status: UserStateStatus = UserStateStatus.PRESENT) -> "UserState":
        """The inverse of `to_bytes`. Raises ValueError, LookupError or struct.error for other bytes."""
        n, n_seen, n_names, has_values = _HEAD.unpack_from(data, DIGEST_BYTES)
        at = DIGEST_BYTES + _HEAD.size
        times = np.frombuffer(data, _INT64, n, at)
        keys = np.frombuffer(data, _UINT64, n, at + 8 * n)
        orders = np.frombuffer(data, _UINT32, n, at + 16 * n)
        kinds = np.frombuffer(data, _UINT16, n, at + 20 * n).astype(np.int64)
        at += 22 * n
        values = np.frombuffer(data, _FLOAT64, n, at) if has_values else np.full(n, np.nan)
        at += 8 * n * has_values
        seen = np.frombuffer(data, _UINT64, n_seen, at)
        at += 8 * n_seen
        text = str(data[at:], "utf-8")
        parts = tuple(text.split(_SEPARATOR)) if text else ()
        if len(parts) != n_names + n:
            raise ValueError(f"{len(parts)} texts for {n_names} types and {n} events")
        return cls(parts[n_names:], parts[:n_names], kinds, times, values, keys, orders, seen, status)


def _packed(columns: Sequence[bytes], n_names: int, text: bytes, values: Doubles) -> bytes:
    """The bytes of a state from the bytes of its columns: times, keys, orders, kinds, values, seen."""
    has_values = not np.isnan(values).all()
    times, keys, orders, kinds, packed_values, seen = columns
    head = _HEAD.pack(len(times) // 8, len(seen) // 8, n_names, has_values)
    body = b"".join((head, times, keys, orders, kinds, packed_values if has_values else b"", seen, text))
    return blake2b(body, digest_size=DIGEST_BYTES).digest() + body


@dataclass(frozen=True)
class _Columns:
    """n events of b users. owner (n,): index of the user; the other arrays as in `UserState`; items (n,): text;
    item_keys (n,): of `id_keys`."""

    owner: Ints
    items: pl.Series
    item_keys: Keys
    names: tuple[str, ...]
    kinds: Ints
    times: Ints
    values: Doubles
    keys: Keys
    orders: Orders


def states_of_table(events: pl.DataFrame, rules: EventRules) -> Iterator[tuple[str, bytes]]:
    """(user, bytes of the state) of every user of canonical events with ROW, users in ascending order."""
    ordered = events.sort(USER)
    users = ordered.get_column(USER)
    owner = users.rle_id().cast(pl.Int64).to_numpy()  # (n,): index of the user
    names, kinds, values = columns_of(ordered)
    times = ordered.get_column(TIME).to_physical().cast(pl.Int64).to_numpy()
    items = ordered.get_column(ITEM).cast(pl.String)
    item_keys = column_keys(items)
    event_ids = ordered.get_column(EVENT_ID).cast(pl.String).fill_null("")
    keys = event_keys(event_ids, item_keys, names, kinds, times, values)
    orders = ordered.get_column(ROW).clip(0, _LOGGED - 1).cast(pl.UInt32).to_numpy()
    columns = _Columns(owner, items, item_keys, names, kinds, times, values, keys, orders)
    yield from zip(users.unique(maintain_order=True).to_list(), _states(columns, rules), strict=True)


def states_of_log(events: Sequence[Event], rules: EventRules) -> Iterator[tuple[str, bytes]]:
    """(user, bytes of the state) of every user of accepted events, users in order of first appearance."""
    index: dict[str, int] = {}
    owner = np.array([index.setdefault(e.user_id, len(index)) for e in events], dtype=np.int64)
    names = tuple(sorted({e.event for e in events}))
    kinds = np.array([names.index(e.event) for e in events], dtype=np.int64)
    times = np.array([e.timestamp for e in events], dtype=np.int64)
    values = np.array([np.nan if e.value is None else e.value for e in events], dtype=np.float64)
    items = pl.Series([e.item_id for e in events], dtype=pl.String)
    item_keys = id_keys(e.item_id for e in events)
    event_ids = pl.Series([e.event_id for e in events], dtype=pl.String)
    keys = event_keys(event_ids, item_keys, names, kinds, times, values)
    orders = np.array([_LOGGED + e.order for e in events], dtype=np.uint32)
    columns = _Columns(owner, items, item_keys, names, kinds, times, values, keys, orders)
    yield from zip(index, _states(columns, rules), strict=True)


def _states(columns: _Columns, rules: EventRules) -> Iterator[bytes]:
    """The bytes of the state of each user."""
    c = columns
    n_users = int(c.owner.max(initial=-1)) + 1
    labels = Labels.of(c.names, c.kinds, c.values, rules)
    order = in_order(c.owner, c.times, c.orders, c.keys, c.kinds, c.values)
    order = order[kept(labels.positive[order], np.bincount(c.owner[order], minlength=n_users), rules.history)]
    times, keys, orders, values = c.times[order], c.keys[order], c.orders[order], c.values[order]
    kinds, items = c.kinds[order], c.items.gather(order).to_list()
    begin, end = _bounds(c.owner[order], n_users)
    owner, entries = c.owner[labels.seen], seen_entries(c.item_keys, c.times)[labels.seen]
    newest = newest_seen(owner, entries, rules.seen_items)
    owner, entries = owner[newest], entries[newest]
    seen_begin, seen_end = _bounds(owner, n_users)
    for i in range(n_users):
        part, seen = slice(begin[i], end[i]), entries[seen_begin[i] : seen_end[i]]
        names, codes = _used(c.names, kinds[part])
        text = _SEPARATOR.join((*names, *items[part])).encode()
        arrays = (times[part], keys[part], orders[part], codes, values[part], seen)
        yield _packed([array.tobytes() for array in arrays], len(names), text, values[part])


def _bounds(owner: Ints, n: int) -> tuple[list[int], list[int]]:
    """First row of each of n owners, and the row after its last. owner ascends."""
    bounds = np.searchsorted(owner, np.arange(n + 1)).tolist()
    return bounds[:-1], bounds[1:]


def _used(names: Sequence[str], kinds: Ints) -> tuple[Sequence[str], npt.NDArray[np.uint16]]:
    """The names that occur, ascending as `names` are, and the index of each event's type among them."""
    used = sorted(set(kinds.tolist()))
    if len(used) == len(names):
        return names, kinds.astype(np.uint16)
    return [names[kind] for kind in used], np.searchsorted(used, kinds).astype(np.uint16)


def join(a: UserState, b: UserState, rules: EventRules) -> UserState:
    """The state of a user of whom both are known."""
    names = tuple(sorted({*a.names, *b.names}))
    renamed = [np.array([names.index(n) for n in s.names], dtype=np.int64)[s.kinds] for s in (a, b)]
    kinds, times = np.concatenate(renamed), np.concatenate((a.times, b.times))
    values, keys = np.concatenate((a.values, b.values)), np.concatenate((a.keys, b.keys))
    orders = np.concatenate((a.orders, b.orders))
    order = in_order(np.zeros(len(keys), np.int64), times, orders, keys, kinds, values)
    positive = Labels.of(names, kinds[order], values[order], rules).positive
    order = order[kept(positive, np.array([len(order)]), rules.history)]
    items = (*a.items, *b.items)
    entries = np.concatenate((a.seen, b.seen))
    seen = entries[newest_seen(np.zeros(len(entries), np.int64), entries, rules.seen_items)]
    used, codes = _used(names, kinds[order])
    return UserState(
        tuple(items[i] for i in order),
        tuple(used),
        codes.astype(np.int64),
        times[order],
        values[order],
        keys[order],
        orders[order],
        seen,
        UserStateStatus.PRESENT,
    )


def joined(stored: bytes | None, added: bytes, rules: EventRules) -> bytes:
    """`join` of the bytes of two states; stored: None when nothing is known."""
    if stored is None or stored == added:
        return added
    return join(UserState.from_bytes(stored), UserState.from_bytes(added), rules).to_bytes()


def latest_time(data: bytes) -> int:
    """Time (µs) of the latest event in the bytes of a state; 0 without events."""
    if not (n := int(_HEAD.unpack_from(data, DIGEST_BYTES)[0])):
        return 0
    return int.from_bytes(data[DIGEST_BYTES + _HEAD.size + 8 * (n - 1) :][:8], "little", signed=True)
