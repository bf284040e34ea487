"""The running service follows its bundle, its store and its log, and the commands that start and fill them."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import orjson
import polars as pl
import pytest
from fastapi.testclient import TestClient
from house import HOME, Flaky, House, house
from toy_service import RULES, ToyShelf, broken, toy_bundle, toy_events, toy_settings, toy_upsert
from typer.testing import CliRunner

from features.errors import DataError
from features.log.event_log import EventLog, events_frame
from features.log.records import Event
from features.schema import DataConfig, EventRules
from features.store.memory import MemoryStore
from features.store.redis_server import RedisServer
from recsys.cli import main as cli
from serving.app import create_app


def test_a_store_that_is_away_degrades_and_catches_up(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.store.away = True
        said = h.get("ann")
        assert (said["source"], said["degraded"]) == ("popular", ["store"])
        assert h.click("ann", "i11")["degraded"] == ["store"]
        assert h.client.get("/v1/users").json() == {"users": [], "degraded": ["store"]}
        assert h.client.get("/readyz").json()["status"] == "degraded"
        h.service.step()
        h.store.away = False
        assert h.get("ann")["degraded"] == ["stale"]  # it answers, and lacks what happened meanwhile
        h.service.step()
        said = h.get("ann", 2)
        assert (said["degraded"], [i["item_id"] for i in said["items"]]) == ([], ["i10", "i9"])
        assert h.client.get("/readyz").json()["status"] == "ready"


def test_answers_say_that_the_store_is_still_catching_up(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.store.away = True
        h.click("ann", "i11")
        h.store.away = False
        write, said = h.store.write_users, []

        def writing(patches: Any) -> None:
            h.store.write_users = write  # type: ignore[method-assign]  # once: what is asked is logged, too
            said.append(h.get("ann")["degraded"])
            write(patches)

        h.store.write_users = writing  # type: ignore[method-assign]
        h.service.step()
        assert said == [["stale"]]
        assert h.get("ann")["degraded"] == []


def test_a_push_that_fails_while_the_store_catches_up_is_not_forgotten(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.store.away = True
        h.click("ann", "i11")
        h.store.away = False
        move = h.store.move_watermark

        def moving(mark: Any) -> None:
            h.store.away = True
            h.click("ann", "i0")  # in the log, after what was read of it
            h.store.away = False
            h.store.move_watermark = move  # type: ignore[method-assign]
            move(mark)

        h.store.move_watermark = moving  # type: ignore[method-assign]
        h.service.step()
        assert h.get("ann")["degraded"] == ["stale"]
        h.service.step()
        assert h.get("ann")["degraded"] == []
        past = h.client.get("/v1/users/ann/history").json()["events"]
        assert {"i11", "i0"} <= {event["item_id"] for event in past}


def test_a_store_that_was_emptied_is_filled_from_tables_and_log(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i10")
        h.store.__dict__.update(MemoryStore(RULES).__dict__)
        assert h.get("eve")["degraded"] == ["stale"]
        h.service.step()
        assert (h.items("eve", 1), h.items("ann", 1)) == (["i9"], ["i7"])


def test_starting_while_the_store_is_away(tmp_path: Path) -> None:
    store = Flaky(RULES)
    store.away = True
    with house(tmp_path, store=store) as h:
        assert h.get("ann")["degraded"] == ["store"]
        store.away = False
        h.service.step()
        assert (h.get("ann")["source"], h.get("ann")["degraded"]) == ("model", [])


def test_tables_that_cannot_be_read_leave_the_log(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i10")

    def unreadable(_: DataConfig) -> pl.DataFrame:
        raise DataError("the folder is gone")

    with house(tmp_path, events=unreadable) as h:
        assert (h.items("eve", 1), h.get("ann")["source"]) == (["i9"], "popular")
        assert h.client.get("/readyz").json()["notes"] == {"tables": "the folder is gone"}


def test_bundles_are_followed_and_bad_ones_refused(tmp_path: Path) -> None:
    shelf = ToyShelf(None)
    with house(tmp_path, shelf=shelf) as h:
        assert h.client.get("/healthz").status_code == 200
        assert h.client.get("/readyz").status_code == 503
        for path in (HOME.format("ann", 2, "home"), "/v1/items/i1/similar", "/v1/about", "/v1/users", "/media/i1"):
            said = h.client.get(path)
            assert (said.status_code, said.json()["error"]["code"]) == (503, "no_bundle")
        h.click("eve", "i10")  # kept, though nothing can be recommended yet
        shelf.put("first", toy_bundle(tmp_path))
        h.service.step()
        assert h.items("eve", 1) == ["i9"]
        shelf.put("second", toy_bundle(tmp_path, 30, fingerprint="toy-2"))
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-2"
        shelf.now = "third"  # not there
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-2"
        assert "truncated" in h.client.get("/readyz").json()["notes"]["bundle"]
        shelf.put("fourth", broken(toy_bundle(tmp_path, fingerprint="toy-4")))
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-2"
        assert "does not work" in h.client.get("/readyz").json()["notes"]["bundle"]
        shelf.put("fifth", toy_bundle(tmp_path, fingerprint="toy-5"))
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-5"
        assert h.client.get("/readyz").json() == {"status": "ready", "bundle": "toy-5", "notes": {}}


def test_a_bundle_with_other_seen_rules_brings_its_own_histories(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i10", event="look")
        assert h.get("eve")["source"] == "popular"
        bundle = toy_bundle(tmp_path, fingerprint="toy-2")
        rules = EventRules(positive={"look": None}, seen=None)
        object.__setattr__(bundle, "data", bundle.data.model_copy(update={"events": rules}))
        h.shelf.put("second", bundle)
        h.service.step()
        assert h.items("eve", 1) == ["i9"]


@pytest.mark.parametrize(("trained_on", "warned"), [(None, True), ("elsewhere", True), ("log/../log", False)])
def test_a_log_that_no_training_reads_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trained_on: str | None, warned: bool
) -> None:
    bundle = toy_bundle(tmp_path)
    folder = None if trained_on is None else str(tmp_path / trained_on)
    bundle = replace(bundle, data=bundle.data.model_copy(update={"log": folder}))
    with caplog.at_level("WARNING", "recsys.serving"), house(tmp_path, shelf=ToyShelf(bundle)):
        said = [r.getMessage() for r in caplog.records if "will not be trained on" in r.getMessage()]
    assert len(said) == warned
    assert all(str(tmp_path / "log") in text and str(folder) in text for text in said)


def test_a_real_server_killed_midway(tmp_path: Path) -> None:
    """The private server is killed with what it held; events go on; it comes back and has everything."""
    shelf = ToyShelf(toy_bundle(tmp_path))
    app = create_app(
        toy_settings(tmp_path, follow_seconds=0.05, store_pause=0.02, store_timeout=2),
        load=shelf.load,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        events=lambda _: toy_events(),
    )
    with TestClient(app) as client:
        h = House(tmp_path, client, shelf, Flaky(RULES), [])
        server = app.state.service._server
        assert isinstance(server, RedisServer)
        h.click("eve", "i10")
        assert h.items("eve", 1) == ["i9"]
        first = server.pid
        os.kill(first, signal.SIGKILL)
        said = h.get("eve")
        if said["degraded"]:  # unless it is back already
            assert said["source"] == "popular"
        h.click("eve", "i0")
        until = time.monotonic() + 20
        while (said := h.get("eve", 2))["degraded"]:
            assert time.monotonic() < until, said
            time.sleep(0.02)
        assert [i["item_id"] for i in said["items"]] == ["i1", "i2"]  # nearest to i0
        assert h.items("ann", 1) == ["i7"]
        assert server.pid != first
        past = client.get("/v1/users/eve/history").json()["events"]
        assert [e["item_id"] for e in past] == ["i0", "i10"]


def test_the_command_serves_and_stops(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    surroundings = {k: v for k, v in os.environ.items() if k != "REDIS_URL"}
    surroundings |= {
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
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(command, env=surroundings, stdout=said, stderr=said)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 60
            while True:
                assert process.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < until
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx2.ConnectError:
                    time.sleep(0.05)
            assert "recsys train" in client.get("/readyz").json()["notes"]["bundle"]
            sent = {"user_id": "eve", "item_id": "i1", "event": "click", "event_id": "e"}
            assert client.post("/v1/events", json=sent).status_code == 202
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
        assert first == {"rebuilt": True, "users": 2, "table_events": 3, "log_events": 1, "damaged": 0}
        assert second == {"rebuilt": False, "users": 0, "table_events": 0, "log_events": 0, "damaged": 0}
    finally:
        server.stop()
