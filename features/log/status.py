"""What the log holds: segments, bytes, records and times of each stream, and how far its readers are."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from features.errors import LogError, describe_os_error
from features.log.reader import damaged_ends, read_lines
from features.log.readers import Reader, registered
from features.log.records import STREAMS, Stream
from features.log.segments import READ_BYTES, SNAPSHOT_SUFFIX, TAIL_BYTES, Line, scan, segment_key, segment_paths

LEGACY = "of earlier versions"
"""Name of the segments that hold the records of all streams."""


@dataclass(frozen=True)
class StreamStatus:
    """One stream, or the segments of earlier versions.

    records: exact when all was read, then with those in segments of earlier versions; otherwise estimated from the
    length of the newest lines. oldest, newest: times of the first and the last record (µs), None without records.
    torn: bytes of half-written ends that were cut off. damaged: lines that are no records, None when not all was
    read.
    """

    stream: str
    segments: int
    bytes: int
    records: int
    exact: bool
    oldest: int | None
    newest: int | None
    torn: int
    damaged: int | None


@dataclass(frozen=True)
class ReaderStatus:
    """A registered reader. behind: bytes of its stream that it has not read; seconds: since it last advanced."""

    name: str
    stream: Stream
    behind: int
    seconds: float
    exports: str


@dataclass(frozen=True)
class LogStatus:
    """The streams, and the readers by name."""

    streams: list[StreamStatus]
    readers: list[ReaderStatus]


def log_status(folder: Path, *, check: bool = False) -> LogStatus:
    """The status of a log. check: read all of it, to count records and damaged lines exactly. Raises LogError."""
    try:
        streams = [_stream(folder, stream, check) for stream in STREAMS]
        if segment_paths(folder):
            streams.append(_files(LEGACY, segment_paths(folder), folder, None))
        readers = [_reader(folder, reader) for reader in registered(folder)]
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {describe_os_error(error)}") from error
    return LogStatus(streams, readers)


def _stream(folder: Path, stream: Stream, check: bool) -> StreamStatus:
    own = folder / stream
    paths = [*segment_paths(own, SNAPSHOT_SUFFIX), *segment_paths(own)]
    counted = None
    if check or sum(path.stat().st_size for path in paths) <= READ_BYTES:
        counted = _count(folder, stream)
    return _files(stream, paths, own, counted)


def _files(name: str, paths: list[Path], own: Path, counted: tuple[int, int] | None) -> StreamStatus:
    """counted: (records, damaged lines) when all was read."""
    sizes = {path: path.stat().st_size for path in paths}
    filled = [path for path, size in sizes.items() if size]
    total = sum(sizes.values())
    head = _ends(filled[0])[0] if filled else []
    tail = _ends(filled[-1])[1] if filled else []
    length = sum(len(payload) + 10 for _, payload in tail) / len(tail) if tail else 0
    records, damaged = counted or (round(total / length) if length else 0, None)
    times = [_time(head), _time(tail[::-1])]
    torn = sum(path.stat().st_size for path in segment_paths(own, ".torn"))
    return StreamStatus(name, len(paths), total, records, counted is not None, times[0], times[1], torn, damaged)


def _count(folder: Path, stream: Stream) -> tuple[int, int]:
    """The numbers of records and of damaged lines, those in segments of earlier versions too."""
    position: Mapping[str, int] = {}
    records = damaged = 0
    while (part := read_lines(folder, position, stream=stream)).position != position:
        position, records, damaged = part.position, records + len(part.lines), damaged + len(part.damaged)
    return records, damaged + len(damaged_ends(folder, position, stream))


def _ends(path: Path) -> tuple[list[Line], list[Line]]:
    """Lines at the beginning and at the end of a segment."""
    with path.open("rb") as file:
        head = scan(file.read(TAIL_BYTES))[0]
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return head, scan(file.read())[0]


def _time(lines: list[Line]) -> int | None:
    """The time of the first line that has one."""
    times = (orjson.loads(payload).get("timestamp") for _, payload in lines)
    return next((at for at in times if at is not None), None)


def _reader(folder: Path, reader: Reader) -> ReaderStatus:
    behind = bytes_after(folder, reader.stream, reader.position)
    return ReaderStatus(
        reader.name, reader.stream, behind, round(time.time() - reader.advanced / 1e6, 1), reader.exports
    )


def bytes_after(folder: Path, stream: Stream, position: Mapping[str, int]) -> int:
    """Bytes of a stream that a reader at a position has not read. Raises OSError."""
    paths = [*segment_paths(folder), *segment_paths(folder / stream)]
    return sum(max(0, path.stat().st_size - position.get(segment_key(folder, path), 0)) for path in paths)
