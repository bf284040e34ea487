"""The feature store in this process: for tests, and to verify another store."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from features.instants import DAY, now_micros
from features.log.records import Event
from features.schema import EventRules
from features.store.base import (
    LOCK_SECONDS,
    RECENT_USERS,
    RUNS,
    Change,
    ServerFacts,
    StoreLockedError,
    StoreMovedError,
    Watermark,
    schema_hash,
)
from features.store.user_state import (
    MAX_SHOWN,
    SHOWN_BYTES,
    Shown,
    UserState,
    UserStateStatus,
    joined,
    latest_time,
    states_of_log,
)

MOVED = "the feature store was emptied, or filled by another refresh, meanwhile"


@dataclass
class _Contents:
    """What a server would hold."""

    watermark: Watermark | None = None
    building: str = ""
    generations: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tables: str = ""
    runs: list[str] = field(default_factory=list)
    shown: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # user -> showings, and their end (µs)


class MemoryStore:
    """A `FeatureStore` in the memory of this process. Its contents are lost when the process ends."""

    def __init__(self, rules: EventRules, now: Callable[[], int] = now_micros) -> None:
        """now: returns the time (µs)."""
        self.rules, self._now = rules, now
        self._lock, self._refresh = threading.RLock(), threading.Lock()
        self._contents = _Contents()

    def with_rules(self, rules: EventRules) -> "MemoryStore":
        """This store when the schema hash is the same, otherwise an empty one."""
        if schema_hash(rules) != schema_hash(self.rules):
            return MemoryStore(rules, self._now)
        self.rules = rules
        return self

    def for_request(self) -> "MemoryStore":
        """See FeatureStore: nothing here waits."""
        return self

    def _generation(self, fill: str = "") -> dict[str, bytes]:
        """The states of a generation; of none when "" is asked for and nothing is served. Raises StoreMovedError."""
        served = self._contents.watermark.fill if self._contents.watermark else None
        if (fill or served) not in (served, self._contents.building) or not (fill or served):
            raise StoreMovedError(MOVED)
        return self._contents.generations.setdefault(fill or str(served), {})

    def read_users(self, ids: Sequence[str], *, shown: bool = False) -> list[UserState]:
        """See FeatureStore."""
        now = self._now()
        with self._lock:
            mark = self._contents.watermark
            states = self._generation() if mark else {}
            found = [states.get(user) for user in ids]
            showings = [self._shown(user, now)[0] if shown else b"" for user in ids]
        filled = mark is not None and mark.filled
        known = UserStateStatus.PRESENT if filled else UserStateStatus.STALE
        unknown = UserStateStatus.MISSING if filled else UserStateStatus.STALE
        parsed = [UserState(status=unknown) if data is None else UserState.from_bytes(data, known) for data in found]
        kept = [state.within(self.rules.history_days, now) for state in parsed]
        return [replace(state, shown=Shown.from_bytes(data)) for state, data in zip(kept, showings, strict=True)]

    def _shown(self, user: str, now: int) -> tuple[bytes, int]:
        """The showings of a user and their end; none and 0 after it."""
        data, end = self._contents.shown.get(user, (b"", 0))
        return (data, end) if now < end else (b"", 0)

    def add_shown(self, user: str, shown: Shown, days: float) -> None:
        """See FeatureStore."""
        now = self._now()
        with self._lock:
            data = self._shown(user, now)[0] + shown.to_bytes()
            self._contents.shown[user] = data[-MAX_SHOWN * SHOWN_BYTES :], now + int(days * DAY)

    def move_shown(self, moves: Sequence[tuple[str, str, int]]) -> None:
        """See FeatureStore."""
        for move in moves:
            self._move_shown(*move, now=self._now())

    def _move_shown(self, user: str, to: str, until: int, now: int) -> None:
        with self._lock:
            (data, end), (others, other_end) = self._shown(user, now), self._shown(to, now)
            shown = Shown.from_bytes(data)
            given = shown.times <= until
            if not given.any():
                return
            moved, kept = (Shown(shown.keys[at], shown.times[at]).to_bytes() for at in (given, ~given))
            self._contents.shown[user] = kept, end
            self._contents.shown[to] = (others + moved)[-MAX_SHOWN * SHOWN_BYTES :], max(end, other_end)

    def write_users(self, states: Iterable[tuple[str, bytes]], fill: str = "") -> None:
        """See FeatureStore."""
        for user, data in states:
            with self._lock:
                stored = self._generation(fill)
                (stored[user],) = joined([stored.get(user)], [data], self.rules)

    def change_users(self, users: Sequence[str], change: Change, fill: str = "") -> None:
        """See FeatureStore."""
        for user in users:
            with self._lock:
                stored = self._generation(fill)
                if data := change(user, stored.pop(user, None)):
                    stored[user] = data

    def push(self, events: Sequence[Event]) -> None:
        """See FeatureStore."""
        self.write_users(states_of_log(events, self.rules))

    def recent_users(self, limit: int) -> list[str]:
        """See FeatureStore."""
        with self._lock:
            states = self._generation() if self._contents.watermark else {}
            latest = {user: latest_time(data) for user, data in states.items()}
        return sorted(latest, key=lambda user: (latest[user], user), reverse=True)[: min(limit, RECENT_USERS)]

    def users(self) -> Iterator[str]:
        """See FeatureStore."""
        with self._lock:
            return iter(list(self._generation() if self._contents.watermark else ()))

    def watermark(self) -> Watermark | None:
        """See FeatureStore."""
        return self._contents.watermark

    def start_fill(self) -> Watermark:
        """See FeatureStore."""
        mark = Watermark.start(self.facts())
        with self._lock:
            self._contents.building = mark.fill
            if self._contents.watermark is None or not self._contents.watermark.filled:
                self._contents.watermark = mark
            self.sweep()
        return mark

    def advance(self, since: Watermark | None, to: Watermark, tables: str = "") -> bool:
        """See FeatureStore."""
        with self._lock:
            served = self._contents.watermark
            if served != since:
                return False
            if to.fill not in ((served.fill if served else ""), self._contents.building):
                raise StoreMovedError(MOVED)
            self._contents.watermark = to
            self._contents.tables = tables or self._contents.tables
            if to.fill == self._contents.building and to.filled:
                self._contents.building = ""
            return True

    def tables(self) -> str:
        """See FeatureStore."""
        return self._contents.tables

    def sweep(self) -> None:
        """See FeatureStore."""
        with self._lock:
            served = self._contents.watermark.fill if self._contents.watermark else ""
            kept = {served, self._contents.building}
            generations = self._contents.generations
            self._contents.generations = {fill: states for fill, states in generations.items() if fill in kept}

    def drop_abandoned(self) -> int:
        """See FeatureStore: memory has one store."""
        return 0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """See FeatureStore."""
        if not self._refresh.acquire(timeout=LOCK_SECONDS):
            raise StoreLockedError("another refresh of the feature store is running")
        try:
            yield
        finally:
            self._refresh.release()

    def add_run(self, report: str) -> None:
        """See FeatureStore."""
        self._contents.runs = [report, *self._contents.runs][:RUNS]

    def runs(self) -> list[str]:
        """See FeatureStore."""
        return self._contents.runs

    def ping(self) -> None:
        """Return: memory always answers."""

    def facts(self) -> ServerFacts:
        """See FeatureStore."""
        return ServerFacts()
