"""The feature store in Redis (or Valkey); `RedisKeys` names its keys.

Give each product its own database number.
"""

import heapq
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from features.errors import StoreError, describe_url
from features.log.records import Event
from features.schema import EventRules
from features.store.base import FILLED, RECENT_USERS, Change, ServerFacts, Watermark, schema_hash
from features.store.connection import Breaker, Channel, Client, check_url
from features.store.user_state import (
    DIGEST_BYTES,
    UserState,
    UserStateStatus,
    joined,
    latest_time,
    states_of_log,
)

T = TypeVar("T")

BULK_SECONDS = 5.0
BATCH_BYTES = 1 << 20
"""States written at once; the limit keeps the delay of a concurrent request small."""

CHANGED_AT_ONCE = 100
"""Users whose states `change_users` reads at once."""

WRITE_TRIES = 10
"""Times that a write is tried when other processes change the same user."""

REPLACE = """
local failed = {}
for i, key in ipairs(KEYS) do
  if redis.call('GETRANGE', key, 0, 7) ~= ARGV[2 * i - 1] then
    failed[#failed + 1] = i
  elseif ARGV[2 * i] == '' then
    redis.call('DEL', key)
  else
    redis.call('SET', key, ARGV[2 * i])
  end
end
return failed
"""
"""Replaces values that still begin with the digest that was read; "" is no value. Returns the others, from 1."""

ADD = """
local failed = {}
for i, key in ipairs(KEYS) do
  if not redis.call('SET', key, ARGV[i], 'NX') then failed[#failed + 1] = i end
end
return failed
"""
"""Sets values that are absent. Returns the others, from 1."""

ADVANCE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
"""Replaces the watermark if it is still the one that was read."""


@dataclass(frozen=True)
class RedisKeys:
    """Names of the keys. Stores of other layouts or other event rules have another prefix."""

    prefix: str

    @classmethod
    def of(cls, rules: EventRules) -> "RedisKeys":
        """The keys under the event rules of a bundle: recsys:<schema hash>:…"""
        return cls(f"recsys:{schema_hash(rules)}:")

    def user(self, user_id: str) -> str:
        """The bytes of a `UserState`."""
        return f"{self.prefix}u:{user_id}"

    @property
    def recent(self) -> str:
        """Sorted set: user -> time of the latest event (µs); the newest RECENT_USERS of them."""
        return f"{self.prefix}recent"

    @property
    def watermark(self) -> str:
        """JSON of the `Watermark`."""
        return f"{self.prefix}watermark"


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
    ) -> None:
        """Raises ConfigError when the URL cannot be read."""
        check_url(url)
        self.rules = rules
        self.url = url
        self._requests = Channel(url, timeout, Breaker(pause, clock))
        self._bulk = Channel(url, BULK_SECONDS, Breaker(pause, clock))
        self._keys = RedisKeys.of(rules)

    def with_rules(self, rules: EventRules) -> "RedisStore":
        """A store with the same connections under the keys of other rules."""
        store = object.__new__(RedisStore)
        store.__dict__.update(self.__dict__, rules=rules, _keys=RedisKeys.of(rules))
        return store

    def _parse(self, reply: Callable[[], T]) -> T:
        """Result of `reply`, which parses values of the server; values that we have not written: StoreError."""
        try:
            return reply()
        except (ValueError, TypeError, LookupError, struct.error):
            raise StoreError(
                f"the feature store at {describe_url(self.url)} holds values that this version has not written: "
                "give each product its own database number"
            ) from None

    def read_users(self, ids: Sequence[str]) -> list[UserState]:
        """See FeatureStore."""
        keys = [self._keys.watermark, *map(self._keys.user, ids)]
        mark, *states = self._requests.run(lambda client: client.mget(keys))
        filled = mark is not None and mark.startswith(FILLED)
        known = UserStateStatus.PRESENT if filled else UserStateStatus.STALE
        unknown = UserStateStatus.MISSING if filled else UserStateStatus.STALE
        return self._parse(
            lambda: [
                UserState(status=unknown) if data is None else UserState.from_bytes(data, known) for data in states
            ]
        )

    def write_users(self, states: Iterable[tuple[str, bytes]]) -> None:
        """See FeatureStore."""
        self._write(self._bulk, states)

    def push(self, events: Sequence[Event]) -> None:
        """See FeatureStore."""
        self._write(self._requests, states_of_log(events, self.rules))

    def change_users(self, users: Sequence[str], change: Change) -> None:
        """See FeatureStore."""
        for start in range(0, len(users), CHANGED_AT_ONCE):
            self._change(self._bulk, users[start : start + CHANGED_AT_ONCE], change)

    def _write(self, channel: Channel, states: Iterable[tuple[str, bytes]]) -> None:
        """Join states to those that are stored."""
        are_new = channel is self._bulk  # most users of bulk work, until a batch shows that they are known
        for batch in _batches(states):
            users = list(batch)
            if are_new:
                users = self._run_script(channel, ADD, batch, list(batch.values()))
                are_new = 2 * len(users) <= len(batch)
            self._change(channel, users, partial(self._join, batch))

    def _join(self, batch: dict[str, bytes], user: str, stored: bytes | None) -> bytes:
        return joined(stored, batch[user], self.rules)

    def _change(self, channel: Channel, users: Sequence[str], change: Change) -> None:
        """Read, change and replace states, again for users that other processes changed meanwhile."""
        for _ in range(WRITE_TRIES):
            if not users:
                return
            users = self._try_change(channel, users, change)
        if users:
            raise StoreError(
                f"the feature store at {describe_url(self.url)}: other processes changed the same user {WRITE_TRIES} "
                "times in a row: try again"
            )

    def _try_change(self, channel: Channel, users: Sequence[str], change: Change) -> list[str]:
        """One try of `_change`. Returns the users that other processes changed meanwhile."""
        keys = [self._keys.user(user) for user in users]
        stored = channel.run(lambda client: client.mget(keys))
        new = self._parse(lambda: [change(user, old) for user, old in zip(users, stored, strict=True)])
        changed = [(user, old or b"", value or b"") for user, old, value in zip(users, stored, new, strict=True)]
        changed = [(user, old, value) for user, old, value in changed if old != value]
        arguments = [part for _, old, value in changed for part in (old[:DIGEST_BYTES], value)]
        return self._run_script(channel, REPLACE, {user: value for user, _, value in changed}, arguments)

    def _run_script(
        self, channel: Channel, script: str, values: dict[str, bytes], arguments: list[bytes]
    ) -> list[str]:
        """Write values, "" for none, by ADD or REPLACE. Returns the users that it has not written."""
        if not values:
            return []
        users = list(values)
        latest = {user: latest_time(data) for user, data in values.items() if data}
        newest = dict(heapq.nlargest(RECENT_USERS, latest.items(), key=lambda pair: pair[1]))
        gone = [user for user, data in values.items() if not data]

        def write(client: Client) -> list[int]:
            pipe = client.pipeline(transaction=False)
            pipe.eval(script, len(users), *map(self._keys.user, users), *arguments)
            if newest:
                pipe.zadd(self._keys.recent, newest, gt=True)
                pipe.zremrangebyrank(self._keys.recent, 0, -RECENT_USERS - 1)
            if gone:
                pipe.zrem(self._keys.recent, *gone)
            failed: list[int] = pipe.execute()[0]
            return failed

        return [users[i - 1] for i in channel.run(write)]

    def recent_users(self, limit: int) -> list[str]:
        """See FeatureStore."""
        users: Any = self._requests.run(lambda client: client.zrevrange(self._keys.recent, 0, limit - 1))
        return self._parse(lambda: [user.decode() for user in users])

    def watermark(self) -> Watermark | None:
        """See FeatureStore."""
        text: Any = self._bulk.run(lambda client: client.get(self._keys.watermark))
        return None if text is None else self._parse(lambda: Watermark.from_json(text))

    def start_fill(self) -> Watermark:
        """See FeatureStore."""
        start, key = Watermark.start(self.facts()).to_json(), self._keys.watermark
        text: Any = self._bulk.run(lambda client: None if client.set(key, start, nx=True) else client.get(key))
        return self._parse(lambda: Watermark.from_json(text or start))

    def advance(self, since: Watermark, to: Watermark) -> bool:
        """See FeatureStore."""
        arguments = (since.to_json(), to.to_json())
        return bool(self._bulk.run(lambda client: client.eval(ADVANCE, 1, self._keys.watermark, *arguments)))

    def ping(self) -> None:
        """See FeatureStore."""
        self._bulk.run(lambda client: client.ping())

    def facts(self) -> ServerFacts:
        """See FeatureStore."""
        info: Any = self._bulk.info()
        policy, warning = str(info.get("maxmemory_policy", "noeviction")), ""
        if policy != "noeviction" and info.get("maxmemory"):
            warning = (
                f"the feature store at {describe_url(self.url)} deletes keys when its memory is full, and histories "
                f"are gone until they are written again: its maxmemory-policy is {policy}; set it to noeviction"
            )
        return ServerFacts(str(info.get("run_id", "")), int(info.get("evicted_keys", 0)), warning)

    def close(self) -> None:
        """Close the connections."""
        self._requests.close()
        self._bulk.close()


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
