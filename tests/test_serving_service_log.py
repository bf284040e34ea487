"""Each problem of the service is logged once while it lasts, and again when it comes back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_harness import service_harness
from toy_service import RULES, ToyFiller, ToyShelf, broken, toy_bundle

from features.errors import LogError
from features.log.corrections import CorrectionFeed
from features.log.event_log import EventLog
from features.store.memory import MemoryStore
from serving.state.store.keeper import StoreKeeper, log_filling


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Level of each record that holds the text."""
    return [record.levelname for record in caplog.records if text in record.getMessage()]


def test_media_that_cannot_be_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with service_harness(tmp_path) as harness:
        media = tmp_path / "log" / "media"
        for times in (1, 2):
            media.write_text("a file")
            for _ in range(2):
                harness.service.step()
                assert "media" in harness.service.notes
            assert lines(caplog, "of items cannot be stored") == ["ERROR"] * times
            media.unlink()
            harness.service.step()
            assert "media" not in harness.service.notes


def test_item_changes_that_cannot_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(log: EventLog) -> None:
        raise LogError("no permission")

    with service_harness(tmp_path) as harness:
        for times in (1, 2):
            with monkeypatch.context() as patch:
                patch.setattr(harness.service.catalog_updater, "follow", refuse)
                for _ in range(2):
                    harness.service.step()
                    assert harness.service.notes["log"] == "no permission"
            assert lines(caplog, "item changes of other processes are not followed") == ["ERROR"] * times
            harness.service.step()
            assert "log" not in harness.service.notes


def test_files_of_the_served_bundle_that_are_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "bundles" / "first"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_text("123")
    bundle = toy_bundle(tmp_path)
    manifest = {**bundle.manifest, "files": {"a": {"bytes": 3}, "b": {"bytes": 3}}}
    with service_harness(tmp_path, shelf=ToyShelf(replace(bundle, manifest=manifest))) as harness:
        harness.service.step()
        assert "bundle" not in harness.service.notes
        (folder / "a").write_text("12")
        (folder / "b").unlink()
        for _ in range(2):
            harness.service.step()
            assert harness.service.notes["bundle"].startswith(f"{folder}: a, b missing or of another size; ")
        assert lines(caplog, "missing or of another size") == ["ERROR"]
        (folder / "a").write_text("123")
        harness.service.step()
        assert harness.service.notes["bundle"].startswith(f"{folder}: b missing or of another size; ")
        assert lines(caplog, "missing or of another size") == ["ERROR"] * 2
        (folder / "b").write_text("123")
        harness.service.step()
        assert "bundle" not in harness.service.notes


class Filler(ToyFiller):
    """A filler that fills nothing."""

    def start(self, store: Any, data: Any) -> None:
        self.fault = "started"


def test_problems_of_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes: dict[str, str] = {}
    keeper = StoreKeeper(tmp_path, CorrectionFeed(tmp_path), notes, filler := Filler(tmp_path))
    for times in (1, 2):
        for _ in range(2):
            keeper._note("store", "full")
            assert notes == {"store": "full"}
        assert lines(caplog, "full") == ["WARNING"] * times
        for _ in range(2):
            keeper._note("store", "")
            assert notes == {}
    store, data = MemoryStore(RULES), toy_bundle(tmp_path).data
    for keeper.evicted in (False, True):
        filler.fault = ""
        keeper._fill(store, data, again=False)
        assert filler.fault == "started"
    assert lines(caplog, "has deleted keys to make room; it is filled again") == ["WARNING"]


def test_the_report_of_a_filling(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log_filling({"users": 1, "table_events": 2, "log_events": 3, "damaged": 4, "late": 5})
    assert caplog.records[0].getMessage() == (
        "store filled: 1 users and 2 events from the tables, 3 events from the log, 4 damaged lines skipped"
    )


def test_a_log_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path)
    for times in (1, 2):
        for _ in range(2):
            log._set_fault("disk full")
            assert log.fault == "disk full"
        for _ in range(2):
            log._set_fault("")
            assert log.fault == ""
        assert lines(caplog, "nothing can be written: disk full") == ["ERROR"] * times
        assert lines(caplog, "writing works again") == ["WARNING"] * times
    log.close()


def test_a_bundle_is_served_only_if_it_answers_new_and_known_users(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path, fingerprint="toy-2")
    with service_harness(tmp_path) as harness:
        for name, wrong in (("second", replace(bundle, popular=np.array([0, 99]))), ("third", broken(bundle))):
            harness.shelf.put(name, wrong)
            harness.service.step()
            assert f"{name} failed its first request: " in harness.service.notes["bundle"]
            assert harness.get("ann")["bundle"] == "toy-1"
