"""The service follows its bundle, store and log; and the commands that start the service and fill the store."""

import os
import signal
import socket
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import orjson
import polars as pl
import pytest
from service_harness import HOME, Flaky, JsonClient, ServiceHarness, service_harness
from toy_service import RULES, ToyFiller, ToyShelf, broken, toy_bundle, toy_events, toy_settings, toy_upsert
from typer.testing import CliRunner

from features.errors import DataError
from features.log.event_log import EventLog
from features.log.reader import events_frame
from features.log.records import Event
from features.schema import DataConfig, EventRules
from features.store.base import ServerFacts
from features.store.memory import MemoryStore
from features.store.redis_server import RedisServer
from recsys.cli import main as cli
from serving.app import create_app


def test_a_store_that_does_not_respond_degrades_and_catches_up(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.store.away = True
        response = harness.get("ann")
        assert (response["source"], response["degraded"]) == ("popular", ["store"])
        assert harness.click("ann", "i11")["degraded"] == ["store"]
        assert harness.client.get("/v1/users").json() == {"users": [], "degraded": ["store"]}
        assert harness.client.get("/readyz").json()["status"] == "degraded"
        harness.service.step()
        harness.store.away = False
        assert harness.get("ann")["degraded"] == ["stale"]  # the store responds, but lacks the last event
        harness.service.step()
        response = harness.get("ann", 2)
        assert (response["degraded"], [i["item_id"] for i in response["items"]]) == ([], ["i10", "i9"])
        assert harness.client.get("/readyz").json()["status"] == "ready"


def test_responses_are_stale_while_the_store_catches_up(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.store.away = True
        harness.click("ann", "i11")
        harness.store.away = False
        write, degraded = harness.store.write_users, []

        def writing(states: Any, fill: str = "") -> None:
            harness.store.write_users = write  # type: ignore[method-assign]  # once: `get` logs an exposure, too
            degraded.append(harness.get("ann")["degraded"])
            write(states, fill)

        harness.store.write_users = writing  # type: ignore[method-assign]
        harness.service.step()
        assert degraded == [["stale"]]
        assert harness.get("ann")["degraded"] == []


def test_a_push_that_fails_while_the_store_catches_up_is_repeated(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.store.away = True
        harness.click("ann", "i11")
        harness.store.away = False
        move = harness.store.advance

        def moving(since: Any, to: Any, tables: str = "") -> bool:
            harness.store.away = True
            harness.click("ann", "i0")  # in the log, after the part that catch_up has read
            harness.store.away = False
            harness.store.advance = move  # type: ignore[method-assign]
            return move(since, to, tables)

        harness.store.advance = moving  # type: ignore[method-assign]
        harness.service.step()
        assert harness.get("ann")["degraded"] == ["stale"]
        harness.service.step()
        assert harness.get("ann")["degraded"] == []
        past = harness.client.get("/v1/users/ann/history").json()["events"]
        assert {"i11", "i0"} <= {event["item_id"] for event in past}


def test_an_emptied_store_is_filled_from_tables_and_log(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i10")
        harness.store._contents = MemoryStore(RULES)._contents
        assert harness.get("eve")["degraded"] == ["stale"]
        harness.service.step()
        assert (harness.items("eve", 1), harness.items("ann", 1)) == (["i9"], ["i7"])


def test_keys_that_the_server_has_deleted_are_written_again(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i10")
        facts = ServerFacts("run", 0)
        harness.store.facts = lambda: facts  # type: ignore[method-assign]
        harness.service.step()
        assert harness.get("eve")["degraded"] == []
        harness.store._generation().clear()
        facts = ServerFacts("run", 2)
        harness.service.keeper._fill_at = float("inf")
        harness.service.step()
        assert harness.get("eve")["degraded"] == ["stale"]
        assert harness.client.get("/readyz").json()["status"] == "degraded"
        harness.service.keeper._fill_at = 0.0
        harness.service.step()
        assert (harness.get("eve")["degraded"], harness.items("eve", 1), harness.items("ann", 1)) == (
            [],
            ["i9"],
            ["i7"],
        )
        assert harness.client.get("/readyz").json()["status"] == "ready"


def test_events_that_a_process_logged_and_did_not_push_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.state.store.keeper.CATCH_UP_SECONDS", 0.0)
    with service_harness(tmp_path) as harness:
        harness.service.step()
        other = EventLog(tmp_path / "log")
        other.append_now([Event(user_id="eve", item_id="i10", event="click", timestamp=1, event_id="e")])
        other.close()
        before = harness.store.watermark()
        harness.service.step()
        assert harness.items("eve", 1) == ["i9"]
        assert harness.store.watermark() != before


def test_a_server_that_restarts_with_an_older_state_catches_up(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        facts = ServerFacts("one")
        harness.store.facts = lambda: facts  # type: ignore[method-assign]
        harness.service.step()
        before = deepcopy(harness.store._contents)
        harness.click("eve", "i10")
        harness.store._contents = before
        facts = ServerFacts("two")
        harness.service.step()
        assert (harness.get("eve")["degraded"], harness.items("eve", 1)) == ([], ["i9"])


def test_starting_while_the_store_does_not_respond(tmp_path: Path) -> None:
    store = Flaky(RULES)
    store.away = True
    with service_harness(tmp_path, store=store) as harness:
        assert harness.get("ann")["degraded"] == ["store"]
        store.away = False
        harness.service.step()
        assert (harness.get("ann")["source"], harness.get("ann")["degraded"]) == ("model", [])


def test_unreadable_tables_leave_the_events_of_the_log(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i10")

    def unreadable(_: DataConfig) -> pl.DataFrame:
        raise DataError("line 2: 'ann,i1,view' has no timestamp")

    with service_harness(tmp_path, events=unreadable) as harness:
        assert (harness.items("eve", 1), harness.get("ann")["source"]) == (["i9"], "popular")
        (note,) = harness.client.get("/readyz").json()["notes"].values()
        assert note.startswith("the events table cannot be read")
        assert "i1" not in note  # the error may quote a row


def test_bundles_are_followed_and_invalid_ones_refused(tmp_path: Path) -> None:
    shelf = ToyShelf(None)
    with service_harness(tmp_path, shelf=shelf) as harness:
        assert harness.client.get("/healthz").status_code == 200
        assert harness.client.get("/readyz").status_code == 503
        for path in (HOME.format("ann", 2, "home"), "/v1/items/i1/similar", "/v1/about", "/v1/users", "/media/i1"):
            response = harness.client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "no_bundle")
        harness.click("eve", "i10")  # kept, although no bundle is served yet
        shelf.put("first", toy_bundle(tmp_path))
        harness.service.step()
        assert harness.items("eve", 1) == ["i9"]
        shelf.put("second", toy_bundle(tmp_path, 30, fingerprint="toy-2"))
        harness.service.step()
        assert harness.get("ann")["bundle"] == "toy-2"
        shelf.now = "third"  # does not exist
        harness.service.step()
        assert harness.get("ann")["bundle"] == "toy-2"
        assert "truncated" in harness.client.get("/readyz").json()["notes"]["bundle"]
        shelf.put("fourth", broken(toy_bundle(tmp_path, fingerprint="toy-4")))
        harness.service.step()
        assert harness.get("ann")["bundle"] == "toy-2"
        assert "does not work" in harness.client.get("/readyz").json()["notes"]["bundle"]
        shelf.put("fifth", toy_bundle(tmp_path, fingerprint="toy-5"))
        harness.service.step()
        assert harness.get("ann")["bundle"] == "toy-5"
        assert harness.client.get("/readyz").json() == {"status": "ready", "bundle": "toy-5", "notes": {}}


def test_a_bundle_with_other_event_rules_reads_histories_by_them(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i10", event="look")
        assert harness.get("eve")["source"] == "popular"
        bundle = toy_bundle(tmp_path, fingerprint="toy-2")
        rules = EventRules(positive={"look": None}, seen=None)
        object.__setattr__(bundle, "data", bundle.data.model_copy(update={"events": rules}))
        harness.shelf.put("second", bundle)
        harness.service.step()
        assert harness.items("eve", 1) == ["i9"]


@pytest.mark.parametrize(("trained_on", "warned"), [(None, True), ("elsewhere", True), ("log/../log", False)])
def test_a_log_that_no_training_reads_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trained_on: str | None, warned: bool
) -> None:
    bundle = toy_bundle(tmp_path)
    folder = None if trained_on is None else str(tmp_path / trained_on)
    bundle = replace(bundle, data=bundle.data.model_copy(update={"log": folder}))
    with caplog.at_level("WARNING", "recsys.serving"), service_harness(tmp_path, shelf=ToyShelf(bundle)):
        warnings = [r.getMessage() for r in caplog.records if "will not be trained on" in r.getMessage()]
    assert len(warnings) == warned
    assert all(str(tmp_path / "log") in text and str(folder) in text for text in warnings)


def test_a_killed_store_server_restarts_and_is_refilled(tmp_path: Path) -> None:
    """The private store server is killed and loses its data. It restarts, and has all events, old and new."""
    shelf = ToyShelf(toy_bundle(tmp_path))
    app = create_app(
        toy_settings(tmp_path, follow_seconds=0.05, store_pause=0.02, store_timeout=2),
        load=shelf.load,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        filler=ToyFiller(tmp_path),
    )
    with JsonClient(app) as client:
        harness = ServiceHarness(tmp_path, client, shelf, Flaky(RULES), [])
        server = app.state.service._server
        assert isinstance(server, RedisServer)
        harness.click("eve", "i10")
        assert harness.items("eve", 1) == ["i9"]
        first = server.pid
        os.kill(first, signal.SIGKILL)
        response = harness.get("eve")
        if "store" in response["degraded"]:  # unless the server has restarted already
            assert (response["source"], response["degraded"]) == ("model", ["store", "last_known"])
        harness.click("eve", "i0")
        deadline = time.monotonic() + 20
        while (response := harness.get("eve", 2))["degraded"]:
            assert time.monotonic() < deadline, response
            time.sleep(0.02)
        assert [i["item_id"] for i in response["items"]] == ["i1", "i2"]  # nearest to i0
        assert harness.items("ann", 1) == ["i7"]
        assert server.pid != first
        past = client.get("/v1/users/eve/history").json()["events"]
        assert [e["item_id"] for e in past] == ["i0", "i10"]


def test_the_command_serves_and_stops(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "REDIS_URL"}
    environment |= {
        "RECSYS_SERVE__PORT": str(port),
        "RECSYS_SERVE__LOG": str(tmp_path / "log"),
        "TMPDIR": str(tmp_path),
    }
    command = [
        sys.executable,
        "-c",
        "from recsys.cli.main import main; main()",
        "serve",
        "--bundles",
        str(tmp_path / "none"),
    ]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None, (tmp_path / "output").read_text()
                assert time.monotonic() < deadline
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx2.ConnectError:
                    time.sleep(0.05)
            assert "recsys train" in client.get("/readyz").json()["notes"]["bundle"]
            event = {"user_id": "eve", "item_id": "i1", "event": "click", "event_id": "e"}
            assert client.post("/v1/events", json=event).status_code == 202
    finally:
        process.terminate()
        process.wait(20)
    assert events_frame(tmp_path / "log")["event_id"].to_list() == ["e"]
    assert not list(tmp_path.glob("recsys-redis-*"))


def test_the_command_fills_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    toy_bundle(tmp_path).catalog.frame.select("item_id", "title").write_parquet(tables / "items.parquet")
    toy_events().write_parquet(tables / "events.parquet")
    config = {
        "name": "toy",
        "data": {"source": "folder", "path": str(tables), "events": RULES.model_dump(), "log": str(tmp_path / "log")},
    }
    (tmp_path / "toy.yaml").write_bytes(orjson.dumps(config))  # JSON is YAML
    log = EventLog(tmp_path / "log")
    log.append_now([Event(user_id="eve", item_id="i1", event="click", timestamp=1, event_id="e")])
    log.close()
    command = ["features", "refresh", str(tmp_path / "toy.yaml"), "--json"]
    monkeypatch.delenv("REDIS_URL", raising=False)
    refused = CliRunner().invoke(cli.app, command)
    assert "REDIS_URL is not set" in str(refused.exception)
    server = RedisServer()
    try:
        monkeypatch.setenv("REDIS_URL", server.url)
        first, second = (orjson.loads(CliRunner().invoke(cli.app, command).stdout) for _ in range(2))
        counts = ("rebuilt", "why", "users", "table_events", "log_events", "damaged", "added")
        assert [first[name] for name in counts] == [True, "the store was empty", 2, 3, 1, 0, ["events.parquet"]]
        assert [second[name] for name in counts] == [False, "", 0, 0, 0, 0, []]
    finally:
        server.stop()
