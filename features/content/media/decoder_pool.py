"""Decodes untrusted files to arrays in worker processes with bounded memory and time."""

import pickle
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from features.content.media import fetch
from features.content.media.worker import OUT_OF_MEMORY, Prepare, Prepared, ReadSource, Worker, WorkerDiedError
from features.content.parts import Limits, Source
from features.errors import ContentError, DependencyError, describe_os_error


class DecoderPool:
    """Worker processes that read sources and turn them into arrays.

    prepare(data, limits) returns an array, or a tuple of arrays and Nones. It must be picklable: a function of a
    module, or functools.partial of one. Several threads may use one DecoderPool. A worker starts at its first task,
    which takes about half a second.
    """

    def __init__(
        self, workers: int = 1, *, memory: int = 2 * 2**30, seconds: float = 20.0, read: ReadSource = fetch.read
    ) -> None:
        """memory: bytes that a worker may allocate after its start; seconds: time limit of one source."""
        self.workers = workers
        self.memory = memory
        self.seconds = seconds
        self._read = read
        self._thread_local = threading.local()
        self._lock = threading.Lock()
        self._running: set[Worker] = set()
        self._closed = threading.Event()
        # The kernel kills a worker when the thread that started it ends; these threads end in `close`.
        self._threads = ThreadPoolExecutor(workers, "decoders")
        self._clock = threading.Thread(target=self._watch_clock, name="decoders-clock", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(
        self, prepare: Prepare, sources: Iterable[Source], limits: Limits, *, ahead: int | None = None
    ) -> Iterator[Prepared | ContentError]:
        """The result of `prepare` for each source, in order; a ContentError for a source that fails.

        A worker that crashes, or that exceeds the memory or time limit, is replaced. Sources are consumed lazily, at
        most `ahead` (default: two for each worker) in flight. Raises DependencyError when no worker can be started.
        """
        in_flight: deque[tuple[Source, Future[Prepared | ContentError]]] = deque()
        max_in_flight = 2 * self.workers if ahead is None else max(1, ahead)
        try:
            for source in sources:
                if len(in_flight) >= max_in_flight:
                    yield _outcome(*in_flight.popleft())
                in_flight.append((source, self._submit(prepare, source, limits)))
            while in_flight:
                yield _outcome(*in_flight.popleft())
        finally:
            for _, future in in_flight:
                future.cancel()

    def close(self) -> None:
        """Kill the workers; sources in flight become ContentErrors. May be called several times."""
        self._closed.set()
        with self._lock:
            for worker in self._running:
                worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._running:
            worker.end()
        self._running.clear()

    def _submit(self, prepare: Prepare, source: Source, limits: Limits) -> Future[Prepared | ContentError]:
        with self._lock:
            if self._closed.is_set():
                cancelled: Future[Prepared | ContentError] = Future()
                cancelled.cancel()
                return cancelled
            if self._clock.ident is None:
                self._clock.start()
            return self._threads.submit(self._decode, prepare, source, limits)

    def _decode(self, prepare: Prepare, source: Source, limits: Limits) -> Prepared | ContentError:
        """Decode one source in the worker of this thread."""
        task = pickle.dumps((prepare, source, limits))
        for _ in range(2):
            worker = self._worker()
            try:
                result = worker.ask(task)
                return ContentError(result) if isinstance(result, str) else result
            except Exception as error:  # the worker has died or sends invalid data
                reason = self._end(worker, error)
                if not isinstance(
                    error, WorkerDiedError
                ):  # WorkerDiedError: it died before this source, try once more
                    break
            finally:
                with self._lock:
                    worker.due = None
        return ContentError(f"{fetch.place(source)}: {reason}")

    def _worker(self) -> Worker:
        """The worker of this thread, started if necessary; its time limit runs from now."""
        worker: Worker | None = getattr(self._thread_local, "worker", None)
        if worker is None or not worker.alive():
            worker = self._thread_local.worker = self._start(worker)
        with self._lock:
            worker.due = time.monotonic() + self.seconds
        return worker

    def _start(self, old: Worker | None) -> Worker:
        with self._lock:
            if old is not None:
                self._running.discard(old)
                old.end()
            if self._closed.is_set():
                raise CancelledError
            try:
                worker = Worker(self._read, self.memory)
            except OSError as error:
                raise DependencyError(
                    f"a worker process for decoding cannot be started: {describe_os_error(error)}"
                ) from error
            self._running.add(worker)
        if worker.wait_until_ready():
            return worker
        with self._lock:
            self._running.discard(worker)
            worker.end()
        if self._closed.is_set():
            raise CancelledError
        raise DependencyError(
            "a worker process for decoding does not start: see its output on stderr; a script that decodes needs "
            "`if __name__ == '__main__':` around its work"
        )

    def _end(self, worker: Worker, error: Exception) -> str:
        """End a worker and return the reason of its failure."""
        with self._lock:
            self._running.discard(worker)
            code = worker.end()
        if self._closed.is_set():
            return "not decoded, since the decoder pool was closed"
        if worker.late:
            return f"not decoded within {self.seconds:g} s"
        if code == OUT_OF_MEMORY:
            return f"decoding takes more than {self.memory:,} bytes of memory"
        return f"decoding ended the worker process (exit code {code}, {type(error).__name__})"

    def _watch_clock(self) -> None:
        while not self._closed.wait(0.05):
            now = time.monotonic()
            with self._lock:
                for worker in self._running:
                    if worker.due is not None and now > worker.due:
                        worker.late = True
                        worker.process.kill()


def _outcome(source: Source, future: Future[Prepared | ContentError]) -> Prepared | ContentError:
    try:
        return future.result()
    except CancelledError:
        return ContentError(f"{fetch.place(source)}: not decoded, since the decoder pool was closed")
