"""An index that is searched, changed and swapped at once: every answer is held against what was there.

Eight threads search at full rate; one puts rows and deletes some, at a steady rate; another merges the index, and
every second time puts a wholly new one in its place, as a new bundle does. For every row is noted when it was deleted
and when it was put: an answer is wrong when it names a row that was gone when the search began and did not come back.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.retrieval.vectors import K
from experiments.bench.runner import Bar
from features.arrays import Floats
from recsys.config import RetrieverConfig
from recsys.retrieval.index import Index
from recsys.retrieval.mutable_index import MutableIndex

THREADS, UPSERTS, DELETES, SWAP = 8, 1000, 10, 5.0
"""Searching threads; rows put and rows deleted a second; seconds between swaps."""

STEP = 0.02
"""Seconds between two changes: each is a fiftieth of a second's."""


@dataclass
class Traffic:
    """The index in use, and what has happened to each row.

    items (m, d): what may be put; gone, put (m,): when the row was last deleted, and last put, in seconds; inf and
    -inf: never. change: held while the index in use is changed or another one is put in its place.
    """

    index: MutableIndex
    items: Floats
    users: Floats
    gone: Floats
    put: Floats
    change: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    searches: int = 0
    upserts: int = 0
    swaps: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=lambda: {"deleted": 0, "unknown": 0, "twice": 0})
    count: threading.Lock = field(default_factory=threading.Lock)

    def search(self, seed: int) -> None:
        """One query, and its answer judged."""
        query = self.users[seed % len(self.users)][None]
        began = time.monotonic()
        gone, put = self.gone.copy(), self.put.copy()
        rows = self.index.search(query, K).rows[0]
        rows = rows[rows >= 0]
        known = rows[rows < len(self.items)]
        came = self.put[known] > put[known]  # it was put while we searched
        with self.count:
            self.searches += 1
            self.wrong["unknown"] += len(rows) - len(known) + int((~np.isfinite(self.put[known])).sum())
            self.wrong["deleted"] += int(((gone[known] < began) & (gone[known] > put[known]) & ~came).sum())
            self.wrong["twice"] += len(rows) - len(np.unique(rows))

    def write(self, rng: np.random.Generator) -> None:
        """A step's rows put, a step's share deleted."""
        rows = rng.choice(len(self.items), round(UPSERTS * STEP), replace=False)
        with self.change:
            self.put[rows] = time.monotonic()  # before it is found
            self.index.upsert(rows, self.items[rows])
            self.upserts += len(rows)
            if rng.random() < DELETES * STEP:
                one = rng.integers(0, len(self.items), 1)
                self.index.delete(one)
                self.gone[one] = time.monotonic()  # after it is gone

    def swap(self) -> None:
        """A merge; or a wholly new index of what is there, changes waiting meanwhile as they do for a new bundle."""
        if self.swaps % 2 == 0:
            self.index.merge()
        else:
            with self.change:
                old = self.index
                new = MutableIndex(Index(np.array(old.vectors), RetrieverConfig(kind="ivf-flat")))
                new.delete(np.flatnonzero(self.gone[: len(new)] > self.put[: len(new)]))
                new.delete(np.flatnonzero(~np.isfinite(self.put[: len(new)])))
                self.index = new
        self.swaps += 1


def live(items: Floats, users: Floats, seconds: float, *, swap: float = SWAP) -> tuple[dict[str, Any], list[Bar]]:
    """So many seconds to warm up, and as many that count; the first 20 of 21 items are there at the beginning."""
    n = len(items) * 20 // 21
    put, gone = np.full(len(items), -np.inf), np.full(len(items), -np.inf)
    put[:n] = time.monotonic()
    traffic = Traffic(MutableIndex(Index(items[:n], RetrieverConfig(kind="ivf-flat"))), items, users, gone, put)
    began = time.monotonic()
    threads = [
        threading.Thread(target=_until, args=(traffic, at), daemon=True)
        for at in (
            *(_searching(traffic, seed) for seed in range(THREADS)),
            _writing(traffic),
            _swapping(traffic, swap),
        )
    ]
    for thread in threads:
        thread.start()
    resident = []
    samples = max(4, int(2 * seconds))
    for at in range(1, samples + 1):
        traffic.stop.wait(max(0.0, began + 2 * seconds * at / samples - time.monotonic()))
        resident.append((time.monotonic() - began, _resident()))
        if at == samples // 2:
            middle = traffic.searches, traffic.upserts, traffic.swaps, time.monotonic()
    spent = time.monotonic() - middle[3]
    searches, upserts = traffic.searches - middle[0], traffic.upserts - middle[1]
    traffic.stop.set()
    for thread in threads:
        thread.join()
    return _figures(traffic, np.array(resident), searches / spent, upserts / spent, n)


def _figures(
    traffic: Traffic, resident: Any, searches: float, upserts: float, n: int
) -> tuple[dict[str, Any], list[Bar]]:
    half = len(resident) // 2
    first, last = resident[:half], resident[half:]
    quarter = max(1, half // 2)
    growth = float(np.median(last[-quarter:, 1]) / np.median(last[:quarter, 1]))
    wrong = sum(traffic.wrong.values())
    figures = {
        "items": n,
        "threads": THREADS,
        "searches_a_second": round(searches, 1),
        "upserts_a_second": round(upserts, 1),
        "swaps": traffic.swaps,
        "searches": traffic.searches,
        "errors": traffic.errors[:5],
        "wrong": dict(traffic.wrong),
        "resident_mib_first_half": [round(float(v)) for v in (first[0, 1], np.median(first[:, 1]), first[-1, 1])],
        "resident_mib_second_half": [round(float(v)) for v in (last[0, 1], np.median(last[:, 1]), last[-1, 1])],
        "resident_mib_a_minute_in_second_half": round(float(np.polyfit(last[:, 0], last[:, 1], 1)[0] * 60), 2),
    }
    bars = [
        Bar("live: errors", len(traffic.errors), "==", 0),
        Bar("live: wrong rows", wrong, "==", 0),
        Bar("live: memory, end of the second half over its beginning", growth, "<=", 1.05),
    ]
    return figures, bars


def _until(traffic: Traffic, step: Callable[[], None]) -> None:
    while not traffic.stop.is_set():
        try:
            step()
        except Exception as error:  # each is counted, and the others go on
            traffic.errors.append(f"{type(error).__name__}: {error}")
            traffic.stop.wait(STEP)


def _searching(traffic: Traffic, seed: int) -> Callable[[], None]:
    rng = np.random.default_rng([0, seed])
    return lambda: traffic.search(int(rng.integers(1 << 30)))


def _writing(traffic: Traffic) -> Callable[[], None]:
    rng, began, done = np.random.default_rng(1), time.monotonic(), [0]

    def step() -> None:
        traffic.write(rng)
        done[0] += 1
        traffic.stop.wait(max(0.0, began + done[0] * STEP - time.monotonic()))

    return step


def _swapping(traffic: Traffic, every: float) -> Callable[[], None]:
    def step() -> None:
        if not traffic.stop.wait(every):
            traffic.swap()

    return step


def _resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
