"""Keeps the log small while the service runs: another process prunes it from time to time."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import orjson

from features.log.records import Stream
from features.log.upkeep.retention import Limit

logger = logging.getLogger("recsys.serving")

FIRST_SECONDS = 60.0
"""Seconds after the start before the log is pruned: a service that is being replaced has ended by then."""

EVERY_SECONDS = 3600.0


class LogKeeper:
    """Prunes a log in rounds, each in a process of its own: in this one it would slow the requests down.

    A round may be ended at any moment; the next one goes on.
    """

    def __init__(self, folder: Path, limits: Mapping[Stream, Limit]) -> None:
        named = {stream: (limit.days, limit.bytes) for stream, limit in limits.items()}
        self._command = [sys.executable, "-P", "-m", "features.log.upkeep", str(folder), orjson.dumps(named).decode()]
        self._next = time.monotonic() + FIRST_SECONDS
        self._round: subprocess.Popen[str] | None = None

    def step(self) -> None:
        """Begin a round when it is due, unless one is running. Raises OSError when no process can be started."""
        if time.monotonic() < self._next or (self._round is not None and self._round.poll() is None):
            return
        self._next = time.monotonic() + EVERY_SECONDS
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)  # the process finds what this one has
        self._round = subprocess.Popen(
            self._command,
            env={**os.environ, "PYTHONPATH": modules},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        Thread(target=_report, args=(self._round,), name="log-keeper", daemon=True).start()

    def stop(self) -> None:
        """End the round that is running."""
        if self._round is not None and self._round.poll() is None:
            self._round.terminate()


def _report(running: "subprocess.Popen[str]") -> None:
    """Wait until a round has ended and log its result. Another process may be running one; that is no result."""
    output, errors = running.communicate()
    if running.returncode > 0:
        logger.warning("%s; the next round is in %g s", errors.strip().rpartition("\n")[2], EVERY_SECONDS)
    elif running.returncode == 0 and (report := orjson.loads(output)) is not None:
        _log(report)


def _log(report: dict[str, Any]) -> None:
    """report: a `PruneReport`."""
    if report["taken_over"]:
        logger.info("event log: %d segments of an earlier version were taken over", report["taken_over"])
    if report["compacted"]:
        logger.info("event log: %d segments of item changes became a snapshot", report["compacted"])
    for deleted in report["deleted"]:
        logger.info("event log: %d old segments of %s were deleted", deleted["segments"], deleted["stream"])
    for held in report["held"]:
        logger.warning("event log: %d old segments of %s are kept: %s", held["segments"], held["stream"], held["why"])
    for key in report["damaged"]:
        logger.warning("event log: %s has damaged lines: it is kept and not compacted", key)
