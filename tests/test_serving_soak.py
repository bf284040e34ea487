"""Mixed traffic on two workers, while bundles change and the store's server is killed and stalled.

RECSYS_SOAK_SECONDS: length of the long form, 600 by default; RECSYS_SOAK_JSON: file to write its latencies, memory
and descriptors over time to.
"""

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from log_files import read_all
from test_serving_processes import USERS, delete_items
from test_serving_workers import Connection, Service, service, wait_until
from toy_service import RULES
from toy_workers import publish

from features.log.records import EVENTS
from features.schema import DataConfig
from features.store.jobs.refresh import refresh
from features.store.jobs.verify import verify
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.tables.event_files import EventFiles

LONG = float(os.environ.get("RECSYS_SOAK_SECONDS", "600"))
DECLARED = {200, 202, 404, 410, 429, 503}
"""404: of an item that is deleted at the moment; 410: a cursor of another bundle; 503: with Retry-After."""

EXCLUDED, UNAVAILABLE = "i2", "i3"


class Pinned:
    """One worker of a service. It is asked by connections that it happens to accept."""

    def __init__(self, started: Service, worker: int, traffic: "Traffic") -> None:
        self._started, self._worker, self._traffic = started, worker, traffic

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer; a busy worker is asked again."""
        while True:
            connection = Connection(self._started.address)
            try:
                if connection.worker() == self._worker:
                    _, status, text = connection.call(method, path, body)
                    if status != 503:
                        return status, orjson.loads(text)
            except (OSError, http.client.HTTPException):
                self._traffic.wrong["connection"] += 1
            finally:
                connection.http.close()


@dataclass
class Traffic:
    """What clients have seen. wrong: faults by kind; accepted: ids of events; ms: (second, milliseconds) of each."""

    started: Service
    until: float
    begun: float = field(default_factory=time.monotonic)
    wrong: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    ms: list[tuple[float, float]] = field(default_factory=list)
    bundles: set[str] = field(default_factory=set)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def client(self, calls: Callable[["Client", random.Random], None], seed: int) -> threading.Thread:
        """A thread that calls until the end."""

        def run() -> None:
            client, dice = Client(self), random.Random(seed)
            while time.monotonic() < self.until:
                try:
                    calls(client, dice)
                except AssertionError as error:
                    self.wrong[str(error)[:200]] += 1
            client.connection.http.close()

        return threading.Thread(target=run, name=calls.__name__)

    def sample(self, workers: list[int]) -> None:
        """Note memory (bytes) and descriptors of the workers."""
        texts = [Path(f"/proc/{worker}/status").read_text() for worker in workers]
        memory = [int(text.partition("RssAnon:")[2].split()[0]) << 10 for text in texts]
        descriptors = [len(os.listdir(f"/proc/{worker}/fd")) for worker in workers]
        at = time.monotonic() - self.begun
        self.samples.append({"second": at, "memory": memory, "descriptors": descriptors})


class Client:
    """A client of any worker."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic, self.connection = traffic, Connection(traffic.started.address)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer."""
        begun, kind = time.monotonic(), path.partition("?")[0].rpartition("/")[2] if method == "GET" else method
        try:
            _, status, text = self.connection.call(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self.connection.http.close()
            self.traffic.wrong[f"{kind}: {type(error).__name__}"] += 1
            return 0, {}
        self.traffic.ms.append((begun - self.traffic.begun, (time.monotonic() - begun) * 1e3))
        self.traffic.statuses[method, status] += 1
        if status not in DECLARED:
            self.traffic.wrong[f"{method} {path}: {status} {text[:200]!r}"] += 1
        return status, orjson.loads(text)

    def shown(self, method: str, path: str, body: Any = None) -> tuple[list[str], Any]:
        """Items of an answer, which holds nothing forbidden, and the cursor."""
        status, answer = self.call(method, path, body)
        if status != 200:
            return [], None
        self.traffic.bundles.add(answer["bundle"])
        items = [item["item_id"] for item in answer["items"]]
        assert UNAVAILABLE not in items, f"{path}: an item that is not available"
        assert len(set(items)) == len(items), f"{path}: an item twice"
        return items, answer["cursor"]


def recommends(client: Client, dice: random.Random) -> None:
    body = {
        "user_id": dice.choice(USERS),
        "limit": 4,
        "exclude": [EXCLUDED],
        "placement": dice.choice(["home", "again"]),
    }
    first, cursor = client.shown("POST", "/v1/recommendations", body)
    assert EXCLUDED not in first, "an excluded item"
    if cursor is not None:
        second, _ = client.shown("POST", "/v1/recommendations", {**body, "cursor": cursor})
        assert not {*first, EXCLUDED} & {*second}, "an item of the page before, or an excluded one"


def browses(client: Client, dice: random.Random) -> None:
    client.shown("GET", f"/v1/users/{dice.choice(USERS)}/recommendations")
    client.shown("GET", f"/v1/items/i{dice.randrange(3)}/similar")
    client.shown("POST", "/v1/search", {"text": dice.choice(["red", "green"]), "user_id": dice.choice(USERS)})
    client.call("GET", f"/v1/users/{dice.choice(USERS)}/history")


def acts(client: Client, dice: random.Random) -> None:
    names = [f"{dice.getrandbits(64):x}" for _ in range(3)]
    events = [
        {"user_id": dice.choice(USERS), "item_id": f"i{dice.randrange(12)}", "event": "click", "event_id": name}
        for name in names
    ]
    if client.call("POST", "/v1/events", events)[0] == 202:
        client.traffic.accepted += names


def edits(client: Client, dice: random.Random) -> None:
    item = f"new{dice.randrange(5)}"
    client.call("PUT", f"/v1/items/{item}", {"title": f"{dice.choice(['red', 'green'])} {dice.randrange(100)}"})
    client.call("PATCH", f"/v1/items/{item}", {"price": dice.randrange(100)})
    client.call("GET", f"/v1/items/{item}")
    client.call("DELETE", f"/v1/items/{item}")
    time.sleep(0.1)  # each is embedded, and makes a bundle with one more row


@contextmanager
def troubles(server: RedisServer, bundles: Path, begun: float, seconds: float) -> Iterator[None]:
    """The bundle changes every 20 s, or more often in a short run; the server is killed twice and stalled once."""
    over = threading.Event()

    def swap() -> None:
        number = 1
        while not over.wait(min(20.0, seconds / 5)):
            number += 1
            publish(bundles, f"toy-{1 + number % 2}")

    def hit() -> None:
        for share, signals in (
            (0.2, [signal.SIGKILL]),
            (0.45, [signal.SIGSTOP, signal.SIGCONT]),
            (0.7, [signal.SIGKILL]),
        ):
            over.wait(max(0.0, begun + share * seconds - time.monotonic()))
            pid = server.pid
            for number in signals:
                os.kill(pid, number)
                over.wait(min(5.0, seconds / 10))

    threads = [threading.Thread(target=work) for work in (swap, hit)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("seconds", [20.0, pytest.param(LONG, marks=pytest.mark.soak)])
def test_two_workers_under_mixed_traffic_and_troubles(tmp_path: Path, seconds: float) -> None:
    server, bundles = RedisServer(), tmp_path / "bundles"
    publish(bundles, "toy-1")
    store = RedisStore(server.url, RULES, timeout=5)
    try:
        with service(tmp_path, redis_url=server.url, store_timeout=0.1, store_pause=0.2, deadline=5) as started:
            workers = [*started.connections(2)]
            traffic = Traffic(started, time.monotonic() + seconds)
            pinned: list[Any] = [Pinned(started, worker, traffic) for worker in workers]
            delays = list[float]()
            threads = [traffic.client(calls, n) for n, calls in enumerate((recommends, browses, acts, edits))]
            threads.append(threading.Thread(target=delete_items, args=(pinned, traffic.until, delays)))
            with troubles(server, bundles, traffic.begun, seconds):
                for thread in threads:
                    thread.start()
                while time.monotonic() < traffic.until:
                    traffic.sample(workers)
                    time.sleep(seconds / 100)
                for thread in threads:
                    thread.join(180)
            report(traffic, delays, seconds)
            assert not traffic.wrong
            assert traffic.bundles == {"toy-1", "toy-2"}
            assert delays
            assert set(started.connections(2)) == set(workers)  # none was replaced
            wait_until(lambda: not any(client_degraded(one) for one in pinned))
        files = EventFiles(DataConfig(source="folder", path=str(tmp_path), events=RULES))
        refresh(store, files, tmp_path / "log")
        assert not verify(store, files, tmp_path / "log")
    finally:
        store.close()
        server.stop()
    logged = [event.event_id for event in read_all(tmp_path / "log", EVENTS)]  # type: ignore[union-attr]
    assert len(traffic.accepted) > 0
    assert {*traffic.accepted} <= {*logged}
    assert is_flat(traffic.samples)


def client_degraded(worker: Pinned) -> bool:
    return bool(worker.call("GET", f"/v1/users/{USERS[0]}/recommendations")[1]["degraded"])


def is_flat(samples: list[dict[str, Any]]) -> bool:
    """Whether memory and descriptors in the last quarter are those in the second one, or a little more."""
    quarter = len(samples) // 4
    for name, little in (("memory", 24 << 20), ("descriptors", 16)):
        values = np.array([sample[name] for sample in samples])  # (n, workers)
        before, after = np.median(values[quarter : 2 * quarter], 0), np.median(values[-quarter:], 0)
        if (after > 1.1 * before + little).any():
            print(name, before, after)
            return False
    return True


def report(traffic: Traffic, delays: list[float], seconds: float) -> None:
    """Print what was asked and answered; write the figures over time where a file is named."""
    ms = np.array([ms for _, ms in traffic.ms])
    print(dict(traffic.statuses), dict(traffic.wrong), len(delays), "deletions")
    print("ms: p50 {:.0f}, p99 {:.0f}, largest {:.0f}".format(*np.percentile(ms, [50, 99, 100])))
    print(traffic.samples[len(traffic.samples) // 4], traffic.samples[-1])
    if (path := os.environ.get("RECSYS_SOAK_JSON")) and seconds == LONG:
        figures = {"ms": traffic.ms, "samples": traffic.samples, "delays": delays}
        Path(path).write_bytes(orjson.dumps(figures))
