"""What stands at a path, and durable writes: a file survives a crash complete, or does not exist."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from features.errors import FileError, describe_os_error

PROBE_BYTES = 4096
"""Size of the file that `check_writable` writes: a full disk may still take an empty one."""


KINDS = {
    stat.S_IFDIR: "a folder; give a file",
    stat.S_IFIFO: "a pipe (FIFO); write it to a regular file, and give that file",
    stat.S_IFSOCK: "a socket; give a regular file",
    stat.S_IFCHR: "a device; give a regular file",
    stat.S_IFBLK: "a device; give a regular file",
}
"""Type of what stands at a path -> its name and the remedy."""


NOT_REGULAR = "not a regular file: move it, or choose another path"
"""Reason of an OSError where the product would read or write a file of its own."""


def not_a_file(path: Path) -> str | None:
    """Why a user's file cannot be read, with the remedy; None for a regular file, or a link to one.

    Every reader of a path that a user gives calls this first. Nothing is opened: a pipe would wait for its writer.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"a link to {path.readlink()}, which does not exist; correct the link"
        return "no such file; check the path"
    except OSError as error:
        return describe_os_error(OSError(error.errno, error.strerror))
    except ValueError:
        return "no path: it has a null character; remove it"
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "not a regular file; give one")


def sync(path: Path) -> None:
    """Return when a file, or the directory entries of a folder, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path, purpose: str) -> None:
    """Make a folder where it is missing, and write and remove a file in it, on disk.

    Raises FileError, with `purpose`, the reason and the remedy, when that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".writing-{os.getpid()}-") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror, str(folder)))
        raise FileError(f"{purpose} cannot be written: {reason}") from error


@contextmanager
def working_folder(base: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `base` for files of one job, which is removed with them at the end.

    It is locked (flock) as long as this process lives. Folders of the same prefix that killed processes have left are
    removed first. Raises OSError when the folder cannot be made.
    """
    remove_abandoned(base, f"{prefix}*")
    folder, lock = _locked_folder(base, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(base: Path, pattern: str) -> None:
    """Remove the folders of this user in `base` that no process has locked. What resists stays."""
    for folder in base.glob(pattern):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def _locked_folder(base: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        with suppress(FileNotFoundError):  # another process has removed the folder before it was locked
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def put_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Create or replace a file atomically. `write` receives a temporary path to write to.

    Raises OSError, also where something stands at the path that is not a regular file, e.g. a device.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    with _temporary(path, write) as part:
        part.replace(path)


def replace_file(path: Path, data: bytes) -> None:
    """Replace the contents of a file atomically; its owner, where this user may set it, and its rights stay.

    A link stays, and the file that it points to is replaced. Raises OSError, also where there is no file.
    """
    path = path.resolve()
    before = path.stat()

    def write(part: Path) -> None:
        part.touch(0o600)
        part.write_bytes(data)
        with suppress(PermissionError):
            os.chown(part, before.st_uid, before.st_gid)
        part.chmod(stat.S_IMODE(before.st_mode))

    put_file(path, write)


def put_new_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Create a file atomically; an existing file stays. Of concurrent writers the first succeeds. Raises OSError."""
    with _temporary(path, write) as part, suppress(FileExistsError):
        os.link(part, path)


@contextmanager
def _temporary(path: Path, write: Callable[[Path], Any]) -> Iterator[Path]:
    """The complete temporary file, on disk, for the caller to rename or link; the folder is synced afterwards."""
    part = path.with_name(f".writing-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        try:
            write(part)
            sync(part)
            yield part
        finally:
            part.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        if error.errno is None or str(error.filename) != str(part):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the caller knows no temporary file
