"""Identity of a content: the SHA-256 of those parts that an encoder reads.

A file counts by its bytes, not by its name. An index stores the digest of each file with its size and modification
time, as git does. An unchanged file is therefore not read again.
"""

import hashlib
import sqlite3
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl

from features.content.parts import Content, Limits, Modality, Part, Text
from features.errors import StoreError, describe_os_error, describe_sqlite_error

RACY_NS = 2_000_000_000
"""Nanoseconds. The digest of a file that was modified less than this before it was read is not stored: the file may
change again without a change of its modification time."""


class Reading(NamedTuple):
    """The modalities that an encoder reads, and `Encoder.reader`."""

    modalities: frozenset[Modality]
    reader: str = ""


class FileDigests:
    """SHA-256 of files, stored in a SQLite file by path, size and modification time."""

    def __init__(self, index: Path, limits: Limits) -> None:
        """index: the SQLite file, created if it does not exist. Raises StoreError when it cannot be used."""
        self._path, self._limits = index, limits
        with self._using():
            index.parent.mkdir(parents=True, exist_ok=True)
            self._index = sqlite3.connect(index, timeout=60)
        try:
            with self._using(), self._index:
                self._index.execute(
                    "CREATE TABLE IF NOT EXISTS files"
                    " (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, sha256 BLOB) WITHOUT ROWID"
                )
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def digests(self, paths: Iterable[Path]) -> dict[Path, bytes | None]:
        """Path -> digest of 32 bytes; None unless the path is a readable regular file within `limits.media_bytes`.

        New digests are in the index before this returns. Raises StoreError when the index cannot be used.
        """
        out: dict[Path, bytes | None] = {}
        computed = []
        for path in paths:
            out[path] = None
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode) or status.st_size > self._limits.media_bytes:
                    continue
                state = (status.st_size, status.st_mtime_ns)
                key = _bytes(str(path.absolute()))
                if (entry := self._entry(key)) is not None and entry[:2] == state:
                    out[path] = entry[2]
                    continue
                now = time.time_ns()
                with path.open("rb") as file:
                    data = file.read(status.st_size + 1)
            except (OSError, ValueError):  # ValueError: a NUL in the name
                continue
            out[path] = digest = hashlib.sha256(data).digest()
            if len(data) == status.st_size and abs(now - status.st_mtime_ns) > RACY_NS:
                computed.append((key, *state, digest))
        if computed:
            with self._using(), self._index:
                self._index.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", computed)
        return out

    def _entry(self, path: bytes) -> tuple[int, int, bytes] | None:
        """(size, modification time in ns, digest) that the index stores for a path."""
        with self._using():
            row: tuple[int, int, bytes] | None = self._index.execute(
                "SELECT size, changed, sha256 FROM files WHERE path = ?", (path,)
            ).fetchone()
        return row

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            why = describe_os_error(error) if isinstance(error, OSError) else describe_sqlite_error(error)
            raise StoreError(f"{self._path}: the index of files cannot be used: {why}") from error


def parts_read(content: Content, modalities: Collection[Modality]) -> list[int]:
    """Positions of the parts that an encoder of these modalities reads."""
    return [at for at, part in enumerate(content.parts) if part.modality in modalities]


def digests(
    contents: Sequence[Content], readings: Collection[Reading], files: FileDigests
) -> dict[Reading, pl.Series]:
    """Digests of n contents for each reading: (n,) Binary of 32 bytes, null if the encoder reads no part.

    A digest depends on the order of the parts, and on the modalities and the reader: two encoders of one space may
    embed the same part differently. A file is identified by its bytes, a URL by its text, and a file that cannot be
    read by its path.
    """
    paths = {
        part.source: None  # a dict keeps each path once, in order
        for content in contents
        for part in content.parts
        if not isinstance(part, Text) and isinstance(part.source, Path)
    }
    file_digests = files.digests(paths)
    parts = [[_part(part, file_digests) for part in content.parts] for content in contents]
    out = {}
    for reading in readings:
        description = [*sorted(reading.modalities), *([reading.reader] if reading.reader else [])]
        prefix = hashlib.sha256(" ".join(description).encode() + b"\n")
        rows: list[bytes | None] = []
        for content, identities in zip(contents, parts, strict=True):
            hasher, positions = prefix.copy(), parts_read(content, reading.modalities)
            hasher.update(b"".join(identities[at] for at in positions))
            rows.append(hasher.digest() if positions else None)
        out[reading] = pl.Series("digest", rows, dtype=pl.Binary)
    return out


def _part(part: Part, file_digests: Mapping[Path, bytes | None]) -> bytes:
    """Modality, kind of source and 32 bytes of digest: a concatenation of parts has one decomposition."""
    if isinstance(part, Text):
        kind, digest = "words", _sha256(_bytes(part.text))
    elif isinstance(part.source, bytes):
        kind, digest = "bytes", _sha256(part.source)
    elif isinstance(part.source, str):
        kind, digest = "url", _sha256(_bytes(part.source))
    elif (file_digest := file_digests[part.source]) is not None:
        kind, digest = "bytes", file_digest
    else:
        kind, digest = "path", _sha256(_bytes(str(part.source)))
    return f"{part.modality} {kind} ".encode() + digest


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
