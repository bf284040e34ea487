"""The feature store in Redis (or Valkey); `RedisKeys` names its keys. No other module imports redis.

The scores of a sorted set are doubles, which hold µs exactly until the year 2255. Give each product its own database
number.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import StoreError
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

T = TypeVar("T")

BULK_SECONDS = 5.0
BULK_ELEMENTS = 5_000
"""Elements written in one transaction; the limit keeps the delay of a concurrent request small."""


@dataclass(frozen=True)
class RedisKeys:
    """Names of the keys. Stores of other layouts or other seen event types have another prefix."""

    prefix: str

    @classmethod
    def of(cls, rules: EventRules) -> "RedisKeys":
        """The keys under the event rules of a bundle: recsys:<schema hash>:…"""
        return cls(f"recsys:{schema_hash(rules)}:")

    def history(self, user_id: str) -> str:
        """Sorted set: packed event -> time (µs); the newest HISTORY of them."""
        return f"{self.prefix}h:{user_id}"

    def seen(self, user_id: str) -> str:
        """Set: every seen item, never trimmed."""
        return f"{self.prefix}s:{user_id}"

    @property
    def recent(self) -> str:
        """Sorted set: user -> time of the latest event (µs); the newest RECENT_USERS of them."""
        return f"{self.prefix}recent"

    @property
    def watermark(self) -> str:
        """JSON of the `Watermark`."""
        return f"{self.prefix}watermark"


class Breaker:
    """A circuit breaker: for `seconds` after a failure every call fails at once.

    Of the requests in that time, only the one that met the failure waited for the time-out.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until = -float("inf")

    def check(self) -> None:
        """Raises StoreError while the breaker is open."""
        remaining = self._until - self._clock()
        if remaining > 0:
            raise StoreError(f"the feature store did not answer; the next try is in {remaining:.2f} s")

    def trip(self) -> None:
        """Open the breaker."""
        self._until = self._clock() + self._seconds


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
        self.rules = rules
        self.url = url
        self._breaker = Breaker(pause, clock)
        self._client = _client(url, timeout)
        self._bulk = _client(url, BULK_SECONDS)
        self._keys = RedisKeys.of(rules)

    def with_rules(self, rules: EventRules) -> "RedisStore":
        """A store with the same connections and breaker under the keys of other rules."""
        store = object.__new__(RedisStore)
        store.__dict__.update(self.__dict__, rules=rules, _keys=RedisKeys.of(rules))
        return store

    def _try(self, work: Callable[[], T]) -> T:
        """Result of `work`. A failed connection opens the breaker; every Redis error becomes StoreError."""
        self._breaker.check()
        try:
            return work()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._breaker.trip()
            raise StoreError(f"the feature store at {self._address} does not answer: {error}") from error
        except redis.RedisError as error:
            raise StoreError(f"the feature store at {self._address} refuses: {error}") from error

    @property
    def _address(self) -> str:
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"  # without a password

    def read_users(self, ids: Sequence[str]) -> list[UserState]:
        """See FeatureStore."""

        def work() -> list[Any]:
            pipe = self._client.pipeline(transaction=False)
            pipe.exists(self._keys.watermark)
            for user in ids:
                pipe.zrange(self._keys.history(user), 0, -1, withscores=True)
                pipe.smembers(self._keys.seen(user))
            return pipe.execute()

        filled, *replies = self._try(work)  # per user: the history, then the seen items
        return [
            unpack(
                user,
                [member.decode() for member, _ in history],
                [int(at) for _, at in history],
                [item.decode() for item in seen],
                filled=bool(filled),
            )
            for user, history, seen in zip(ids, replies[::2], replies[1::2], strict=True)
        ]

    def write_users(self, user_patches: Iterable[UserPatch]) -> None:
        """See FeatureStore."""
        self._write(self._bulk, user_patches)

    def push(self, events: Sequence[Event]) -> None:
        """See FeatureStore."""
        self._write(self._client, user_patches(events, self.rules))

    def _write(self, client: "redis.Redis", user_patches: Iterable[UserPatch]) -> None:
        batch: list[UserPatch] = []
        size = 0
        for patch in user_patches:
            batch.append(patch)
            size += len(patch.events) + len(patch.seen)
            if size >= BULK_ELEMENTS:
                self._write_batch(client, batch)
                batch, size = [], 0
        if batch:
            self._write_batch(client, batch)

    def _write_batch(self, client: "redis.Redis", batch: Sequence[UserPatch]) -> None:
        def work() -> None:
            pipe = client.pipeline(transaction=True)
            for patch in batch:
                history = self._keys.history(patch.user_id)
                pipe.zadd(history, patch.events, lt=True)
                pipe.zremrangebyrank(history, 0, -HISTORY - 1)
                if patch.seen:
                    pipe.sadd(self._keys.seen(patch.user_id), *patch.seen)
            latest = {patch.user_id: max(patch.events.values()) for patch in batch}
            pipe.zadd(self._keys.recent, latest, gt=True)
            pipe.zremrangebyrank(self._keys.recent, 0, -RECENT_USERS - 1)
            pipe.execute()

        self._try(work)

    def recent_users(self, limit: int) -> list[str]:
        """See FeatureStore."""
        users: Any = self._try(lambda: self._client.zrevrange(self._keys.recent, 0, limit - 1))
        return [user.decode() for user in users]

    def watermark(self) -> Watermark | None:
        """See FeatureStore."""
        text: Any = self._try(lambda: self._client.get(self._keys.watermark))
        return None if text is None else Watermark.from_json(text)

    def set_watermark(self, to: Watermark) -> None:
        """See FeatureStore."""
        self._try(lambda: self._client.set(self._keys.watermark, to.to_json()))

    def ping(self) -> None:
        """See FeatureStore."""
        self._try(self._client.ping)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._bulk.close()


def _client(url: str, timeout: float) -> "redis.Redis":
    # protocol 2 needs no handshake; without retries a dead server costs one time-out, not four
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,
    )
