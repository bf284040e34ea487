"""Connections to a Redis (or Valkey) server, and its errors in our words. No other module imports redis."""

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import methodcaller
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.lock import Lock
from redis.retry import Retry

from features.errors import ConfigError, StoreError, describe_url

Client = redis.Redis
SCANNED_AT_ONCE = 1000
"""Keys that the server looks at in one call; other calls are answered in between."""

URL_OPTIONS = (
    *("db", "username", "password", "client_name", "max_connections", "health_check_interval", "socket_keepalive"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"),
    "ssl_min_version",
)
"""Options in the query of a URL. The service sets time-outs and retries itself."""


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

    timeout: seconds to wait for an answer; name: of what the server is used for, in errors.
    """

    def __init__(self, url: str, timeout: float, breaker: Breaker, name: str = "the feature store") -> None:
        self._url, self._breaker, self._client, self._name = url, breaker, _client(url, timeout), name

    def run(self, work: Callable[[Client], Any]) -> Any:
        """Result of `work`. A failed connection opens the breaker; every Redis error becomes StoreError."""
        self._breaker.check()
        try:
            return work(self._client)
        except (redis.RedisError, OSError) as error:
            away = isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError)
            verb = "does not answer" if away and not getattr(error, "status_code", None) else "refuses"
            reason = f"{self._name} at {describe_url(self._url)} {verb}: {_reason(error)}"
            if away:
                self._breaker.trip(reason)
            # `from None`: a reply of the server repeats the command with its user, item and value
            raise StoreError(reason) from None

    def info(self) -> Any:
        """Facts of the server by name; none from one that does not tell. Managed servers refuse CONFIG GET."""

        def info(client: Client) -> Any:
            try:
                return client.info()
            except redis.ResponseError:
                return {}

        return self.run(info)

    def idle_seconds(self, key: str) -> Any:
        """Seconds since a key was last read or written; None where the server counts uses instead."""

        def idle(client: Client) -> Any:
            try:
                return client.object("idletime", key)
            except redis.ResponseError:
                return None

        return self.run(idle)

    @contextmanager
    def lock(self, key: str, seconds: float) -> Iterator[bool]:
        """Hold a lock; False when another process holds it. It outlives a process that is killed by `seconds`.

        The wait for it is longer than that: a lock that nobody renews is gone then.
        """
        lock = Lock(self._client, key, timeout=seconds, blocking_timeout=1.5 * seconds, thread_local=False)
        held, ended = bool(self.run(lambda client: lock.acquire())), Event()

        def renew() -> None:
            while not ended.wait(seconds / 3):
                with suppress(StoreError):  # the work itself meets the error
                    self.run(lambda client: lock.reacquire())

        renewer = Thread(target=renew, name="store-lock", daemon=True)
        if held:
            renewer.start()
        try:
            yield held
        finally:
            ended.set()
            if held:
                renewer.join()
                with suppress(StoreError):  # a server that was emptied has no lock to give back
                    self.run(lambda client: lock.release())

    def scan(self, pattern: str | bytes) -> Iterator[list[bytes]]:
        """Names of keys that match a pattern of the server, each once or more, in batches."""
        cursor = None
        while cursor != 0:
            work = methodcaller("scan", cursor or 0, match=pattern, count=SCANNED_AT_ONCE)
            cursor, keys = self.run(work)
            yield keys

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _client(url: str, timeout: float) -> Client:
    # protocol 2 needs no handshake; without retries a dead server costs one time-out, not four
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,
        redis_connect_func=_greet if url.startswith("rediss:") else None,
    )


def _greet(connection: Any) -> None:
    """Set up a connection with TLS. An answer is read, because the server sends session tickets before the first one.

    redis-py would take tickets that are not read for the rest of an earlier answer, and refuse the connection.
    """
    connection.on_connect()
    connection.send_command("PING", check_health=False)
    connection.read_response()


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
    "NOGROUP": "the stream or its consumer group was deleted: the next try makes them again",
    "unknown command": "it does not know a command of the store: use Redis 6.2, Valkey 7.2 or later",
}
"""Start of an error reply -> the reason and its remedy, in our words."""

_IN_SCRIPT = re.compile(r"^(?:ERR )?Error running script \(call to \w+\): (?:@\w+: ?\d+: )+-?")
"""What Redis 6.2 puts before the error of a command in a script."""

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
    reply = _IN_SCRIPT.sub("", f"{getattr(error, 'status_code', None) or ''} {reply}".lstrip())
    for start, reason in _REPLIES.items():
        if reply.startswith((start, f"ERR {start}")):
            return reason
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    faults = [reason for kind, reason in _FAULTS for link in chain if isinstance(link, kind)]
    return faults[0] if faults else "it does not carry out a command of the store: see its log"


def make_group(client: Client, stream: str, group: str) -> None:
    """Make a consumer group that reads a stream from its beginning, and the stream, unless they are there."""
    try:
        client.xgroup_create(stream, group, id="0", mkstream=True)
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


def bare_pipeline(url: str, size: int) -> Callable[[], object]:
    """A pipeline of two commands that reads `size` bytes and does nothing with them: benchmarks compare with it."""
    client = _client(url, 5.0)
    for part in range(2):
        client.set(f"bare:{part}", bytes(size // 2))

    def read() -> object:
        pipe = client.pipeline(transaction=False)
        pipe.get("bare:0")
        pipe.get("bare:1")
        return pipe.execute()

    return read
