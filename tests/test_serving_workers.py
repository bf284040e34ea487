"""A service of several worker processes: they share a store, are replaced and restarted without a failed request."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from test_features_refresh_incremental import frame, row
from toy_service import toy_tables

from features.store.redis_server import PREFIX

PARENT = Path(__file__).parent / "toy_workers.py"
JSON = {"Content-Type": "application/json"}


class Connection:
    """A client with one connection, which is opened again when an answer has closed it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.http = http.client.HTTPConnection(*address, timeout=60)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, int, bytes]:
        """Process, status and body of the answer."""
        self.http.request(method, path, None if body is None else orjson.dumps(body), JSON)
        answer = self.http.getresponse()
        return int(answer.headers["X-Worker"]), answer.status, answer.read()

    def worker(self) -> int:
        return self.call("GET", "/healthz")[0]


class Service:
    """A parent process and its workers. temporary: the folder of their temporary files."""

    def __init__(self, folder: Path, temporary: Path, workers: int, **settings: object) -> None:
        self.temporary = temporary
        self.opened: list[Connection] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = "127.0.0.1", int(listener.getsockname()[1])
            command = [sys.executable, str(PARENT), str(folder), str(listener.fileno()), str(workers)]
            command.append(orjson.dumps(settings, default=str).decode())
            environment = {"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(temporary)}
            self.process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment)

    def connections(self, count: int, *, without: frozenset[int] = frozenset()) -> dict[int, Connection]:
        """Process -> a connection to it, of so many processes that are not in `without`."""
        found: dict[int, Connection] = {}

        def complete() -> bool:
            connection = self.connect()
            if (worker := connection.worker()) in without or worker in found:
                connection.http.close()
            else:
                found[worker] = connection
            for known in found.values():  # an idle connection would be closed
                known.worker()
            return len(found) == count

        wait_until(complete)
        return found

    def connect(self) -> Connection:
        """A connection that is closed at the end."""
        self.opened.append(connection := Connection(self.address))
        return connection

    def left_behind(self) -> list[str]:
        return [path.name for path in self.temporary.iterdir() if path.name.startswith(("recsys-metrics-", PREFIX))]


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(process: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def service(folder: Path, workers: int = 2, **settings: object) -> Iterator[Service]:
    toy_tables(folder, frame([row("ann", "i1", 0)]))
    with tempfile.TemporaryDirectory(prefix="workers-") as temporary:  # the path of a Unix socket must be short
        started = Service(folder, Path(temporary), workers, **settings)
        try:
            yield started
        finally:
            for connection in started.opened:
                connection.http.close()
            started.process.terminate()
            started.process.wait(60)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("workers")) as started:
        yield started


@contextmanager
def constant_requests(calls: list[Callable[[], int]]) -> Iterator[list[int]]:
    """Each call is made again and again in a thread, and returns a status; yields the statuses, 0 for an error."""
    statuses, over = list[int](), threading.Event()

    def repeat(call: Callable[[], int]) -> None:
        while not over.is_set():
            try:
                statuses.append(call())
            except (OSError, http.client.HTTPException):
                statuses.append(0)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_an_event_that_one_worker_takes_counts_in_the_answer_of_the_other(running: Service) -> None:
    one, other = running.connections(2).values()
    event = {"user_id": "ben", "item_id": "i7", "event": "click"}
    assert one.call("POST", "/v1/events", event)[1] == 202
    answer = orjson.loads(other.call("GET", "/v1/users/ben/recommendations?limit=2")[2])
    assert answer["degraded"] == []
    assert [item["item_id"] for item in answer["items"]] == ["i6", "i8"]  # the nearest to i7


def test_metrics_are_the_sums_over_the_workers(running: Service) -> None:
    workers = running.connections(2)

    def value(connection: Connection, name: str) -> float:
        text = connection.call("GET", "/metrics")[2].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    one, other = workers.values()
    wait_until(lambda: value(one, "recsys_processes ") == 2)
    name = 'recsys_requests_total{method="GET",route="/healthz"'
    before = value(one, name)
    for connection in (one, one, other):
        connection.worker()
    assert [value(one, name), value(other, name)] == [before + 3] * 2


def test_a_restart_one_by_one_fails_no_request(running: Service) -> None:
    former = frozenset(running.connections(2))
    path = "/v1/users/ann/recommendations?limit=4"
    kept = [running.connect() for _ in range(3)]
    calls: list[Callable[[], int]] = [lambda c=c: c.call("GET", path)[1] for c in kept]  # type: ignore[misc]

    def anew() -> int:
        connection = Connection(running.address)
        try:
            return connection.call("GET", path)[1]
        finally:
            connection.http.close()

    calls.append(anew)
    with constant_requests(calls) as statuses:
        running.process.send_signal(signal.SIGUSR1)
        running.connections(2, without=former)
        wait_until(lambda: not any(map(runs, former)))
    assert set(statuses) == {200}


def test_a_killed_worker_is_replaced_and_the_other_one_goes_on(running: Service) -> None:
    former = running.connections(2)
    killed, left = former
    with constant_requests([lambda: former[left].call("GET", "/v1/users/ann/recommendations")[1]]) as statuses:
        os.kill(killed, signal.SIGKILL)
        running.connections(1, without=frozenset(former))
    assert set(statuses) == {200}
    assert former[left].worker() == left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_leaves_no_process_and_no_folder(number: signal.Signals, tmp_path: Path) -> None:
    with service(tmp_path) as started:
        workers = [*started.connections(2)]
        assert sorted(name.rpartition("-")[0] for name in started.left_behind()) == ["recsys-metrics", "recsys-redis"]
        started.process.send_signal(number)
        assert started.process.wait(60) == (0 if number == signal.SIGINT else -number)
        assert not any(map(runs, workers))
        assert started.left_behind() == []


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with service(tmp_path) as started:
        workers = [*started.connections(2)]
        started.process.kill()
        wait_until(lambda: not any(map(runs, workers)))


def test_what_keeps_the_workers_from_starting_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys.jsonl").write_text("nonsense\n")
    code = "from recsys.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "--workers", "2", "--port", "0", "--keys", "keys.jsonl"]
    environment = os.environ | {"RECSYS_SERVE__PRELOAD": "false"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: keys.jsonl")
    assert len(done.stderr.splitlines()) == 1
