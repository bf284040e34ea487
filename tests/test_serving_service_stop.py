"""The end of the service: what runs is finished before the log and the store are closed."""

import asyncio
import threading
from pathlib import Path
from typing import Any

from service_harness import Flaky, service_harness
from toy_service import NOW, RULES, ToyFiller, ToyShelf, toy_bundle, toy_settings, toy_upsert

from features.log.event_log import EventLog
from features.log.records import Event
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from serving.state.service import ServiceState


def test_a_step_that_runs_is_finished_before_the_log_is_closed(tmp_path: Path) -> None:
    shelf = ToyShelf(bundle := toy_bundle(tmp_path))
    running, gate, order = threading.Event(), threading.Event(), list[str]()

    def current(root: Path) -> Path:
        if order:  # the step of the start is over
            running.set()
            assert gate.wait(20)
            service.log.append_now([Event(user_id="u", item_id="i1", event="click", timestamp=NOW, event_id="e")])
            order.append("step")
        return shelf.current(root)

    service = ServiceState(
        toy_settings(tmp_path, follow_seconds=0.01),
        load=shelf.load,
        current=current,
        filler=ToyFiller(tmp_path),
        upsert=toy_upsert,
        merge=lambda bundle: None,
        connect=lambda rules: Flaky(RULES),
        now=lambda: NOW,
    )

    async def scenario() -> None:
        await service.start()
        order.append("start")
        await asyncio.to_thread(running.wait, 20)
        stopping: Any = asyncio.create_task(service.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        gate.set()
        await stopping
        order.append("stop")

    asyncio.run(scenario())
    assert order == ["start", "step", "stop"]
    assert bundle.closed == [bundle.fingerprint]  # no copy stays on disk, also after SIGTERM


def test_the_end_closes_the_log_the_store_and_its_server(tmp_path: Path, monkeypatch: Any) -> None:
    closed: list[str] = []
    for kind, method in ((EventLog, "close"), (RedisStore, "close"), (RedisServer, "stop")):
        real = getattr(kind, method)

        def recorded(self: Any, real: Any = real, name: str = kind.__name__) -> None:
            closed.append(name)
            real(self)

        monkeypatch.setattr(kind, method, recorded)
    shelf = ToyShelf(toy_bundle(tmp_path))
    service = ServiceState(
        toy_settings(tmp_path, follow_seconds=3600, store_timeout=2),
        load=shelf.load,
        current=shelf.current,
        filler=ToyFiller(tmp_path),
        upsert=toy_upsert,
        merge=lambda bundle: None,
        now=lambda: NOW,
    )

    async def scenario() -> Path:
        await service.start()
        assert service._server is not None
        assert service._server.answers()
        folder = service._server.folder
        await service.stop()
        return folder

    assert not asyncio.run(scenario()).exists()
    assert closed == ["EventLog", "RedisStore", "RedisServer"]


def test_a_start_fills_a_private_store_before_it_returns(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[str] = []
    shelf = ToyShelf(toy_bundle(tmp_path))

    class Filling(ToyFiller):
        """A filling that runs for a while."""

        @property
        def running(self) -> bool:  # type: ignore[override]
            calls.append("running")
            return calls.count("running") < 3

    class Server:
        def stop(self) -> None:
            calls.append("stop")

    service = ServiceState(
        toy_settings(tmp_path, follow_seconds=3600),
        load=shelf.load,
        current=shelf.current,
        filler=Filling(tmp_path),
        upsert=toy_upsert,
        merge=lambda bundle: None,
        connect=lambda rules: Flaky(RULES),
        now=lambda: NOW,
    )
    monkeypatch.setattr(service, "step", lambda: calls.append("step"))
    service._server = Server()  # type: ignore[assignment]

    async def scenario() -> None:
        await service.start()
        assert calls == ["step", "running", "running", "running", "step"]
        await service.stop()

    asyncio.run(scenario())
    assert calls[-1] == "stop"


def test_a_snapshot_has_the_clock_of_the_service(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert harness.service.snapshot.now() == NOW
