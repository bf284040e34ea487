"""The feature store in Redis (or Valkey); `RedisKeys` names its keys. No other module imports redis.

Give each product its own database number.
"""

import re
import socket
import ssl
import struct
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
from features.store.base import FILLED, RECENT_USERS, ServerFacts, Watermark, schema_hash
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

WRITE_TRIES = 10
"""Times that a write is tried when other processes change the same user."""

REPLACE = """
local failed = {}
for i, key in ipairs(KEYS) do
  if redis.call('GETRANGE', key, 0, 7) == ARGV[2 * i - 1] then
    redis.call('SET', key, ARGV[2 * i])
  else
    failed[#failed + 1] = i
  end
end
return failed
"""
"""Replaces values that still begin with the digest that was read; "" for no value. Returns the others, from 1."""

ADVANCE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
"""Replaces the watermark if it is still the one that was read."""


URL_OPTIONS = (
    *("db", "username", "password", "client_name", "max_connections", "health_check_interval", "socket_keepalive"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"),
    "ssl_min_version",
)
"""Options in the query of a URL. The service sets time-outs and retries itself."""


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


class Channel:
    """Connections for one kind of work, with a breaker of their own: neither kind of work stops the other.

    timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, timeout: float, breaker: Breaker) -> None:
        self._url, self._breaker, self._client = url, breaker, _client(url, timeout)

    def run(self, work: Callable[["redis.Redis"], Any]) -> Any:
        """Result of `work`. A failed connection opens the breaker; every Redis error becomes StoreError."""
        self._breaker.check()
        try:
            return work(self._client)
        except (redis.RedisError, OSError) as error:
            away = isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError)
            verb = "does not answer" if away and not getattr(error, "status_code", None) else "refuses"
            reason = f"the feature store at {describe_url(self._url)} {verb}: {_reason(error)}"
            if away:
                self._breaker.trip(reason)
            # `from None`: a reply of the server repeats the command with its user, item and value
            raise StoreError(reason) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


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

    def _write(self, channel: "Channel", states: Iterable[tuple[str, bytes]]) -> None:
        batch: dict[str, bytes] = {}
        size = 0
        for user, data in states:
            batch[user] = data
            size += len(data)
            if size >= BATCH_BYTES:
                self._join(channel, batch)
                batch, size = {}, 0
        if batch:
            self._join(channel, batch)

    def _join(self, channel: "Channel", batch: dict[str, bytes]) -> None:
        """Join states to those that are stored, again for users that other processes changed meanwhile."""
        for _ in range(WRITE_TRIES):
            batch = self._try_join(channel, batch)
            if not batch:
                return
        raise StoreError(
            f"the feature store at {describe_url(self.url)}: other processes changed the same user {WRITE_TRIES} "
            "times in a row: try again"
        )

    def _try_join(self, channel: "Channel", batch: dict[str, bytes]) -> dict[str, bytes]:
        """Read, join and replace the states of these users. Returns those that other processes changed meanwhile."""
        users, keys = list(batch), [self._keys.user(user) for user in batch]
        stored = channel.run(lambda client: client.mget(keys))
        pairs = list(zip(stored, batch.values(), strict=True))
        values = self._parse(lambda: [joined(old, added, self.rules) for old, added in pairs])
        changed = [i for i, (old, new) in enumerate(zip(stored, values, strict=True)) if old != new]
        arguments = [part for i in changed for part in ((stored[i] or b"")[:DIGEST_BYTES], values[i])]
        latest = {user: latest_time(data) for user, data in batch.items()}

        def write(client: "redis.Redis") -> list[int]:
            pipe = client.pipeline(transaction=False)
            pipe.eval(REPLACE, len(changed), *(keys[i] for i in changed), *arguments)
            pipe.zadd(self._keys.recent, latest, gt=True)
            pipe.zremrangebyrank(self._keys.recent, 0, -RECENT_USERS - 1)
            failed: list[int] = pipe.execute()[0]
            return failed

        failed = [users[changed[i - 1]] for i in channel.run(write)] if changed else []
        return {user: batch[user] for user in failed}

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
        info: Any = self._bulk.run(_info)
        policy, warning = str(info.get("maxmemory_policy", "noeviction")), ""
        if policy != "noeviction" and info.get("maxmemory"):
            warning = (
                f"the feature store at {describe_url(self.url)} deletes keys when its memory is full, and histories are "
                f"gone until they are written again: its maxmemory-policy is {policy}; set it to noeviction"
            )
        return ServerFacts(str(info.get("run_id", "")), int(info.get("evicted_keys", 0)), warning)

    def close(self) -> None:
        """Close the connections."""
        self._requests.close()
        self._bulk.close()


def _info(client: "redis.Redis") -> Any:
    """Facts of the server; none from one that does not tell. Managed servers refuse CONFIG GET, and tell these."""
    try:
        return client.info()
    except redis.ResponseError:
        return {}


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
