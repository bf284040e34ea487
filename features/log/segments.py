"""The files of the event log: their lines, which segments a folder holds, and the name of the next one.

The number in a segment's name is the time (ns) of its start. It is larger than the numbers of all segments before it,
and by CLOCK_TICK larger than the time of the last write to each segment that has ended. A segment whose number is so
much larger was therefore begun after the other had ended, also when the clock has stepped back.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from features.errors import LogError, describe_os_error
from features.files import sync

PROBE = ".probe"
PROBE_BYTES = 4096

CLOCK_TICK = 20_000_000
"""Nanoseconds by which the time that the system gives to a write may lie behind the clock; Linux: 10 ms at most."""


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a folder by name; none when it does not exist. Raises OSError when it is not a folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(folder / name for name in names if name.endswith(".log"))


def segment_number(path: Path) -> int:
    """The number in a segment's name (ns); 0 for another name."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def new_segment_path(folder: Path) -> Path:
    """The path of a segment that begins now. Makes the folder when it does not exist. Raises OSError."""
    make_folder(folder)
    number = time.time_ns()
    for path in segment_paths(folder):
        after = path.stat().st_mtime_ns + CLOCK_TICK
        number = max(number, segment_number(path) + 1, after if after > number and _has_ended(path) else 0)
    return folder / f"{number:020d}-{os.getpid()}.log"


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


def _payload(line: bytes) -> bytes | None:
    """The JSON of a line given without its newline; None when the checksum is wrong."""
    payload = line[9:]
    return payload if line[:9] == b"%08x " % crc32(payload) and payload else None


def scan(data: bytes) -> tuple[list[bytes], int, list[tuple[int, int]]]:
    """Payloads of the valid lines, the end of the last one, and (offset, length) of damaged lines before that end.

    The bytes after the last valid line are not consumed: another process may still be writing them, or they are a
    torn end.
    """
    payloads: list[bytes] = []
    damaged: list[tuple[int, int]] = []
    pending: list[tuple[int, int]] = []  # invalid lines with no valid line after them so far
    at = end = 0
    for line in data.split(b"\n")[:-1]:
        payload = _payload(line)
        if payload is None:
            pending.append((at, len(line) + 1))
        else:
            payloads.append(payload)
            damaged += pending
            pending.clear()
            end = at + len(line) + 1
        at += len(line) + 1
    return payloads, end, damaged


def chunks(path: Path, offset: int, limit: int) -> Iterator[tuple[list[bytes], int, list[tuple[int, int]]]]:
    """(payloads, offset after them, damaged lines) of a segment from `offset`, about `limit` bytes at a time."""
    with path.open("rb") as file:
        size = limit
        while True:
            file.seek(offset)
            data = file.read(size)
            payloads, end, damaged = scan(data)
            if payloads:
                yield payloads, offset + end, [(offset + at, length) for at, length in damaged]
                offset, size = offset + end, limit
            elif len(data) == size:  # the chunk ends inside the first line
                size *= 2
            else:
                return


def _has_ended(path: Path) -> bool:
    """Whether no process writes the segment. Raises OSError."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
