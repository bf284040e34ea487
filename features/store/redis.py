"""The feature store in Redis (or Valkey); `RedisKeys` names its keys. No other module imports redis.

The scores of a sorted set are doubles, which hold µs exactly until the year 2255. Give each product its own database
number.
"""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import ConfigError, StoreError, describe_url
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


URL_OPTIONS = (
    *("db", "username", "password", "client_name", "max_connections", "health_check_interval", "socket_keepalive"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"),
    "ssl_min_version",
)
"""Options in the query of a URL. The service sets time-outs and retries itself."""


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
        self._reason = ""

    def check(self) -> None:
        """Raises StoreError while the breaker is open."""
        remaining = self._until - self._clock()
        if remaining > 0:
            raise StoreError(f"{self._reason}; the next try is in {remaining:.2f} s")

    def trip(self, reason: str) -> None:
        """Open the breaker. reason: of the failure, for the errors while it is open."""
        self._reason = reason
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
        """Raises ConfigError when the URL cannot be read."""
        check_url(url)
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
        except (redis.RedisError, OSError) as error:
            away = isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError)
            verb = "does not answer" if away and not getattr(error, "status_code", None) else "refuses"
            reason = f"the feature store at {describe_url(self.url)} {verb}: {_reason(error)}"
            if away:
                self._breaker.trip(reason)
            # `from None`: a reply of the server repeats the command with its user, item and value
            raise StoreError(reason) from None

    def _parse(self, reply: Callable[[], T]) -> T:
        """Result of `reply`, which parses values of the server; values that we have not written: StoreError."""
        try:
            return reply()
        except (ValueError, TypeError, LookupError):
            raise StoreError(
                f"the feature store at {describe_url(self.url)} holds values that this version has not written: "
                "give each product its own database number"
            ) from None

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
        return self._parse(
            lambda: [
                unpack(
                    user,
                    [member.decode() for member, _ in history],
                    [int(at) for _, at in history],
                    [item.decode() for item in seen],
                    filled=bool(filled),
                )
                for user, history, seen in zip(ids, replies[::2], replies[1::2], strict=True)
            ]
        )

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
        return self._parse(lambda: [user.decode() for user in users])

    def watermark(self) -> Watermark | None:
        """See FeatureStore."""
        text: Any = self._try(lambda: self._client.get(self._keys.watermark))
        return None if text is None else self._parse(lambda: Watermark.from_json(text))

    def set_watermark(self, to: Watermark) -> None:
        """See FeatureStore."""
        self._try(lambda: self._client.set(self._keys.watermark, to.to_json()))

    def ping(self) -> None:
        """See FeatureStore."""
        self._try(self._client.ping)

    def warning(self) -> str:
        """See FeatureStore."""
        try:
            info: Any = self._try(lambda: self._client.info("memory"))  # managed servers refuse CONFIG GET
        except StoreError:  # a server that does not tell
            return ""
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy == "noeviction" or not info.get("maxmemory"):
            return ""
        return (
            f"the feature store at {describe_url(self.url)} may delete keys when its memory is full, and users would "
            f"lose their history in silence: its maxmemory-policy is {policy}; set it to noeviction"
        )

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


def check_url(url: str) -> None:
    """Raises ConfigError, without any part of the URL, when it is not one of a Redis server."""
    try:
        parts = urlsplit(url)
        database = parts.path.lstrip("/") if parts.scheme != "unix" else "0"
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        (parts.hostname or "").encode("idna")
        if re.search(r"[\x00-\x20\x7f]", url) or "#" in url:
            reason = "it contains a space, a control character or #"
        elif parts.scheme not in ("redis", "rediss", "unix"):
            reason = "it does not begin with redis://, rediss:// or unix://"
        elif parts.port == 0 or not (parts.path if parts.scheme == "unix" else parts.hostname):
            reason = "it names no host and port, or no socket"
        elif not re.fullmatch("[0-9]*", database) or not re.fullmatch("[0-9]+", options.get("db", "0")):
            reason = "its database is not a number"
        elif unknown := set(options) - set(URL_OPTIONS):
            reason = f"{len(unknown)} of its options are not among {', '.join(URL_OPTIONS)}"
        else:
            _client(url, 1.0).connection_pool.make_connection()  # opens nothing; reads the values of the options
            return
    except (ValueError, TypeError, redis.RedisError):  # their messages quote the URL
        reason = "its host, port or options are not valid"
    raise ConfigError(
        "REDIS_URL cannot be read: percent-encode the password (# is %23, / is %2F, ? is %3F, @ is %40), and write "
        f"the URL as redis://user:password@localhost:6379/0; {reason}"
    ) from None


_REPLIES = {
    "WRONGPASS": "the user or the password is wrong: correct REDIS_URL",
    "invalid password": "the password is wrong: correct REDIS_URL",
    "NOAUTH": "it asks for a password: put one into REDIS_URL",
    "AUTH ": "it has no password, but REDIS_URL holds one: remove it there, or set one on the server",
    "NOPERM": "the user may not run a command that the store needs: grant it for the keys recsys:*",
    "OOM": "its memory is full: raise maxmemory, or delete other keys",
    "READONLY": "it is a read-only replica: name the primary server in REDIS_URL",
    "LOADING": "it is loading its data: wait",
    "MASTERDOWN": "it has lost its primary server: name the primary server in REDIS_URL",
    "MISCONF": "it cannot save its data to disk and takes no writes: see its log",
    "NOREPLICAS": "it has too few replicas and takes no writes: see its log",
    "BUSY": "a script blocks it: end the script",
    "WRONGTYPE": "a key of the store holds a value of another kind: give each product its own database number",
    "max number of clients": "it has no connection left: raise maxclients",
    "DB index": "the database number in REDIS_URL is out of its range: correct it",
    "MOVED": "it is a cluster, which is not supported: name a single server in REDIS_URL",
    "ASK": "it is a cluster, which is not supported: name a single server in REDIS_URL",
    "CROSSSLOT": "it is a cluster, which is not supported: name a single server in REDIS_URL",
    "CLUSTERDOWN": "it is a cluster, which is not supported: name a single server in REDIS_URL",
    "unknown command": "it does not know a command of the store: use Redis 6.2, Valkey 7.2 or later",
}
"""Start of an error reply -> the reason and its remedy, in our words."""

_FAULTS: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "its certificate cannot be verified: set ssl_ca_certs in REDIS_URL"),
    (ssl.SSLError, "no TLS connection can be made: use redis:// for a server without TLS"),
    (socket.gaierror, "its host has no address: correct the host in REDIS_URL"),
    (ConnectionRefusedError, "nothing listens there: start the server, or correct REDIS_URL"),
    (FileNotFoundError, "there is no such socket or certificate: start the server, or correct REDIS_URL"),
    (PermissionError, "this user may not open its socket or a certificate: grant the right"),
    (ConnectionResetError, "it has closed the connection: is it a Redis server, and does it expect rediss://?"),
    (TimeoutError, "there was no answer in time: is it busy, and does it expect rediss:// or redis://?"),
    (redis.TimeoutError, "there was no answer in time: is it busy, and does it expect rediss:// or redis://?"),
    (redis.InvalidResponse, "it is not a Redis server: correct REDIS_URL"),
    (redis.DataError, "a value cannot be sent to it"),
    (redis.ConnectionError, "the connection failed: is it a Redis server, and is it reachable?"),
)
"""Class of an error, or of its cause -> the reason and its remedy, in our words; the first that fits counts."""


def _reason(error: BaseException) -> str:
    """Reason and remedy of a failed call, in our words: the text of the server may hold what users did."""
    reply = str(error).rpartition("of pipeline caused error: ")[2]  # before it stands the command
    reply = f"{getattr(error, 'status_code', None) or ''} {reply}".lstrip()
    for start, reason in _REPLIES.items():
        if reply.startswith((start, f"ERR {start}")):
            return reason
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    faults = [reason for kind, reason in _FAULTS for link in chain if isinstance(link, kind)]
    return faults[0] if faults else "it does not carry out a command of the store: see its log"
