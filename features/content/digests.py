"""What a content is, whatever it is called: SHA-256 of what an encoder reads of it; files are read when they change.

An index remembers the digest of each file by its size and time of change, as git does, so that a catalogue that has
not changed is recognised without reading it.
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
from features.errors import StoreError

RACY_NS = 2_000_000_000
"""A file changed so shortly before it is read may change again without its time showing it: it is not remembered."""


class Reading(NamedTuple):
    """What of a content is read, and by whom (`Encoder.reader`)."""

    modalities: frozenset[Modality]
    reader: str = ""


class FileDigests:
    """SHA-256 of files, remembered in a SQLite file by path, size and time of change."""

    def __init__(self, index: Path, limits: Limits) -> None:
        """index: made where there is none. Raises StoreError when it cannot be used."""
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
        """Let go of the index."""
        self._index.close()

    def digests(self, paths: Iterable[Path]) -> dict[Path, bytes | None]:
        """32 bytes for each; None for what is no readable regular file of at most `limits.media_bytes`.

        What has been read is in the index before this returns. Raises StoreError when the index cannot be used.
        """
        out: dict[Path, bytes | None] = {}
        learnt = []
        for path in paths:
            out[path] = None
            try:
                found = path.stat()
                if not stat.S_ISREG(found.st_mode) or found.st_size > self._limits.media_bytes:
                    continue
                state = (found.st_size, found.st_mtime_ns)
                key = _bytes(str(path.absolute()))
                if (known := self._known(key)) is not None and known[:2] == state:
                    out[path] = known[2]
                    continue
                now = time.time_ns()
                with path.open("rb") as file:
                    data = file.read(found.st_size + 1)
            except (OSError, ValueError):  # ValueError: a NUL in the name
                continue
            out[path] = digest = hashlib.sha256(data).digest()
            if len(data) == found.st_size and abs(now - found.st_mtime_ns) > RACY_NS:
                learnt.append((key, *state, digest))
        if learnt:
            with self._using(), self._index:
                self._index.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", learnt)
        return out

    def _known(self, path: bytes) -> tuple[int, int, bytes] | None:
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
            raise StoreError(
                f"{self._path}: the index of files cannot be used: {error}. Where it is damaged, remove it: it is "
                "made again by reading the files"
            ) from error


def parts_read(content: Content, modalities: Collection[Modality]) -> list[int]:
    """Places of the parts that an encoder of these modalities reads."""
    return [at for at, part in enumerate(content.parts) if part.modality in modalities]


def digests(
    contents: Sequence[Content], readings: Collection[Reading], files: FileDigests
) -> dict[Reading, pl.Series]:
    """What is read of each content: (n,) Binary of 32 bytes, null where there is nothing.

    Order counts, and so do the modalities and the reader: two encoders of one space need not agree on a part. A file
    is what its bytes are, a URL what it is called; a file that cannot be read is its path, until it can be.
    """
    paths = {
        part.source: None  # each once, in their order
        for content in contents
        for part in content.parts
        if not isinstance(part, Text) and isinstance(part.source, Path)
    }
    found = files.digests(paths)
    parts = [[_part(part, found) for part in content.parts] for content in contents]
    out = {}
    for reading in readings:
        told = [*sorted(reading.modalities), *([reading.reader] if reading.reader else [])]
        begin = hashlib.sha256(" ".join(told).encode() + b"\n")
        made: list[bytes | None] = []
        for content, identities in zip(contents, parts, strict=True):
            whole, places = begin.copy(), parts_read(content, reading.modalities)
            whole.update(b"".join(identities[at] for at in places))
            made.append(whole.digest() if places else None)
        out[reading] = pl.Series("digest", made, dtype=pl.Binary)
    return out


def _part(part: Part, found: Mapping[Path, bytes | None]) -> bytes:
    """Modality, kind of source, 32 bytes: parts strung together can be told apart again."""
    if isinstance(part, Text):
        kind, digest = "words", _sha256(_bytes(part.text))
    elif isinstance(part.source, bytes):
        kind, digest = "bytes", _sha256(part.source)
    elif isinstance(part.source, str):
        kind, digest = "url", _sha256(_bytes(part.source))
    elif (read := found[part.source]) is not None:
        kind, digest = "bytes", read
    else:
        kind, digest = "path", _sha256(_bytes(str(part.source)))
    return f"{part.modality} {kind} ".encode() + digest


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
