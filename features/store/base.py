"""The feature store: what changes per user between trainings.

It knows external ids only, never rows, so that a new bundle leaves it as it is. `MemoryStore` and
`redis_store.RedisStore` behave the same; one contract test holds them to it.
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
"""Events kept of one user, the newest; the items that count as seen are kept for ever beside them."""

RECENT_USERS = 1000
"""Users kept in the list of those last active."""

_LAYOUT = 2
_SEPARATOR = "\x1f"  # ids never contain control characters
_AT = "\x1e"  # before a time, in the place of an event_id


class Status(StrEnum):
    """How far a value can be trusted."""

    PRESENT = "present"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True)
class UserState:
    """What the store knows of one user: the newest h events, oldest first, and all that counts as seen.

    items, events (h,) external ids and event types; times (h,) int64 µs; values (h,) float64, NaN = none.
    status: PRESENT; MISSING when nothing is known; STALE when the store has not been filled since it was emptied.
    """

    user_id: str
    items: tuple[str, ...]
    events: tuple[str, ...]
    times: Ints
    values: Doubles
    seen: frozenset[str]
    status: Status

    @classmethod
    def unknown(cls, user_id: str) -> "UserState":
        """Of a user nobody has heard of."""
        return cls(user_id, (), (), np.zeros(0, np.int64), np.zeros(0), frozenset(), Status.MISSING)

    def positive(self, rules: EventRules) -> Bools:
        """(h,) bool: the events that are positive for training."""
        least = [rules.positive.get(event, math.inf) for event in self.events]
        return np.array([at is None or value >= at for at, value in zip(least, self.values, strict=True)], dtype=bool)

    def types(self, rules: EventRules) -> Ints:
        """(h,) int64: of each event its row, see `Interactions`."""
        return IdMap(rules.types).rows(self.events) + 1


@dataclass(frozen=True)
class Watermark:
    """How far a refresh has come: the log position and the hash of the tables."""

    log: Mapping[str, int]
    tables: str

    def to_json(self) -> str:
        """For the store."""
        return json.dumps({"log": dict(self.log), "tables": self.tables})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Watermark":
        """Back from the store. Version 0.1.0 also wrote the key `as_of`, which is ignored."""
        found = json.loads(text)
        return cls(found["log"], found["tables"])


@dataclass(frozen=True)
class UserPatch:
    """What is added to one user: packed events -> time (µs), and items that now count as seen."""

    user_id: str
    events: Mapping[str, int]
    seen: Sequence[str]


class FeatureStore(Protocol):
    """Every method raises StoreError when the store does not answer."""

    rules: EventRules

    def with_rules(self, rules: EventRules) -> "FeatureStore":
        """The same store under other event rules: what those say is seen is kept apart, and filled anew."""
        ...

    def read_users(self, ids: Sequence[str]) -> list[UserState]:
        """The states of these users, in one round trip."""
        ...

    def write_users(self, user_patches: Iterable[UserPatch]) -> None:
        """Add to users. Writing again, or in another order, changes nothing."""
        ...

    def push(self, events: Sequence[Event]) -> None:
        """Add accepted events, fast; as `write_users`."""
        ...

    def recent_users(self, limit: int) -> list[str]:
        """Users by their latest event, newest first; at most RECENT_USERS are remembered."""
        ...

    def watermark(self) -> Watermark | None:
        """None when the store is empty, or was emptied."""
        ...

    def move_watermark(self, to: Watermark) -> None:
        """Say how far the store has been filled."""
        ...

    def ping(self) -> None:
        """Return if the store answers."""
        ...


def schema_key(rules: EventRules) -> str:
    """Hash of all that the stored values depend on besides the events: the layout, and which events count as seen."""
    seen = None if rules.seen is None else sorted(rules.seen)
    return hashlib.sha256(json.dumps([_LAYOUT, seen]).encode()).hexdigest()[:12]


def pack(item: str, value: float | None, event_id: str, event: str, order: int, at: int) -> str:
    """One event of a user at a time (µs). Zero-padded order first: the store sorts equal times by these strings.

    The time stands in for an event_id that is not there: the same event at another time is another member.
    """
    shown = "" if value is None else repr(value)
    return _SEPARATOR.join((f"{order:06d}", item, shown, event_id or f"{_AT}{at}", event))


def pack_rows() -> pl.Expr:
    """`pack` of every row of canonical events; the order is that of the rows of one user and time.

    A value under 1e-4 may be spelled otherwise than by `pack`; it reads back the same.
    """
    return pl.concat_str(
        pl.int_range(pl.len()).over(USER, TIME).cast(pl.String).str.zfill(6),
        ITEM,
        pl.col(VALUE).cast(pl.String).fill_null(""),
        pl.when(pl.col(EVENT_ID) != "")
        .then(pl.col(EVENT_ID))
        .otherwise(pl.concat_str(pl.lit(_AT), pl.col(TIME).to_physical())),
        EVENT,
        separator=_SEPARATOR,
    )


def user_patches(events: Iterable[Event], rules: EventRules) -> list[UserPatch]:
    """Accepted events by user, users in order of first appearance."""
    packed: dict[str, dict[str, int]] = {}
    seen: dict[str, dict[str, None]] = {}
    for e in events:
        mine = packed.setdefault(e.user_id, {})
        member = pack(e.item_id, e.value, e.event_id, e.event, e.order, e.timestamp)
        mine[member] = min(e.timestamp, mine.get(member, e.timestamp))
        if rules.seen is None or e.event in rules.seen:
            seen.setdefault(e.user_id, {})[e.item_id] = None
    return [UserPatch(user, events, tuple(seen.get(user, ()))) for user, events in packed.items()]


def unpack(
    user_id: str, members: Sequence[str], times: Sequence[int], seen: Iterable[str], *, filled: bool
) -> UserState:
    """The state of a user from packed events in (time, packed) order; an event_id that came twice counts once."""
    parts = [member.split(_SEPARATOR, 4) for member in members]
    first: dict[tuple[str, ...], int] = {}
    for i, (_, item, value, event_id, event) in enumerate(parts):
        key = (event_id, item, event, value) if event_id.startswith(_AT) else (event_id,)
        first.setdefault(key, i)
    kept = list(first.values())
    status = Status.STALE if not filled else Status.PRESENT if members or seen else Status.MISSING
    return UserState(
        user_id,
        tuple(parts[i][1] for i in kept),
        tuple(parts[i][4] for i in kept),
        np.array([times[i] for i in kept], dtype=np.int64),
        np.array([float(parts[i][2] or "nan") for i in kept], dtype=np.float64),
        frozenset(seen),
        status,
    )
