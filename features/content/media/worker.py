"""One worker process that handles strangers' files: limited memory, no core dump, and it dies with its parent.

It is started anew, never forked. What it sends back is read as plain arrays, never unpickled: it has handled hostile
bytes, and its parent believes it nothing.
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
from features.errors import ContentError

Array = npt.NDArray[Any]
Prepared = Array | tuple[Array | None, ...]
Prepare = Callable[[bytes, Limits], Prepared]
ReadSource = Callable[[Source, Limits], bytes]

START_SECONDS = 60.0

OUT_OF_MEMORY = 77
"""Exit code of a worker that wanted more memory than it may have."""

_DTYPES = ("uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
_HEADER_BYTES = 2**16
_SPAWN = multiprocessing.get_context("spawn")


ACCEPTED = b"taken"
"""What a worker says before it looks at its task: from here on the task is to blame."""


class WorkerGone(Exception):
    """The worker had died before it was asked."""


class Worker:
    """The process and the pipe to it, seen from the thread that started it, which has to outlive it."""

    def __init__(self, read: ReadSource, memory: int) -> None:
        """memory: bytes of address space beyond what the process has when it starts."""
        self.memory = memory
        self.due: float | None = None
        """When its present task has to be done, on the monotonic clock."""
        self.late = False
        """Whether it was killed for being late."""
        self._pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(theirs, read, memory, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()

    def comes_up(self) -> bool:
        """Waits until it is ready; False when it never will be."""
        try:
            return self._pipe.poll(START_SECONDS) and self._pipe.recv_bytes(_HEADER_BYTES) == b"ready"
        except (OSError, EOFError):
            return False

    def alive(self) -> bool:
        """Whether it may be given a task."""
        return not self.late and self.process.is_alive()

    def end(self) -> int | None:
        """Kill it where that is still needed; its exit code."""
        self.process.kill()
        self.process.join()
        self._pipe.close()
        return self.process.exitcode

    def ask(self, task: bytes) -> Prepared | str:
        """Its arrays for a task, pickled (prepare, source, limits), or why there are none.

        Raises WorkerGone when it had died before, and whatever comes of a worker that dies of it or talks nonsense.
        """
        try:
            self._pipe.send_bytes(task)
            self._pipe.recv_bytes(len(ACCEPTED))
        except (OSError, EOFError) as gone:
            raise WorkerGone from gone
        told = json.loads(self._pipe.recv_bytes(_HEADER_BYTES))
        if (error := told.get("error")) is not None:
            return str(error)
        left = self.memory
        arrays: list[Array | None] = []
        for described in told["arrays"]:
            if described is None:
                arrays.append(None)
                continue
            name, shape = str(described[0]), tuple(int(n) for n in described[1])
            size = np.dtype(name).itemsize if name in _DTYPES else left + 1
            for n in shape:
                size *= n
            if min(shape, default=0) < 0 or (left := left - size) < 0:
                raise ValueError(f"an array of {name} {shape}")
            arrays.append(self._array(name, shape))
        if told["tuple"]:
            return tuple(arrays)
        (only,) = arrays
        if only is None:
            raise ValueError("no array")
        return only

    def _array(self, name: str, shape: tuple[int, ...]) -> Array:
        out = np.empty(shape, dtype=name)
        if out.nbytes and self._pipe.recv_bytes_into(_raw(out)) != out.nbytes:
            raise ValueError("an array cut short")
        return out


def _raw(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _work(pipe: Connection, read: ReadSource, memory: int, parent: int) -> None:
    """The life of a worker."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import features.content.media.decode  # noqa: F401  # its libraries belong to what the process has at the start

    with open("/proc/self/statm") as pages:
        most = int(pages.read().split()[0]) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send_bytes(b"ready")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for chatter in (1, 2):  # some of these libraries print what they think of a file
        os.dup2(nowhere, chatter)
    with threadpool_limits(1):
        while True:
            try:
                task = pipe.recv_bytes()
                pipe.send_bytes(ACCEPTED)
                _answer(pipe, task, read)
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return


def _answer(pipe: Connection, task: bytes, read: ReadSource) -> None:
    where = ""
    try:
        prepare, source, limits = pickle.loads(task)
        data = read(source, limits)  # which names the source itself when it fails
        where = f"{place(source)}: "
        made = prepare(data, limits)
        arrays = [_plain(array) for array in (made if isinstance(made, tuple) else [made])]
    except MemoryError:
        raise
    except Exception as error:
        told = str(error) if isinstance(error, ContentError) else f"{type(error).__name__}: {error}"
        pipe.send_bytes(json.dumps({"error": (where + told)[:2000]}).encode())
        return
    described = [None if array is None else [array.dtype.name, array.shape] for array in arrays]
    pipe.send_bytes(json.dumps({"arrays": described, "tuple": isinstance(made, tuple)}).encode())
    for array in arrays:
        if array is not None and array.nbytes:
            pipe.send_bytes(_raw(array))


def _plain(array: Array | None) -> Array | None:
    if array is None:
        return None
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"an array of {array.dtype}; what can be sent: {', '.join(_DTYPES)}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
