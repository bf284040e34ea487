"""Three services in processes of their own, beside a refresh job, on one log and one store."""

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from test_features_refresh_incremental import Row, frame, row
from toy_service import RULES, toy_tables

from features.schema import DataConfig
from features.store.jobs.refresh import refresh
from features.store.jobs.verify import verify
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.tables.event_files import EventFiles

SERVICE = """
import socket, sys
from pathlib import Path
from toy_service import ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents
from serving.app import create_app
from serving.http import http_server

folder, url, listening = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
shelf = ToyShelf(with_contents(toy_bundle(folder)))
app = create_app(
    toy_settings(folder, redis_url=url, store_timeout=2.0, follow_seconds=0.2),
    load=shelf.load, current=shelf.current,
    upsert=toy_upsert, merge=lambda bundle: None, encoders=toy_encoders,
)
http_server(app, loop="asyncio", log_level="warning").run(sockets=[socket.socket(fileno=listening)])
"""
USERS = [f"u{n}" for n in range(12)]


class Service:
    """A service in a process of its own. url: of its store; "" for a private one."""

    def __init__(self, folder: Path, url: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = "127.0.0.1", int(listener.getsockname()[1])
            command = [sys.executable, "-c", SERVICE, str(folder), url, str(listener.fileno())]
            paths = ":".join(sys.path)
            self.process = subprocess.Popen(command, pass_fds=[listener.fileno()], env={"PYTHONPATH": paths})

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.request(
            method, path, None if body is None else orjson.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, orjson.loads(text) if text else None

    def history(self, user: str) -> list[str]:
        return [event["item_id"] for event in self.call("GET", f"/v1/users/{user}/history")[1]["events"]]


@contextmanager
def services(folder: Path) -> Iterator[tuple[list[Service], RedisStore]]:
    server = RedisServer()
    started = [Service(folder, server.url) for _ in range(3)]
    store = RedisStore(server.url, RULES, timeout=5)
    try:
        deadline = time.monotonic() + 60
        while any(service.call("GET", "/readyz")[0] != 200 for service in started):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield started, store
    finally:
        for service in started:
            service.process.terminate()
        for service in started:
            service.process.wait(30)
        store.close()
        server.stop()


def send_events(service: Service, until: float, seed: int, sent: list[int]) -> None:
    """Events of random users until a moment."""
    dice, n = random.Random(seed), 0
    while time.monotonic() < until:
        events = [
            {"user_id": dice.choice(USERS), "item_id": f"i{dice.randrange(12)}", "event": "click"} for _ in range(3)
        ]
        status, answer = service.call("POST", "/v1/events", events)
        assert status == 202, answer
        n += 3
    sent.append(n)


def delete_items(started: Sequence[Any], until: float, delays: list[float]) -> None:
    """Delete and put an item again through one service; delays: seconds until each other service has heard of it.

    The service that took the call hears of the deletion at once; the others within a minute, on a busy machine too.
    """
    number = 0
    while time.monotonic() < until:
        number += 1
        one = started[number % len(started)]
        assert one.call("DELETE", "/v1/items/i6")[0] in (200, 404)
        begun = time.monotonic()
        assert not shows(one, "i6")
        for other in started:
            while shows(other, "i6"):
                assert time.monotonic() < begun + 60
                time.sleep(0.02)
            if other is not one:
                delays.append(time.monotonic() - begun)
        assert not any(shows(service, "i6") for service in started)  # nor does it come back
        assert one.call("PUT", "/v1/items/i6", {"title": "again"})[0] == 202
        while not all(shows(service, "i6") for service in started):
            time.sleep(0.05)


def shows(service: Any, item: str) -> bool:
    """Whether an item is among the popular ones that a new user gets."""
    items = service.call("GET", "/v1/users/nobody/recommendations?limit=12")[1]["items"]
    return item in [found["item_id"] for found in items]


@pytest.mark.parametrize("seconds", [8, pytest.param(300, marks=pytest.mark.soak)])
def test_all_come_to_the_same_states_and_hear_of_deletions(tmp_path: Path, seconds: int) -> None:
    rows: list[Row] = [row(user, f"i{n}", n) for n, user in enumerate(USERS)]
    toy_tables(tmp_path, frame(rows))
    files = EventFiles(DataConfig(source="folder", path=str(tmp_path), events=RULES))
    with services(tmp_path) as (started, store):
        until, sent, delays = time.monotonic() + seconds, list[int](), list[float]()
        work = [threading.Thread(target=send_events, args=(s, until, n, sent)) for n, s in enumerate(started)]
        work.append(threading.Thread(target=delete_items, args=(started, until, delays)))
        for thread in work:
            thread.start()
        while time.monotonic() < until:  # one refresh in three finds a row that was corrected
            n = len(rows)
            rows = [*rows[:-1], row("u0", "i5", n)] if n % 3 == 0 else [*rows, row(USERS[n % 12], f"i{n % 12}", n)]
            rows = [*rows, row("u1", "i4", n)]
            toy_tables(tmp_path, frame(rows))
            refresh(store, files, tmp_path / "log")
            time.sleep(0.5)
        for thread in work:
            thread.join(120)
        assert len(sent) == 3
        refresh(store, files, tmp_path / "log")
        assert not verify(store, files, tmp_path / "log")
        n_known = 0
        for user in USERS:
            first, *others = (service.history(user) for service in started)
            assert others == [first, first]
            n_known += len(first)
        assert n_known > 0
        assert delays
        print(
            f"{len(delays)} deletions, seconds: 95 % {sorted(delays)[int(0.95 * len(delays))]:.2f}, {max(delays):.2f}"
        )
