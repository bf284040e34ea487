"""An ordered list of immutable files that survives a kill at any moment.

    <sha256>.parquet   a shard, named by the checksum of its bytes
    <sha256>.damaged   a rejected shard: its bytes no longer match its name
    manifest.json      the shards in use, in order
    lock               held by the one process that writes; contains its id

A shard is in use once the manifest lists it. The manifest is replaced atomically. A shard that a crash left unlisted
is complete, since a file is renamed to its final name after its bytes are on disk. The next writer puts unlisted
shards first in the list, so that even a lost manifest loses no shard. Readers take no lock.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import StoreError, describe_os_error, describe_read_error
from features.files import sync

MANIFEST, LOCK = "manifest.json", "lock"


class DamagedShardError(StoreError):
    """A shard whose bytes do not match its name."""


class Shards:
    """The files of one folder.

    Errors of the file system are raised as StoreError, with one exception: a shard that was merged into another one
    after the manifest was read raises FileNotFoundError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The shards in use, in order. Raises StoreError when the manifest is damaged."""
        path = self.folder / MANIFEST
        try:
            names = json.loads(_bytes(path))["shards"]
            if not all(re.fullmatch("[0-9a-f]{64}", name) for name in names):
                raise ValueError("a name is not a checksum")
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}: damaged: {describe_read_error(error)}. Remove it: the next `recsys embed` creates it again"
            ) from error
        return list(names)

    def path(self, name: str) -> Path:
        """The path of a shard."""
        return self.folder / f"{name}.parquet"

    def read(self, name: str) -> bytes:
        """The bytes of a shard. Raises DamagedShardError when they do not match its name."""
        path = self.path(name)
        data = _bytes(path)
        if hashlib.sha256(data).hexdigest() != name:
            raise DamagedShardError(
                f"{path}: damaged, its bytes do not match the checksum in its name. The next `recsys embed` rejects "
                "it and computes its vectors again"
            )
        return data

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The lock of the one writer. Raises StoreError with the id of the process that holds it."""
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
                        "finished, or stop it"
                    ) from error
                lock.truncate(0)
                lock.write(f"{os.getpid()}\n")
                lock.flush()
                self._recover()
            yield

    def add(self, data: memoryview, replaced: Collection[str] = ()) -> str:
        """Append a shard and return its name; replaced: shards to remove, since the new one holds their rows."""
        name = hashlib.sha256(data).hexdigest()
        self.write(f"{name}.parquet", data)
        self._list([old for old in self.names() if old not in replaced and old != name] + [name])
        with _using(self.folder):
            for old in replaced:
                if old != name:
                    self.path(old).unlink(missing_ok=True)
        return name

    def rejected(self, name: str) -> Path:
        """Remove a damaged or missing shard from the list, rename its file and return the new path."""
        self._list([listed for listed in self.names() if listed != name])
        damaged = self.path(name).with_suffix(".damaged")
        with _using(self.folder):
            if self.path(name).exists():
                self.path(name).replace(damaged)
        return damaged

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file atomically and durably: after a crash it is either complete or absent."""
        partial = self.folder / f"{name}.writing"
        with _using(self.folder / name):
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
            sync(self.folder)

    def _list(self, names: list[str]) -> None:
        self.write(MANIFEST, json.dumps({"shards": names}, indent=0).encode())

    def _recover(self) -> None:
        for partial in self.folder.glob("*.writing"):
            partial.unlink()
        listed = self.names()
        unlisted = {path.stem for path in self.folder.glob("*.parquet")} - set(listed)
        if unlisted:  # first, since a listed shard may replace their rows, but they never replace listed rows
            self._list(sorted(unlisted) + listed)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {_reason(error)}") from error


@contextmanager
def _using(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be read or written: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """Why a file of the folder, which the message names already, cannot be used."""
    return describe_os_error(OSError(error.errno, error.strerror))
