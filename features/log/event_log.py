"""The event log: accepted events, exposures and changes of items, on disk before the answer, in an append-only
folder.

    01730000000000000000-4711.log    a segment: one writer ever, lines of "<CRC-32 of the JSON, 8 hex> <JSON>\\n"
    01730000000000000000-4711.torn   what a crash had left half-written at that segment's end

A writer never continues a segment that another process began, so a position in it stays true for ever: what is
behind a position never changes, and a torn end can be cut off without moving any reader.
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
from features.log.records import ItemGone, ItemPut, Record, record_of
from features.schema import EVENT, EVENT_ID, ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER, VALUE

SEGMENT_BYTES = 64 << 20
PENDING_BYTES = 64 << 20
READ_BYTES = 8 << 20
TAIL_BYTES = 64 << 10

Position = Mapping[str, int]
"""Segment name -> bytes read of it. A segment that is not named has not been read."""


@dataclass(frozen=True)
class DamagedBytes:
    """Bytes of a segment that are no record: a damaged line, or a torn end."""

    segment: str
    offset: int
    length: int


@dataclass(frozen=True)
class LogRead:
    """Records in log order, the position behind them, and the damaged lines passed over (they stay there)."""

    records: list[Record]
    position: dict[str, int]
    damaged: tuple[DamagedBytes, ...]


def _line(record: Record) -> bytes:
    payload = orjson.dumps(record)
    return b"%08x %s\n" % (crc32(payload), payload)


def _payload(line: bytes) -> bytes | None:
    """The JSON of a line without its newline; None when its checksum is wrong."""
    payload = line[9:]
    return payload if line[:9] == b"%08x " % crc32(payload) and payload else None


def _scan(data: bytes) -> tuple[list[bytes], int, list[tuple[int, int]]]:
    """Payloads of the valid lines, the end of the last one, and (offset, length) of damaged lines before that end.

    What follows the last valid line is left unread: it may still be being written, or be cut off as torn.
    """
    payloads: list[bytes] = []
    damaged: list[tuple[int, int]] = []
    doubtful: list[tuple[int, int]] = []
    at = end = 0
    for line in data.split(b"\n")[:-1]:
        payload = _payload(line)
        if payload is None:
            doubtful.append((at, len(line) + 1))
        else:
            payloads.append(payload)
            damaged += doubtful
            doubtful.clear()
            end = at + len(line) + 1
        at += len(line) + 1
    return payloads, end, damaged


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def _chunks(path: Path, offset: int, limit: int) -> Iterator[tuple[list[bytes], int, list[tuple[int, int]]]]:
    """(payloads, offset behind them, damaged) of a segment from `offset`, about `limit` bytes at a time."""
    with path.open("rb") as file:
        size = limit
        while True:
            file.seek(offset)
            data = file.read(size)
            payloads, end, damaged = _scan(data)
            if payloads:
                yield payloads, offset + end, [(offset + at, length) for at, length in damaged]
                offset, size = offset + end, limit
            elif len(data) == size:
                size *= 2
            else:
                return


def read(folder: Path, since: Position | None = None, *, limit: int = READ_BYTES) -> LogRead:
    """About `limit` bytes of records after `since`; nothing new when the position comes back unchanged.

    Every record is returned exactly once over successive reads. Records of a kind that this version does not know
    count as damaged.
    Raises LogError when a segment cannot be read.
    """
    position = dict(since or {})
    records: list[Record] = []
    damage: list[DamagedBytes] = []
    budget = limit
    try:
        for path in _segments(folder):
            for payloads, end, bad in _chunks(path, position.get(path.name, 0), limit):
                damage += [DamagedBytes(path.name, at, length) for at, length in bad]
                for payload in payloads:
                    record = record_of(orjson.loads(payload))
                    if record is not None:
                        records.append(record)
                    else:
                        damage.append(DamagedBytes(path.name, end, len(payload)))
                budget -= end - position.get(path.name, 0)
                position[path.name] = end
                if budget <= 0:
                    return LogRead(records, position, tuple(damage))
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {error}") from error
    return LogRead(records, position, tuple(damage))


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

    An event_id that came again from the same user counts once, the first time; events without one all count.
    Raises LogError when a segment cannot be read.
    """
    frames = [pl.DataFrame(schema=_COLUMNS)]
    frames += [
        pl.read_ndjson(io.BytesIO(b"\n".join(lines)), schema=_COLUMNS)
        for lines in _lines_of(folder, b'{"kind":"event",')
    ]
    unnamed = pl.col(EVENT_ID).fill_null("") == ""
    return (
        pl.concat(frames)
        .filter(unnamed | pl.struct(USER, EVENT_ID).is_first_distinct())
        .with_columns(pl.col(TIME).cast(pl.Datetime("us", "UTC")))
    )


def item_changes(folder: Path) -> list[ItemPut | ItemGone]:
    """All changes of items, by time, then in log order: two services may have written beside each other for a while.

    Raises LogError when a segment cannot be read.
    """
    changes: list[ItemPut | ItemGone] = []
    for lines in _lines_of(folder, b'{"kind":"item_'):
        records = map(record_of, map(orjson.loads, lines))
        changes += [record for record in records if isinstance(record, ItemPut | ItemGone)]
    return sorted(changes, key=lambda change: change.timestamp)


def _lines_of(folder: Path, begin: bytes) -> Iterator[list[bytes]]:
    """Payloads of the lines that begin so, some at a time, in log order; none where there is no such folder."""
    try:
        for path in _segments(folder) if folder.is_dir() else []:
            for payloads, _, _ in _chunks(path, 0, READ_BYTES):
                if lines := [payload for payload in payloads if payload.startswith(begin)]:
                    yield lines
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {error}") from error


def recover(folder: Path) -> tuple[DamagedBytes, ...]:
    """Cut half-written ends off the segments that no living process writes; each is kept in a .torn file.

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
                begin = max(0, size - TAIL_BYTES)
                file.seek(begin)
                end = begin + _scan(file.read())[1]
                if end < size and begin > 0:  # the chunk may begin inside a long line: look at the whole segment
                    file.seek(0)
                    end = _scan(file.read())[1]
                if end < size:
                    file.seek(end)
                    with path.with_suffix(".torn").open("ab") as aside:
                        aside.write(file.read())
                        aside.flush()
                        os.fsync(aside.fileno())
                    file.truncate(end)
                    os.fsync(file.fileno())
                    torn.append(DamagedBytes(path.name, end, size - end))
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be recovered: {error}") from error
    return tuple(torn)


class EventLog:
    """The writer. An append is done when its records are on disk: one thread gathers what is queued meanwhile,
    writes it with one fsync, then answers all who wait (group commit).

    torn: what was cut off at opening; fault: why the last write failed, "" when it did not.
    Raises LogError when the folder cannot be made or recovered.
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
        """Queue records; the future is done when they are on disk, all of them, and fails with LogError otherwise."""
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
        """Return when the records are on disk. Raises LogError when they are not: none of them is accepted."""
        await asyncio.wrap_future(self.submit(records))

    def append_now(self, records: Sequence[Record]) -> None:
        """The same for callers without an event loop."""
        self.submit(records).result()

    def close(self) -> None:
        """Write what is queued and end the thread. Closing twice is fine."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                batch = list(self._queue)
                self._queue.clear()
                self._queued = 0
            if not batch:
                break
            wanted = [(data, future) for data, future in batch if future.set_running_or_notify_cancel()]
            try:
                self._write(b"".join(data for data, _ in wanted))
                self.fault = ""
            except Exception as error:  # a thread that ended here would leave every later append waiting for ever
                self.fault = str(error) or repr(error)
                self._abandon()
                for _, future in wanted:
                    future.set_exception(
                        LogError(f"the event log in {self.folder} cannot be written: {error}; nothing was accepted")
                    )
            else:
                for _, future in wanted:
                    future.set_result(None)
        if self._fd >= 0:
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        if self._fd < 0:
            self._begin()
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.fdatasync(self._fd)
        self._size += len(data)
        if self._size >= self._segment_bytes:
            os.close(self._fd)
            self._fd = -1

    def _begin(self) -> None:
        self._path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.log"
        self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = 0
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        sync(self.folder)

    def _abandon(self) -> None:
        """Take back a write that failed. After a failed fsync nobody knows what is on disk: begin another segment."""
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
            with suppress(OSError):  # of the write that failed, `fault` tells already
                os.close(fd)
