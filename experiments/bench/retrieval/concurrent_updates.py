"""Concurrent searches, changes and swaps of a mutable index, with a check of every result.

Eight threads search at full rate. One thread upserts and deletes rows at a constant rate. Another merges the index,
and every second time replaces it by a new one, as a new bundle does. For every row, the times of its last delete and
its last upsert are recorded. A result is wrong when it contains a row that was deleted before the search started and
not upserted since.
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
"""Threads that search; rows upserted and rows deleted a second; seconds between swaps."""

STEP = 0.02
"""Seconds between two changes; each change is this share of a second's changes."""


@dataclass
class Traffic:
    """The index in use, and the times of the changes to each row.

    items (m, d): vectors of the rows that may be upserted. deleted_at, upserted_at (m,): seconds of the row's last
    delete and last upsert; -inf when there was none. change: a lock that is held while the index is changed or
    replaced.
    """

    index: MutableIndex
    items: Floats
    users: Floats
    deleted_at: Floats
    upserted_at: Floats
    change: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    searches: int = 0
    upserts: int = 0
    swaps: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=lambda: {"deleted": 0, "unknown": 0, "twice": 0})
    count: threading.Lock = field(default_factory=threading.Lock)

    def search(self, seed: int) -> None:
        """One query, and the check of its result."""
        query = self.users[seed % len(self.users)][None]
        started = time.monotonic()
        deleted_at, upserted_at = self.deleted_at.copy(), self.upserted_at.copy()
        rows = self.index.search(query, K).rows[0]
        rows = rows[rows >= 0]
        known = rows[rows < len(self.items)]
        upserted_meanwhile = self.upserted_at[known] > upserted_at[known]
        deleted_before = (deleted_at[known] < started) & (deleted_at[known] > upserted_at[known])
        with self.count:
            self.searches += 1
            self.wrong["unknown"] += len(rows) - len(known) + int((~np.isfinite(self.upserted_at[known])).sum())
            self.wrong["deleted"] += int((deleted_before & ~upserted_meanwhile).sum())
            self.wrong["twice"] += len(rows) - len(np.unique(rows))

    def write(self, rng: np.random.Generator) -> None:
        """The upserts and deletes of one step."""
        rows = rng.choice(len(self.items), round(UPSERTS * STEP), replace=False)
        with self.change:
            self.upserted_at[rows] = time.monotonic()  # recorded before a search can find the rows
            self.index.upsert(rows, self.items[rows])
            self.upserts += len(rows)
            if rng.random() < DELETES * STEP:
                row = rng.integers(0, len(self.items), 1)
                self.index.delete(row)
                self.deleted_at[row] = time.monotonic()  # recorded after no new search can find the row

    def swap(self) -> None:
        """Merge the index; every second call replaces it by a new one instead, while changes wait."""
        if self.swaps % 2 == 0:
            self.index.merge()
        else:
            with self.change:
                old = self.index
                new = MutableIndex(Index(np.array(old.vectors), RetrieverConfig(kind="ivf-flat")))
                new.delete(np.flatnonzero(self.deleted_at[: len(new)] > self.upserted_at[: len(new)]))
                new.delete(np.flatnonzero(~np.isfinite(self.upserted_at[: len(new)])))
                self.index = new
        self.swaps += 1


def measure_updates(
    items: Floats, users: Floats, seconds: float, *, swap: float = SWAP
) -> tuple[dict[str, Any], list[Bar]]:
    """Figures and bars of `seconds` of traffic, after as many to warm up; swap: seconds between swaps.

    The index starts with the first 20 of every 21 items.
    """
    n = len(items) * 20 // 21
    upserted_at, deleted_at = np.full(len(items), -np.inf), np.full(len(items), -np.inf)
    upserted_at[:n] = time.monotonic()
    index = MutableIndex(Index(items[:n], RetrieverConfig(kind="ivf-flat")))
    traffic = Traffic(index, items, users, deleted_at, upserted_at)
    started = time.monotonic()
    threads = [
        threading.Thread(target=_repeat, args=(traffic, step), daemon=True)
        for step in (
            *(_searching(traffic, seed) for seed in range(THREADS)),
            _writing(traffic),
            _swapping(traffic, swap),
        )
    ]
    for thread in threads:
        thread.start()
    resident = []
    samples = max(4, int(2 * seconds))
    for sample in range(1, samples + 1):
        traffic.stop.wait(max(0.0, started + 2 * seconds * sample / samples - time.monotonic()))
        resident.append((time.monotonic() - started, _resident()))
        if sample == samples // 2:
            middle = traffic.searches, traffic.upserts, traffic.swaps, time.monotonic()
    elapsed = time.monotonic() - middle[3]
    searches, upserts = traffic.searches - middle[0], traffic.upserts - middle[1]
    traffic.stop.set()
    for thread in threads:
        thread.join()
    return _figures(traffic, np.array(resident), searches / elapsed, upserts / elapsed, n)


def _figures(
    traffic: Traffic, resident: Any, searches: float, upserts: float, n: int
) -> tuple[dict[str, Any], list[Bar]]:
    """resident (samples, 2): seconds and MiB; searches and upserts a second; n: items at the start."""
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


def _repeat(traffic: Traffic, step: Callable[[], None]) -> None:
    """Call step until the traffic stops; errors are recorded."""
    while not traffic.stop.is_set():
        try:
            step()
        except Exception as error:  # recorded; the thread and the others continue
            traffic.errors.append(f"{type(error).__name__}: {error}")
            traffic.stop.wait(STEP)


def _searching(traffic: Traffic, seed: int) -> Callable[[], None]:
    rng = np.random.default_rng([0, seed])
    return lambda: traffic.search(int(rng.integers(1 << 30)))


def _writing(traffic: Traffic) -> Callable[[], None]:
    rng, started, steps = np.random.default_rng(1), time.monotonic(), [0]

    def step() -> None:
        traffic.write(rng)
        steps[0] += 1
        traffic.stop.wait(max(0.0, started + steps[0] * STEP - time.monotonic()))

    return step


def _swapping(traffic: Traffic, every: float) -> Callable[[], None]:
    def step() -> None:
        if not traffic.stop.wait(every):
            traffic.swap()

    return step


def _resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
