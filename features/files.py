"""Files that are there after a crash."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_file(path: Path, write: Callable[[Path], Any]) -> None:
    """A file that is on disk, whole, or not at all; `write` is given another name to write to. Raises OSError."""
    with _written(path, write) as part:
        part.replace(path)


def put_new_file(path: Path, write: Callable[[Path], Any]) -> None:
    """The same, but a file that is there stays: of several who put one at once, the first does. Raises OSError."""
    with _written(path, write) as part, suppress(FileExistsError):
        os.link(part, path)


@contextmanager
def _written(path: Path, write: Callable[[Path], Any]) -> Iterator[Path]:
    """A whole file on disk beside `path`, to be given that name; what is done so is on disk afterwards."""
    part = path.with_name(f".writing-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        write(part)
        sync(part)
        yield part
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)
