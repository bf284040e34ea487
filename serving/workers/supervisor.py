"""The parent process of several workers: it starts them, replaces those that end, and restarts them one by one.

All workers accept connections from the same sockets, which the parent holds open: a connection that comes while a
worker ends, or before its successor is ready, waits for another worker. Workers are new programs, never forks: OpenMP
does not survive a fork.
"""

import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from socket import socket
from types import FrameType

from features.child_process import child_command
from features.errors import ConfigError
from features.files import working_folder
from features.store.redis_server import RedisServer
from serving.http import GRACE_SECONDS
from serving.settings import ServeSettings
from serving.state.log_claim import claim
from serving.telemetry.logs import set_up_logs
from serving.telemetry.metrics import FOLDER
from serving.workers.run import Start, announce

logger = logging.getLogger("recsys")

COMMAND = (sys.executable, "-P", "-m", "serving.workers")

TICK_SECONDS = 0.05
"""Seconds between two looks at the workers."""

START_SECONDS = 900.0
"""Seconds for a worker to become ready: it may wait 600 s until a private store is filled."""

SILENT_SECONDS = 60.0
"""Seconds without a sign of life after which a worker is killed: its event loop hangs."""

STOP_SECONDS = GRACE_SECONDS + 20.0
"""Seconds for a worker to end: its requests first, then encoder, log and store."""

PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0
"""Pause before a worker that has ended is replaced; doubled for each that ends within STEADY_SECONDS of the last."""

STEADY_SECONDS = 60.0


class Worker:
    """A worker process, seen from its parent."""

    def __init__(
        self, command: Sequence[str], settings: ServeSettings, private_url: str | None, sockets: Sequence[socket]
    ) -> None:
        """Start it. Raises OSError when no process can be started."""
        self.ready = False
        self.reason = ""
        """Why it could not start, in its own words."""
        self._told = False  # to end
        self._since = time.monotonic()  # its start, its last sign of life, or when it got the signal to end
        listening = tuple(listener.fileno() for listener in sockets)
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)  # it finds what this process has
        self._beats, writing = os.pipe()
        os.set_blocking(self._beats, False)
        try:
            self.process = subprocess.Popen(
                child_command(command, signal.SIGTERM),
                stdin=subprocess.PIPE,
                pass_fds=[*listening, writing],
                env={**os.environ, "PYTHONPATH": modules},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its workers
            )
        except OSError:
            os.close(self._beats)
            raise
        finally:
            os.close(writing)
        # by standard input, because others can read the arguments of a process: the URL may hold a password
        given = Start(settings, private_url, listening, writing).to_json()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(given)

    def ended(self) -> bool:
        """Hear what it says; whether it has ended. One that takes too long, or hangs, is killed."""
        running, now = self.process.poll() is None, time.monotonic()
        with suppress(BlockingIOError):
            while heard := os.read(self._beats, 65_536):
                self.ready |= b"\0" in heard
                self.reason += heard.replace(b"\0", b"").decode(errors="replace")
                self._since = self._since if self._told else now
        if not running:
            os.close(self._beats)
            return True
        limit = STOP_SECONDS if self._told else SILENT_SECONDS if self.ready else START_SECONDS
        if now - self._since > limit:
            logger.error("worker %d is killed: it did not answer for %g s", self.process.pid, limit)
            self.process.kill()
            self._since = math.inf
        return False

    def end(self) -> None:
        """Tell it to end when its requests are answered."""
        self._told, self._since = True, time.monotonic()
        self.process.terminate()


class Supervisor:
    """The workers of a service. `restart` and `stop` may be called by signal handlers."""

    def __init__(
        self,
        settings: ServeSettings,
        sockets: Sequence[socket],
        private_url: str | None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._settings, self._sockets, self._private_url, self._command = settings, sockets, private_url, command
        self._slots: list[Worker | None] = [None] * settings.workers
        self._successor: Worker | None = None
        self._leaving: list[Worker] = []
        self._turn: list[int] = []  # slots whose worker is to be replaced, the next one first
        self._announced = self._stopping = False
        self._pause, self._start_at, self._last_end = PAUSE_SECONDS, 0.0, -math.inf

    def stop(self) -> None:
        """End all workers, soon."""
        self._stopping = True

    def restart(self) -> None:
        """Replace all workers one by one, soon: the next one is ready before the former one must end."""
        self._turn = list(range(len(self._slots)))

    def run(self) -> None:
        """Run the workers until `stop`. Raises ConfigError when the first one cannot start."""
        try:
            while not self._stopping:
                self._look()
                self._start()
                self._replace()
                time.sleep(TICK_SECONDS)
        finally:
            self._end()

    def _look(self) -> None:
        """See which workers have ended or have become ready."""
        self._leaving = [worker for worker in self._leaving if not worker.ended()]
        for slot, worker in enumerate(self._slots):
            if worker is None or not worker.ended():
                continue
            self._slots[slot] = None
            what = worker.reason or f"a worker ended with status {worker.process.returncode}"
            if not self._announced:
                raise ConfigError(worker.reason or f"{what} before it was ready: the lines above say why")
            self._delay(f"worker {worker.process.pid}: {what}")
        if not self._announced and (first := self._slots[0]) is not None and first.ready:
            announce(self._settings, self._sockets)
            self._announced = True

    def _start(self) -> None:
        """Start the workers that are missing. The first one starts alone: what is wrong is printed once."""
        slots = range(len(self._slots)) if self._announced else range(1)
        for slot in slots:
            taken = self._slots[slot] is not None or (self._successor is not None and self._turn[0] == slot)
            if not taken and time.monotonic() >= self._start_at:
                self._slots[slot] = self._worker()

    def _replace(self) -> None:
        """Go on with the restart."""
        if self._successor is None:
            due = self._announced and time.monotonic() >= self._start_at
            if self._turn and not self._leaving and due:
                self._successor = self._worker()
            return
        if self._successor.ended():
            reason = self._successor.reason or f"it ended with status {self._successor.process.returncode}"
            logger.error("the restart is given up, the workers of before go on: %s", reason)
            self._successor, self._turn = None, []
        elif self._successor.ready:
            slot = self._turn.pop(0)
            if (former := self._slots[slot]) is not None:
                former.end()
                self._leaving.append(former)
            self._slots[slot], self._successor = self._successor, None
            if not self._turn:
                logger.info("all %d workers are new", len(self._slots))

    def _worker(self) -> Worker | None:
        """A new worker; None, and a pause, when no process can be started."""
        try:
            return Worker(self._command, self._settings, self._private_url, self._sockets)
        except OSError as error:
            self._delay(f"no worker can be started: {error}")
            return None

    def _delay(self, why: str) -> None:
        """Log why a worker is missing, and wait before the next one is started."""
        now = time.monotonic()
        steady = now - self._last_end > STEADY_SECONDS
        self._pause = PAUSE_SECONDS if steady else min(2 * self._pause, MAX_PAUSE_SECONDS)
        self._last_end, self._start_at = now, now + self._pause
        logger.error("%s; a new one starts in %g s", why, self._pause)

    def _end(self) -> None:
        """End all workers, and wait for them."""
        for listener in self._sockets:  # else connections would wait for nobody
            listener.close()
        workers = [worker for worker in (*self._slots, self._successor) if worker is not None]
        for worker in workers:
            worker.end()
        self._leaving += workers
        while self._leaving:
            self._leaving = [worker for worker in self._leaving if not worker.ended()]
            time.sleep(TICK_SECONDS)


def run_workers(settings: ServeSettings, sockets: Sequence[socket], command: Sequence[str] = COMMAND) -> None:
    """Run `settings.workers` processes on bound sockets until Ctrl-C, SIGTERM or SIGHUP; SIGUSR1 restarts them.

    Without a Redis server, this process runs a private one for all. Where PROMETHEUS_MULTIPROC_DIR is not set, it is
    a new folder, which is removed at the end. The process ends by SIGTERM when that was what it got, or SIGHUP.

    Raises ConfigError, LogError, StoreError and DependencyError.
    """
    set_up_logs(settings.log_format)
    with ExitStack() as stack:
        private_url = None
        if settings.redis_url is None:
            with suppress(OSError):  # the claim says what is wrong
                settings.log.mkdir(parents=True, exist_ok=True)
            stack.callback(os.close, claim(settings.log, private=True))
            server = RedisServer()
            stack.callback(server.stop)
            private_url = server.url
        if not os.environ.get(FOLDER):
            folder = stack.enter_context(working_folder(Path(tempfile.gettempdir()), "recsys-metrics-"))
            os.environ[FOLDER] = str(folder)
            stack.callback(os.environ.pop, FOLDER)
        supervisor, received = Supervisor(settings, sockets, private_url, command), list[int]()

        def stop(number: int, frame: FrameType | None) -> None:
            received.append(number)
            supervisor.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, stop)
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda number, frame: supervisor.restart())
        try:
            supervisor.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if received and received[0] != signal.SIGINT:
        signal.raise_signal(signal.SIGTERM)
