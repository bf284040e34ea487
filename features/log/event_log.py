"""The event log: accepted events, exposures and item changes in append-only files, written before the response.

    01730000000000000000-4711.log    a segment: one writer ever, lines of "<CRC-32 of the JSON, 8 hex> <JSON>\\n"
    01730000000000000000-4711.torn   the half-written end of that segment, which a crash had left

A writer never continues a segment of another process. Bytes before a reader's position therefore never change, and
a torn end can be cut off without moving any reader. `features.log.segments` names the segments.
"""

import asyncio
import errno
import fcntl
import io
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import orjson
import polars as pl

from features.errors import LogError, describe_os_error
from features.files import sync
from features.log.records import ItemDeleted, ItemPut, Record, record_of
from features.log.segments import (
    CLOCK_TICK,
    check_writable,
    chunks,
    new_segment_path,
    scan,
    segment_number,
    segment_paths,
)
from features.schema import EVENT, EVENT_ID, ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER, VALUE

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
PENDING_BYTES = 64 << 20
READ_BYTES = 8 << 20
TAIL_BYTES = 64 << 10
PROBE_SECONDS = 1.0
WRITE_TRIES = 3

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
        for path in segment_paths(folder):
            for payloads, end, damaged_lines in chunks(path, position.get(path.name, 0), limit):
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
        raise LogError(f"the event log in {folder} cannot be read: {describe_os_error(error)}") from error
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
        for _, lines in _payloads_with_prefix(folder, b'{"kind":"event",')
    ]
    without_id = pl.col(EVENT_ID).fill_null("") == ""
    return (
        pl.concat(frames)
        .filter(without_id | pl.struct(USER, EVENT_ID).is_first_distinct())
        .with_columns(pl.col(TIME).cast(pl.Datetime("us", "UTC")))
    )


def item_changes(folder: Path) -> list[ItemPut | ItemDeleted]:
    """All item changes in the order in which they were accepted, as far as it can be known.

    Changes of one segment are in its order, and those of a segment that began after another had ended come after it,
    whatever their times say: the clock may have stepped back. Segments that two services wrote at the same time are
    merged by time. Raises LogError when a segment cannot be read.
    """
    changes: list[tuple[int, ItemPut | ItemDeleted]] = []  # with the latest time (µs) so far in its order
    ended: list[tuple[int, int]] = []  # time after the last write (ns) and latest time (µs) of each segment
    latest, segment = 0, Path()
    for path, lines in _payloads_with_prefix(folder, b'{"kind":"item_'):
        if path != segment:
            segment, number = path, segment_number(path)
            latest = max((last for written, last in ended if written <= number), default=0)
            ended.append((path.stat().st_mtime_ns + CLOCK_TICK, latest))
        for record in map(record_of, map(orjson.loads, lines)):
            if isinstance(record, ItemPut | ItemDeleted):
                latest = max(latest, record.timestamp)
                changes.append((latest, record))
        ended[-1] = (ended[-1][0], latest)
    return [change for _, change in sorted(changes, key=lambda pair: pair[0])]


def _payloads_with_prefix(folder: Path, prefix: bytes) -> Iterator[tuple[Path, list[bytes]]]:
    """Payloads that start with `prefix`, in batches by segment, in log order; nothing without a folder."""
    try:
        for path in segment_paths(folder):
            for payloads, _, _ in chunks(path, 0, READ_BYTES):
                if lines := [payload for payload in payloads if payload.startswith(prefix)]:
                    yield path, lines
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {describe_os_error(error)}") from error


def recover(folder: Path) -> tuple[DamagedBytes, ...]:
    """Cut the torn ends off the segments that no running process writes, and keep each end in a .torn file.

    Raises LogError when the folder cannot be written.
    """
    torn = []
    try:
        for path in segment_paths(folder):
            with path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - TAIL_BYTES)
                file.seek(start)
                end = start + scan(file.read())[1]
                if end < size and start > 0:  # the tail may start inside a long line: scan the whole segment
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
                    torn.append(DamagedBytes(path.name, end, size - end))
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be recovered: {describe_os_error(error)}") from error
    return tuple(torn)


class EventLog:
    """The writer. An append completes when its records are on disk.

    One thread writes all queued records with one fsync, then completes their futures (group commit).

    torn: the ends that opening the log cut off; fault: why the last write failed, "" after a successful write; loss:
    what was removed while the log was open, "" for nothing.
    Raises LogError when the folder cannot be created, recovered or written.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, pending_bytes: int = PENDING_BYTES
    ) -> None:
        self.folder = folder
        self.fault = self.loss = ""
        self._segment_bytes = segment_bytes
        self._pending_bytes = pending_bytes
        check_writable(folder)
        self.torn = recover(folder)
        self._identity = _identity(folder)
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

    def probe(self) -> None:
        """Update `fault` and `loss` without a record. Returns when the writer has looked, or after PROBE_SECONDS."""
        with suppress(LogError):
            wait([self.submit([])], PROBE_SECONDS)

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
                self._set_fault("")
            except Exception as error:  # if the thread ended here, every later append would wait for ever
                self._abandon_segment()
                self._set_fault(describe_os_error(error) if isinstance(error, OSError) else str(error) or repr(error))
                reason = f"cannot be written: {self.fault}; nothing was accepted"
                for _, future in pending:
                    future.set_exception(LogError(f"the event log in {self.folder} {reason}"))
            else:
                for _, future in pending:
                    future.set_result(None)
        if self._fd >= 0:
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        """Write data, which is then on disk at the segment's path. No data: only look whether that is possible."""
        for _ in range(WRITE_TRIES):
            self._find_losses()
            if not data:
                return self._look()
            if self._fd < 0:
                self._start_segment()
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[os.write(self._fd, remaining) :]
            os.fdatasync(self._fd)
            if self._is_linked():
                break
        else:
            raise FileNotFoundError(errno.ENOENT, "is removed again and again", str(self.folder))
        self._size += len(data)
        if self._size >= self._segment_bytes:
            os.close(self._fd)
            self._fd = -1
        return None

    def _set_fault(self, fault: str) -> None:
        """Set `fault`, and log that writing fails or works again."""
        if fault and not self.fault:
            logger.error("event log: nothing can be written: %s", fault)
        if self.fault and not fault:
            logger.warning("event log: writing works again")
        self.fault = fault

    def _start_segment(self) -> None:
        self._path = new_segment_path(self.folder)
        self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = 0
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        sync(self.folder)
        self._identity = _identity(self.folder)

    def _is_linked(self) -> bool:
        """Whether the open segment is still the file at its path."""
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return False

    def _find_losses(self) -> None:
        """Leave a segment, or a folder, that was removed or moved away; nothing of the batch being written stays."""
        if self._fd >= 0 and not self._is_linked():
            lost = self._path
            self._abandon_segment()
        elif self._identity != _identity(self.folder):
            lost = self.folder
        else:
            return
        self._identity = _identity(self.folder)
        self.loss = (
            f"{lost} was removed or moved while the service ran: put its files back into the folder, or restore a "
            "backup; events and items that were accepted before may be missing after a restart"
        )
        logger.error("event log: %s", self.loss)

    def _look(self) -> None:
        """Write a probe when something is, or looks, wrong. Raises LogError when it fails."""
        try:
            disk = os.statvfs(self.folder)
            doubtful = disk.f_bavail == 0 or not os.access(self.folder, os.W_OK) or not self.folder.is_dir()
        except OSError:
            doubtful = True
        if doubtful or self.fault:
            check_writable(self.folder)
            self._identity = _identity(self.folder)

    def _abandon_segment(self) -> None:
        """Undo a failed write and end the segment: after a failed fsync, its contents on disk are not known."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        with suppress(OSError):  # the caller knows why the write failed
            os.ftruncate(fd, self._size)
            if not self._size:
                self._path.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(fd)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None when it cannot be reached."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
