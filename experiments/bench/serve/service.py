"""The service under load: `recsys serve` with a key and a store of its own, its CPU time and memory, its cores."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np

from experiments.bench.loop.service import COMMAND, started
from experiments.bench.serve.world import World
from features.arrays import Bools, Doubles, Ints
from features.errors import RecsysError
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer

WORKER = Path(__file__).parent / "load_worker.py"
DEADLINE = 1.0
"""Seconds: `DEADLINE` of the service."""

RECOMMEND, EMPTY = "/v1/recommendations", "/healthz"
"""Paths: of recommendations by a body, and of an answer that needs nothing."""

LIMIT = 20
"""Items of an answer."""

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cores:
    """Cores of one worker, and of the load and the store: others, where there are several. all: of two workers."""

    service: frozenset[int]
    load: frozenset[int]
    all: frozenset[int]

    @classmethod
    def of_machine(cls) -> "Cores":
        """The last core is that of the service."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(frozenset(cores[-1:]), frozenset(cores[:-1] or cores), frozenset(cores))


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """This thread, and what it starts, runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Answers:
    """Answers to a load, as `load_worker` writes them: a row for each. asked: requests that were to be sent."""

    asked: int
    at: Doubles
    late: Doubles
    seconds: Doubles
    status: Ints
    whole: Bools

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, rows: Bools) -> "Answers":
        """The answers of a mask (n,), and no others."""
        n = int(rows.sum())
        return Answers(n, self.at[rows], self.late[rows], self.seconds[rows], self.status[rows], self.whole[rows])

    @property
    def accepted(self) -> Bools:
        """(n,) bool: those with status 200."""
        accepted: Bools = self.status == 200
        return accepted

    @property
    def refused(self) -> Bools:
        """(n,) bool: those of a service that is busy."""
        refused: Bools = np.isin(self.status, (429, 503))
        return refused

    def ms(self, q: float) -> float:
        """A quantile of the accepted ones, in milliseconds; NaN without any."""
        seconds = self.seconds[self.accepted]
        return float(np.quantile(seconds, q) * 1e3) if len(seconds) else float("nan")


@dataclass(frozen=True)
class Service:
    """A running service. pid: of its first process; store: its URL."""

    pid: int
    address: str
    key: str
    store: str
    load_cores: frozenset[int]

    def load(self, path: str, users: Sequence[str], **how: object) -> Answers:
        """Load the service from another process. users: asked in turn; how: clients and seconds, or arrivals.

        Raises RecsysError when the process fails.
        """
        place = urlsplit(self.address)
        body = [json.dumps({"user_id": user, "limit": LIMIT}) for user in users] if path == RECOMMEND else [""]
        head = f"{'POST' if body[0] else 'GET'} {path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer "
        head += f"{self.key}\r\nContent-Type: application/json\r\nContent-Length: "
        requests = [f"{head}{len(text)}\r\n\r\n{text}" for text in body]
        given = json.dumps({"host": place.hostname, "port": place.port, "requests": requests, **how})
        with on_cores(self.load_cores):
            done = subprocess.run(
                [sys.executable, "-P", str(WORKER)], input=given, capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise RecsysError(f"bench serve: the load failed: {done.stderr.strip()[-2000:]}")
        columns, arrivals = json.loads(done.stdout), how.get("arrivals")
        return Answers(
            asked=len(arrivals) if isinstance(arrivals, list) else len(columns["at"]),
            at=np.array(columns["at"], dtype=np.float64),
            late=np.array(columns["late"], dtype=np.float64),
            seconds=np.array(columns["seconds"], dtype=np.float64),
            status=np.array(columns["status"], dtype=np.int64),
            whole=np.array(columns["whole"], dtype=np.bool_),
        )

    def answer(self, user: str) -> dict[str, Any]:
        """The answer to one request."""
        headers, body = {"Authorization": f"Bearer {self.key}"}, {"user_id": user, "limit": LIMIT}
        response = httpx2.post(f"{self.address}{RECOMMEND}", json=body, headers=headers, timeout=60)
        found: dict[str, Any] = response.raise_for_status().json()
        return found

    def processes(self) -> list[int]:
        """Its processes: the first one, and those below it."""
        found = [self.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.processes()]
        return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS  # utime, stime

    def megabytes(self) -> dict[str, float]:
        """Memory of its largest process: its own, and what it shares with others, e.g. mapped files of the bundle."""
        rows = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:] for pid in self.processes()]
        sizes = [{line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines} for lines in rows]
        own, rss = max((size["Private_Clean"] + size["Private_Dirty"], size["Rss"]) for size in sizes)
        return {"own": own, "shared": rss - own}


@contextmanager
def serving(folder: Path, world: World, workers: int, threads: int, cores: Cores) -> Iterator[Service]:
    """A running service with a Redis server of its own, which has all users of the world; see `started`.

    threads: `THREADS` of the service.
    """
    folder.mkdir()
    keys = folder / "keys.jsonl"
    program = [sys.executable, "-c", COMMAND, "keys", "create", "bench", "--role", "write", "--keys", str(keys)]
    key = subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()
    with on_cores(cores.load):
        server = RedisServer()
    try:
        places = {"bundles": world.bundle.parent, "log": folder / "log", "keys": keys}
        settings = {"RECSYS_SERVE__DEADLINE": str(DEADLINE), "RECSYS_SERVE__THREADS": str(threads)}
        environment = {"REDIS_URL": server.url, "OMP_NUM_THREADS": "1", **settings}
        options = {**{name: str(path) for name, path in places.items()}, "workers": str(workers)}
        with (
            on_cores(cores.service if workers == 1 else cores.all),
            started(options, folder / "service.log", environment) as (pid, address),
        ):
            service = Service(pid, address, key, server.url, cores.load)
            _wait_for_store(service, world)
            yield service
    finally:
        server.stop()


def _wait_for_store(service: Service, world: World) -> None:
    """Wait until the service has filled its store. Raises RecsysError when it does not."""
    for _ in range(60):
        answers = service.load(RECOMMEND, world.users[-1:], clients=1, seconds=0.5)
        if answers.whole.all():
            return
    raise RecsysError("bench serve: the service does not fill its store")


def store_bytes(service: Service, world: World) -> int:
    """Bytes that the server of the store has allocated."""
    store = RedisStore(service.store, world.data.events, timeout=1.0)
    try:
        return store.facts().used
    finally:
        store.close()
