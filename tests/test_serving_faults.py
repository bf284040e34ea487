"""Faults that requests and the service meet seldom: each in the words, and with the effect, that it has."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from fastapi import Request
from pydantic import ValidationError
from toy_service import NOW, RULES, ToyFiller, ToyShelf, toy_bundle, toy_settings, toy_upsert

from features.errors import LogError, StoreError
from features.log.corrections import CorrectionFeed
from features.log.records import Event, ItemPut
from features.store.base import StoreMovedError
from features.store.memory import MemoryStore
from features.store.redis import RedisStore
from serving.errors import ApiError
from serving.routes.items.fields import ItemIn
from serving.schemas.body import bounded_body
from serving.schemas.events import EventIn
from serving.state import encoder_pool
from serving.state.catalog_updater import CatalogUpdater, _ItemStatus
from serving.state.log_claim import claim
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.store import filler as store_filler
from serving.state.store.filler import FillProcess
from serving.state.store.keeper import StoreKeeper

EVENT = {"user_id": "u", "item_id": "i", "event": "click"}


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="is not finite"):
        EventIn.model_validate({**EVENT, "value": value})
    with pytest.raises(ValidationError, match=r"is not finite|than or equal"):
        ItemIn.model_validate({"price": value})


def body(*messages: dict[str, Any], **headers: str) -> bytes:
    """What `bounded_body` makes of the messages of a request."""
    left = iter(messages)

    async def receive() -> Any:
        return next(left)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return asyncio.run(bounded_body(Request({"type": "http", "headers": raw}, receive), 10))


def chunk(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_a_body_comes_in_chunks_up_to_the_limit() -> None:
    assert body(chunk(b"12345", True), chunk(b"67890")) == b"1234567890"
    assert body(chunk(b"1234567890"), content_length="10", content_encoding=" Identity ") == b"1234567890"
    for messages, headers in (
        ((chunk(b"12345", True), chunk(b"678901", True)), {}),  # the rest is not asked for
        ((), {"content_length": "11"}),
        ((), {"content_length": "9" * 5000}),
    ):
        with pytest.raises(ApiError) as caught:
            body(*messages, **headers)
        error = caught.value
        assert (error.status, error.code, error.place) == (413, "body_too_large", "body")
        assert error.detail == "the body exceeds 10 bytes; send less"
    with pytest.raises(ApiError) as caught:
        body(chunk(b"1", True), {"type": "http.disconnect"})
    error = caught.value
    assert (error.status, error.code, error.place) == (400, "disconnected", "body")


def test_a_log_that_cannot_be_claimed(tmp_path: Path) -> None:
    with pytest.raises(LogError) as caught:
        claim(tmp_path / "none", private=True)
    assert str(caught.value).startswith(f"the event log in {tmp_path / 'none'} cannot be claimed: ")


def test_a_service_that_does_not_run_has_neither_log_nor_store(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    shelf = ToyShelf(bundle)
    service = ServiceState(
        toy_settings(tmp_path),
        load=shelf.load,
        current=shelf.current,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        filler=ToyFiller(tmp_path),
    )
    with pytest.raises(LogError, match="the event log is not open: the service is not running"):
        service.log.probe()
    with pytest.raises(StoreError, match="the feature store is not connected: the service is not running"):
        service._store_for(bundle)
    event = Event(user_id="u", item_id="i", event="click", timestamp=NOW)
    assert service.push([event]) == ["bundle"]


def test_a_thread_that_cannot_be_started_gives_its_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, **options: Any) -> None:
            """As a Thread."""

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        turn = asyncio.Semaphore(1)
        await turn.acquire()
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await encoder_pool.run_in_thread(lambda: 1, turn)
        await asyncio.wait_for(turn.acquire(), 20)
        monkeypatch.undo()
        assert await encoder_pool.run_in_thread(lambda: 1, turn) == 1
        assert not turn.locked()

    monkeypatch.setattr(encoder_pool, "Thread", Refused)
    asyncio.run(scenario())


class Moved(MemoryStore):
    """A store that another process has emptied."""

    def change_users(self, users: Any, change: Any, fill: str = "") -> None:
        raise StoreMovedError("was emptied")

    def push(self, events: Any) -> None:
        raise StoreMovedError("was emptied")

    def watermark(self) -> Any:
        raise StoreMovedError("was emptied")


def test_a_store_that_was_emptied_is_stale(tmp_path: Path) -> None:
    notes: dict[str, str] = {}
    keeper = StoreKeeper(tmp_path, CorrectionFeed(tmp_path), notes, ToyFiller(tmp_path))
    event = Event(user_id="u", item_id="i", event="click", timestamp=NOW)
    assert not keeper.behind
    assert keeper.push(Moved(RULES), [event]) == ["stale"]
    assert keeper.behind
    assert notes == {}
    keeper.behind = False
    keeper.step(Moved(RULES), toy_bundle(tmp_path).data)
    assert notes == {"store": "was emptied"}
    assert not keeper.behind  # the next step sees why


class Process:
    """A process that has ended, or that runs until it is terminated."""

    def __init__(self, code: int | None = None, output: bytes = b"", errors: bytes = b"") -> None:
        self.returncode, self.output, self.errors = code, output, errors
        self.given, self.calls = b"", list[str]()

    def communicate(self, given: bytes) -> tuple[bytes, bytes]:
        self.given = given
        return self.output, self.errors

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.calls.append("terminate")

    def wait(self) -> None:
        self.calls.append("wait")


def test_the_result_of_a_filling_is_noted(tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    filler = FillProcess(tmp_path, reports.append)
    assert not filler.running
    for process, fault in (
        (Process(1, errors=b"a warning\nthe tables cannot be read\n"), "the tables cannot be read"),
        (Process(1, errors=b"alone \xff"), "alone \ufffd"),
        (Process(-15), "the filling was ended"),
    ):
        filler._wait(process, b"given")  # type: ignore[arg-type]
        assert process.given == b"given"
        assert filler.fault == fault
        assert reports == []
    filler._wait(Process(0, b"null"), b"")  # type: ignore[arg-type]  # another process fills the store
    assert (filler.fault, reports) == ("", [])
    filler.fault = "old"
    filler._wait(Process(0, b'{"users":3}'), b"")  # type: ignore[arg-type]
    assert (filler.fault, reports) == ("", [{"users": 3}])
    with pytest.raises(StoreError, match="a store that is not on a server cannot be filled by another process"):
        filler.start(MemoryStore(RULES), toy_bundle(tmp_path).data)


def test_a_filling_is_a_process_that_gets_what_it_needs_as_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, Any]]] = []
    process = Process(0, b"null")

    def popen(command: list[str], **options: Any) -> Process:
        started.append((command, options))
        return process

    monkeypatch.setattr(store_filler.subprocess, "Popen", popen)
    store = RedisStore("redis://:password@host.invalid:7", RULES)
    monkeypatch.setattr(store_filler.sys, "path", ["/a", "", "/b"])
    monkeypatch.setenv("KEPT", "yes")
    filler, data = FillProcess(tmp_path / "log", lambda report: None), toy_bundle(tmp_path).data
    filler.start(store, data)
    assert filler._waiter is not None
    assert filler._waiter.daemon
    filler._waiter.join()
    [(command, options)] = started
    assert command == [sys.executable, "-P", "-m", "features.store.jobs.fill"]
    assert (options["env"]["PYTHONPATH"], options["env"]["KEPT"]) == (f"/a:{Path.cwd()}:/b", "yes")
    assert {options[name] for name in ("stdin", "stdout", "stderr")} == {subprocess.PIPE}
    assert orjson.loads(process.given) == {
        "url": "redis://:password@host.invalid:7",
        "data": data.model_dump(mode="json"),
        "log": str(tmp_path / "log"),
    }


def test_a_filling_that_runs_is_ended(tmp_path: Path) -> None:
    filler = FillProcess(tmp_path, lambda report: None)
    filler.stop()
    for process, calls in ((Process(0), []), (Process(None), ["terminate", "wait"])):
        filler._process = process  # type: ignore[assignment]
        filler.stop()
        assert process.calls == calls
    gate = threading.Event()
    filler._waiter = threading.Thread(target=gate.wait)
    assert not filler.running
    filler._waiter.start()
    assert filler.running
    gate.set()
    filler._waiter.join()
    assert not filler.running


def test_an_item_that_is_not_served_after_its_update_has_failed(tmp_path: Path) -> None:
    updater = CatalogUpdater(tmp_path, {}, toy_upsert, lambda bundle: None)
    updater._statuses = {
        "i1": _ItemStatus(1, put := ItemPut(item_id="i1", timestamp=NOW, fields={}), waiting=False),
        "none": _ItemStatus(2, put, waiting=False),
        "new": _ItemStatus(3, put),
        "gone": _ItemStatus(4, None, waiting=False),
    }
    assert updater.state("i1")[1] == "failed"  # nothing is served
    bundle = toy_bundle(tmp_path)
    updater.snapshot = ServingSnapshot.of(bundle, MemoryStore(RULES))
    assert {name: updater.state(name)[1] for name in ("i1", "none", "new", "gone", "i2")} == {
        "i1": "live",
        "none": "failed",
        "new": "embedding",
        "gone": "live",
        "i2": "live",
    }
    updater._statuses["i1"].failed = [("image", "is damaged")]  # it has no vector of another part
    assert updater.state("i1") == (put, "failed", [("image", "is damaged")])
    bundle.catalog.has_content[1] = True
    assert updater.state("i1") == (put, "live", [("image", "is damaged")])
    assert updater.has_item("i1")
    assert updater.has_item("i2")
    assert not updater.has_item("gone")
    assert not updater.has_item("never")


def test_the_text_encoder_is_loaded_once_for_each_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = encoder_pool.EncoderPool(toy_settings(tmp_path, follow_seconds=7))
    served = [None, None, "a", "a", "b", "b", "a"]
    prepared, sleeps = list[str](), list[float]()

    class Service:
        """A service that serves another bundle each time."""

        @property
        def snapshot(self) -> Any:
            name = served.pop(0)
            return name and SimpleNamespace(bundle=SimpleNamespace(fingerprint=name))

    async def prepare(snapshot: Any) -> None:
        prepared.append(snapshot.bundle.fingerprint)

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 7:
            raise asyncio.CancelledError

    monkeypatch.setattr(pool, "prepare", prepare)
    monkeypatch.setattr(encoder_pool.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(pool.keep_ready(Service()))  # type: ignore[arg-type]
    assert prepared == ["a", "b", "a"]
    assert sleeps == [7] * 7
    pool._decoders.close()
