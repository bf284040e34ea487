"""The parent of workers, with workers that only say that they live, or why they cannot start."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_service import toy_settings

from serving.settings import ServeSettings
from serving.workers.run import Start
from serving.workers.supervisor import Supervisor

WORKER = """
import json, os, pathlib, sys, time
beats = json.load(sys.stdin)["beats"]
if pathlib.Path(sys.argv[1]).exists():
    os.write(beats, b"no room")
    sys.exit(3)
while True:
    os.write(beats, bytes(1))
    time.sleep(0.1)
"""


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_workers_that_cannot_start_are_tried_again_and_leave_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken"
    command = [sys.executable, "-c", WORKER, str(broken)]
    supervisor = Supervisor(toy_settings(tmp_path, workers=2), [], None, command)

    def ready() -> list[int]:
        return [worker.process.pid for worker in supervisor._slots if worker is not None and worker.ready]

    thread = threading.Thread(target=supervisor.run)
    with caplog.at_level(logging.INFO):
        thread.start()
        wait_until(lambda: len(ready()) == 2)
        first, second = ready()
        broken.touch()
        supervisor.restart()
        wait_until(lambda: "the workers of before go on: no room" in caplog.text)
        assert ready() == [first, second]
        former = supervisor._slots[0]
        assert former is not None
        former.process.kill()
        for pause in (
            "-9; a new one starts in 0.5 s",
            "no room; a new one starts in 1 s",
            "no room; a new one starts in 2 s",
        ):
            wait_until(lambda pause=pause: pause in caplog.text)  # type: ignore[misc]
        assert ready() == [second]
        broken.unlink()
        wait_until(lambda: len(ready()) == 2)
        supervisor.restart()
        wait_until(lambda: "all 2 workers are new" in caplog.text)
        assert second not in ready()
        supervisor.stop()
        thread.join(60)
    assert not thread.is_alive()


def test_a_worker_gets_the_settings_of_its_parent(tmp_path: Path) -> None:
    more = {"hosts": ("a.example", "*.b"), "exposures_days": float("inf"), "redis_url": "redis://:pass@h:1"}
    start = Start(ServeSettings.model_validate({"log": tmp_path, "keys": tmp_path / "k", **more}), None, (3, 4), 5)
    assert Start.of_json(start.to_json()) == start
