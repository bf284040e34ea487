"""The time of a request: what is cut when it is over, and what is answered then."""

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orjson
import pytest
from log_files import read_all
from service_harness import ServiceHarness, service_harness
from test_serving_overload import Held, answer, overload, shed
from toy_service import NOW, Nearest, ToyWords

from features.errors import LogError
from features.log.event_log import EventLog, SegmentWriter
from features.log.reader import read
from features.log.records import EVENTS, EXPOSURES, Event, Exposure
from recsys.ranking.explain import Explainer
from serving.routes import responses
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import TimeUpError, Turns, _Call, _call, in_time, thread_pool

BUDGET = 0.8
"""Seconds of a request, of which these tests use up all."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is slow because the machine is busy is awaited."""
    monkeypatch.setattr(responses, "LOG_SECONDS", 60)


class Gate:
    """Stands in for a method that takes long: it returns when the gate is open."""

    def __init__(self, method: Any) -> None:
        self.opened, self.method = threading.Event(), method

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        assert self.opened.wait(60)
        return self.method(*arguments, **options)


def gate(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Gate:
    made = Gate(getattr(owner, name))
    monkeypatch.setattr(owner, name, lambda *arguments, **options: made(*arguments, **options))
    return made


def items(body: Any) -> list[str]:
    return [item["item_id"] for item in body["items"]]


def test_a_model_that_takes_too_long_is_not_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path, deadline=BUDGET) as harness:
        assert harness.get("ann")["source"] == "model"
        slow = gate(monkeypatch, Nearest, "recommend")
        body = harness.get("ann")
        assert (body["source"], body["degraded"]) == ("popular", ["deadline", "last_known"])
        # i1 and i8 were seen, i3 is not available, i5 is a variant of i4
        assert items(body) == ["i0", "i2", "i4", "i6"]
        assert items(harness.get("nobody")) == ["i0", "i1", "i2", "i4"]
        logged = read(harness.folder / "log", stream=EXPOSURES).records[-2]
        assert isinstance(logged, Exposure)
        assert list(logged.degraded) == ["deadline", "last_known"]
        slow.opened.set()


def test_reasons_that_take_too_long_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path, deadline=BUDGET) as harness:
        slow = gate(monkeypatch, Explainer, "explain")
        body = harness.client.get("/v1/users/ann/recommendations?explain=true").json()
        assert (body["source"], body["degraded"]) == ("model", ["deadline"])
        assert all("why" not in item for item in body["items"])
        slow.opened.set()


def test_a_list_without_a_fallback_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path, deadline=BUDGET) as harness:
        for name, call in (
            ("similar", lambda: harness.client.get("/v1/items/i1/similar")),
            ("search", lambda: harness.post(text="red")),
        ):
            slow = gate(monkeypatch, ServingSnapshot, name)
            response = call()
            assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
            slow.opened.set()
            monkeypatch.setattr(ServingSnapshot, name, slow.method)
            assert call().status_code == 200


def test_encoding_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path, deadline=BUDGET) as harness:
        slow = gate(monkeypatch, ToyWords, "encode")
        threading.Timer(2 * BUDGET, slow.opened.set).start()
        body = harness.post(text="red", user_id="ann").json()
        assert (body["degraded"], len(body["items"]) > 0) == ([], True)
        slow.opened.clear()
        threading.Timer(2 * BUDGET, slow.opened.set).start()
        described = {"user_id": "ann", "items": [{"item_id": "draft", "title": "red"}, {"item_id": "i7"}]}
        body = harness.client.post("/v1/rank", content=orjson.dumps(described)).json()
        assert (body["degraded"], len(body["items"])) == ([], 2)


def test_an_answer_does_not_wait_for_a_slow_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "LOG_SECONDS", 0.05)
    with service_harness(tmp_path, deadline=BUDGET) as harness:
        slow = gate(monkeypatch, SegmentWriter, "write")
        body = harness.get("ann")
        assert (body["source"], body["degraded"]) == ("model", ["log"])
        assert harness.service.unlogged == 1
        slow.opened.set()


def test_an_event_is_refused_when_the_log_does_not_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "LOG_SECONDS", 0.05)
    with service_harness(tmp_path, deadline=BUDGET) as harness:
        slow = gate(monkeypatch, SegmentWriter, "write")
        assert harness.get("ann")["degraded"] == ["log"]  # its exposure is being written
        response = send(harness, "i5")
        assert (response.status_code, "nothing was accepted" in response.text) == (503, True)
        slow.opened.set()
        assert send(harness, "i6").status_code == 202
    assert accepted(tmp_path / "log") == ["i6"]


def accepted(log: Path) -> list[str]:
    """Items of the events in a log."""
    return [event.item_id for event in read_all(log, EVENTS) if isinstance(event, Event)]


def send(harness: ServiceHarness, item: str) -> Any:
    event = {"user_id": "eve", "item_id": item, "event": "click"}
    return harness.client.post("/v1/events", content=orjson.dumps(event))


def test_a_write_that_has_begun_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, begun = EventLog(tmp_path), threading.Event()
    write, go = log._write, threading.Event()

    def writing(data: Any) -> None:
        begun.set()
        assert go.wait(60)
        write(data)

    monkeypatch.setattr(log, "_write", writing)

    async def scenario() -> None:
        events = [Event(user_id="u", item_id=item, event="click", timestamp=NOW) for item in "ab"]
        first = asyncio.create_task(log.append(events[:1], 0.01))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        with pytest.raises(LogError, match=r"did not take them within 0.02 s: nothing was accepted"):
            await log.append(events[1:], 0.02)
        assert not first.done()
        go.set()
        await first

    asyncio.run(scenario())
    log.close()
    assert accepted(tmp_path) == ["a"]


def test_work_whose_time_is_over_before_its_turn_is_not_computed() -> None:
    async def scenario() -> list[str]:
        turns, done, go = Turns(1, 10, 60), list[str](), threading.Event()
        run, call = thread_pool(turns, 1), _Call(lambda: False, started=True)
        holding = asyncio.ensure_future(run(go.wait, 60))
        await asyncio.sleep(0)
        _call.set(call)
        call.budget.begin(0.02)
        with pytest.raises(TimeUpError):
            await in_time(run, done.append, "late")
        go.set()
        await holding
        call.budget.begin(60)
        await in_time(run, done.append, "in time")
        return done

    assert asyncio.run(scenario()) == ["in time"]


def test_work_that_is_cut_keeps_its_turn_until_it_ends() -> None:
    async def scenario() -> None:
        turns, go, done = Turns(1, 10, 60), threading.Event(), Future[str]()
        run, call = thread_pool(turns, 1), _Call(lambda: False, started=True)
        _call.set(call)
        call.budget.begin(0.02)
        with pytest.raises(TimeUpError):
            await in_time(run, go.wait, 60)
        following = asyncio.ensure_future(run(done.set_result, "after"))
        while turns.waiting < 1:
            await asyncio.sleep(0.001)
        assert not done.done()
        go.set()
        await following

    asyncio.run(scenario())


def test_a_request_waits_for_its_first_thread_for_a_share_of_its_time(tmp_path: Path) -> None:
    before = shed("deadline")
    with overload(tmp_path, deadline=BUDGET) as service:
        held = service.hold()
        status, _, body = answer(service.send())
        assert (status, f"cannot be answered within {BUDGET} s" in str(body)) == (503, True)
        service.open()
        assert answer(held)[0] == 200
        assert len(Held.begun) == 1
    assert shed("deadline") == before + 1
