"""What a refresh remembers of a file of a table, to tell what has been added to it since.

A parquet file is compared by row group, and other files by their beginning. A file whose bytes so far are the same
has only been added to; in parquet, its last row group may have grown. Everything else is a change.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from features.tables.scan import reading, scan

CHUNK = 1 << 22


@dataclass(frozen=True)
class FileState:
    """A file at one moment.

    size, modified, inode: of the file; rows: their number; parts: (length, digest) of each row group, the length in
    rows, or of the whole text, in bytes; tail: digest of the rows of the last row group, "" for text; ahead: time
    (µs) of the earliest event that was too far in the future to be accepted, 0 for none.
    """

    size: int
    modified: int
    inode: int
    rows: int
    parts: tuple[tuple[int, str], ...]
    tail: str = ""
    ahead: int = 0

    @classmethod
    def of(cls, path: Path, columns: Sequence[str]) -> "FileState":
        """Of a file as it is now. columns: those that count. Raises DataError and OSError."""
        status = path.stat()
        if path.suffix == ".parquet":
            parts, tail = _row_groups(path, columns)
            rows = sum(length for length, _ in parts)
        else:
            parts, tail = ((status.st_size, _digest(path, status.st_size)),), ""
            with reading(str(path)):
                rows = scan(path).select(pl.len()).collect(engine="streaming").item()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, rows, parts, tail)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "FileState":
        """The inverse of `vars`, after JSON."""
        return cls(**{**values, "parts": tuple((int(length), str(digest)) for length, digest in values["parts"])})

    def is_of(self, path: Path) -> bool:
        """Whether the file is the same, by size, time and inode."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns, status.st_ino) == (self.size, self.modified, self.inode)

    def is_beginning_of(self, other: "FileState", path: Path, columns: Sequence[str]) -> bool:
        """Whether the rows of this state are the first ones of a later state of the file at `path`."""
        if path.suffix != ".parquet":
            length, digest = self.parts[0]
            return length <= other.size and _ends_with_newline(path, length) and _digest(path, length) == digest
        if self.parts == other.parts[: len(self.parts)]:
            return True
        last = len(self.parts) - 1
        if self.parts[:last] != other.parts[:last] or len(other.parts) < len(self.parts):
            return False
        rows = self.parts[last][0]
        return rows <= other.parts[last][0] and self.tail == _digest_of_rows(path, columns, other.parts, last, rows)


def _row_groups(path: Path, columns: Sequence[str]) -> tuple[tuple[tuple[int, str], ...], str]:
    """(rows, digest) of each row group of a parquet file, and the digest of the rows of the last one."""
    scan(path)  # the errors of a damaged file
    with reading(str(path)), pq.ParquetFile(path) as file, ThreadPoolExecutor() as pool:
        metadata, schema = file.metadata, file.schema_arrow
        kinds = repr([(name, str(schema.field(name).type)) for name in columns if name in schema.names])
        groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
        digests = pool.map(lambda group: _group_digest(path, group, columns, kinds), groups)
        parts = [(group.num_rows, digest) for group, digest in zip(groups, digests, strict=True)]
    tail = _digest_of_rows(path, columns, parts, len(parts) - 1, parts[-1][0]) if parts else ""
    return tuple(parts), tail


def _group_digest(path: Path, group: Any, columns: Sequence[str], kinds: str) -> str:
    """Digest of the bytes of a row group and the types of its columns."""
    digest = hashlib.sha256(kinds.encode())
    with path.open("rb") as file:
        for c in range(group.num_columns):
            chunk = group.column(c)
            if chunk.path_in_schema.partition(".")[0] in columns:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                file.seek(min(start, chunk.data_page_offset))
                digest.update(file.read(chunk.total_compressed_size))
    return digest.hexdigest()[:32]


def _digest_of_rows(path: Path, columns: Sequence[str], parts: Sequence[tuple[int, str]], last: int, n: int) -> str:
    """Digest of the first n rows of a row group. Equal rows have equal digests within one version of polars."""
    start = sum(length for length, _ in parts[:last])
    frame = scan(path)
    names = [name for name in columns if name in frame.collect_schema().names()]
    with reading(str(path)):
        rows = frame.select(names).slice(start, n).collect().hash_rows(seed=0)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()[:32]


def _digest(path: Path, size: int) -> str:
    """Digest of the first bytes of a file."""
    digest, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while left and (data := file.read(min(CHUNK, left))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()[:32]


def _ends_with_newline(path: Path, size: int) -> bool:
    """Whether the first bytes of a file end with a newline: what follows is then a row of its own."""
    with path.open("rb") as file:
        file.seek(max(0, size - 1))
        return size == path.stat().st_size or file.read(1) == b"\n"
