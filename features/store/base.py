"""The feature store: what changes per user between trainings.

The store knows external ids, never rows: a new bundle does not invalidate it. `features.store.memory.MemoryStore`
and `features.store.redis.RedisStore` behave the same; one contract test runs against both.

The states of users lie in generations. The watermark names the generation that is served. A refresh that must begin
anew builds another generation beside it and then moves the watermark: readers see the states before or those after.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from features.errors import StoreError
from features.log.records import Event
from features.schema import VIEW, EventRules
from features.store.user_state import LAYOUT, Shown, UserState

RECENT_USERS = 1000
"""Length of the list of the most recently active users."""

RUNS = 20
"""Number of the last refreshes whose reports the store keeps."""

LOCK_SECONDS = 10.0
"""How long a lock outlives a process that was killed, and how long a refresh waits for another one."""


class StoreMovedError(StoreError):
    """The store was emptied, or another refresh has begun, while a generation was written: begin anew."""


class StoreLockedError(StoreError):
    """Another refresh is running."""


@dataclass(frozen=True)
class Watermark:
    """How far a generation of the store has been filled.

    fill: the random name of the generation; filled: whether its filling has ended; log: the log position up to which
    it has all events; tables: the digest of the events table that it has, "" for none; pending: that of the table of
    a refresh that is not complete, "" when none is; latest: time (µs) of its latest event; server, evicted: run and
    evicted keys of the server (`ServerFacts`) when the filling began.
    """

    log: Mapping[str, int]
    tables: str
    fill: str = ""
    filled: bool = True
    server: str = ""
    evicted: int = 0
    pending: str = ""
    latest: int = 0

    @classmethod
    def start(cls, server: "ServerFacts") -> "Watermark":
        """Of a filling that begins."""
        return cls({}, "", secrets.token_hex(8), False, server.run, server.evicted)

    def to_json(self) -> str:
        """The JSON text that the store keeps. It begins with `filled` and `fill`, see `served_fill`."""
        names = ("filled", "fill", "tables", "pending", "latest", "server", "evicted")
        return json.dumps({name: getattr(self, name) for name in names} | {"log": dict(self.log)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Watermark":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def lost_keys(self, server: "ServerFacts") -> bool:
        """Whether the server has evicted keys, of whichever user, since the filling began."""
        return server.evicted > (self.evicted if server.run == self.server else 0)


@dataclass(frozen=True)
class ServerFacts:
    """What a server tells of itself.

    run: changes when it restarts, "" when it does not tell; evicted: keys that it has deleted to make room in this
    run; used, limit: bytes of its memory, limit 0 for none; warning: why it may lose what it holds, and the remedy,
    "" when nothing is known to be wrong; time: its clock (µs), 0 when it does not tell.
    """

    run: str = ""
    evicted: int = 0
    used: int = 0
    limit: int = 0
    warning: str = ""
    time: int = 0


Change = Callable[[str, bytes | None], bytes | None]
"""(user, bytes of the state, None for no state) -> the bytes after the change, None to delete the state."""


class FeatureStore(Protocol):
    """The interface of a feature store. Every method raises StoreError when the store does not answer.

    fill: the generation that is written, "" for the one that is served. Writing raises StoreMovedError when the
    generation is neither served nor being filled.
    """

    rules: EventRules

    def with_rules(self, rules: EventRules) -> "FeatureStore":
        """The same store under other event rules.

        Rules that keep other events have their own state, which starts empty.
        """
        ...

    def for_request(self) -> "FeatureStore":
        """The same store, every method of which waits no longer for the server than a request may."""
        ...

    def read_users(self, ids: Sequence[str], *, shown: bool = False) -> list[UserState]:
        """The states of these users, in one round trip, without what is older than `EventRules.history_days`.

        shown: with what the users were shown, too.
        """
        ...

    def add_shown(self, user: str, shown: Shown, days: float) -> None:
        """Add showings with the short time-out of a request; the newest MAX_SHOWN of the user stay.

        They belong to no generation. What a user was shown is forgotten `days` after the last showing.
        """
        ...

    def move_shown(self, moves: Sequence[tuple[str, str, int]]) -> None:
        """Give, for each (user, other, until), the user's showings at or before `until` (µs) to the other user.

        They are made one after another, each atomically.
        """
        ...

    def write_users(self, states: Iterable[tuple[str, bytes]], fill: str = "") -> None:
        """Join states to those of their users: (user, `UserState.to_bytes`), each user once."""
        ...

    def change_users(self, users: Sequence[str], change: Change, fill: str = "") -> None:
        """Replace the state of each of these users by what `change` makes of it, atomically.

        `change` is called again for a user that another process has changed meanwhile.
        """
        ...

    def push(self, events: Sequence[Event]) -> None:
        """Add accepted events with the short time-out of a request."""
        ...

    def recent_users(self, limit: int) -> list[str]:
        """At most `limit` users by their latest event, newest first. The store keeps RECENT_USERS of them."""
        ...

    def users(self) -> Iterator[str]:
        """The users that the store has a state of, in any order."""
        ...

    def watermark(self) -> Watermark | None:
        """How far the generation that is served has been filled; None when the store is empty or was emptied."""
        ...

    def start_fill(self) -> Watermark:
        """The watermark of a new generation, which is written until `advance` makes it the one that is served.

        It is served at once when the present one is missing or not filled. What is left of other fillings is deleted.
        """
        ...

    def advance(self, since: Watermark | None, to: Watermark, tables: str = "") -> bool:
        """Replace the watermark. False, and nothing changes, when it is not `since`, None for no watermark.

        tables: what the refresh must know of the events table, kept until a later call brings another; "" keeps it.
        The generations that are then neither served nor being filled are no longer written; `sweep` deletes them.
        """
        ...

    def tables(self) -> str:
        """What the last refresh has kept of the events table; "" for nothing."""
        ...

    def sweep(self) -> None:
        """Delete the generations that are neither served nor being filled."""
        ...

    def drop_abandoned(self) -> int:
        """Delete the stores of other rules and layouts that nobody has read for a long time; returns their number."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Held by the one refresh that runs. Raises StoreLockedError when another holds it for LOCK_SECONDS."""
        ...

    def add_run(self, report: str) -> None:
        """Keep the report of a refresh, a JSON text, with the last RUNS ones."""
        ...

    def runs(self) -> list[str]:
        """The reports of the last refreshes, the newest first."""
        ...

    def ping(self) -> None:
        """Return when the store answers."""
        ...

    def facts(self) -> ServerFacts:
        """What the server tells of itself. Raises ConfigError for one that cannot hold the store."""
        ...


def schema_hash(rules: EventRules) -> str:
    """Hash of what determines the stored values apart from the events: the layout, and the rules without weights."""
    seen = None if rules.seen is None else sorted(rules.seen)
    parts = (LAYOUT, seen, sorted(rules.positive.items()), rules.history, rules.seen_items, rules.history_days)
    later = (f"without {VIEW}",) if rules.ignores(VIEW) else ()  # earlier versions took views for seen
    return hashlib.sha256(json.dumps(parts + later).encode()).hexdigest()[:12]
