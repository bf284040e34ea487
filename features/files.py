"""Files that are there after a crash."""

import os
import threading
from collections.abc import Callable
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
    part = path.with_name(f".writing-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        write(part)
        sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)
