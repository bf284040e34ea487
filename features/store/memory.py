"""The feature store in this process: for tests and for trying the service without a server."""

import threading
from collections.abc import Iterable, Sequence

from features.log.records import Event
from features.schema import EventRules
from features.store.base import RECENT_USERS, Change, ServerFacts, Watermark, schema_hash
from features.store.user_state import UserState, UserStateStatus, joined, latest_time, states_of_log


class MemoryStore:
    """A `FeatureStore` in the memory of this process. Its contents are lost when the process ends."""

    def __init__(self, rules: EventRules) -> None:
        self.rules = rules
        self._lock = threading.Lock()
        self._states: dict[str, bytes] = {}
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
            filled = self._watermark is not None and self._watermark.filled
            known = UserStateStatus.PRESENT if filled else UserStateStatus.STALE
            unknown = UserStateStatus.MISSING if filled else UserStateStatus.STALE
            found = [self._states.get(user) for user in ids]
        return [UserState(status=unknown) if data is None else UserState.from_bytes(data, known) for data in found]

    def write_users(self, states: Iterable[tuple[str, bytes]]) -> None:
        """See FeatureStore."""
        for user, data in states:
            with self._lock:
                self._states[user] = joined(self._states.get(user), data, self.rules)

    def push(self, events: Sequence[Event]) -> None:
        """See FeatureStore."""
        self.write_users(states_of_log(events, self.rules))

    def change_users(self, users: Sequence[str], change: Change) -> None:
        """See FeatureStore."""
        for user in users:
            with self._lock:
                if data := change(user, self._states.pop(user, None)):
                    self._states[user] = data

    def recent_users(self, limit: int) -> list[str]:
        """See FeatureStore."""
        with self._lock:
            latest = {user: latest_time(data) for user, data in self._states.items()}
        return sorted(latest, key=lambda user: (latest[user], user), reverse=True)[: min(limit, RECENT_USERS)]

    def watermark(self) -> Watermark | None:
        """See FeatureStore."""
        return self._watermark

    def start_fill(self) -> Watermark:
        """See FeatureStore."""
        with self._lock:
            self._watermark = self._watermark or Watermark.start(self.facts())
            return self._watermark

    def advance(self, since: Watermark, to: Watermark) -> bool:
        """See FeatureStore."""
        with self._lock:
            if self._watermark != since:
                return False
            self._watermark = to
            return True

    def ping(self) -> None:
        """Return: memory always answers."""

    def facts(self) -> ServerFacts:
        """See FeatureStore."""
        return ServerFacts()
