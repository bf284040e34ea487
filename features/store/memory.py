"""The feature store in this process: for tests and for trying the service without a server."""

import threading
from collections.abc import Iterable, Sequence

from features.log.records import Event
from features.schema import EventRules
from features.store.base import (
    HISTORY,
    RECENT_USERS,
    UserPatch,
    UserState,
    Watermark,
    schema_hash,
    unpack,
    user_patches,
)


class MemoryStore:
    """A `FeatureStore` in the memory of this process. Its contents are lost when the process ends."""

    def __init__(self, rules: EventRules) -> None:
        self.rules = rules
        self._lock = threading.Lock()
        self._events: dict[str, dict[str, int]] = {}
        self._seen: dict[str, set[str]] = {}
        self._watermark: Watermark | None = None

    def with_rules(self, rules: EventRules) -> "MemoryStore":
        """This store when the schema hash is the same, otherwise an empty one."""
        if schema_hash(rules) != schema_hash(self.rules):
            return MemoryStore(rules)
        self.rules = rules
        return self

    def read_users(self, ids: Sequence[str]) -> list[UserState]:
        """See FeatureStore."""
        with self._lock:
            filled = self._watermark is not None
            states = []
            for user in ids:
                pairs = sorted((t, member) for member, t in self._events.get(user, {}).items())
                members, times = [m for _, m in pairs], [t for t, _ in pairs]
                states.append(unpack(user, members, times, self._seen.get(user, ()), filled=filled))
            return states

    def write_users(self, user_patches: Iterable[UserPatch]) -> None:
        """See FeatureStore."""
        with self._lock:
            for patch in user_patches:
                events = self._events.setdefault(patch.user_id, {})
                for member, at in patch.events.items():
                    events[member] = min(at, events.get(member, at))
                newest = sorted(events.items(), key=lambda pair: (pair[1], pair[0]))[-HISTORY:]
                self._events[patch.user_id] = dict(newest)
                self._seen.setdefault(patch.user_id, set()).update(patch.seen)

    def push(self, events: Sequence[Event]) -> None:
        """See FeatureStore."""
        self.write_users(user_patches(events, self.rules))

    def recent_users(self, limit: int) -> list[str]:
        """See FeatureStore."""
        with self._lock:
            latest = {user: max(events.values()) for user, events in self._events.items() if events}
        return sorted(latest, key=lambda user: (latest[user], user), reverse=True)[: min(limit, RECENT_USERS)]

    def watermark(self) -> Watermark | None:
        """See FeatureStore."""
        return self._watermark

    def set_watermark(self, to: Watermark) -> None:
        """See FeatureStore."""
        self._watermark = to

    def ping(self) -> None:
        """Return: memory always answers."""

    def warning(self) -> str:
        """See FeatureStore."""
        return ""
