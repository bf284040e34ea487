"""The service under load: the load against a server whose answers are known, figures by hand, one short run."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

from experiments.bench.serve import benchmark
from experiments.bench.serve.parts import STAGES
from experiments.bench.serve.service import EMPTY, RECOMMEND, Answers, Cores, Service, on_cores
from features.errors import ConfigError, RecsysError


class Handler(BaseHTTPRequestHandler):
    """Answers users by their names: busy, broken, popular, or as it should. Notes keys and bodies."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str | None, bytes]]] = []

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, asked: bytes) -> None:
        self.seen.append((self.path, self.headers["Authorization"], asked))
        if b"broken" in asked:
            self.close_connection = True
            self.connection.close()
            return
        text = b'{"source":"popular","degraded":[],"items":[]}' if b"popular" in asked else b""
        text = text or b'{"source":"model","degraded":[],"items":[]}'
        self.send_response(503 if b"busy" in asked else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def fake() -> Iterator[Service]:
    """A service that is answered by `Handler`."""
    Handler.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield Service(os.getpid(), address, "secret", "", frozenset(os.sched_getaffinity(0)))
        server.shutdown()


def test_an_open_load_asks_whatever_the_answers(fake: Service) -> None:
    arrivals = [0.0, 0.01, 0.02, 0.05, 0.05]
    users = ["ann", "busy", "popular", "broken", "bob"]
    answers = fake.load(RECOMMEND, users, arrivals=arrivals)
    assert (answers.asked, sorted(answers.status.tolist())) == (5, [0, 200, 200, 200, 503])
    assert (answers.accepted.sum(), answers.refused.sum(), answers.whole[answers.accepted].sum()) == (3, 1, 2)
    assert (np.sort(answers.at) > np.array(arrivals) - 0.002).all()  # the clock of the loop counts milliseconds
    assert sorted((answers.at - answers.late).tolist()) == pytest.approx(arrivals)
    assert {key for _, key, _ in Handler.seen} == {"Bearer secret"}
    assert sorted(body for _, _, body in Handler.seen) == sorted(
        f'{{"user_id": "{user}", "limit": 20}}'.encode() for user in users
    )


def test_closed_clients_ask_in_turn(fake: Service) -> None:
    answers = fake.load(RECOMMEND, ["ann", "bob"], clients=1, seconds=0.2)
    assert answers.asked == len(answers) == len(Handler.seen) > 2
    assert [b"ann" in body for _, _, body in Handler.seen[:4]] == [True, False, True, False]
    ends = (answers.at + answers.seconds)[:-1]
    assert (answers.at[1:] >= ends).all()  # one client: never two at once
    assert (answers.at < 0.2).all()
    Handler.seen.clear()
    fake.load(EMPTY, ["ann"], clients=2, seconds=0.1)
    assert {(path, body) for path, _, body in Handler.seen} == {(EMPTY, b"")}


def test_a_load_that_fails_is_an_error(fake: Service) -> None:
    with pytest.raises(RecsysError, match="the load failed"):
        fake.load(RECOMMEND, ["ann"], arrivals="never")


def test_processor_time_and_memory_of_all_processes(fake: Service) -> None:
    program = "import time\nwhile time.process_time() < .3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        before = time.process_time()
        child.stdout.readline()
        assert child.pid in fake.processes()
        assert fake.processes()[0] == os.getpid()
        assert fake.cpu_seconds() >= before + 0.25  # ticks of 10 ms
        child.stdin.close()
    assert child.pid not in fake.processes()
    memory = fake.megabytes()
    assert memory["own"] > 20
    assert memory["shared"] > 0


def test_the_service_has_the_last_core() -> None:
    cores = Cores.of_machine()
    assert (len(cores.service), max(cores.all)) == (1, max(cores.service))
    assert cores.load == (cores.all - cores.service or cores.all)
    before = os.sched_getaffinity(0)
    with on_cores(cores.service):
        assert os.sched_getaffinity(0) == cores.service
    assert os.sched_getaffinity(0) == before


def answers(*rows: tuple[float, float, int], asked: int = 0, late: float = 0.0) -> Answers:
    """Of rows (at, seconds, status)."""
    at, seconds, status = (np.array(column) for column in zip(*rows, strict=True))
    return Answers(asked or len(rows), at, np.full(len(rows), late), seconds, status.astype(np.int64), status == 200)


def test_half_of_saturation_by_hand() -> None:
    found = benchmark._half(answers((0, 0.02, 200), (1, 0.03, 200), (2, 0.04, 200), (3, 9, 503), asked=6), 20)
    values = [found[f"half of saturation: {name}"] for name in ("p50 ms", "p50 / one client", "not accepted")]
    assert values == pytest.approx([30, 1.5, 3])
    assert found["half of saturation: p99 / one client"] == pytest.approx(39.8 / 20)


def test_an_overload_by_hand() -> None:
    rows = [(0, 0.5, 200), (1, 1.5, 200), (1, 0.01, 503), (1, 0.03, 429), (2, 0.1, 0)]
    found = benchmark._overload(answers(*rows, asked=7, late=0.004), 2.0)
    assert found["overload: asked a second"] == 3.5
    assert found["overload: accepted a second"] == pytest.approx(2 / 2.5)
    assert found["overload: accepted p99 ms"] == pytest.approx(1490)
    assert (found["overload: refused"], found["overload: neither accepted nor refused"]) == (2, 3)
    assert found["overload: refusals p95 ms"] == pytest.approx(29)
    assert found["overload: sent late, p99 ms"] == pytest.approx(4)
    assert np.isnan(benchmark._overload(answers((0, 1, 200)), 1.0)["overload: refusals p95 ms"])


def test_the_time_until_all_is_normal() -> None:
    """The last request of the overload came at 3 and was answered at 3.5; then a client waits .1, .1, .02, .02, …"""
    over = answers((0, 1, 200), (3, 0.5, 200))
    slow = [(0.5 * n, 0.1, 200) for n in range(2)]
    fast = [(1.0 + 0.1 * n, 0.02, 200) for n in range(8)]
    assert benchmark.until_normal(over, answers(*slow, *fast), normal=20) == pytest.approx(0.5 + 1.0)
    assert benchmark.until_normal(over, answers(*slow), normal=20) == float("inf")
    assert benchmark.until_normal(over, answers((0, 0.03, 200)), normal=20) == pytest.approx(0.5)


def testarrivals_are_those_of_independent_visitors() -> None:
    gaps = np.diff(benchmark.arrivals(100, 50, np.random.default_rng(0)))
    assert len(gaps) == 4999
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)


def test_bars() -> None:
    figures = {
        "one client / parts": 1.2,
        "half of saturation: p50 / one client": 1.6,
        "half of saturation: p99 / one client": 5.0,
        "CPU of two workers / of one": 1.1,
        "answers a second of CPU, one worker": 222.0,
        "overload: accepted p99 ms": 1001.0,
        "overload: refusals p95 ms": 99.0,
        "overload: neither accepted nor refused": 0.0,
        "overload: seconds until normal": float("inf"),
    }
    missed = [bar.name for bar in benchmark._bars(figures) if not bar.holds]
    assert missed == [list(figures)[place] for place in (1, 4, 5, 8)]


@pytest.mark.parametrize("option", [{"seconds": 0.0}, {"runs": 0}, {"items": 10}, {"threads": 0}])
def test_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--seconds"):
        benchmark.run(**option)


def test_a_short_run() -> None:
    result = benchmark.run(short=True)
    figures = result.figures
    assert result.bars == []
    assert (figures["items"], figures["users"], figures["clients"]) == (1000, 50, 16)
    for unit in ("ms", "CPU ms"):
        parts = [figures[f"part: {name} {unit}"] for name in ("empty route", *STAGES)]
        assert min(parts) > 0
        assert figures[f"parts: sum {unit}"] == pytest.approx(sum(parts))
    assert figures["one client / parts"] == pytest.approx(figures["one client: p50 ms"] / figures["parts: sum ms"])
    per_second = figures["answers a second of CPU, one worker"] * figures["CPU ms a request, one worker"]
    assert per_second == pytest.approx(1000)
    assert figures["overload: asked a second"] > figures["saturation: answers a second, one worker"]
    assert figures["overload: neither accepted nor refused"] == 0
    assert figures["memory of a worker, MB"]["own"] > 50
    assert figures["store: bytes a user"] > 100 * 22  # bytes of an event
