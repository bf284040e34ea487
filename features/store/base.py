"""The feature store: what changes per user between trainings.

The store knows external ids, never rows: a new bundle does not invalidate it. `features.store.memory.MemoryStore`
and `features.store.redis.RedisStore` behave the same; one contract test runs against both.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from features.log.records import Event
from features.schema import EventRules
from features.store.user_state import LAYOUT, UserState

RECENT_USERS = 1000
"""Length of the list of the most recently active users."""


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

    def push(self, events: Sequence[Event]) -> None:
        """Add accepted events with the short time-out of a request."""
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
    """Hash of what determines the stored values apart from the events: the layout, and the rules without weights."""
    seen = None if rules.seen is None else sorted(rules.seen)
    parts = [LAYOUT, seen, sorted(rules.positive.items()), rules.history, rules.seen_items]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
