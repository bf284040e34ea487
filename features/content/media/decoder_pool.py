"""Strangers' files to arrays, in worker processes that bound what such a file can take: memory, time, a process."""

import pickle
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from features.content.media import fetch
from features.content.media.worker import OUT_OF_MEMORY, Prepare, Prepared, ReadSource, Worker, WorkerGone
from features.content.parts import Limits, Source
from features.errors import ContentError, DependencyError


class DecoderPool:
    """Worker processes that read sources and prepare arrays of them.

    prepare(data, limits) gives an array, or a tuple of arrays and Nones. It has to be picklable: a function of a
    module, or functools.partial of one. One Decoders may be used by many threads at once. Workers start when they
    are first needed, which takes about half a second each.
    """

    def __init__(
        self, workers: int = 1, *, memory: int = 2 * 2**30, seconds: float = 20.0, read: ReadSource = fetch.read
    ) -> None:
        """memory: bytes that a worker may take beyond what it has when it starts; seconds: for one source."""
        self.workers = workers
        self.memory = memory
        self.seconds = seconds
        self._read = read
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._running: set[Worker] = set()
        self._closed = threading.Event()
        # The kernel kills a worker when the thread that started it ends: these threads end when we close.
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
        """What `prepare` makes of each source, in their order; a ContentError where it cannot be had.

        A worker that a source kills, or that takes too much memory or time for it, is replaced. Sources are taken as
        results are asked for, at most `ahead` (default: two for each worker) in flight. Raises DependencyError when
        no worker can be started.
        """
        flying: deque[tuple[Source, Future[Prepared | ContentError]]] = deque()
        most = 2 * self.workers if ahead is None else max(1, ahead)
        try:
            for source in sources:
                if len(flying) >= most:
                    yield _outcome(*flying.popleft())
                flying.append((source, self._submit(prepare, source, limits)))
            while flying:
                yield _outcome(*flying.popleft())
        finally:
            for _, future in flying:
                future.cancel()

    def close(self) -> None:
        """Kill the workers; what is in flight becomes a ContentError. Closing twice is fine."""
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
                never: Future[Prepared | ContentError] = Future()
                never.cancel()
                return never
            if self._clock.ident is None:
                self._clock.start()
            return self._threads.submit(self._one, prepare, source, limits)

    def _one(self, prepare: Prepare, source: Source, limits: Limits) -> Prepared | ContentError:
        """One source, in the worker of this thread."""
        task = pickle.dumps((prepare, source, limits))
        for _ in range(2):
            worker = self._worker()
            try:
                result = worker.ask(task)
                return ContentError(result) if isinstance(result, str) else result
            except Exception as error:  # the worker is dead, or as good as dead
                why = self._why(worker, error)
                if not isinstance(error, WorkerGone):  # else not this source's doing
                    break
            finally:
                with self._lock:
                    worker.due = None
        return ContentError(f"{fetch.place(source)}: {why}")

    def _worker(self) -> Worker:
        """The worker of this thread, with its clock running."""
        worker: Worker | None = getattr(self._mine, "worker", None)
        if worker is None or not worker.alive():
            worker = self._mine.worker = self._start(worker)
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
                raise DependencyError(f"a worker process for decoding cannot be started: {error}") from error
            self._running.add(worker)
        if worker.comes_up():
            return worker
        with self._lock:
            self._running.discard(worker)
            worker.end()
        if self._closed.is_set():
            raise CancelledError
        raise DependencyError(
            "a worker process for decoding does not start: see what it wrote to stderr; a script that decodes needs "
            "`if __name__ == '__main__':` around its work"
        )

    def _why(self, worker: Worker, error: Exception) -> str:
        with self._lock:
            self._running.discard(worker)
            code = worker.end()
        if self._closed.is_set():
            return "not decoded, the decoders were closed"
        if worker.late:
            return f"not decoded within {self.seconds:g} s"
        if code == OUT_OF_MEMORY:
            return f"decoding it takes more than {self.memory:,} bytes of memory"
        return f"decoding it ended the worker process (exit code {code}, {type(error).__name__})"

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
        return ContentError(f"{fetch.place(source)}: not decoded, the decoders were closed")
