"""The feature store: what changes per user between trainings.

The store knows external ids, never rows: a new bundle does not invalidate it. `features.store.memory.MemoryStore`
and `features.store.redis.RedisStore` behave the same; one contract test runs against both.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import polars as pl

from features.arrays import Bools, Doubles, Ints
from features.ids import IdMap
from features.log.records import Event
from features.schema import EVENT, EVENT_ID, ITEM, TIME, USER, VALUE, EventRules

HISTORY = 512
"""Events kept per user, the newest ones. The set of seen items is kept apart and is never trimmed."""

RECENT_USERS = 1000
"""Length of the list of the most recently active users."""

_LAYOUT = 2
_SEPARATOR = "\x1f"  # ids never contain control characters
_TIME_MARK = "\x1e"  # precedes the time that replaces a missing event_id


class UserStateStatus(StrEnum):
    """Whether the store has a value, and whether the value can be incomplete."""

    PRESENT = "present"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True)
class UserState:
    """What the store knows of one user: the newest h events, oldest first, and all seen items.

    items, events (h,) external ids and event types; times (h,) int64 µs; values (h,) float64, NaN = no value;
    status: PRESENT; MISSING when the store has nothing of the user; STALE when the store has been emptied and not yet
    refilled.
    """

    user_id: str
    items: tuple[str, ...]
    events: tuple[str, ...]
    times: Ints
    values: Doubles
    seen: frozenset[str]
    status: UserStateStatus

    @classmethod
    def unknown(cls, user_id: str) -> "UserState":
        """The empty state of a user without events."""
        return cls(user_id, (), (), np.zeros(0, np.int64), np.zeros(0), frozenset(), UserStateStatus.MISSING)

    def positive(self, rules: EventRules) -> Bools:
        """(h,) bool: the events that are positive for training."""
        minima = [rules.positive.get(event, math.inf) for event in self.events]  # None: any value is positive
        pairs = zip(minima, self.values, strict=True)
        return np.array([minimum is None or value >= minimum for minimum, value in pairs], dtype=bool)

    def types(self, rules: EventRules) -> Ints:
        """(h,) int64: the type index of each event, as in `Interactions.types`."""
        return IdMap(rules.types).rows(self.events) + 1


@dataclass(frozen=True)
class Watermark:
    """How far the store has been filled: the log position and the hash of the tables."""

    log: Mapping[str, int]
    tables: str

    def to_json(self) -> str:
        """The JSON text that the store keeps."""
        return json.dumps({"log": dict(self.log), "tables": self.tables})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Watermark":
        """The inverse of `to_json`. The key `as_of`, which version 0.1.0 wrote too, is ignored."""
        fields = json.loads(text)
        return cls(fields["log"], fields["tables"])


@dataclass(frozen=True)
class UserPatch:
    """What is added to one user: events, packed event -> time (µs), and newly seen items."""

    user_id: str
    events: Mapping[str, int]
    seen: Sequence[str]


class FeatureStore(Protocol):
    """The interface of a feature store. Every method raises StoreError when the store does not answer."""

    rules: EventRules

    def with_rules(self, rules: EventRules) -> "FeatureStore":
        """The same store under other event rules.

        Rules with other seen types have their own state, which starts empty.
        """
        ...

    def read_users(self, ids: Sequence[str]) -> list[UserState]:
        """The states of these users, in one round trip."""
        ...

    def write_users(self, user_patches: Iterable[UserPatch]) -> None:
        """Add patches to users. The write is idempotent and commutative."""
        ...

    def push(self, events: Sequence[Event]) -> None:
        """Add accepted events with the short time-out of a request; otherwise as `write_users`."""
        ...

    def recent_users(self, limit: int) -> list[str]:
        """At most `limit` users by their latest event, newest first. The store keeps RECENT_USERS of them."""
        ...

    def watermark(self) -> Watermark | None:
        """How far the store has been filled; None when it is empty or was emptied."""
        ...

    def set_watermark(self, to: Watermark) -> None:
        """Record how far the store has been filled."""
        ...

    def ping(self) -> None:
        """Return when the store answers."""
        ...

    def warning(self) -> str:
        """Why the store may lose what it holds, and the remedy; "" when nothing is known to be wrong."""
        ...


def schema_hash(rules: EventRules) -> str:
    """Hash of what determines the stored values apart from the events: the layout and the seen event types."""
    seen = None if rules.seen is None else sorted(rules.seen)
    return hashlib.sha256(json.dumps([_LAYOUT, seen]).encode()).hexdigest()[:12]


def pack(item: str, value: float | None, event_id: str, event: str, order: int, at: int) -> str:
    """One event of a user at time `at` (µs) as a string.

    The zero-padded order comes first, because the store sorts events of equal time by these strings. The time
    replaces a missing event_id, so that the same event at another time is another member.
    """
    value_text = "" if value is None else repr(value)
    return _SEPARATOR.join((f"{order:06d}", item, value_text, event_id or f"{_TIME_MARK}{at}", event))


def pack_rows() -> pl.Expr:
    """`pack` for every row of canonical events; `order` is the row's index among the rows of its user and time.

    The text of a value under 1e-4 may differ from the text that `pack` writes; both parse to the same float.
    """
    return pl.concat_str(
        pl.int_range(pl.len()).over(USER, TIME).cast(pl.String).str.zfill(6),
        ITEM,
        pl.col(VALUE).cast(pl.String).fill_null(""),
        pl.when(pl.col(EVENT_ID) != "")
        .then(pl.col(EVENT_ID))
        .otherwise(pl.concat_str(pl.lit(_TIME_MARK), pl.col(TIME).to_physical())),
        EVENT,
        separator=_SEPARATOR,
    )


def user_patches(events: Iterable[Event], rules: EventRules) -> list[UserPatch]:
    """Accepted events grouped by user, users in order of first appearance."""
    packed: dict[str, dict[str, int]] = {}
    seen: dict[str, dict[str, None]] = {}
    for e in events:
        user_events = packed.setdefault(e.user_id, {})
        member = pack(e.item_id, e.value, e.event_id, e.event, e.order, e.timestamp)
        user_events[member] = min(e.timestamp, user_events.get(member, e.timestamp))
        if rules.seen is None or e.event in rules.seen:
            seen.setdefault(e.user_id, {})[e.item_id] = None
    return [UserPatch(user, events, tuple(seen.get(user, ()))) for user, events in packed.items()]


def unpack(
    user_id: str, members: Sequence[str], times: Sequence[int], seen: Iterable[str], *, filled: bool
) -> UserState:
    """The state of a user from packed events in (time, packed) order; a repeated event_id counts once."""
    parts = [member.split(_SEPARATOR, 4) for member in members]
    first: dict[tuple[str, ...], int] = {}
    for i, (_, item, value, event_id, event) in enumerate(parts):
        key = (event_id, item, event, value) if event_id.startswith(_TIME_MARK) else (event_id,)
        first.setdefault(key, i)
    kept = list(first.values())
    status = (
        UserStateStatus.STALE
        if not filled
        else UserStateStatus.PRESENT
        if members or seen
        else UserStateStatus.MISSING
    )
    return UserState(
        user_id,
        tuple(parts[i][1] for i in kept),
        tuple(parts[i][4] for i in kept),
        np.array([times[i] for i in kept], dtype=np.int64),
        np.array([float(parts[i][2] or "nan") for i in kept], dtype=np.float64),
        frozenset(seen),
        status,
    )
