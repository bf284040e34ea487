"""The report of a night, by hand."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from toy_data import Lines

from experiments.pipelines import night_report
from experiments.pipelines.night_report import FAILED, NOTHING_NEW, PUBLISHED, SKIPPED, Night


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The time, which tests move."""
    now = [datetime(2026, 1, 31, 23, 59, 59, 999_999, UTC)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            assert tz is UTC
            return now[0]

    monkeypatch.setattr(night_report, "datetime", Clock)
    return now


def test_steps(clock: list[datetime]) -> None:
    night, reporter = Night("toy", "a", None), Lines()
    assert night.started == "2026-01-31T23:59:59+00:00"
    with night.step("check", reporter):
        clock[0] += timedelta(seconds=90.26)
    with night.step("embed", reporter) as step:
        step["note"], step["status"] = "nothing to embed", SKIPPED

    def fail() -> None:
        with night.step("train", reporter) as step:
            step["note"] = "too few events"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert night.steps == [
        {"step": "check", "status": "done", "seconds": 90.3, "note": ""},
        {"step": "embed", "status": "skipped", "seconds": 0.0, "note": "nothing to embed"},
        {"step": "train", "status": "failed", "seconds": 0.0, "note": "too few events"},
    ]
    assert reporter.lines == [
        "nightly: check",
        "nightly: embed",
        "nightly: embed: nothing to embed",
        "nightly: train",
        "nightly: train: too few events",
    ]
    night.end()
    assert night.ended == "2026-02-01T00:01:30+00:00"


def test_the_report_as_text_and_as_tags() -> None:
    night = Night("toy", None, None)
    assert night.status == FAILED
    assert night.lines() == ["toy: failed: ", "served before: nothing; served now: nothing"]
    assert night.tags == {
        "nightly": "failed",
        "nightly.reason": "",
        "nightly.kind": "",
        "nightly.served": "none",
        "nightly.current": "none",
    }
    night = Night("toy", "a", "b", status=PUBLISHED, reason="better", kind="full")
    night.held_back = {"events": 1234, "from": "2026-01-30"}
    assert night.lines() == [
        "toy: published (full): better",
        "served before: a; served now: b",
        "judged without the 1,234 positive events from 2026-01-30 on; published with all events",
    ]
    assert night.tags == {
        "nightly": "published",
        "nightly.reason": "better",
        "nightly.kind": "full",
        "nightly.served": "a",
        "nightly.current": "b",
    }
    night.status = NOTHING_NEW
    assert len(night.lines()) == 2
    night.status, night.held_back = PUBLISHED, None
    assert len(night.lines()) == 2


def test_the_report_as_a_file(tmp_path: Path) -> None:
    night = Night("toy", "a", "b", started="s", ended="e", data=["é"], tables=[{"x": 1}])
    assert night.write(tmp_path) == tmp_path / "nightly.json"
    assert json.loads((tmp_path / "nightly.json").read_text(encoding="utf-8")) == {
        "name": "toy",
        "served": "a",
        "current": "b",
        "started": "s",
        "ended": "e",
        "status": "failed",
        "reason": "",
        "kind": "",
        "steps": [],
        "data": ["é"],
        "held_back": None,
        "decision": None,
        "tables": [{"x": 1}],
    }
