"""A worker process that decodes untrusted files: limited memory, no core dump, killed when its parent ends.

The process is spawned, never forked. It may be compromised by hostile bytes. Therefore the parent never unpickles its
results: it reads them as plain arrays and checks their sizes.
"""

import ctypes
import json
import multiprocessing
import os
import pickle
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from features.content.media.fetch import place
from features.content.parts import Limits, Source
from features.errors import ContentError, detail

Array = npt.NDArray[Any]
Prepared = Array | tuple[Array | None, ...]
Prepare = Callable[[bytes, Limits], Prepared]
ReadSource = Callable[[Source, Limits], bytes]

START_SECONDS = 60.0

OUT_OF_MEMORY = 77
"""Exit code of a worker that exceeded its memory limit."""

_DTYPES = ("uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
_HEADER_BYTES = 2**16
_SPAWN = multiprocessing.get_context("spawn")


ACCEPTED = b"taken"
"""Message of a worker before it unpickles its task: a crash after this message is caused by the task."""


class WorkerDiedError(Exception):
    """The worker died before it accepted the task."""


class Worker:
    """A worker process and the pipe to it. The thread that starts the process must outlive it."""

    def __init__(self, read: ReadSource, memory: int) -> None:
        """memory: bytes of address space that the process may allocate after its start."""
        self.memory = memory
        self.due: float | None = None
        """Deadline of its current task, on the monotonic clock; None between tasks."""
        self.late = False
        """Whether it was killed because it missed the deadline."""
        self._pipe, worker_end = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(worker_end, read, memory, os.getpid()), daemon=True)
        self.process.start()
        worker_end.close()

    def wait_until_ready(self) -> bool:
        """Waits until the process is ready; False if it fails to start."""
        try:
            return self._pipe.poll(START_SECONDS) and self._pipe.recv_bytes(_HEADER_BYTES) == b"ready"
        except (OSError, EOFError):
            return False

    def alive(self) -> bool:
        """Whether it may be given a task."""
        return not self.late and self.process.is_alive()

    def end(self) -> int | None:
        """Kill the process if it still runs; returns its exit code."""
        self.process.kill()
        self.process.join()
        self._pipe.close()
        return self.process.exitcode

    def ask(self, task: bytes) -> Prepared | str:
        """The arrays for a task (a pickled (prepare, source, limits)), or the reason of the failure.

        Raises WorkerDiedError when the worker died before it accepted the task, and OSError, EOFError, ValueError or
        another exception when it dies during the task or sends invalid data.
        """
        try:
            self._pipe.send_bytes(task)
            self._pipe.recv_bytes(len(ACCEPTED))
        except (OSError, EOFError) as error:
            raise WorkerDiedError from error
        header = json.loads(self._pipe.recv_bytes(_HEADER_BYTES))
        if (reason := header.get("error")) is not None:
            return str(reason)
        remaining = self.memory
        arrays: list[Array | None] = []
        for description in header["arrays"]:
            if description is None:
                arrays.append(None)
                continue
            name, shape = str(description[0]), tuple(int(n) for n in description[1])
            size = np.dtype(name).itemsize if name in _DTYPES else remaining + 1
            for n in shape:
                size *= n
            if min(shape, default=0) < 0 or (remaining := remaining - size) < 0:
                raise ValueError(f"an array of {name} {shape}")
            arrays.append(self._array(name, shape))
        if header["tuple"]:
            return tuple(arrays)
        (array,) = arrays
        if array is None:
            raise ValueError("no array")
        return array

    def _array(self, name: str, shape: tuple[int, ...]) -> Array:
        out = np.empty(shape, dtype=name)
        if out.nbytes and self._pipe.recv_bytes_into(_raw(out)) != out.nbytes:
            raise ValueError("an array cut short")
        return out


def _raw(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _work(pipe: Connection, read: ReadSource, memory: int, parent: int) -> None:
    """Main function of the worker process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the workers
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import features.content.media.decode  # noqa: F401  # loads its libraries before the limit is set

    with open("/proc/self/statm") as pages:
        max_bytes = int(pages.read().split()[0]) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send_bytes(b"ready")
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # some of these libraries print warnings about a file
        os.dup2(null, descriptor)
    with threadpool_limits(1):
        while True:
            try:
                task = pipe.recv_bytes()
                pipe.send_bytes(ACCEPTED)
                _respond(pipe, task, read)
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return


def _respond(pipe: Connection, task: bytes, read: ReadSource) -> None:
    location = ""
    try:
        prepare, source, limits = pickle.loads(task)
        data = read(source, limits)  # its errors name the source themselves
        location = f"{place(source)}: "
        result = prepare(data, limits)
        arrays = [_plain(array) for array in (result if isinstance(result, tuple) else [result])]
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error)
        if not isinstance(error, ContentError):
            reason = f"it cannot be prepared for its encoder; choose another file{detail(error)}"
        pipe.send_bytes(json.dumps({"error": (location + reason)[:2000]}).encode())
        return
    descriptions = [None if array is None else [array.dtype.name, array.shape] for array in arrays]
    pipe.send_bytes(json.dumps({"arrays": descriptions, "tuple": isinstance(result, tuple)}).encode())
    for array in arrays:
        if array is not None and array.nbytes:
            pipe.send_bytes(_raw(array))


def _plain(array: Array | None) -> Array | None:
    if array is None:
        return None
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"an array of {array.dtype}; supported types: {', '.join(_DTYPES)}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
