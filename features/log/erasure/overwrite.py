"""Lines of the log overwritten in place, each by a filler of the same length: no byte after it moves.

    .erasing    the lines that are being overwritten, while they are

A crash may leave a line half overwritten. Its checksum is then wrong, and what it still holds is unknown. Therefore
offset and length of all lines are written to a file before the first line is touched, and `finish` overwrites them
once more. Only the process that holds the lock of the upkeep overwrites: no other process deletes or copies a segment
meanwhile. Services go on appending, for they write at the end of a file, wherever another process writes.
"""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from features.errors import LogError
from features.files import put_file, sync
from features.log.records import FILLER_BYTES, filler
from features.log.segments import has_ended, is_marked, mark_ended, segment_key

JOURNAL = ".erasing"

Piece = tuple[int, int]
"""Offset and length of a line, with its line feed where it has one."""


def overwrite(folder: Path, path: Path, pieces: Sequence[Piece]) -> None:
    """Overwrite pieces of a file of the log. They are on disk when this returns. Raises OSError."""
    if not pieces:
        return
    ended = path.suffix != ".log" or has_ended(path)
    job = {
        "file": segment_key(folder, path),
        "written": _later(folder, path) if ended else None,
        "marked": is_marked(path),
        "pieces": pieces,
    }
    put_file(folder / JOURNAL, lambda part: part.write_bytes(orjson.dumps(job)))
    finish(folder)


def finish(folder: Path) -> None:
    """Complete an overwriting that was interrupted; nothing where none was. Raises OSError and LogError."""
    journal = folder / JOURNAL
    try:
        job: dict[str, Any] = orjson.loads(journal.read_bytes())
        path = folder / job["file"]
        arguments = job["pieces"], job["written"], job["marked"]
    except FileNotFoundError:
        return
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise LogError(f"{journal}: is damaged: delete it, and erase the user again") from None
    with suppress(FileNotFoundError):  # retention of an earlier version has deleted the segment
        _write(path, *arguments)
    journal.unlink()
    sync(folder)


def _later(folder: Path, path: Path) -> int:
    """The time (ns) of the last write that the file gets: one second later, so that a copy by `rsync` sees a change.

    The order of item changes depends on the times of segments of earlier versions: these keep theirs.
    """
    written = path.stat().st_mtime_ns
    return written if path.parent == folder else written + 10**9


def _write(path: Path, pieces: Sequence[Piece], written: int | None, marked: bool) -> None:
    with path.open("rb") as held:
        with suppress(BlockingIOError):  # its writer holds the lock
            # without the lock, a start would cut off a last line that is half overwritten
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if marked or is_marked(path):  # its writer may have ended it just now
            marked = True
            path.chmod(0o600)
        descriptor = os.open(path, os.O_RDWR)
        try:
            _blank_pieces(path, descriptor, pieces)
            os.fdatasync(descriptor)
            if written is not None:
                os.utime(descriptor, ns=(written, written))
            if marked:
                mark_ended(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _blank_pieces(path: Path, descriptor: int, pieces: Sequence[Piece]) -> None:
    for offset, length in pieces:
        if last := os.pread(descriptor, 1, offset + length - 1):
            _write_all(descriptor, _blank(length, last == b"\n"), offset)
            continue
        # The bytes are gone: a failed write was taken back, or a start has cut off what a crash had half overwritten.
        with suppress(FileNotFoundError), path.with_suffix(".torn").open("r+b") as torn:
            size = torn.seek(0, os.SEEK_END)
            torn.seek(0)
            torn.write(b" " * size)
            torn.flush()
            os.fsync(torn.fileno())


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        n = os.pwrite(descriptor, data, offset)
        data, offset = data[n:], offset + n


def _blank(length: int, is_line: bool) -> bytes:
    """What replaces a piece: a filler; blanks in place of bytes that are too few for one, or are no line."""
    if is_line and length >= FILLER_BYTES:
        return filler(length)
    return b" " * (length - is_line) + b"\n" * is_line
