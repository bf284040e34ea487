"""The Redis store: its URL is checked at the start, its errors hold no secrets and nothing that users did."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis as client
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features_store import SERVERS
from toy_service import RULES

from features.errors import ConfigError, StoreError
from features.log.records import Event
from features.store import connection
from features.store.connection import check_url
from features.store.redis import RedisStore
from features.store.redis_keys import RedisKeys
from features.store.redis_server import RedisServer

EVENT = Event(user_id="u-secret", item_id="i-secret", event="click", timestamp=5, value=31.25, event_id="e-secret")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    if (binary := SERVERS[getattr(request, "param", "redis")]()) is None:
        pytest.skip(f"{request.param} is not installed: pip install -e .[dev]")
    running = RedisServer(binary=binary)
    yield running
    running.stop()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret#word@127.0.0.1:6379/0",
        "redis://:s3cret/word@127.0.0.1:6379/0",
        "redis://:12/s3cret@127.0.0.1:6379/0",
        "redis://u:12?s3cret@127.0.0.1:6379/0",
        "redis://:s3cret?word@127.0.0.1:6379/0",
        "redis://:s3cret[word@127.0.0.1:6379/0",
        "redis://:s3cret word@127.0.0.1:6379/0",
        "redis://:s3cret\u2100word@127.0.0.1:6379/0",
        "redis://127.0.0.1:6379/0?s3cret=1",
        "redis://127.0.0.1:6379/0?password=s3cret&socket_timeout=60",
        "redis://127.0.0.1:6379/0?password=s3cret&db=first",
        "redis://127.0.0.1:6379/s3cret",
        "redis://127.0.0.1:s3cret/0",
        "redis://127.0.0.1:99999/0",
        "redis://127.0.0.1:0/0",
        "redis://[::1/0",
        "redis:///0",
        "redis://127.0.0.1:6379/0\n",
        "rediss://127.0.0.1/0?ssl_cert_reqs=s3cret",
        "redis://127.0.0.1/0?ssl_ca_certs=s3cret",
        f"redis://{'a' * 70}/0",
        "unix://",
        "127.0.0.1:6379",
        "localhost",
        "http://127.0.0.1:6379/0",
        "REDIS://127.0.0.1",
        "",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_any_of_it(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL cannot be read: percent-encode the password") as caught:
        RedisStore(url, RULES)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:p%23w%2F@localhost:6379/1",
        "redis://:p@ss@localhost:6379/",
        "redis://[::1]:6379/15",
        "rediss://localhost/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis://localhost?db=2&password=x",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_urls_that_are_read(url: str) -> None:
    check_url(url)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.sampled_from(["redis://u:S3CRET{}@127.0.0.1:1/0", "redis://127.0.0.1:1/0?S3CRET{}"]))
def test_no_part_of_any_url_is_in_an_error(text: str, url: str) -> None:
    with pytest.raises((ConfigError, StoreError)) as caught:
        RedisStore(url.format(text), RULES, timeout=0.2).ping()
    assert "S3CRET" not in str(caught.value)


def refused(store: RedisStore) -> str:
    """The message of the error that pushing EVENT raises; it holds nothing of the event."""
    with pytest.raises(StoreError) as caught:
        store.push([EVENT])
    store.close()
    assert "secret" not in str(caught.value)
    assert "31.25" not in str(caught.value)
    assert caught.value.__suppress_context__
    return str(caught.value)


@pytest.mark.parametrize("server", ["redis", "redis-6.2", "valkey-9"], indirect=True)
def test_replies_of_a_server_are_worded_by_us(server: RedisServer) -> None:
    admin = client.Redis.from_url(server.url, decode_responses=True)
    filling = RedisStore(server.url, RULES, timeout=5)
    history = RedisKeys.of(RULES).user(filling.start_fill().fill, "u-secret")

    def push(url: str = server.url) -> str:
        return refused(RedisStore(url, RULES, timeout=5))

    admin.hset(history, "another", "kind")
    assert "another kind: give each product its own database" in push()
    admin.delete(history)
    assert "database number in REDIS_URL is out of its range" in push(f"{server.url}?db=99")
    admin.config_set("maxmemory", 1)
    assert "memory is full: raise maxmemory" in push()
    admin.config_set("maxmemory", "1gb")
    admin.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "+ping", "+multi", "+exec")
    assert "may not run a command" in push(f"{server.url}?username=few&password=pw")
    admin.replicaof("127.0.0.1", 1)
    assert "read-only replica" in push()
    admin.execute_command("REPLICAOF", "NO", "ONE")
    admin.config_set("requirepass", "pw")
    assert "asks for a password" in push()
    wrong = push(f"{server.url}?password=s-secret")
    assert "the user or the password is wrong" in wrong
    assert f"the feature store at {server.url} refuses" in wrong


def test_values_of_another_program_are_an_error(server: RedisServer) -> None:
    admin, keys = client.Redis.from_url(server.url), RedisKeys.of(RULES)
    store = RedisStore(server.url, RULES, timeout=5)
    for values in (b"5", b"[]", b"{", b"{}", b"\xff"):
        admin.set(keys.watermark, values)
        with pytest.raises(StoreError, match="has not written") as refused:
            store.watermark()
        assert f"or delete the keys {keys.prefix}* and refresh" in str(refused.value)
    for data in (b"u-secret", b"\xff", b"", b"u-secret" + bytes(range(200))):
        admin.set(keys.user("", "u"), data)
        with pytest.raises(StoreError, match="has not written") as caught:
            store.read_users(["u"])
        assert "secret" not in str(caught.value)
    store.close()


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A server that answers every first message with `reply` and closes; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with link:
                    link.recv(4096)
                    link.sendall(reply)

        threading.Thread(target=run, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("url", "reply", "expected"),
    [
        ("redis://:secret@127.0.0.1:{}/0", b"HTTP/1.1 400 secret\r\n\r\n", "is it a Redis server|not a Redis server"),
        ("redis://127.0.0.1:{}/0", b"", "is it a Redis server"),
        ("rediss://127.0.0.1:{}/0", b"-ERR secret\r\n", "use redis:// for a server without TLS"),
        ("redis://127.0.0.1:{}/0", b"-LOADING secret\r\n", "refuses: it is loading its data"),
        ("redis://127.0.0.1:{}/0", b"-MISCONF secret\r\n", "cannot save its data"),
        ("redis://127.0.0.1:{}/0", b"-ERR max number of clients reached\r\n", "raise maxclients"),
        ("redis://127.0.0.1:{}/0", b"-MOVED 1 secret:1\r\n", "cluster"),
        ("redis://127.0.0.1:{}/0", b"-SECRET u-secret\r\n", "see its log"),
    ],
)
def test_servers_that_are_none_or_in_trouble(url: str, reply: bytes, expected: str) -> None:
    with answering(reply) as port:
        store = RedisStore(url.format(port), RULES, timeout=5)
        with pytest.raises(StoreError, match=expected) as caught:
            store.ping()
    assert "secret" not in str(caught.value)
    assert f"127.0.0.1:{port}/0" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://name.invalid:6379/0", "its host has no address"),
        ("redis://127.0.0.1:1/0?password=secret", "nothing listens there"),
        ("unix:///nowhere/redis.sock?password=secret", "no such socket"),
        ("rediss://127.0.0.1:1/0?ssl_ca_certs=/nowhere/secret.pem", "nothing listens there"),
    ],
)
def test_servers_that_are_away(url: str, expected: str) -> None:
    with pytest.raises(StoreError, match=f"does not answer: .*{expected}") as caught:
        RedisStore(url, RULES, timeout=5).ping()
    assert "secret" not in str(caught.value)


def test_a_store_that_evicts_is_warned_of(server: RedisServer, tmp_path: Path) -> None:
    admin, store = client.Redis.from_url(server.url), RedisStore(server.url, RULES, timeout=5)
    assert store.facts().warning == ""
    for policy in ("allkeys-lru", "volatile-ttl"):
        admin.config_set("maxmemory-policy", policy)
        assert f"maxmemory-policy is {policy}" in store.facts().warning
        assert "set it to noeviction" in store.facts().warning
    admin.config_set("maxmemory", 0)
    assert store.facts().warning == ""  # without a limit nothing is evicted
    store.close()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("WRONGPASS x", "the user or the password is wrong"),
        ("ERR invalid password", "the password is wrong"),
        ("NOAUTH x", "it asks for a password"),
        ("ERR AUTH <password> called without any password", "it has no password, but REDIS_URL holds one"),
        ("NOPERM x", "the user may not run a command"),
        ("OOM x", "its memory is full"),
        ("READONLY x", "it is a read-only replica"),
        ("LOADING x", "it is loading its data"),
        ("MASTERDOWN x", "it has lost its primary server"),
        ("MISCONF x", "it cannot save its data"),
        ("NOREPLICAS x", "it has too few replicas"),
        ("BUSY x", "a script blocks it"),
        ("WRONGTYPE x", "a key of the store holds a value of another kind"),
        ("ERR max number of clients reached", "it has no connection left"),
        ("ERR DB index is out of range", "the database number in REDIS_URL is out of its range"),
        *((f"{word} x", "it is a cluster, which is not supported") for word in ("MOVED", "ASK", "CROSSSLOT")),
        ("CLUSTERDOWN x", "it is a cluster, which is not supported"),
        ("ERR unknown command 'x'", "it does not know a command of the store"),
        ("SOMETHING else", "it does not carry out a command of the store: see its log"),
    ],
)
def test_each_reply_of_a_server_has_words_of_ours(reply: str, reason: str) -> None:
    found = connection._reason(client.ResponseError(reply))
    assert found.startswith(reason)
    piped = client.ResponseError(f"Command # 1 (SET user-secret) of pipeline caused error: {reply}")
    assert connection._reason(piped) == found
