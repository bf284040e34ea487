"""Workers: results keep their order, none is lost, and a hostile file causes an error for that file only."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

import media
import numpy as np
import pytest

from features.content.media import worker as worker_module
from features.content.media.decode import decode_audio, decode_video
from features.content.media.decoder_pool import DecoderPool
from features.content.media.images import decode_image
from features.content.media.worker import ACCEPTED, Worker
from features.content.parts import Limits
from features.errors import ContentError, DependencyError

LIMITS = Limits()
MIB = 2**20


@pytest.fixture(scope="module")
def pool():
    with DecoderPool(2, memory=400 * MIB, seconds=20) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def strict_pool():
    with DecoderPool(1, memory=100 * MIB, seconds=1) as decoders:
        yield decoders


def as_texts(results):
    """Arrays decoded as text, and the messages of errors."""
    return [str(r) if isinstance(r, ContentError) else bytes(r).decode() for r in results]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


def test_results_keep_their_order(pool):
    commands = [b"sleep 0.3", *(f"order {i}".encode() for i in range(20)), b"fail for a reason", b"last"]
    expected = [o.decode() for o in commands]
    expected[-2] = "17 bytes: for a reason"
    assert as_texts(pool.map(media.run_command, commands, LIMITS, ahead=6)) == expected


def test_at_most_ahead_in_flight_and_nothing_before_the_first_result_is_requested():
    taken = []

    def sources():
        for i in range(10):
            taken.append(i)
            yield b"%d" % i

    with DecoderPool(1) as decoders:
        results = decoders.map(media.run_command, sources(), LIMITS, ahead=3)
        assert taken == []
        assert decoders._running == set()
        assert as_texts([next(results)]) == ["0"]
        assert taken == [0, 1, 2, 3]
        assert as_texts([next(results)]) == ["1"]
        assert taken == [0, 1, 2, 3, 4]
        assert isinstance(results, Generator)
        results.close()
        assert as_texts(decoders.map(media.run_command, [b"again"], LIMITS)) == ["again"]


def test_all_kinds_of_arrays_are_returned(pool):
    ((number, nothing, empty, transposed),) = pool.map(media.run_command, [b"several"], LIMITS)
    assert number.shape == ()
    assert number == 7
    assert nothing is None
    assert empty.shape == (0, 2)
    assert empty.dtype == np.int32
    np.testing.assert_array_equal(transposed, [[0, 3], [1, 4], [2, 5]])
    assert transposed.dtype == np.float32
    transposed[0] = 1  # the caller may write to the arrays
    (error,) = pool.map(media.run_command, [b"words"], LIMITS)
    assert str(error) == (
        "5 bytes: it cannot be prepared for its encoder; choose another file (TypeError: an array of <U5; supported "
        "types: uint8, int16, int32, int64, float16, float32, float64, bool)"
    )


def test_media_go_through(pool, tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(media.picture())
    (pixels,) = pool.map(partial(decode_image, side=32), [file], LIMITS)
    np.testing.assert_array_equal(pixels, decode_image(media.picture(), LIMITS, 32))
    video = media.video([10, 100], media.sine())
    ((shots, samples),) = pool.map(partial(decode_video, frames=2, side=32, rate=8_000, seconds=1.0), [video], LIMITS)
    expected = decode_video(video, LIMITS, 2, 32, 8_000, 1.0)
    np.testing.assert_array_equal(shots, expected[0])
    np.testing.assert_array_equal(samples, expected[1])


def test_errors_name_their_source(pool, tmp_path):
    damaged = tmp_path / "bad.jpg"
    damaged.write_bytes(media.picture()[:300])
    sources = [damaged, tmp_path / "none.jpg", "http://127.0.0.1/x", b"stumble over it"]
    first, *others = pool.map(partial(decode_image, side=32), sources[:3], LIMITS)
    assert str(first).startswith(f"{damaged}: the jpeg cannot be decoded")
    assert str(others[0]).startswith(f"{tmp_path}/none.jpg: no such file; check the path")
    assert str(others[1]).startswith("'http://127.0.0.1/x': URLs are not fetched here")
    assert as_texts(pool.map(media.run_command, sources[3:], LIMITS)) == [
        "15 bytes: it cannot be prepared for its encoder; choose another file (KeyError: 'over it')"
    ]


def test_a_source_that_ends_its_worker_does_not_affect_others(strict_pool):
    commands = [b"one", b"die", b"two", b"eat 300000000", b"three", b"sleep 60", b"four"]
    results = as_texts(strict_pool.map(media.run_command, commands, LIMITS))
    assert results[::2] == ["one", "two", "three", "four"]
    assert results[1] == "3 bytes: decoding ended the worker process (exit code -9, EOFError)"
    assert results[3] == "13 bytes: decoding takes more than 104,857,600 bytes of memory"
    assert results[5] == "8 bytes: not decoded within 1 s"


def test_bombs_in_little_memory(strict_pool):
    bombs = [media.png(11_000, 11_000, 1), media.png(30_000, 3_000, 1), media.endless_gif(10_000), media.picture()]
    *errors, pixels = strict_pool.map(partial(decode_image, side=224), bombs, LIMITS)
    assert [type(e) for e in errors] == [ContentError] * 3
    assert pixels.shape == (1, 64, 96, 3)
    hours = media.silent_flac(3 * 3600)  # 173 MB decoded
    listen = partial(decode_audio, rate=8_000, seconds=60.0)
    (samples,) = strict_pool.map(listen, [hours], Limits(seconds=1e5))
    assert samples.shape == (480_000,)
    large = media.png(9_000, 4_400, 8, 2)  # 119 MB decoded; within the limits of a picture
    (error,) = strict_pool.map(partial(decode_image, side=224), [large], LIMITS)
    assert "decoding takes more than" in str(error) or "MemoryError" in str(error)


def test_a_worker_is_limited(pool):
    (limits,) = pool.map(media.run_command, [b"self"], LIMITS)
    core, space, pid, threads = limits.tolist()
    assert core == 0
    assert 400 * MIB < space != resource.RLIM_INFINITY
    assert pid != os.getpid()
    assert threads == 1


def test_output_of_libraries_is_discarded(capfd):
    with DecoderPool(1) as decoders:
        assert as_texts(decoders.map(media.run_command, [b"shout at the operator"], LIMITS)) == [
            "shout at the operator"
        ]
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_died_while_idle_is_replaced(pool):
    for _ in range(2):
        (limits,) = pool.map(media.run_command, [b"self"], LIMITS)
        pid = int(limits[2])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not alive(pid))
    assert as_texts(pool.map(media.run_command, [b"a", b"b", b"c"], LIMITS)) == ["a", "b", "c"]


def test_many_threads_which_end(pool):
    results = {}

    def use(name):
        commands = [f"{name} {i}".encode() for i in range(10)]
        results[name] = as_texts(pool.map(media.run_command, commands, LIMITS))

    for _ in range(2):
        threads = [threading.Thread(target=use, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {name: [f"{name} {i}" for i in range(10)] for name in "abc"}


def test_close_returns_an_error_for_each_source_in_flight():
    decoders = DecoderPool(1)
    results = decoders.map(media.run_command, [b"first", b"sleep 60", b"third", b"fourth"], LIMITS, ahead=3)
    assert as_texts([next(results)]) == ["first"]
    pids = [w.process.pid for w in decoders._running]
    threading.Timer(0.2, decoders.close).start()
    assert as_texts(results) == [
        "8 bytes: not decoded, since the decoder pool was closed",
        "5 bytes: not decoded, since the decoder pool was closed",
        "6 bytes: not decoded, since the decoder pool was closed",
    ]
    decoders.close()
    assert not any(map(alive, pids))
    assert as_texts(decoders.map(media.run_command, [b"late"], LIMITS)) == [
        "4 bytes: not decoded, since the decoder pool was closed"
    ]


def test_workers_die_with_their_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import media, threading, time\n"
        "from features.content.parts import Limits\n"
        "from features.content.media.decoder_pool import DecoderPool\n"
        "if __name__ == '__main__':\n"
        "    d = DecoderPool(1)\n"
        "    (values,) = d.map(media.run_command, [b'self'], Limits())\n"
        "    threading.Thread(target=lambda: list(d.map(media.run_command, [b'sleep 30'], Limits()))).start()\n"
        "    time.sleep(0.3)\n"  # now the worker is busy and does not notice a closed pipe
        "    print(values[2], flush=True)\n"
    )
    paths = os.pathsep.join(str(p) for p in (Path(__file__).parent, Path(__file__).parent.parent))
    environment = os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_for(lambda: not alive(pid))


def test_workers_that_do_not_start(monkeypatch):
    monkeypatch.setattr(worker_module, "_work", os.abort)  # called with arguments: a TypeError in the child
    with (
        DecoderPool(1) as decoders,
        pytest.raises(DependencyError, match="does not start: see its output on stderr"),
    ):
        list(decoders.map(media.run_command, [b"x"], LIMITS))


def test_a_failed_restart_is_not_an_error_of_the_source(monkeypatch):
    with DecoderPool(1) as decoders:
        assert as_texts(decoders.map(media.run_command, [b"first"], LIMITS)) == ["first"]
        (worker,) = decoders._running
        worker.process.kill()
        worker.process.join()
        answers = iter([True])  # it dies after the check
        monkeypatch.setattr(Worker, "alive", lambda self: next(answers, False))
        monkeypatch.setattr(worker_module, "_work", os.abort)
        with pytest.raises(DependencyError, match="does not start"):
            list(decoders.map(media.run_command, [b"x"], LIMITS))


def test_a_system_that_cannot_start_a_worker(monkeypatch):
    def full(self, *_):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Worker, "__init__", full)
    with (
        DecoderPool(1) as decoders,
        pytest.raises(DependencyError, match=r"cannot be started: .*temporarily unavailable"),
    ):
        list(decoders.map(media.run_command, [b"x"], LIMITS))


def fake_worker(*messages, memory=1000):
    """(a worker that responds to a task with these messages, the other end of its pipe)."""
    worker = Worker.__new__(Worker)
    worker.memory = memory
    worker._pipe, worker_end = multiprocessing.Pipe()
    for message in (ACCEPTED, *messages):
        worker_end.send_bytes(message if isinstance(message, bytes) else json.dumps(message).encode())
    return worker, worker_end


@pytest.mark.parametrize(
    "messages",
    [
        [b""],
        [b"\x80\x04cos\nsystem\n."],
        [b"[" * 60_000],
        [b"x" * 70_000],
        [[]],
        [{}],
        [{"arrays": [], "tuple": False}],
        [{"arrays": [None], "tuple": False}],
        [{"arrays": [["uint8", [3]], ["uint8", [3]]], "tuple": False}, b"abc", b"abc"],
        [{"arrays": [["object", [3]]], "tuple": True}, b"abc"],
        [{"arrays": [["O8", [3]]], "tuple": True}, b"abc"],
        [{"arrays": [["uint8", [-3]]], "tuple": True}, b"abc"],
        [{"arrays": [["uint8", [-1, -3]]], "tuple": True}, b"abc"],
        [{"arrays": [["uint8", [1001]]], "tuple": True}, bytes(1001)],
        [{"arrays": [["float64", [126]]], "tuple": True}, bytes(1008)],
        [{"arrays": [["uint8", [600]], ["uint8", [600]]], "tuple": True}, bytes(600), bytes(600)],
        [{"arrays": [["uint8", [0, 2**70]]], "tuple": True}],
        [{"arrays": [["uint8", [2**40, 2**40]]], "tuple": True}],
        [{"arrays": [["uint8", [1] * 1000]], "tuple": True}, b"a"],
        [{"arrays": [["uint8", [3]]], "tuple": True}, b"ab"],
        [{"arrays": [["uint8", [3]]], "tuple": True}, b"abcd"],
        [{"arrays": [["uint8", 3]], "tuple": True}, b"abc"],
    ],
)
def test_invalid_messages_of_a_worker_are_rejected(messages):
    worker, worker_end = fake_worker(*messages)
    with worker_end, worker._pipe, pytest.raises(Exception):  # noqa: B017, PT011  # the pool catches every exception
        worker.ask(b"task")


def test_a_worker_that_stalls_during_a_response():
    with DecoderPool(1, seconds=0.5) as decoders:
        assert as_texts(decoders.map(media.run_command, [b"stall", b"next"], LIMITS)) == [
            "5 bytes: not decoded within 0.5 s",
            "next",
        ]
