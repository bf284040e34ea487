"""The files of the event log: their lines, the segments of a stream, and what a crash leaves in them.

    events/01730000000000000000-4711.log     a segment: one writer ever, lines of one stream
    events/01730000000000000000-4711.torn    the half-written end of that segment, which a crash had left
    01720000000000000000-4711.log            a segment of version 0.2 or earlier, with the records of all streams

The number in a segment's name is the time (ns) of its start. It is larger than the numbers of all segments before it,
and by CLOCK_TICK larger than the time of the last write to each segment that has ended. A segment whose number is so
much larger was therefore begun after the other had ended, also when the clock has stepped back.

A writer locks its segment (flock) and never continues one of another process. Bytes before a reader's position
therefore never change, and a torn end can be cut off without moving any reader. A segment that was ended without a
torn end is read-only: the next start does not look into it.
"""

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from zlib import crc32

from features.errors import LogError, describe_os_error
from features.files import NOT_REGULAR, sync
from features.log.records import ITEMS, STREAMS, Stream

PROBE = ".probe"
PROBE_BYTES = 4096
READ_BYTES = 8 << 20
TAIL_BYTES = 64 << 10

CLOCK_TICK = 20_000_000
"""Nanoseconds by which the time that the system gives to a write may lie behind the clock; Linux: 10 ms at most."""

SNAPSHOT_SUFFIX = ".snapshot"

LOG_PARTS = (*STREAMS, "media", "vectors", "readers", "erased.json", "audit.jsonl")
"""Names of what stands in the folder of a log, besides segments of earlier versions."""

NO_LOG = f"is no event log: it has none of {', '.join(LOG_PARTS)}"

_SEGMENT_SUFFIXES = (".log", ".torn", SNAPSHOT_SUFFIX)
_SEGMENT_NAME = r"[0-9]{20}(-[0-9]+)?\.[a-z]+"


@dataclass(frozen=True)
class DamagedBytes:
    """Bytes of a segment that are not a record of this version. segment: its key; newer: of a later version."""

    segment: str
    offset: int
    length: int
    newer: bool = False


Line = tuple[int, bytes]
"""Offset of a line in its segment, and its JSON."""


def segment_paths(folder: Path, suffix: str = ".log") -> list[Path]:
    """The segments of a folder by name; none when it does not exist.

    Files with other names are none: unfinished ones, whose names begin with a dot, and files of other programs, which
    must not be cut, copied or deleted. Raises OSError when it is not a folder, and for a segment that is no regular
    file: a pipe (FIFO) would be waited for.
    """
    kind = re.compile(_SEGMENT_NAME if suffix in _SEGMENT_SUFFIXES else r"[^.].*")
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.endswith(suffix) and kind.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    if wrong := next((entry for entry in found if not entry.is_file()), None):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(folder / wrong.name))
    return sorted(folder / entry.name for entry in found)


def stream_paths(folder: Path, stream: Stream) -> list[Path]:
    """The segments that hold a stream, the oldest first: those of earlier versions, then the stream's own.

    A segment that `features.log.takeover` copies counts as long as it is there, and not its copy.
    Raises OSError when a folder is a file.
    """
    legacy = segment_paths(folder)  # listed first: what is taken over after this is missed by neither list
    copied = {path.name for path in legacy}
    return [*legacy, *(path for path in segment_paths(folder / stream) if path.name not in copied)]


def is_log(folder: Path) -> bool:
    """Whether a folder holds an event log, or nothing yet. A wrong one looks like a log without records.

    Raises OSError.
    """
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {"lost+found"}
    return not names or not names.isdisjoint(LOG_PARTS) or bool(segment_paths(folder))


def segment_key(folder: Path, path: Path) -> str:
    """The name of a segment in positions: its path in the log's folder."""
    return path.relative_to(folder).as_posix()


def segment_number(path: Path) -> int:
    """The number in the name of a segment or snapshot (ns); 0 for another name."""
    number = path.stem.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def new_segment_path(folder: Path, stream: Stream) -> Path:
    """The path of a segment of a stream that begins now. Makes the stream's folder. Raises OSError."""
    own = folder / stream
    make_folder(own)
    number = time.time_ns()
    for path in (*segment_paths(folder), *segment_paths(own)):
        with suppress(FileNotFoundError):  # pruned since it was listed
            after = path.stat().st_mtime_ns + CLOCK_TICK
            number = max(number, segment_number(path) + 1, after if after > number and has_ended(path) else 0)
    if stream == ITEMS:  # a snapshot's number lies after the last write to every segment that it replaces
        number = max([number, *(segment_number(path) + 1 for path in segment_paths(own, SNAPSHOT_SUFFIX))])
    return own / f"{number:020d}-{os.getpid()}.log"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def check_writable(folder: Path) -> None:
    """Make the folder of a log, and write and delete a small file there. Raises LogError when that fails."""
    try:
        make_folder(folder)
        probe = folder / PROBE
        try:
            descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            try:
                remaining = PROBE_BYTES
                while remaining:
                    remaining -= os.write(descriptor, bytes(remaining))
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be written: {describe_os_error(error)}") from error


def payload_of(line: bytes) -> bytes | None:
    """The JSON of a line given without its newline; None when the checksum is wrong."""
    payload = line[9:]
    return payload if line[:9] == b"%08x " % crc32(payload) and payload else None


def scan(data: bytes, start: int = 0) -> tuple[list[Line], int, list[tuple[int, int]]]:
    """The valid lines, the end of the last one, and (offset, length) of damaged lines before that end.

    start: offset of the data in its segment. The bytes after the last valid line are not consumed: another process
    may still be writing them, or they are a torn end.
    """
    lines: list[Line] = []
    damaged: list[tuple[int, int]] = []
    pending: list[tuple[int, int]] = []  # invalid lines with no valid line after them so far
    at = end = start
    for line in data.split(b"\n")[:-1]:
        payload = payload_of(line)
        if payload is None:
            pending.append((at, len(line) + 1))
        else:
            lines.append((at, payload))
            damaged += pending
            pending.clear()
            end = at + len(line) + 1
        at += len(line) + 1
    return lines, end, damaged


def chunks(path: Path, offset: int, limit: int) -> Iterator[tuple[list[Line], int, list[tuple[int, int]]]]:
    """(lines, offset after them, damaged lines) of a segment from `offset`, about `limit` bytes at a time."""
    with path.open("rb") as file:
        size = limit
        while True:
            file.seek(offset)
            data = file.read(size)
            lines, end, damaged = scan(data, offset)
            if lines:
                yield lines, end, damaged
                offset, size = end, limit
            elif len(data) == size:  # the chunk ends inside the first line
                size *= 2
            else:
                return


def damaged_end(folder: Path, path: Path, start: int) -> list[DamagedBytes]:
    """The lines of a segment after its last valid line, which begin at `start`; none while a process writes it.

    They are damaged, or one is half-written because its process was killed. Raises OSError.
    """
    if path.stat().st_size <= start or not has_ended(path):
        return []
    with path.open("rb") as file:
        file.seek(start)
        lengths = [len(line) + 1 for line in file.read().removesuffix(b"\n").split(b"\n")]
    offsets = accumulate(lengths[:-1], initial=start)
    return [DamagedBytes(segment_key(folder, path), *place) for place in zip(offsets, lengths, strict=True)]


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, which is made; False when another process holds it. Raises OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def has_ended(path: Path) -> bool:
    """Whether no process writes the segment. Raises OSError."""
    if is_marked(path):
        return True
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def has_settled(folder: Path, path: Path) -> bool:
    """Whether a segment has ended; then its torn end, if any, is cut off. Raises OSError."""
    if is_marked(path):
        return True
    if not has_ended(path):
        return False
    cut_torn_end(folder, path, mark=True)
    return True


def mark_ended(segment: Path | int) -> None:
    """Make a segment, given as path or descriptor, read-only: it has ended without a torn end.

    On a disk without permissions it gets no mark: every start looks into it.
    """
    with suppress(OSError):
        os.chmod(segment, stat.S_IRUSR)


def is_marked(path: Path) -> bool:
    """Whether a segment is known to have ended without a torn end. Raises OSError."""
    return not path.stat().st_mode & stat.S_IWUSR


def recover(folder: Path) -> tuple[DamagedBytes, ...]:
    """Cut the torn ends off the segments that no running process writes, and keep each end in a .torn file.

    Looks only into segments that were not ended cleanly. Raises LogError when the folder cannot be written.
    """
    torn = []
    try:
        for path in segment_paths(folder):
            torn += cut_torn_end(folder, path)
        for stream in STREAMS:
            for path in segment_paths(folder / stream):
                with suppress(FileNotFoundError):  # pruned since it was listed
                    if not is_marked(path):
                        torn += cut_torn_end(folder, path, mark=True)
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be recovered: {describe_os_error(error)}") from error
    return tuple(torn)


def cut_torn_end(folder: Path, path: Path, *, mark: bool = False) -> list[DamagedBytes]:
    """Cut the torn end off a segment that no process writes. mark: note that it has ended. Raises OSError."""
    torn = []
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - TAIL_BYTES)
        file.seek(start)
        lines, end, _ = scan(file.read(), start)
        if not lines and start > 0:  # the tail lies inside a long line: scan the whole segment
            file.seek(0)
            end = scan(file.read())[1]
        if end < size:
            file.seek(end)
            with path.with_suffix(".torn").open("ab") as torn_file:
                torn_file.write(file.read())
                torn_file.flush()
                os.fsync(torn_file.fileno())
            file.truncate(end)
            os.fsync(file.fileno())
            torn.append(DamagedBytes(segment_key(folder, path), end, size - end))
        if mark and end:  # a segment without a line may be one that a process has just begun
            mark_ended(path)
    return torn
