"""Workers: order is kept, nothing is lost, and what a hostile file does to one of them is told of that file alone."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
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
def two():
    with DecoderPool(2, memory=400 * MIB, seconds=20) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def strict():
    with DecoderPool(1, memory=100 * MIB, seconds=1) as decoders:
        yield decoders


def told(results):
    """Arrays as text, errors as they are."""
    return [str(r) if isinstance(r, ContentError) else bytes(r).decode() for r in results]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(what):
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def test_order_is_kept(two):
    orders = [b"sleep 0.3", *(f"order {i}".encode() for i in range(20)), b"fail for a reason", b"last"]
    expected = [o.decode() for o in orders]
    expected[-2] = "17 bytes: for a reason"
    assert told(two.map(media.obey, orders, LIMITS, ahead=6)) == expected


def test_at_most_ahead_in_flight_and_nothing_before_it_is_asked_for():
    taken = []

    def sources():
        for i in range(10):
            taken.append(i)
            yield b"%d" % i

    with DecoderPool(1) as decoders:
        results = decoders.map(media.obey, sources(), LIMITS, ahead=3)
        assert taken == []
        assert decoders._running == set()
        assert bytes(next(results)) == b"0"
        assert taken == [0, 1, 2, 3]
        assert bytes(next(results)) == b"1"
        assert taken == [0, 1, 2, 3, 4]
        results.close()
        assert told(decoders.map(media.obey, [b"again"], LIMITS)) == ["again"]


def test_all_kinds_of_arrays_come_back(two):
    ((number, nothing, empty, turned),) = two.map(media.obey, [b"several"], LIMITS)
    assert number.shape == ()
    assert number == 7
    assert nothing is None
    assert empty.shape == (0, 2)
    assert empty.dtype == np.int32
    np.testing.assert_array_equal(turned, [[0, 3], [1, 4], [2, 5]])
    assert turned.dtype == np.float32
    turned[0] = 1  # they are ours to write on
    (error,) = two.map(media.obey, [b"words"], LIMITS)
    assert str(error) == (
        "5 bytes: TypeError: an array of <U5; what can be sent: "
        "uint8, int16, int32, int64, float16, float32, float64, bool"
    )


def test_media_go_through(two, tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(media.picture())
    (pixels,) = two.map(partial(decode_image, side=32), [file], LIMITS)
    np.testing.assert_array_equal(pixels, decode_image(media.picture(), LIMITS, 32))
    video = media.video([10, 100], media.sine())
    ((shots, samples),) = two.map(partial(decode_video, frames=2, side=32, rate=8_000, seconds=1.0), [video], LIMITS)
    expected = decode_video(video, LIMITS, 2, 32, 8_000, 1.0)
    np.testing.assert_array_equal(shots, expected[0])
    np.testing.assert_array_equal(samples, expected[1])


def test_errors_name_their_source(two, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(media.picture()[:300])
    sources = [bad, tmp_path / "none.jpg", "http://127.0.0.1/x", b"stumble over it"]
    first, *others = two.map(partial(decode_image, side=32), sources[:3], LIMITS)
    assert str(first).startswith(f"{bad}: the jpeg cannot be decoded")
    assert str(others[0]).startswith(f"{tmp_path}/none.jpg: cannot be read")
    assert str(others[1]).startswith("'http://127.0.0.1/x': URLs are not fetched here")
    assert told(two.map(media.obey, sources[3:], LIMITS)) == ["15 bytes: KeyError: 'over it'"]


def test_a_source_that_ends_its_worker_harms_no_other(strict):
    orders = [b"one", b"die", b"two", b"eat 300000000", b"three", b"sleep 60", b"four"]
    results = told(strict.map(media.obey, orders, LIMITS))
    assert results[::2] == ["one", "two", "three", "four"]
    assert results[1] == "3 bytes: decoding it ended the worker process (exit code -9, EOFError)"
    assert results[3] == "13 bytes: decoding it takes more than 104,857,600 bytes of memory"
    assert results[5] == "8 bytes: not decoded within 1 s"


def test_bombs_in_little_memory(strict):
    bombs = [media.png(11_000, 11_000, 1), media.png(30_000, 3_000, 1), media.endless_gif(10_000), media.picture()]
    *errors, pixels = strict.map(partial(decode_image, side=224), bombs, LIMITS)
    assert [type(e) for e in errors] == [ContentError] * 3
    assert pixels.shape == (1, 64, 96, 3)
    hours = media.silent_flac(3 * 3600)  # 173 MB, decoded
    listen = partial(decode_audio, rate=8_000, seconds=60.0)
    (samples,) = strict.map(listen, [hours], Limits(seconds=1e5))
    assert samples.shape == (480_000,)
    large = media.png(9_000, 4_400, 8, 2)  # within the limits of a picture, 119 MB, decoded
    (error,) = strict.map(partial(decode_image, side=224), [large], LIMITS)
    assert "decoding it takes more than" in str(error) or "MemoryError" in str(error)


def test_a_worker_is_limited(two):
    (found,) = two.map(media.obey, [b"self"], LIMITS)
    core, space, pid, threads = found.tolist()
    assert core == 0
    assert 400 * MIB < space != resource.RLIM_INFINITY
    assert pid != os.getpid()
    assert threads == 1


def test_what_libraries_print_about_a_file_goes_nowhere(capfd):
    with DecoderPool(1) as decoders:
        assert told(decoders.map(media.obey, [b"shout at the operator"], LIMITS)) == ["shout at the operator"]
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_died_at_rest_is_replaced(two):
    for _ in range(2):
        (found,) = two.map(media.obey, [b"self"], LIMITS)
        pid = int(found[2])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not alive(pid))
    assert told(two.map(media.obey, [b"a", b"b", b"c"], LIMITS)) == ["a", "b", "c"]


def test_many_threads_which_end(two):
    results = {}

    def use(name):
        orders = [f"{name} {i}".encode() for i in range(10)]
        results[name] = told(two.map(media.obey, orders, LIMITS))

    for _ in range(2):
        threads = [threading.Thread(target=use, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {name: [f"{name} {i}" for i in range(10)] for name in "abc"}


def test_closing_loses_nothing():
    decoders = DecoderPool(1)
    results = decoders.map(media.obey, [b"first", b"sleep 60", b"third", b"fourth"], LIMITS, ahead=3)
    assert bytes(next(results)) == b"first"
    pids = [w.process.pid for w in decoders._running]
    threading.Timer(0.2, decoders.close).start()
    assert told(results) == [
        "8 bytes: not decoded, the decoders were closed",
        "5 bytes: not decoded, the decoders were closed",
        "6 bytes: not decoded, the decoders were closed",
    ]
    decoders.close()
    assert not any(map(alive, pids))
    assert told(decoders.map(media.obey, [b"late"], LIMITS)) == ["4 bytes: not decoded, the decoders were closed"]


def test_workers_die_with_their_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import media, threading, time\n"
        "from features.content.parts import Limits\n"
        "from features.content.media.decoder_pool import DecoderPool\n"
        "if __name__ == '__main__':\n"
        "    d = DecoderPool(1)\n"
        "    (found,) = d.map(media.obey, [b'self'], Limits())\n"
        "    threading.Thread(target=lambda: list(d.map(media.obey, [b'sleep 30'], Limits()))).start()\n"
        "    time.sleep(0.3)\n"  # now the worker is busy, and would not see that nobody listens any more
        "    print(found[2], flush=True)\n"
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
        pytest.raises(DependencyError, match="does not start: see what it wrote to stderr"),
    ):
        list(decoders.map(media.obey, [b"x"], LIMITS))


def test_a_source_is_not_blamed_for_a_worker_that_does_not_start_again(monkeypatch):
    with DecoderPool(1) as decoders:
        assert told(decoders.map(media.obey, [b"first"], LIMITS)) == ["first"]
        (worker,) = decoders._running
        worker.process.kill()
        worker.process.join()
        looks = iter([True])  # it died a moment after it was looked at
        monkeypatch.setattr(Worker, "alive", lambda self: next(looks, False))
        monkeypatch.setattr(worker_module, "_work", os.abort)
        with pytest.raises(DependencyError, match="does not start"):
            list(decoders.map(media.obey, [b"x"], LIMITS))


def test_a_system_without_room_for_a_worker(monkeypatch):
    def full(self, *_):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Worker, "__init__", full)
    with (
        DecoderPool(1) as decoders,
        pytest.raises(DependencyError, match=r"cannot be started: .*temporarily unavailable"),
    ):
        list(decoders.map(media.obey, [b"x"], LIMITS))


def liar(*messages, memory=1000):
    """A worker that answers anything with these messages and then hangs up."""
    made = Worker.__new__(Worker)
    made.memory = memory
    made._pipe, theirs = multiprocessing.Pipe()
    for message in (ACCEPTED, *messages):
        theirs.send_bytes(message if isinstance(message, bytes) else json.dumps(message).encode())
    made.theirs = theirs
    return made


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
def test_a_worker_is_not_believed(messages):
    lying = liar(*messages)
    with lying.theirs, lying._pipe, pytest.raises(Exception):  # noqa: B017, PT011  # whatever it is, it is caught above
        lying.ask(b"task")


def test_a_worker_that_hangs_in_the_middle_of_an_answer():
    with DecoderPool(1, seconds=0.5) as decoders:
        assert told(decoders.map(media.obey, [b"stall", b"next"], LIMITS)) == [
            "5 bytes: not decoded within 0.5 s",
            "next",
        ]
