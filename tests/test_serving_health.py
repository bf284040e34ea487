"""What /readyz says stays true: a log without room or folder, a bundle deleted or refused, a store that evicts."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import HOME, Flaky, ServiceHarness, service_harness
from toy_service import NOW, RULES, ToyBundle, ToyShelf, toy_bundle, with_contents

from features.errors import BundleError
from features.log.item_changes import ItemChanges
from features.log.reader import read
from features.log.records import EXPOSURES, ITEMS, Exposure
from features.store.base import ServerFacts
from serving.state import service as service_module


def ready(harness: ServiceHarness) -> tuple[int, str, dict[str, str]]:
    """Status code, status and notes of /readyz."""
    response = harness.client.get("/readyz")
    return response.status_code, response.json()["status"], response.json()["notes"]


def put(harness: ServiceHarness, item: str) -> int:
    return harness.client.put(f"/v1/items/{item}", content=orjson.dumps({"title": "blue"})).status_code


def no_room(descriptor: int, data: Any) -> int:
    raise OSError(28, "No space left on device")


def test_without_room_for_the_log_answers_go_on_and_nothing_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service_harness(tmp_path) as harness:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", no_room)
            slates = [
                harness.client.get(HOME.format("ann", 2, "home")),
                harness.client.get("/v1/items/i6/similar"),
                harness.post(text="blue"),
            ]
            assert [(slate.status_code, slate.json()["degraded"]) for slate in slates] == [(200, ["log"])] * 3
            assert all(slate.json()["items"] for slate in slates)
            event = {"user_id": "eve", "item_id": "i10", "event": "click"}
            assert harness.client.post("/v1/events", content=orjson.dumps(event)).status_code == 503
            assert put(harness, "sky") == 503
            assert harness.client.delete("/v1/items/i0").status_code == 503
            harness.service.step()
            code, status, notes = ready(harness)
            assert (code, status) == (503, "unready")
            assert "No space left on device; free space on its disk" in notes["log"]
        assert harness.client.get("/v1/about").json()["unlogged"] == 3
        harness.service.step()  # no writer has come meanwhile
        assert ready(harness) == (200, "ready", {})
        assert harness.get("ann")["degraded"] == []
        logged = read(tmp_path / "log", stream=EXPOSURES).records
        assert [len(exposure.degraded) for exposure in logged if isinstance(exposure, Exposure)] == [0]


@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_accepted_after_the_log_is_removed_survives_a_restart(tmp_path: Path, restarted: bool) -> None:
    with service_harness(tmp_path) as harness:
        if not restarted:
            harness.click("eve", "i1")
        shutil.rmtree(tmp_path / "log")
        harness.click("eve", "i10")
        assert put(harness, "sky") == 202
        assert harness.client.delete("/v1/items/i0").status_code == 200
        code, status, notes = ready(harness)
        assert (code, status) == (200, "degraded")
        assert "was removed or moved while the service ran" in notes["log"]
    with service_harness(tmp_path) as harness:
        assert [e["item_id"] for e in harness.client.get("/v1/users/eve/history").json()["events"]] == ["i10"]
        assert harness.client.get("/v1/items/sky").status_code == 200
        assert harness.client.get("/v1/items/i0").status_code == 404
        assert "log" not in ready(harness)[2]


def test_a_removed_log_is_noted_without_a_writer(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        shutil.rmtree(tmp_path / "log")
        harness.service.step()
        assert "was removed or moved" in ready(harness)[2]["log"]
        assert (tmp_path / "log").is_dir()


def at(harness: ServiceHarness, seconds: int) -> None:
    """Set the clock of a service, in seconds from NOW."""
    harness.service.now = lambda: NOW + seconds * 1_000_000


@pytest.mark.parametrize("restart", [False, True])
def test_the_last_change_of_an_item_wins_when_the_clock_has_stepped_back(tmp_path: Path, restart: bool) -> None:
    with service_harness(tmp_path) as harness:
        assert put(harness, "sky") == 202
        assert put(harness, "sea") == 202
        at(harness, -1000)
        assert harness.client.delete("/v1/items/sky").status_code == 200
        if not restart:
            at(harness, -2000)
            assert harness.client.delete("/v1/items/sea").status_code == 200
            at(harness, -3000)
            assert put(harness, "sea") == 202
    if restart:
        with service_harness(tmp_path) as harness:
            at(harness, -2000)
            assert harness.client.delete("/v1/items/sea").status_code == 200
        with service_harness(tmp_path) as harness:
            at(harness, -3000)
            assert harness.client.get("/v1/items/sea").status_code == 404
            assert put(harness, "sea") == 202
    with service_harness(tmp_path) as harness:
        assert harness.client.get("/v1/items/sky").status_code == 404
        assert harness.client.get("/v1/items/sea").status_code == 200
    assert ItemChanges.of(tmp_path / "log").deleted == {"sky"}
    changes = read(tmp_path / "log", stream=ITEMS).records
    assert [change.timestamp - NOW for change in changes] == ([0, 0, 0, 1, 2] if restart else [0] * 5)


class Failing(ToyShelf):
    """Loads fail with `error` while it is set. loads: number of tries."""

    error: Exception | None = None
    loads = 0

    def load(self, path: Path) -> ToyBundle:
        self.loads += 1
        if self.error:
            raise self.error
        return super().load(path)


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), MemoryError(), BundleError("wrong checksum"), RuntimeError("once")]
)
def test_a_bundle_that_was_refused_is_tried_again_after_a_growing_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    clock = [0.0]
    monkeypatch.setattr(service_module.time, "monotonic", lambda: clock[0])
    shelf = Failing(toy_bundle(tmp_path))
    with service_harness(tmp_path, shelf=shelf) as harness:
        shelf.put("second", toy_bundle(tmp_path, fingerprint="toy-2"))
        shelf.error, tries = error, list[int]()
        for _ in range(16):
            before = shelf.loads
            harness.service.step()
            tries.append(shelf.loads - before)
            clock[0] += 1.0
        assert tries == [1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]
        assert "tried again after 16 s, and when its files change" in ready(harness)[2]["bundle"]
        assert harness.get("ann")["bundle"] == "toy-1"
        shelf.error = None
        clock[0] += 16
        harness.service.step()
        assert harness.get("ann")["bundle"] == "toy-2"
        assert ready(harness) == (200, "ready", {})


def test_a_refused_bundle_is_tried_at_once_when_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module.time, "monotonic", lambda: 0.0)
    folder = tmp_path / "bundles" / "second"
    folder.mkdir(parents=True)
    (folder / "file").write_text("wrong")
    shelf = Failing(toy_bundle(tmp_path))
    with service_harness(tmp_path, shelf=shelf) as harness:
        shelf.put("second", toy_bundle(tmp_path, fingerprint="toy-2"))
        shelf.error = BundleError("wrong checksum")
        harness.service.step()
        shelf.error = None
        harness.service.step()
        assert harness.get("ann")["bundle"] == "toy-1"
        (folder / "file").write_text("right!")
        harness.service.step()
        assert harness.get("ann")["bundle"] == "toy-2"


def test_files_of_the_served_bundle_that_are_gone_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "bundles" / "first"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"12345")
    (folder / "manifest.json").write_bytes(b"{}")
    files = {"files": {"file": {"bytes": 5}}}
    bundle = with_contents(toy_bundle(tmp_path))
    bundle = replace(bundle, manifest=bundle.manifest | files)
    damages: list[Callable[[], object]] = [
        lambda: (folder / "file").write_bytes(b"1"),
        lambda: (folder / "file").unlink(),
        lambda: (folder / "manifest.json").write_bytes(b"garbage"),
        lambda: (folder / "manifest.json").unlink(),
        lambda: shutil.rmtree(folder),
    ]
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        for damage in damages:
            harness.service.step()
            assert ready(harness) == (200, "ready", {})
            damage()
            harness.service.step()
            code, status, notes = ready(harness)
            assert (code, status) == (200, "degraded")
            assert " missing or of another size; the bundle is served from its copy" in notes["bundle"]
            assert "a restart would fail: restore the folder, or publish another bundle" in notes["bundle"]
            assert len(harness.get("ann")["items"]) == 4
            folder.mkdir(exist_ok=True)
            (folder / "file").write_bytes(b"12345")
            (folder / "manifest.json").write_bytes(b"{}")


def test_a_store_that_may_lose_users_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flaky, "facts", lambda self: ServerFacts(warning="it may delete keys"))
    store = Flaky(RULES)
    with service_harness(tmp_path, store=store) as harness:
        assert ready(harness) == (200, "degraded", {"store": "it may delete keys"})
        store.away = True
        harness.service.step()
        assert ready(harness) == (200, "degraded", {"store": "away"})
        store.away = False
        monkeypatch.setattr(Flaky, "facts", lambda self: ServerFacts())
        harness.service.step()
        assert ready(harness) == (200, "ready", {})


def test_a_probe_that_hangs_does_not_stop_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.log.event_log.PROBE_SECONDS", 0.01)
    with service_harness(tmp_path) as harness:
        with monkeypatch.context() as patch:
            patch.setattr("features.log.event_log.os.statvfs", lambda _: time.sleep(0.3))
            harness.service.step()
        assert harness.click("eve", "i1")["accepted"] == 1


def test_a_folder_of_media_that_is_a_file_is_noted_until_it_is_moved(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "media").touch()
    with service_harness(tmp_path) as harness:
        code, status, notes = ready(harness)
        assert (code, status) == (200, "degraded")
        assert notes["media"] == (
            f"pictures, sounds and videos of items cannot be stored: {tmp_path}/log/media: Not a directory; a file "
            "stands where a folder is needed: move it, or choose another path"
        )
        (tmp_path / "log" / "media").unlink()
        harness.service.step()
        assert ready(harness) == (200, "ready", {})
