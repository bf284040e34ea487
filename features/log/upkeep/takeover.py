"""Takes over the segments of version 0.2 and earlier, which hold the records of all streams in one file.

Readers read such segments as they are. Once no process writes them, each is copied into the streams under its own
name, and then deleted: retention can then delete its exposures, and a start reads its item changes alone. A copied
record says where it was ("at"), so that the positions of readers hold. A copy does not count while the segment is
there, so an interrupted take-over is simply run again.
"""

import os
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from features.files import sync
from features.log.records import ERASED, EVENTS, STREAMS, Stream, line_of, stream_of_payload
from features.log.segments import READ_BYTES, chunks, cut_torn_end, has_ended, make_folder, mark_ended, segment_paths


def can_take_over(folder: Path) -> bool:
    """Whether there are segments of an earlier version, and no process writes any of them. Raises OSError."""
    paths = segment_paths(folder)
    return bool(paths) and all(map(has_ended, paths))


def take_over(folder: Path) -> int:
    """Copy the segments of earlier versions into the streams and delete them; their number. Raises OSError.

    Does nothing while a process writes one of them. Only one process may call this at a time.
    """
    if not can_take_over(folder):
        return 0
    paths = segment_paths(folder)
    for stream in STREAMS:
        make_folder(folder / stream)
    for path in paths:
        cut_torn_end(folder, path)
        _copy(folder, path)
        for stream in STREAMS:
            sync(folder / stream)
        path.unlink()
        sync(folder)
    return len(paths)


def _copy(folder: Path, path: Path) -> None:
    """Write the records of a segment to segments of the same name and time in the streams."""
    time = path.stat().st_mtime_ns
    parts = {stream: folder / stream / f".writing-{path.name}" for stream in STREAMS}
    with ExitStack() as stack:
        files = {stream: stack.enter_context(part.open("wb")) for stream, part in parts.items()}
        _split(path, files)
        for file in files.values():
            file.flush()
            os.utime(file.fileno(), ns=(time, time))  # the order of item changes depends on it
            os.fsync(file.fileno())
    for stream, part in parts.items():
        if part.stat().st_size:
            mark_ended(part)
            part.replace(folder / stream / path.name)
        else:
            part.unlink()


def _split(path: Path, files: Mapping[Stream, BinaryIO]) -> None:
    """Copy each line to the file of its stream; what this version does not know to the events, as it is.

    Damaged bytes stand before the event that follows them, for bytes after the last line of a segment are not read.
    """
    with path.open("rb") as source:
        for lines, _, damaged in chunks(path, 0, READ_BYTES):
            skipped = deque(damaged)
            for offset, payload in lines:
                stream = stream_of_payload(payload)
                if stream == ERASED:
                    continue
                while stream in (EVENTS, None) and skipped and skipped[0][0] < offset:
                    at, length = skipped.popleft()
                    source.seek(at)
                    files[EVENTS].write(source.read(length))
                if stream is None:
                    files[EVENTS].write(line_of(payload))
                else:
                    files[stream].write(line_of(payload.removesuffix(b"}") + b',"at":%d}' % offset))
            for at, length in skipped:
                source.seek(at)
                _keep(path, source.read(length))


def _keep(path: Path, data: bytes) -> None:
    """Keep damaged bytes of a segment in its .torn file, unless a take-over that was interrupted has done so."""
    torn = path.with_suffix(".torn")
    if not torn.exists() or data not in torn.read_bytes():
        with torn.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
