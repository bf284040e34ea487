"""The feature store in Redis (or Valkey); `features.store.redis_keys` names its keys.

Give each product its own database number.
"""

import re
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any, TypeVar

import numpy as np

from features.arrays import Ints
from features.errors import ConfigError, StoreError, describe_url
from features.instants import now_micros
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
)
from features.store.connection import Breaker, Channel, check_url
from features.store.redis_keys import RedisKeys, ids_after, served_fill
from features.store.redis_writes import add_all, add_shown, advance, begin, move_shown, write
from features.store.user_state import (
    DIGEST_BYTES,
    Shown,
    UserState,
    UserStateStatus,
    joined,
    latest_time,
    states_of_log,
)

T = TypeVar("T")
_Changes = Callable[[Sequence[str], Sequence[bytes | None]], Iterable[bytes | None]]
"""A `Change` of several users."""

_Recent = Mapping[str, int] | None
"""See `redis_writes.write`."""

BULK_SECONDS = 5.0
BATCH_BYTES = 1 << 20
"""States written at once; the limit keeps the delay of a concurrent request small."""

CHANGED_AT_ONCE = 250
"""Users whose states are read and written at once."""

BATCHES_AT_ONCE = 2

WRITE_TRIES = 10
"""Times that a write is tried when other processes change the same user."""

ABANDONED_SECONDS = 30 * 86_400
"""Time without a reader after which a store of other rules or of another layout is deleted."""

_STORE = re.compile(r"(recsys:[0-9a-f]+:)watermark")


class RedisStore:
    """A `FeatureStore` on one server, by URL: redis://, rediss:// or unix://. The first call opens the connection.

    timeout: seconds to wait for an answer; pause: seconds without an attempt after a failure.
    """

    def __init__(
        self,
        url: str,
        rules: EventRules,
        *,
        timeout: float = 0.05,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = now_micros,
    ) -> None:
        """Raises ConfigError when the URL cannot be read. now: returns the time (µs)."""
        check_url(url)
        self.rules, self.url, self._now = rules, url, now
        self._requests = Channel(url, timeout, Breaker(pause, clock))
        self._bulk = Channel(url, BULK_SECONDS, Breaker(pause, clock))
        self._keys = RedisKeys.of(rules)
        self._served = ""  # the generation that was served at the last look
        self._are_new = True  # whether most users of the last batch were new

    def with_rules(self, rules: EventRules) -> "RedisStore":
        """A store with the same connections under the keys of other rules."""
        return self._with(rules=rules, _keys=RedisKeys.of(rules), _served="")

    def for_request(self) -> "RedisStore":
        """See FeatureStore."""
        return self._with(_bulk=self._requests)

    def _with(self, **parts: object) -> "RedisStore":
        """A copy with other parts."""
        store = object.__new__(RedisStore)
        store.__dict__.update(self.__dict__, **parts)
        return store

    def _parse(self, reply: Callable[[], T]) -> T:
        """Result of `reply`, which parses values of the server; values that we have not written: StoreError."""
        try:
            return reply()
        except (ValueError, TypeError, LookupError, AttributeError, struct.error):
            raise StoreError(
                f"the feature store at {describe_url(self.url)} holds values that this version has not written: "
                f"give each product its own database number; or delete the keys {self._keys.prefix}* and refresh"
            ) from None

    def read_users(self, ids: Sequence[str], *, shown: bool = False) -> list[UserState]:
        """See FeatureStore. A second round trip is needed once after another generation is served."""
        fill, filled, states, served = None, False, list[Any](), self._served
        while fill != served:
            fill = served
            keys = [self._keys.watermark, *(self._keys.user(fill, user) for user in ids)]
            keys += [self._keys.shown(user) for user in ids] if shown else []
            mark, *states = self._requests.run(methodcaller("mget", keys))
            filled, served = self._parse(partial(served_fill, mark))
            self._served = served
        known = UserStateStatus.PRESENT if filled else UserStateStatus.STALE
        unknown = UserStateStatus.MISSING if filled else UserStateStatus.STALE
        parsed = self._parse(
            lambda: [
                UserState(status=unknown) if data is None else UserState.from_bytes(data, known)
                for data in states[: len(ids)]
            ]
        )
        kept = [state.within(self.rules.history_days, self._now()) for state in parsed]
        showings = states[len(ids) :] or [None] * len(ids)
        return [replace(state, shown=Shown.from_bytes(data)) for state, data in zip(kept, showings, strict=True)]

    def add_shown(self, user: str, shown: Shown, days: float) -> None:
        """See FeatureStore."""
        self._requests.run(lambda client: add_shown(client, self._keys.shown(user), shown.to_bytes(), days))

    def move_shown(self, moves: Sequence[tuple[str, str, int]]) -> None:
        """See FeatureStore."""
        named = [(self._keys.shown(user), self._keys.shown(to), until) for user, to, until in moves]
        self._bulk.run(lambda client: move_shown(client, named))

    def write_users(self, states: Iterable[tuple[str, bytes]], fill: str = "") -> None:
        """See FeatureStore."""
        self._are_new = True
        newest: Ints = np.zeros(0, np.int64)  # of the latest times, those of the list of recent users
        with ThreadPoolExecutor(BATCHES_AT_ONCE) as pool:  # one batch is packed while the server takes another
            running = deque[Future[None]]()
            for batch in _batches(states):
                times = np.fromiter(map(latest_time, batch.values()), np.int64, len(batch))
                newest = np.sort(np.concatenate((newest, times)))[-RECENT_USERS:]
                since = newest[0] if len(newest) == RECENT_USERS else 0
                users = list(batch)
                recent = {users[i]: int(times[i]) for i in np.flatnonzero(times >= since)}
                if len(running) == BATCHES_AT_ONCE:
                    running.popleft().result()
                running.append(pool.submit(self._write_batch, fill, batch, recent))
            for future in running:
                future.result()

    def _write_batch(self, fill: str, batch: dict[str, bytes], recent: dict[str, int]) -> None:
        """Join states to those that are stored. recent: see `redis_writes.write`."""
        users = list(batch)
        if fill and self._are_new:  # most users of a filling are new, or most are known
            done: bool | None = False
            if self.rules.history_days is None:  # states that expire are written by the script
                done = self._bulk.run(lambda client: add_all(client, self._keys, fill, batch, recent))
            if done is None:
                raise self._moved()
            users = [] if done else self._write(self._bulk, fill, "add", batch, list(batch.values()), recent)
        self._are_new = 2 * len(users) <= len(batch)
        for at in range(0, len(users), CHANGED_AT_ONCE):
            self._change(self._bulk, fill, users[at : at + CHANGED_AT_ONCE], partial(self._joined, batch), recent)

    def push(self, events: Sequence[Event]) -> None:
        """See FeatureStore."""
        states = dict(states_of_log(events, self.rules))
        self._change(self._requests, "", list(states), partial(self._joined, states))

    def change_users(self, users: Sequence[str], change: Change, fill: str = "") -> None:
        """See FeatureStore."""
        for at in range(0, len(users), CHANGED_AT_ONCE):
            self._change(self._bulk, fill, [*users[at : at + CHANGED_AT_ONCE]], partial(map, change))

    def _joined(self, batch: dict[str, bytes], users: Sequence[str], stored: Sequence[bytes | None]) -> list[bytes]:
        return joined(stored, [batch[user] for user in users], self.rules)

    def _change(
        self, channel: Channel, fill: str, users: list[str], change: _Changes, recent: _Recent = None
    ) -> None:
        """Read, change and replace states, again for users that other processes changed meanwhile."""
        for _ in range(WRITE_TRIES):
            if not users:
                return
            users = self._try_change(channel, fill, users, change, recent)
        if users:
            raise StoreError(
                f"the feature store at {describe_url(self.url)}: other processes changed the same user {WRITE_TRIES} "
                "times in a row: try again"
            )

    def _try_change(
        self, channel: Channel, fill: str, users: list[str], change: _Changes, recent: _Recent
    ) -> list[str]:
        """One try of `_change`. Returns the users that other processes changed meanwhile."""
        target = fill or self._served
        keys = [self._keys.watermark, *(self._keys.user(target, user) for user in users)]
        mark, *stored = channel.run(lambda client: client.mget(keys))
        if not fill and self._parse(partial(served_fill, mark))[1] != target:
            self._look(mark)
            return list(users)
        new = self._parse(lambda: [*change(users, stored)])
        both = zip(users, stored, new, strict=True)
        changed = [(user, old or b"", value or b"") for user, old, value in both if old != value]
        arguments = [part for _, old, value in changed for part in (old[:DIGEST_BYTES], value)]
        values = {user: value for user, _, value in changed}
        if recent is not None:
            recent = {user: recent[user] for user in users if user in recent}
        try:
            return self._write(channel, target, "replace", values, arguments, recent)
        except StoreMovedError:
            if fill:
                raise
            self._look(channel.run(lambda client: client.get(self._keys.watermark)))
            return list(values)

    def _look(self, mark: bytes | None) -> None:
        """Note which generation is served. Raises StoreMovedError when there is none."""
        self._served = self._parse(partial(served_fill, mark))[1]
        if not self._served:
            raise self._moved()

    def _write(
        self, channel: Channel, fill: str, how: str, values: dict[str, bytes], given: list[bytes], recent: _Recent
    ) -> list[str]:
        """Write states, see `redis_writes.write`. Returns the users that it has not written.

        Raises StoreMovedError when the generation is neither served nor being filled.
        """
        if not values and not recent:
            return []
        users, days = list(values), self.rules.history_days
        failed = channel.run(lambda client: write(client, self._keys, fill, how, values, given, recent, days))
        if failed == [0]:
            raise self._moved()
        return [users[i - 1] for i in failed]

    def _moved(self) -> StoreMovedError:
        where = f"the feature store at {describe_url(self.url)}"
        return StoreMovedError(f"{where} was emptied, or filled by another refresh, meanwhile")

    def recent_users(self, limit: int) -> list[str]:
        """See FeatureStore."""
        mark = self._requests.run(lambda client: client.get(self._keys.watermark))
        key = self._keys.recent(self._parse(partial(served_fill, mark))[1])
        users: Any = self._requests.run(lambda client: client.zrevrange(key, 0, limit - 1))
        return self._parse(lambda: [user.decode() for user in users])

    def users(self) -> Iterator[str]:
        """See FeatureStore."""
        if (mark := self.watermark()) is None:
            return
        start = self._keys.user(mark.fill, "")
        for keys in self._bulk.scan(f"{start}*"):
            yield from self._parse(partial(ids_after, start, keys))

    def watermark(self) -> Watermark | None:
        """See FeatureStore."""
        text: Any = self._bulk.run(lambda client: client.get(self._keys.watermark))
        return None if text is None else self._parse(lambda: Watermark.from_json(text))

    def start_fill(self) -> Watermark:
        """See FeatureStore."""
        mark = Watermark.start(self.facts())
        self._bulk.run(lambda client: begin(client, self._keys, mark))
        self.sweep()
        return mark

    def advance(self, since: Watermark | None, to: Watermark, tables: str = "") -> bool:
        """See FeatureStore."""
        done: Any = self._bulk.run(lambda client: advance(client, self._keys, since, to, tables))
        if done < 0:
            raise self._moved()
        return bool(done)

    def tables(self) -> str:
        """See FeatureStore."""
        text: Any = self._bulk.run(lambda client: client.get(self._keys.tables))
        return self._parse(lambda: (text or b"").decode())

    def sweep(self) -> None:
        """See FeatureStore."""
        marks = self._bulk.run(lambda client: client.mget(self._keys.watermark, self._keys.building))
        kept = {self._parse(partial(served_fill, marks[0]))[1], (marks[1] or b"").decode()}
        kept = {self._keys.generation(fill) for fill in kept if fill}
        of_generation = re.compile(re.escape(self._keys.prefix) + r"[0-9a-f]{16}:")
        for keys in self._bulk.scan(f"{self._keys.prefix}*"):
            found = [(key, of_generation.match(key.decode())) for key in keys]
            old = [key for key, match in found if match and match[0] not in kept]
            self._unlink(old)

    def _unlink(self, keys: list[bytes]) -> None:
        if keys:
            self._bulk.run(methodcaller("unlink", *keys))

    def drop_abandoned(self) -> int:
        """See FeatureStore. Every request and every look of a service reads the watermark of its store."""
        dropped = 0
        for keys in self._bulk.scan("recsys:*:watermark"):
            found = [_STORE.fullmatch(key.decode(errors="replace")) for key in keys]
            for prefix in {match[1] for match in found if match and match[1] != self._keys.prefix}:
                idle = self._bulk.idle_seconds(f"{prefix}watermark")
                if idle is not None and idle >= ABANDONED_SECONDS:
                    for old in self._bulk.scan(f"{prefix}*"):
                        self._unlink(old)
                    dropped += 1
        return dropped

    @contextmanager
    def lock(self) -> Iterator[None]:
        """See FeatureStore. A lock that its process does not renew ends after LOCK_SECONDS."""
        with self._bulk.lock(self._keys.lock, LOCK_SECONDS) as held:
            if not held:
                raise StoreLockedError(
                    f"another refresh of the feature store at {describe_url(self.url)} is running: wait until it has "
                    "ended"
                )
            yield

    def add_run(self, report: str) -> None:
        """See FeatureStore."""
        self._bulk.run(lambda client: client.lpush(self._keys.runs, report))
        self._bulk.run(lambda client: client.ltrim(self._keys.runs, 0, RUNS - 1))

    def runs(self) -> list[str]:
        """See FeatureStore."""
        found: Any = self._bulk.run(lambda client: client.lrange(self._keys.runs, 0, RUNS - 1))
        return self._parse(lambda: [text.decode() for text in found])

    def ping(self) -> None:
        """See FeatureStore."""
        self._bulk.run(lambda client: client.ping())

    def facts(self) -> ServerFacts:
        """See FeatureStore."""
        info: Any = self._bulk.info()
        if info.get("redis_mode") == "cluster":
            raise ConfigError(
                f"the feature store at {describe_url(self.url)} is a cluster, which is not supported: the keys of a "
                "request lie on one server; name a single server in REDIS_URL"
            )
        policy, warning = str(info.get("maxmemory_policy", "noeviction")), ""
        limit = int(info.get("maxmemory", 0))
        if policy != "noeviction" and limit:
            warning = (
                f"the feature store at {describe_url(self.url)} deletes keys when its memory is full, and histories "
                f"are gone until they are written again: its maxmemory-policy is {policy}; set it to noeviction"
            )
        used = int(info.get("used_memory", 0))
        evicted, now = (int(info.get(name, 0)) for name in ("evicted_keys", "server_time_usec"))
        return ServerFacts(str(info.get("run_id", "")), evicted, used, limit, warning, now)

    def close(self) -> None:
        """Close the connections."""
        self._requests.close()
        self._bulk.close()


def check_server(url: str) -> None:
    """Raises ConfigError for a server that cannot hold the store, StoreError for one that does not answer."""
    store = RedisStore(url, EventRules(positive={}), timeout=1.0)
    try:
        store.for_request().facts()
    finally:
        store.close()


def _batches(states: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, bytes]]:
    """States by user, about BATCH_BYTES at a time."""
    batch: dict[str, bytes] = {}
    size = 0
    for user, data in states:
        batch[user] = data
        size += len(data)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch
