"""The decoder pool with stand-ins for its workers: what becomes of one that does not start, dies or is late."""

import json
import pickle
import time
from typing import Any

import numpy as np
import pytest

from features.content.media import decoder_pool as module
from features.content.media.decoder_pool import DecoderPool
from features.content.media.worker import OUT_OF_MEMORY, WorkerDiedError, _respond
from features.content.parts import Limits
from features.errors import ContentError, DependencyError


class Process:
    def kill(self) -> None:
        pass


class StandIn:
    """A worker whose answers are scripted; `made` are all of them."""

    made: list["StandIn"]
    answers: list[Any]
    ready = True
    code = 1

    def __init__(self, read: Any, memory: int) -> None:
        self.memory, self.due, self.late, self.ended, self.process = memory, None, False, False, Process()
        self.made.append(self)

    def wait_until_ready(self) -> bool:
        return self.ready

    def alive(self) -> bool:
        return not self.ended

    def end(self) -> int:
        self.ended = True
        return self.code

    def ask(self, task: bytes) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    kind = type("Worker", (StandIn,), {"made": [], "answers": []})
    monkeypatch.setattr(module, "Worker", kind)
    return kind


def decoded(*sources: bytes, **options: Any) -> list[Any]:
    with DecoderPool(**options) as pool:
        return [str(found) for found in pool.map(None, sources, Limits())]  # type: ignore[arg-type]


def test_the_defaults() -> None:
    pool = DecoderPool()
    assert (pool.workers, pool.memory, pool.seconds) == (1, 2_147_483_648, 20.0)
    pool.close()


def test_a_worker_that_does_not_start_is_ended(worker: type[StandIn]) -> None:
    worker.ready = False
    with DecoderPool() as pool, pytest.raises(DependencyError) as caught:
        list(pool.map(None, [b"x"], Limits()))  # type: ignore[arg-type]
    assert "does not start: see its output on stderr; a script that decodes needs" in str(caught.value)
    (made,) = worker.made
    assert made.ended


def test_a_worker_that_died_before_a_source_is_replaced_once(worker: type[StandIn]) -> None:
    worker.answers = [WorkerDiedError(), "read"]
    assert decoded(b"x") == ["read"]
    assert [made.ended for made in worker.made] == [True, True]
    worker.made.clear()
    worker.answers = [WorkerDiedError(), WorkerDiedError(), "read"]
    assert decoded(b"x") == ["1 bytes: decoding ended the worker process (exit code 1, WorkerDiedError)"]
    assert len(worker.made) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (OUT_OF_MEMORY, "decoding takes more than 1,000 bytes of memory"),
        (7, "decoding ended the worker process (exit code 7, EOFError)"),
    ],
)
def test_a_source_that_ends_its_worker_is_not_tried_again(worker: type[StandIn], code: int, reason: str) -> None:
    worker.code = code
    worker.answers = [EOFError(), "read"]
    assert decoded(b"xx", b"y", memory=1_000) == [f"2 bytes: {reason}", "read"]
    assert [made.memory for made in worker.made] == [1_000, 1_000]


def test_a_late_source_is_named_with_the_limit(worker: type[StandIn]) -> None:
    def late(self: StandIn, task: bytes) -> Any:
        deadline = time.monotonic() + 20
        while not self.late:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise EOFError

    worker.ask = late  # type: ignore[method-assign]
    assert decoded(b"x", seconds=0.25) == ["1 bytes: not decoded within 0.25 s"]


def test_an_error_of_the_worker_is_an_error_of_the_source(worker: type[StandIn]) -> None:
    worker.answers = ["a.jpg: damaged", ("array",)]
    with DecoderPool() as pool:
        first, second = pool.map(None, [b"x", b"y"], Limits())  # type: ignore[arg-type]
    assert isinstance(first, ContentError)
    assert str(first) == "a.jpg: damaged"
    assert second == ("array",)
    assert worker.made[0].due is None  # nothing is timed while it waits


def test_a_closed_pool_reads_nothing(worker: type[StandIn]) -> None:
    pool = DecoderPool()
    pool.close()
    pool.close()
    found = list(pool.map(None, [b"xy"], Limits()))  # type: ignore[arg-type]
    assert [str(error) for error in found] == ["2 bytes: not decoded, since the decoder pool was closed"]
    assert worker.made == []


class Pipe:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send_bytes(self, data: Any) -> None:
        self.sent.append(bytes(data))


def answered(read: Any, prepare: Any = None, source: Any = b"xyz") -> list[Any]:
    """What a worker sends for one source."""
    pipe: Any = Pipe()
    _respond(pipe, pickle.dumps((prepare, source, Limits())), read)
    return [json.loads(pipe.sent[0]), *pipe.sent[1:]]


def raises(error: Exception) -> Any:
    def read(*_: Any) -> Any:
        raise error

    return read


def test_a_reader_names_the_source_itself_and_a_decoder_does_not() -> None:
    assert answered(raises(ContentError("a.jpg: gone"))) == [{"error": "a.jpg: gone"}]
    assert answered(raises(KeyError("k"))) == [
        {"error": "it cannot be prepared for its encoder; choose another file (KeyError: 'k')"}
    ]
    assert answered(lambda source, limits: b"", None) == [
        {
            "error": "3 bytes: it cannot be prepared for its encoder; choose another file (TypeError: 'NoneType' "
            "object is not callable)"
        }
    ]
    (long,) = answered(raises(ContentError("x" * 3_000)))
    assert long == {"error": "x" * 2_000}
    with pytest.raises(MemoryError):
        answered(raises(MemoryError()))


def one(data: bytes, limits: Limits) -> Any:
    return np.frombuffer(data, np.uint8)


def several(data: bytes, limits: Limits) -> Any:
    return np.frombuffer(data, np.uint8), None, np.zeros((0, 2), np.float32), np.arange(2, dtype=">f4")


def unknown(data: bytes, limits: Limits) -> Any:
    return np.array([1 + 2j])


def test_arrays_are_sent_with_their_shapes() -> None:
    def read(source: bytes, limits: Limits) -> bytes:
        return source

    assert answered(read, one) == [{"arrays": [["uint8", [3]]], "tuple": False}, b"xyz"]
    assert answered(read, several) == [
        {"arrays": [["uint8", [3]], None, ["float32", [0, 2]], ["float32", [2]]], "tuple": True},
        b"xyz",
        np.arange(2, dtype="<f4").tobytes(),  # an empty array sends nothing
    ]
    (refused,) = answered(read, unknown)
    assert refused["error"].startswith(
        "3 bytes: it cannot be prepared for its encoder; choose another file (TypeError: an array of complex128; "
    )
