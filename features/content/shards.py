"""An ordered list of immutable files that survives a kill at any moment.

    <sha256>.parquet   a shard, named by the checksum of its own bytes
    <sha256>.damaged   one whose bytes are no longer those of its name, set aside
    manifest.json      the shards that count, in their order
    lock               held by the one process that writes, whose id it tells

A shard counts once the manifest names it, which is replaced in one step. One that a crash left unnamed is whole,
since it got its name last; the next writer puts it first in the list, so that even a lost manifest loses no shard.
Readers take no lock.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import StoreError
from features.files import sync

MANIFEST, LOCK = "manifest.json", "lock"


class DamagedShard(StoreError):
    """A shard whose bytes are not those of its name."""


class Shards:
    """The files of a folder. Whatever the system refuses is raised as StoreError; only a shard that is gone, merged
    with others since the manifest was read, is a FileNotFoundError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The shards that count. Raises StoreError when the manifest is damaged."""
        path = self.folder / MANIFEST
        try:
            names = json.loads(_bytes(path))["shards"]
            if not all(re.fullmatch("[0-9a-f]{64}", name) for name in names):
                raise ValueError("a name that is no checksum")
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}: damaged: {error}. Remove it: the next `recsys embed` makes it again"
            ) from error
        return list(names)

    def path(self, name: str) -> Path:
        """Where a shard is."""
        return self.folder / f"{name}.parquet"

    def read(self, name: str) -> bytes:
        """The bytes of a shard. Raises Damaged when they are not those that were written."""
        path = self.path(name)
        data = _bytes(path)
        if hashlib.sha256(data).hexdigest() != name:
            raise DamagedShard(
                f"{path}: damaged, its bytes are not those of its name. The next `recsys embed` sets it aside and "
                "computes its vectors again"
            )
        return data

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Held by one process at a time. Raises StoreError naming the other one."""
        with _using(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK).open("a+")
        with lock:
            with _using(self.folder):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    lock.seek(0)
                    raise StoreError(
                        f"{self.folder}: process {lock.read(20).strip() or '?'} is writing here; wait until it is "
                        "done, or stop it"
                    ) from error
                lock.truncate(0)
                lock.write(f"{os.getpid()}\n")
                lock.flush()
                self._recover()
            yield

    def add(self, data: memoryview, instead: Collection[str] = ()) -> str:
        """A new last shard, and its name; `instead`: those that go, since it has what they had."""
        name = hashlib.sha256(data).hexdigest()
        self.write(f"{name}.parquet", data)
        self._keep([old for old in self.names() if old not in instead and old != name] + [name])
        with _using(self.folder):
            for old in instead:
                if old != name:
                    self.path(old).unlink(missing_ok=True)
        return name

    def rejected(self, name: str) -> Path:
        """Take a damaged shard, or one that is gone, off the list, and give its new place."""
        self._keep([other for other in self.names() if other != name])
        aside = self.path(name).with_suffix(".damaged")
        with _using(self.folder):
            if self.path(name).exists():
                self.path(name).replace(aside)
        return aside

    def write(self, name: str, data: bytes | memoryview) -> None:
        """A file that is there on disk, whole, or not at all."""
        part = self.folder / f"{name}.writing"
        with _using(self.folder / name):
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.folder / name)
            sync(self.folder)

    def _keep(self, names: list[str]) -> None:
        self.write(MANIFEST, json.dumps({"shards": names}, indent=0).encode())

    def _recover(self) -> None:
        for left in self.folder.glob("*.writing"):
            left.unlink()
        listed = self.names()
        unnamed = {path.stem for path in self.folder.glob("*.parquet")} - set(listed)
        if unnamed:  # first: what is listed may have taken their place, never they the place of what is listed
            self._keep(sorted(unnamed) + listed)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


@contextmanager
def _using(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be read or written: {error}") from error
