"""More requests than a service can compute: a bounded number waits, for a bounded time, while its client is there."""

import asyncio
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from service_harness import Flaky, serving
from toy_service import RULES, Nearest, ToyFiller, ToyShelf, toy_bundle, toy_settings, toy_upsert

from features.log.reader import read
from features.log.records import EXPOSURES
from serving.app import create_app
from serving.state.thread_pool import Turns, _Call, _call, thread_pool
from serving.telemetry.metrics import SHED

PATH = "/v1/users/ann/recommendations?limit=2"


class Held(Nearest):
    """A model that computes while `gate` is open; `begun` are its computations."""

    gate = threading.Event()
    begun: list[int] = []  # noqa: RUF012

    def recommend(self, *arguments: Any, **options: Any) -> Any:
        self.begun.append(len(self.begun))
        assert self.gate.wait(60)
        return super().recommend(*arguments, **options)


class Overload:
    """A service with one thread that computes nothing until `open` is called."""

    def __init__(self, url: str, waiting: Callable[[], int]) -> None:
        self.waiting = waiting
        self._url = urlsplit(url)

    def send(self, path: str = PATH) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(str(self._url.hostname), self._url.port, timeout=60)
        connection.request("GET", path)
        return connection

    def hold(self) -> http.client.HTTPConnection:
        """A request that is being computed."""
        connection = self.send()
        wait_until(lambda: len(Held.begun) == 1)
        return connection

    def queue(self, length: int) -> http.client.HTTPConnection:
        """A request that waits; it makes the queue this long."""
        connection = self.send()
        wait_until(lambda: self.waiting() == length)
        return connection

    def open(self) -> None:
        Held.gate.set()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def answer(connection: http.client.HTTPConnection) -> tuple[int, str | None, Any]:
    """Status, Retry-After and body."""
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, response.headers["Retry-After"], orjson.loads(text)


@contextmanager
def overload(folder: Path, **settings: Any) -> Iterator[Overload]:
    bundle = toy_bundle(folder)
    shelf = ToyShelf(replace(bundle, recommender=Held(len(bundle.catalog))))
    app = create_app(
        toy_settings(folder, threads=1, follow_seconds=3600, **settings),
        load=shelf.load,
        current=shelf.current,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        connect=lambda rules: Flaky(RULES),
        filler=ToyFiller(folder),
    )
    Held.gate.set()  # for the first request of the bundle
    with serving(app) as url:
        Held.gate.clear()
        Held.begun.clear()
        try:
            yield Overload(url, lambda: app.state.service.turns.waiting)
        finally:
            Held.gate.set()


def shed(reason: str) -> float:
    return float(SHED.labels(reason)._value.get())


def test_a_request_beyond_the_queue_is_refused_at_once(tmp_path: Path) -> None:
    before = shed("queue")
    with overload(tmp_path, queue=2) as service:
        waiting = [service.hold(), service.queue(1), service.queue(2)]
        status, retry, body = answer(service.send())  # while nothing is computed
        assert (status, retry, body["code"]) == (503, "1", "busy")
        assert answer(service.send("/healthz"))[0] == 200
        service.open()
        assert [answer(connection)[0] for connection in waiting] == [200] * 3
    assert shed("queue") == before + 1


def test_a_request_that_waits_too_long_is_refused_and_one_that_has_started_gets_popular_items(tmp_path: Path) -> None:
    before = shed("deadline")
    with overload(tmp_path, deadline=0.05) as service:
        held = service.hold()
        status, retry, body = answer(service.send())
        assert (status, retry, body["code"]) == (503, "1", "busy")
        assert "0.05 s" in body["detail"]
        time.sleep(0.2)  # longer than the deadline
        service.open()
        status, _, body = answer(held)
        assert (status, [item["item_id"] for item in body["items"]]) == (200, ["i0", "i2"])  # i1 was seen
        assert (body["source"], body["degraded"]) == ("popular", ["deadline", "last_known"])
    assert shed("deadline") == before + 1


def test_nothing_is_computed_for_a_client_that_has_gone(tmp_path: Path) -> None:
    before = shed("gone")
    with overload(tmp_path, queue=3) as service:
        held, gone, left = service.hold(), service.queue(1), service.queue(2)
        gone.close()
        last = service.queue(3)
        service.open()
        assert [answer(connection)[0] for connection in (held, left, last)] == [200] * 3
        assert len(Held.begun) == 3
    assert shed("gone") == before + 1
    assert len(read(tmp_path / "log", stream=EXPOSURES).records) == 3


def test_a_client_that_has_gone_makes_room_in_a_full_queue(tmp_path: Path) -> None:
    with overload(tmp_path, queue=1) as service:
        held, gone = service.hold(), service.queue(1)
        gone.close()
        deadline = time.monotonic() + 60
        while True:  # until the service has seen that it has gone
            assert time.monotonic() < deadline
            waiting = service.send()
            waiting.sock.settimeout(0.2)
            try:
                assert waiting.getresponse().status == 503
                waiting.close()
            except TimeoutError:
                break
        assert service.waiting() == 1
        service.open()
        assert answer(held)[0] == 200
        waiting.close()


def test_work_of_a_request_that_has_started_goes_before_that_of_a_new_one() -> None:
    turns, done = Turns(1, 10, 60), list[str]()

    async def scenario() -> None:
        run, gate = thread_pool(turns, 1), threading.Event()

        async def call(name: str, *, started: bool) -> None:
            _call.set(_Call(lambda: False, started))
            await run(done.append, name)

        async def hold() -> None:
            await run(gate.wait, 60)

        first = asyncio.create_task(hold())
        await asyncio.sleep(0)
        calls = [asyncio.create_task(call("new", started=False)), asyncio.create_task(call("started", started=True))]
        while turns.waiting < 2:
            await asyncio.sleep(0.001)
        gate.set()
        await asyncio.gather(first, *calls)

    asyncio.run(scenario())
    assert done == ["started", "new"]


def test_a_wait_that_is_cancelled_leaves_no_turn_behind() -> None:
    async def scenario() -> None:
        turns = Turns(1, 10, 60)
        await turns.take()
        waiting = asyncio.create_task(turns.take())
        while turns.waiting < 1:
            await asyncio.sleep(0)
        turns.give_back()  # to the one that waits,
        waiting.cancel()  # which is cancelled before it runs
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        await asyncio.wait_for(turns.take(), 60)

    asyncio.run(scenario())
