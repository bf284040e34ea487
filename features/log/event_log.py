"""The event log: accepted events, exposures and item changes in append-only files, written before the response.

    01730000000000000000-4711.log    a segment: one writer ever, lines of "<CRC-32 of the JSON, 8 hex> <JSON>\\n"
    01730000000000000000-4711.torn   the half-written end of that segment, which a crash had left

A writer never continues a segment of another process. Bytes before a reader's position therefore never change, and
a torn end can be cut off without moving any reader.
"""

import asyncio
import fcntl
import io
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import orjson
import polars as pl

from features.errors import LogError
from features.files import sync
from features.log.records import ItemDeleted, ItemPut, Record, record_of
from features.schema import EVENT, EVENT_ID, ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER, VALUE

SEGMENT_BYTES = 64 << 20
PENDING_BYTES = 64 << 20
READ_BYTES = 8 << 20
TAIL_BYTES = 64 << 10

Position = Mapping[str, int]
"""Segment name -> number of bytes read. A segment without an entry has not been read."""


@dataclass(frozen=True)
class DamagedBytes:
    """Bytes of a segment that are not a record: a damaged line or a torn end."""

    segment: str
    offset: int
    length: int


@dataclass(frozen=True)
class LogRead:
    """Records in log order, the position after them, and the damaged lines, which were skipped but not deleted."""

    records: list[Record]
    position: dict[str, int]
    damaged: tuple[DamagedBytes, ...]


def _line(record: Record) -> bytes:
    """The line of a record: checksum, JSON, newline."""
    payload = orjson.dumps(record)
    return b"%08x %s\n" % (crc32(payload), payload)


def _payload(line: bytes) -> bytes | None:
    """The JSON of a line given without its newline; None when the checksum is wrong."""
    payload = line[9:]
    return payload if line[:9] == b"%08x " % crc32(payload) and payload else None


def _scan(data: bytes) -> tuple[list[bytes], int, list[tuple[int, int]]]:
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


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def _chunks(path: Path, offset: int, limit: int) -> Iterator[tuple[list[bytes], int, list[tuple[int, int]]]]:
    """(payloads, offset after them, damaged lines) of a segment from `offset`, about `limit` bytes at a time."""
    with path.open("rb") as file:
        size = limit
        while True:
            file.seek(offset)
            data = file.read(size)
            payloads, end, damaged = _scan(data)
            if payloads:
                yield payloads, offset + end, [(offset + at, length) for at, length in damaged]
                offset, size = offset + end, limit
            elif len(data) == size:  # the chunk ends inside the first line
                size *= 2
            else:
                return


def read(folder: Path, since: Position | None = None, *, limit: int = READ_BYTES) -> LogRead:
    """About `limit` bytes of records after `since`; an unchanged position means that there is nothing new.

    Successive reads return every record exactly once. A record of a kind that this version does not know counts as
    damaged. Raises LogError when a segment cannot be read.
    """
    position = dict(since or {})
    records: list[Record] = []
    damaged: list[DamagedBytes] = []
    budget = limit
    try:
        for path in _segments(folder):
            for payloads, end, damaged_lines in _chunks(path, position.get(path.name, 0), limit):
                damaged += [DamagedBytes(path.name, at, length) for at, length in damaged_lines]
                for payload in payloads:
                    record = record_of(orjson.loads(payload))
                    if record is not None:
                        records.append(record)
                    else:
                        damaged.append(DamagedBytes(path.name, end, len(payload)))
                budget -= end - position.get(path.name, 0)
                position[path.name] = end
                if budget <= 0:
                    return LogRead(records, position, tuple(damaged))
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {error}") from error
    return LogRead(records, position, tuple(damaged))


_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    USER: pl.String,
    ITEM: pl.String,
    EVENT: pl.String,
    TIME: pl.Int64,
    VALUE: pl.Float64,
    EVENT_ID: pl.String,
    REQUEST_ID: pl.String,
    POSITION: pl.Int32,
    PROPENSITY: pl.Float64,
}


def events_frame(folder: Path) -> pl.DataFrame:
    """All accepted events with the canonical columns of the events table, in log order.

    Of events with the same user and event_id the first counts. Events without an event_id all count.
    Raises LogError when a segment cannot be read.
    """
    frames = [pl.DataFrame(schema=_COLUMNS)]
    frames += [
        pl.read_ndjson(io.BytesIO(b"\n".join(lines)), schema=_COLUMNS)
        for lines in _payloads_with_prefix(folder, b'{"kind":"event",')
    ]
    without_id = pl.col(EVENT_ID).fill_null("") == ""
    return (
        pl.concat(frames)
        .filter(without_id | pl.struct(USER, EVENT_ID).is_first_distinct())
        .with_columns(pl.col(TIME).cast(pl.Datetime("us", "UTC")))
    )


def item_changes(folder: Path) -> list[ItemPut | ItemDeleted]:
    """All item changes by time, then in log order: two services may have written at the same time.

    Raises LogError when a segment cannot be read.
    """
    changes: list[ItemPut | ItemDeleted] = []
    for lines in _payloads_with_prefix(folder, b'{"kind":"item_'):
        records = map(record_of, map(orjson.loads, lines))
        changes += [record for record in records if isinstance(record, ItemPut | ItemDeleted)]
    return sorted(changes, key=lambda change: change.timestamp)


def _payloads_with_prefix(folder: Path, prefix: bytes) -> Iterator[list[bytes]]:
    """Payloads that start with `prefix`, in batches, in log order; nothing when the folder does not exist."""
    try:
        for path in _segments(folder) if folder.is_dir() else []:
            for payloads, _, _ in _chunks(path, 0, READ_BYTES):
                if lines := [payload for payload in payloads if payload.startswith(prefix)]:
                    yield lines
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {error}") from error


def recover(folder: Path) -> tuple[DamagedBytes, ...]:
    """Cut the torn ends off the segments that no running process writes, and keep each end in a .torn file.

    Raises LogError when the folder cannot be written.
    """
    torn = []
    try:
        for path in _segments(folder):
            with path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - TAIL_BYTES)
                file.seek(start)
                end = start + _scan(file.read())[1]
                if end < size and start > 0:  # the tail may start inside a long line: scan the whole segment
                    file.seek(0)
                    end = _scan(file.read())[1]
                if end < size:
                    file.seek(end)
                    with path.with_suffix(".torn").open("ab") as torn_file:
                        torn_file.write(file.read())
                        torn_file.flush()
                        os.fsync(torn_file.fileno())
                    file.truncate(end)
                    os.fsync(file.fileno())
                    torn.append(DamagedBytes(path.name, end, size - end))
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be recovered: {error}") from error
    return tuple(torn)


class EventLog:
    """The writer. An append completes when its records are on disk.

    One thread writes all queued records with one fsync, then completes their futures (group commit).

    torn: the ends that opening the log cut off; fault: why the last write failed, "" after a successful write.
    Raises LogError when the folder cannot be created or recovered.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, pending_bytes: int = PENDING_BYTES
    ) -> None:
        self.folder = folder
        self.fault = ""
        self._segment_bytes = segment_bytes
        self._pending_bytes = pending_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogError(f"the event log's folder {folder} cannot be made: {error}") from error
        self.torn = recover(folder)
        self._fd = -1
        self._path = folder
        self._size = 0
        self._queue: deque[tuple[bytes, Future[None]]] = deque()
        self._queued = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Record]) -> Future[None]:
        """Queue records. The future completes when all of them are on disk, and fails with LogError otherwise.

        Raises LogError when the log is closed or has too many bytes waiting.
        """
        data = b"".join(map(_line, records))
        future: Future[None] = Future()
        with self._wake:
            if self._closing:
                raise LogError(f"the event log in {self.folder} is closed")
            if self._queued + len(data) > self._pending_bytes:
                raise LogError(f"the event log in {self.folder} has {self._queued} bytes waiting: try again later")
            self._queue.append((data, future))
            self._queued += len(data)
            self._wake.notify()
        return future

    async def append(self, records: Sequence[Record]) -> None:
        """Return when the records are on disk. Raises LogError otherwise; then none of them is accepted."""
        await asyncio.wrap_future(self.submit(records))

    def append_now(self, records: Sequence[Record]) -> None:
        """`append` for callers without an event loop."""
        self.submit(records).result()

    def close(self) -> None:
        """Write the queued records and end the thread. A second call does nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        """The writer thread: one write and one fsync per batch of queued appends, until the log is closed."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                batch = list(self._queue)
                self._queue.clear()
                self._queued = 0
            if not batch:
                break
            pending = [(data, future) for data, future in batch if future.set_running_or_notify_cancel()]
            try:
                self._write(b"".join(data for data, _ in pending))
                self.fault = ""
            except Exception as error:  # if the thread ended here, every later append would wait for ever
                self.fault = str(error) or repr(error)
                self._abandon_segment()
                for _, future in pending:
                    future.set_exception(
                        LogError(f"the event log in {self.folder} cannot be written: {error}; nothing was accepted")
                    )
            else:
                for _, future in pending:
                    future.set_result(None)
        if self._fd >= 0:
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        if self._fd < 0:
            self._start_segment()
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(self._fd, remaining) :]
        os.fdatasync(self._fd)
        self._size += len(data)
        if self._size >= self._segment_bytes:
            os.close(self._fd)
            self._fd = -1

    def _start_segment(self) -> None:
        self._path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.log"
        self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = 0
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        sync(self.folder)

    def _abandon_segment(self) -> None:
        """Undo a failed write and end the segment: after a failed fsync, its contents on disk are not known."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if self._size:
                os.ftruncate(fd, self._size)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            self.fault = str(error)
        finally:
            with suppress(OSError):  # `fault` already says why the write failed
                os.close(fd)
