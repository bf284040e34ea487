"""Planted secrets are in no answer of any route, in no log and in no message of a command."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from service_harness import service_harness
from toy_data import toy_config, write_tables

from features.store.redis_server import RedisServer

SECRETS = ("s3cret", "u-secret", "i-secret", "e-secret", "31.25")
"""A password, and a user, an item, an event id and a value of events that users sent."""

PASSWORD = "s3cret/#?"
ENCODED = "s3cret%2F%23%3F"
COMMAND = (sys.executable, "-c", "from recsys.cli.main import main; main()")
EVENT = {"user_id": "u-secret", "item_id": "i-secret", "event": "click", "value": 31.25, "event_id": "e-secret"}


def secrets_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def recsys(*arguments: object, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit status and all output of the command."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "500"} | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    """A server of 2 MB that asks for a password; it listens at TCP too."""
    server = RedisServer(maxmemory="2mb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    admin = redis.Redis.from_url(server.url)
    admin.config_set("port", port)
    admin.config_set("requirepass", PASSWORD)
    server.port = port  # type: ignore[attr-defined]
    yield server
    server.stop()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose bundle is published in its folder."""
    folder = tmp_path_factory.mktemp("trained")
    write_tables(folder / "data")
    config = toy_config(folder)
    code, output = recsys("train", config, "--no-track", cwd=folder)
    assert code == 0, output
    return config


@contextmanager
def serving(folder: Path, url: str) -> Iterator[tuple[httpx2.Client, Path]]:
    """A client of a service in a process of its own, and the file of all its output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = folder / "output.txt"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(port), "--log", str(folder / f"log-{port}")],
            cwd=folder,
            env=os.environ | {"REDIS_URL": url},
            stdout=out,
            stderr=out,
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < deadline
                try:
                    client.get("/readyz")
                    break
                except httpx2.TransportError:
                    time.sleep(0.05)
            yield client, output
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def answers(client: httpx2.Client) -> dict[str, str]:
    """Answers of the routes that nobody asks with a user or an item of SECRETS; events are sent before."""
    client.post("/v1/events", json=[EVENT | {"event_id": f"e-secret-{n}"} for n in range(50)])
    client.post("/v1/events", json=EVENT | {"unknown": "field"})
    paths = ["/readyz", "/healthz", "/v1/about", "/v1/users/other/recommendations", "/v1/users/other/history"]
    paths += [
        "/v1/items/i1/similar",
        "/v1/items/i1",
        "/v1/users/other/recommendations?limit=x",
        "/nowhere",
        "/media/i1",
    ]
    texts = {path: client.get(path).text for path in paths}
    texts["search"] = client.post("/v1/search", json={"text": "x"}).text
    texts["put"] = client.put("/v1/items/other", json={"title": 5}).text
    time.sleep(1.2)  # a step of the loop notes the state of the store
    return texts | {"/readyz later": client.get("/readyz").text}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (f"redis://:{ENCODED}@127.0.0.1:{{}}/0", "memory is full"),
        (f"redis://127.0.0.1:{{}}/0?password={ENCODED}", "memory is full"),
        (f"redis://s3cret-user:{ENCODED}@127.0.0.1:{{}}/0", "the user or the password is wrong"),
        (f"redis://:{ENCODED}@127.0.0.1:{{}}/99", "database number"),
        (f"rediss://:{ENCODED}@127.0.0.1:{{}}/0", "no answer in time"),
        ("redis://:s3cret@127.0.0.1:1/0", "nothing listens there"),
    ],
)
def test_no_secret_leaves_a_service(trained: Path, store: Any, place: str, reason: str) -> None:
    admin = redis.Redis.from_url(store.url, password=PASSWORD)
    admin.flushall()
    admin.config_set("maxmemory", 1)
    with serving(trained.parent, place.format(store.port)) as (client, output):
        texts, deadline = answers(client), time.monotonic() + 60
        while reason not in texts["/readyz later"]:  # a filling, in a process of its own, may have to fail first
            assert time.monotonic() < deadline, texts["/readyz later"]
            time.sleep(0.2)
            texts["/readyz later"] = client.get("/readyz").text
        assert "127.0.0.1:" in texts["/readyz later"]
        assert {path: secrets_in(text) for path, text in texts.items() if secrets_in(text)} == {}
    assert secrets_in(output.read_text()) == []
    code, text = recsys("features", "refresh", trained, cwd=trained.parent, REDIS_URL=place.format(store.port))
    assert (code, secrets_in(text)) == (1, [])
    assert re.search(r"^error: the feature store at rediss?://127\.0\.0\.1:\d+", text, re.MULTILINE)
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "url", [f"redis://:{PASSWORD}@127.0.0.1:6379/0", f"127.0.0.1:6379?password={ENCODED}", "redis://u:12/s3cret@h/0"]
)
def test_a_url_that_cannot_be_read_ends_each_command_with_one_line(tmp_path: Path, url: str) -> None:
    config = toy_config(tmp_path)
    for arguments in (("serve",), ("features", "refresh", config)):
        code, text = recsys(*arguments, cwd=tmp_path, REDIS_URL=url)
        assert code == 1
        assert text.startswith("error: REDIS_URL cannot be read: percent-encode the password")
        assert "Traceback" not in text
        assert secrets_in(text) == []
    code, text = recsys("serve", cwd=tmp_path, RECSYS_SERVE__REDIS_URL=url)
    assert (code, secrets_in(text)) == (1, [])


def test_a_log_that_is_a_file_ends_each_command_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    write_tables(tmp_path / "data")
    server = RedisServer()
    try:
        for arguments in (("serve", "--log", "log"), ("features", "refresh", toy_config(tmp_path), "--log", "log")):
            code, text = recsys(*arguments, cwd=tmp_path, REDIS_URL=server.url)
            assert code == 1
            expected = "a file stands where a folder is needed: move it, or choose another path"
            assert (expected if arguments[0] == "serve" else "log: is no folder; --log takes the folder") in text
            assert "Traceback" not in text
            assert "serving at" not in text
        command = ("features", "refresh", toy_config(tmp_path), "--log", "nowhere")
        code, text = recsys(*command, cwd=tmp_path, REDIS_URL=server.url)
        assert code == 1
        assert text == "error: nowhere: there is no such folder; --log takes the folder of the event log\n"
    finally:
        server.stop()


def test_a_signed_url_of_an_item_is_shown_without_its_query(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        url = "https://user:s3cret@media.example/a.png?token=s3cret"
        response = harness.client.put("/v1/items/sky", json={"title": "blue", "image": url})
        assert response.status_code == 422
        assert secrets_in(response.text) == []
