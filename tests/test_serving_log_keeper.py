"""The running service prunes its log from time to time."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from log_files import exposure, put
from service_harness import service_harness

from features.log.event_log import EventLog
from features.log.readers import advance
from features.log.records import EXPOSURES
from features.log.segments import segment_paths
from serving.state import log_keeper


def wait_for(text: str, caplog: pytest.LogCaptureFixture) -> None:
    until = time.monotonic() + 60
    while text not in caplog.text:
        assert time.monotonic() < until, caplog.text
        time.sleep(0.02)


def test_the_service_deletes_old_exposures_and_says_what_is_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    log = EventLog(tmp_path / "log", segment_bytes=1)
    for n in range(3):
        log.append_now([exposure(n), put(str(n), n)])
    log.close()
    paths = segment_paths(tmp_path / "log" / "exposures")
    for path in paths:
        os.utime(path, (time.time() - 31 * 86_400,) * 2)
    read = {f"exposures/{path.name}": path.stat().st_size for path in paths[:2]}
    advance(tmp_path / "log", "mirror", EXPOSURES, read)
    with service_harness(tmp_path) as harness:
        harness.get("ann")
        keeper = harness.service.log_keeper
        assert keeper._round is None  # not at the start
        monkeypatch.setattr(keeper, "_next", 0.0)
        harness.service.step()
        process = keeper._round
        wait_for("are kept", caplog)
        harness.service.step()
        assert keeper._round is process  # the next round is not due
        harness.get("ann")
    left = segment_paths(tmp_path / "log" / "exposures")
    assert left[0] == paths[2]
    assert not set(paths[:2]) & set(left)
    assert "2 old segments of exposures were deleted" in caplog.text
    assert "3 segments of item changes became a snapshot" in caplog.text
    assert "1 old segments of exposures are kept: the reader 'mirror'" in caplog.text


def test_a_round_that_fails_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "__init__.py").write_text("raise RuntimeError('a folder of the user')")
    monkeypatch.chdir(tmp_path)
    keeper = log_keeper.LogKeeper(tmp_path / "none", {})
    keeper._next = 0.0
    keeper.step()
    wait_for("cannot be pruned", caplog)
    assert "Traceback" not in caplog.text


def test_a_service_that_stops_ends_its_round(tmp_path: Path) -> None:
    keeper = log_keeper.LogKeeper(tmp_path, {})
    keeper.stop()
    keeper._command = [sys.executable, "-c", "import time; time.sleep(600)"]
    keeper._next = 0.0
    keeper.step()
    process = keeper._round
    keeper.step()
    assert process is not None
    assert keeper._round is process
    keeper.stop()
    assert process.wait(20) < 0


NOTHING: dict[str, Any] = {"taken_over": 0, "compacted": 0, "deleted": [], "held": [], "damaged": []}


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        ({}, []),
        ({"taken_over": 1}, ["INFO event log: 1 segments of an earlier version were taken over"]),
        ({"compacted": 2}, ["INFO event log: 2 segments of item changes became a snapshot"]),
        (
            {"deleted": [{"segments": 3, "stream": "exposures"}, {"segments": 4, "stream": "events"}]},
            [
                "INFO event log: 3 old segments of exposures were deleted",
                "INFO event log: 4 old segments of events were deleted",
            ],
        ),
        (
            {"held": [{"segments": 5, "stream": "events", "why": "a reader"}]},
            ["WARNING event log: 5 old segments of events are kept: a reader"],
        ),
        ({"damaged": ["items/x"]}, ["WARNING event log: items/x has damaged lines: it is kept and not compacted"]),
    ],
)
def test_what_a_round_says(caplog: pytest.LogCaptureFixture, report: dict[str, Any], lines: list[str]) -> None:
    caplog.set_level("INFO")
    log_keeper._report(Ended(0, orjson.dumps({**NOTHING, **report}).decode()))  # type: ignore[arg-type]
    assert [f"{record.levelname} {record.getMessage()}" for record in caplog.records] == lines


class Ended:
    """A round that has ended."""

    def __init__(self, returncode: int, output: str = "", errors: str = "") -> None:
        self.returncode, self.output, self.errors = returncode, output, errors

    def communicate(self) -> tuple[str, str]:
        return self.output, self.errors


@pytest.mark.parametrize(
    ("ended", "lines"),
    [
        (Ended(0, "null"), []),  # another process runs a round
        (Ended(-15, "", "killed"), []),  # the service stops
        (
            Ended(1, "", "a warning\nthe log cannot be pruned\n"),
            ["the log cannot be pruned; the next round is in 3600 s"],
        ),
    ],
)
def test_how_a_round_ends(caplog: pytest.LogCaptureFixture, ended: Ended, lines: list[str]) -> None:
    caplog.set_level("INFO")
    log_keeper._report(ended)  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == lines
