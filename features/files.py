"""Files that are there after a crash."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
