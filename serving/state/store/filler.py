"""Fills the feature store in a process of its own, while the service answers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import orjson

from features.errors import StoreError
from features.schema import DataConfig
from features.store.base import FeatureStore
from features.store.redis import RedisStore


class Filler(Protocol):
    """Brings a store up to date with the tables and the log. fault: why the last filling failed, "" for none."""

    fault: str

    @property
    def running(self) -> bool:
        """Whether a filling is running."""
        ...

    def start(self, store: FeatureStore, data: DataConfig) -> None:
        """Begin a filling, see `features.store.jobs.fill.fill`. Raises OSError when no process can be started."""
        ...

    def stop(self) -> None:
        """End the filling that is running."""
        ...


class FillProcess:
    """A `Filler` of stores on a server. log: folder of the event log; done: called with the report of a filling."""

    def __init__(self, log: Path, done: Callable[[dict[str, Any]], None]) -> None:
        self.fault = ""
        self._log, self._done = log, done
        self._process: subprocess.Popen[bytes] | None = None
        self._waiter: Thread | None = None

    @property
    def running(self) -> bool:
        """See Filler."""
        return self._waiter is not None and self._waiter.is_alive()

    def start(self, store: FeatureStore, data: DataConfig) -> None:
        """See Filler."""
        if not isinstance(store, RedisStore):
            raise StoreError("a store that is not on a server cannot be filled by another process")
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)  # the process finds what this one has
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "features.store.jobs.fill"],
            env={**os.environ, "PYTHONPATH": modules},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # by standard input, because others can read the arguments of a process: the URL may hold a password
        given = {"url": store.url, "data": data.model_dump(mode="json"), "log": str(self._log)}
        self._waiter = Thread(target=self._wait, args=(self._process, orjson.dumps(given)), name="store-filler")
        self._waiter.daemon = True
        self._waiter.start()

    def stop(self) -> None:
        """See Filler."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _wait(self, process: "subprocess.Popen[bytes]", given: bytes) -> None:
        """Wait until a filling has ended, and note its result."""
        output, errors = process.communicate(given)
        if process.returncode:
            self.fault = errors.decode(errors="replace").strip().rpartition("\n")[2] or "the filling was ended"
            return
        self.fault = ""
        if report := orjson.loads(output):
            self._done(report)
