"""The writer of the event log: accepted events, exposures and item changes, on disk before the response is sent.

events/  exposures/  items/    the streams: append-only segments of lines, see `features.log.segments`
media/                         uploaded media of items, see `features.log.item_changes`
readers/                       positions of registered readers, see `features.log.readers`
"""

import asyncio
import errno
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

from features.errors import LogError, describe_os_error, detail
from features.files import sync
from features.log.records import STREAMS, Record, Stream, line, stream_of
from features.log.segments import check_writable, make_folder, mark_ended, new_segment_path, recover, segment_number

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
SEGMENT_SECONDS = 86_400
"""A segment is ended after a day, so that retention by age can delete it."""

PENDING_BYTES = 64 << 20
PROBE_SECONDS = 1.0
WRITE_TRIES = 3


class SegmentWriter:
    """Appends to the segments of one stream. Bytes count once they are committed; `abandon` takes the others back."""

    def __init__(self, folder: Path, stream: Stream, segment_bytes: int) -> None:
        self.folder = folder / stream
        self._log, self._stream, self._segment_bytes = folder, stream, segment_bytes
        self._fd = -1
        self._path = self.folder
        self._size = self._written = 0  # committed bytes of the open segment, and those written after them
        self._identity = _identity(self.folder)
        self.ends: dict[str, int] = {}
        """Segments that this writer has begun, the newest last -> bytes committed to them."""

    def write(self, data: bytes) -> None:
        """Write bytes, on disk when this returns, unless they are there since the last commit."""
        if self._written:
            return
        if self._fd < 0:
            self._start()
        remaining = memoryview(data)
        while remaining:
            n = os.write(self._fd, remaining)
            self._written += n
            remaining = remaining[n:]
        os.fdatasync(self._fd)

    def commit(self) -> None:
        """Keep what was written. Ends the segment when it is long or old enough."""
        self._size += self._written
        self.ends[self._path.name] = self._size
        self._written = 0
        self.end_if(self._size >= self._segment_bytes)

    def end_if(self, full: bool = False) -> None:
        """End the segment when it is full or a day old."""
        if self._fd >= 0 and (full or time.time_ns() - segment_number(self._path) >= SEGMENT_SECONDS * 10**9):
            self.end()

    def end(self) -> None:
        """End the segment."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            mark_ended(fd)
            os.close(fd)

    def abandon(self) -> None:
        """Undo a failed write and end the segment: after a failed fsync, its contents on disk are not known."""
        if self._fd < 0:
            return
        fd, self._fd, self._written = self._fd, -1, 0
        with suppress(OSError):  # the caller knows why the write failed
            os.ftruncate(fd, self._size)
            if not self._size:
                self._path.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(fd)

    def is_linked(self) -> bool:
        """Whether the open segment is still the file at its path."""
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return False

    def lost(self) -> Path | None:
        """The open segment or the folder when it was removed or moved away; None when it is there."""
        if self._fd >= 0 and not self.is_linked():
            return self._path
        return self.folder if self._fd < 0 and self._identity not in (None, _identity(self.folder)) else None

    def forget(self) -> None:
        """Give up a lost segment, and take the folder as it is now."""
        self.abandon()
        self._identity = _identity(self.folder)

    def _start(self) -> None:
        self._path = new_segment_path(self._log, self._stream)
        self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = 0
        self.ends[self._path.name] = 0
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        sync(self.folder)
        self._identity = _identity(self.folder)


class EventLog:
    """The writer. An append completes when its records are on disk.

    One thread writes all queued records with one fsync for each stream that they touch, then completes their futures
    (group commit).

    torn: the ends that opening the log cut off; fault: why the last write failed, "" after a successful write; loss:
    what was removed while the log was open, "" for nothing.
    Raises LogError when the folder cannot be created, recovered or written.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, pending_bytes: int = PENDING_BYTES
    ) -> None:
        self.folder = folder
        self.fault = self.loss = ""
        self._pending_bytes = pending_bytes
        check_writable(folder)
        self.torn = recover(folder)
        self._identity = _identity(folder)
        self._writers = {stream: SegmentWriter(folder, stream, segment_bytes) for stream in STREAMS}
        self._queue: deque[tuple[dict[Stream, bytes], Future[None]]] = deque()
        self._queued = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Record]) -> Future[None]:
        """Queue records. The future completes when all of them are on disk, and fails with LogError otherwise.

        Raises LogError when the log is closed or has too many bytes waiting.
        """
        lines: dict[Stream, list[bytes]] = {}
        for record in records:
            lines.setdefault(stream_of(record), []).append(line(record))
        data = {stream: b"".join(parts) for stream, parts in lines.items()}
        size = sum(map(len, data.values()))
        future: Future[None] = Future()
        with self._wake:
            if self._closing:
                raise LogError(f"the event log in {self.folder} is closed")
            if self._queued + size > self._pending_bytes:
                raise LogError(f"the event log in {self.folder} has {self._queued} bytes waiting: try again later")
            self._queue.append((data, future))
            self._queued += size
            self._wake.notify()
        return future

    async def append(self, records: Sequence[Record], within: float | None = None) -> None:
        """Return when the records are on disk. Raises LogError otherwise; then none of them is accepted.

        within: seconds in which their write must begin; a write that has begun is awaited. None: no limit.
        """
        future = self.submit(records)
        written = asyncio.wrap_future(future)
        if within is not None:
            await asyncio.wait({written}, timeout=within)
            if future.cancel():
                reason = f"did not take them within {within:.2g} s: nothing was accepted; try again later"
                raise LogError(f"the event log in {self.folder} {reason}")
        await written

    def append_now(self, records: Sequence[Record]) -> None:
        """`append` for callers without an event loop."""
        self.submit(records).result()

    def probe(self) -> None:
        """Update `fault` and `loss` without a record. Returns when the writer has looked, or after PROBE_SECONDS."""
        with suppress(LogError):
            wait([self.submit([])], PROBE_SECONDS)

    @property
    def waiting(self) -> tuple[int, int]:
        """Appends that wait for the writer, and their bytes."""
        return len(self._queue), self._queued

    def ends(self, stream: Stream) -> dict[str, int]:
        """The segments of a stream that this log has begun, the newest last -> bytes written to them."""
        return dict(self._writers[stream].ends)

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
            lines: dict[Stream, list[bytes]] = {}
            for data, _ in pending:
                for stream, part in data.items():
                    lines.setdefault(stream, []).append(part)
            try:
                self._write({stream: b"".join(parts) for stream, parts in lines.items()})
                self._set_fault(self._unwritable() if self.fault else "")
            except Exception as error:  # if the thread ended here, every later append would wait for ever
                for stream in lines:
                    self._writers[stream].abandon()
                self._set_fault(_describe(error))
                reason = f"cannot be written: {self.fault}; nothing was accepted"
                for _, future in pending:
                    future.set_exception(LogError(f"the event log in {self.folder} {reason}"))
            else:
                for _, future in pending:
                    future.set_result(None)
        for writer in self._writers.values():
            writer.end()

    def _write(self, data: Mapping[Stream, bytes]) -> None:
        """Write the bytes of each stream, on disk at the segments' paths when this returns, or raise.

        No data: only look whether writing is possible, and end segments that are a day old.
        """
        for _ in range(WRITE_TRIES):
            self._find_losses(data or self._writers)
            if not data:
                for writer in self._writers.values():
                    writer.end_if()
                return self._look()
            for stream, lines in data.items():
                self._writers[stream].write(lines)
            if all(self._writers[stream].is_linked() for stream in data):
                break
        else:
            raise FileNotFoundError(errno.ENOENT, "is removed again and again", str(self.folder))
        for stream in data:
            self._writers[stream].commit()
        return None

    def _set_fault(self, fault: str) -> None:
        """Set `fault`, and log that writing fails or works again."""
        if fault and not self.fault:
            logger.error("event log: nothing can be written: %s", fault)
        if self.fault and not fault:
            logger.warning("event log: writing works again")
        self.fault = fault

    def _find_losses(self, streams: Iterable[Stream]) -> None:
        """Leave segments, or folders, that were removed or moved away; nothing of the batch being written stays."""
        lost = [path for stream in streams if (path := self._writers[stream].lost()) is not None]
        if self._identity != _identity(self.folder):  # a segment says more than its folder
            lost = [*(path for path in lost if path.suffix == ".log"), self.folder]
        if not lost:
            return
        for writer in self._writers.values():
            if writer.lost() is not None:
                writer.forget()
        with suppress(OSError):  # the next write says why
            make_folder(self.folder)
        self._identity = _identity(self.folder)
        self.loss = (
            f"{lost[0]} was removed or moved while the service ran: put its files back into the folder, or restore a "
            "backup; events and items that were accepted before may be missing after a restart"
        )
        logger.error("event log: %s", self.loss)

    def _look(self) -> None:
        """Write a probe when something is, or looks, wrong. Raises LogError when it, or a stream, fails."""
        try:
            disk = os.statvfs(self.folder)
            doubtful = disk.f_bavail == 0 or not os.access(self.folder, os.W_OK) or not self.folder.is_dir()
        except OSError:
            doubtful = True
        if doubtful or self.fault:
            check_writable(self.folder)
            self._identity = _identity(self.folder)
        if fault := self._unwritable():
            raise LogError(fault)

    def _unwritable(self) -> str:
        """Why a stream can take no segment, though others may; "" when all can."""
        for writer in self._writers.values():
            if os.path.lexists(writer.folder) and not os.access(f"{writer.folder}/.", os.W_OK | os.X_OK):
                number = errno.EACCES if writer.folder.is_dir() else errno.ENOTDIR
                return describe_os_error(OSError(number, os.strerror(number), str(writer.folder)))
        return ""


def _describe(error: Exception) -> str:
    """Why a write failed."""
    if isinstance(error, OSError):
        return describe_os_error(error)
    return str(error) if isinstance(error, LogError) else f"the writer failed; restart the service{detail(error)}"


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None when it cannot be reached."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
