"""The feature store: what changes per user between trainings.

The store knows external ids, never rows: a new bundle does not invalidate it. `features.store.memory.MemoryStore`
and `features.store.redis.RedisStore` behave the same; one contract test runs against both.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from features.log.records import Event
from features.schema import EventRules
from features.store.user_state import LAYOUT, UserState

RECENT_USERS = 1000
"""Length of the list of the most recently active users."""


@dataclass(frozen=True)
class Watermark:
    """How far the store has been filled: the log position and the hash of the tables.

    fill: a random name that each filling from the beginning gets; filled: whether it has ended. An emptied store has
    no watermark, and one that was emptied and filled again has another `fill`.
    server, evicted: run and evicted keys of the server (`ServerFacts`) when the filling began.
    """

    log: Mapping[str, int]
    tables: str
    fill: str = ""
    filled: bool = True
    server: str = ""
    evicted: int = 0

    @classmethod
    def start(cls, server: "ServerFacts") -> "Watermark":
        """Of a filling that begins."""
        return cls({}, "", secrets.token_hex(8), False, server.run, server.evicted)

    def to_json(self) -> str:
        """The JSON text that the store keeps. It begins with FILLED when the filling has ended."""
        names = ("filled", "fill", "tables", "server", "evicted")
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
    run; warning: why it may lose what it holds, and the remedy, "" when nothing is known to be wrong.
    """

    run: str = ""
    evicted: int = 0
    warning: str = ""


Change = Callable[[str, bytes | None], bytes | None]
"""(user, bytes of the state, None for no state) -> the bytes after the change, None to delete the state."""

FILLED = b'{"filled": true'


class FeatureStore(Protocol):
    """The interface of a feature store. Every method raises StoreError when the store does not answer."""

    rules: EventRules

    def with_rules(self, rules: EventRules) -> "FeatureStore":
        """The same store under other event rules.

        Rules that keep other events have their own state, which starts empty.
        """
        ...

    def read_users(self, ids: Sequence[str]) -> list[UserState]:
        """The states of these users, in one round trip."""
        ...

    def write_users(self, states: Iterable[tuple[str, bytes]]) -> None:
        """Join states to those of their users: (user, `UserState.to_bytes`), each user once."""
        ...

    def change_users(self, users: Sequence[str], change: Change) -> None:
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

    def watermark(self) -> Watermark | None:
        """How far the store has been filled; None when it is empty or was emptied."""
        ...

    def start_fill(self) -> Watermark:
        """The watermark of a filling that begins now, or of one that another process has begun or ended."""
        ...

    def advance(self, since: Watermark, to: Watermark) -> bool:
        """Replace the watermark. False, and nothing changes, when it is not `since`.

        The store was emptied meanwhile, or another process has advanced it.
        """
        ...

    def ping(self) -> None:
        """Return when the store answers."""
        ...

    def facts(self) -> ServerFacts:
        """What the server tells of itself."""
        ...


def schema_hash(rules: EventRules) -> str:
    """Hash of what determines the stored values apart from the events: the layout, and the rules without weights."""
    seen = None if rules.seen is None else sorted(rules.seen)
    parts = [LAYOUT, seen, sorted(rules.positive.items()), rules.history, rules.seen_items]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
