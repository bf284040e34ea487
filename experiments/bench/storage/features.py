"""The feature store: the read of one user, and the filling from a table.

Read: a user with 10 events and one with a million, in one round trip each, against a bare pipeline that reads as many
bytes from the same server. Filling: what the states of all users cost against polars' own scan and sort of the same
table; their writing against `redis-benchmark`, with values of the same size and as many in one batch.

The server is a private one, started here. All times are of one run; the figures are their ratios.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from experiments.bench.runner import Bar, Result
from features.errors import DependencyError
from features.instants import DAY
from features.schema import EVENT, EVENT_ID, ITEM, ROW, TIME, USER, VALUE, DataConfig, EventRules
from features.store.connection import bare_pipeline
from features.store.jobs.refresh import MEMORY, refresh
from features.store.jobs.table_states import table_states
from features.store.redis import BATCH_BYTES, RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import states_of_table
from features.tables.event_files import EventFiles

ROWS, SHORT_ROWS = 5_000_000, 200_000
USERS_PER_ROW, ITEMS_PER_ROW = 50, 100
READS = 2_000
RULES = EventRules(positive={"purchase": None}, seen=("purchase",))
HEAVY = "heavy"
"""The user with a million events."""


def run(*, short: bool = False, seed: int = 0) -> Result:
    """Figures of reading and filling: 5 million events of 100,000 users, or 200,000 events when short.

    Raises DependencyError without `redis-benchmark`.
    """
    rows = SHORT_ROWS if short else ROWS
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.parquet"
        make(rows, seed).write_parquet(file)
        server = RedisServer()
        try:
            filling, bars = measure_filling(file, server.url)
            reading, more = measure_reading(server.url, seed)
        finally:
            server.stop()
    return Result({"rows": rows, **filling, **reading}, [*bars, *more])


def make(rows: int, seed: int, of: int = 0) -> pl.DataFrame:
    """A canonical events table in random order; users and items by Zipf's law, three types, a year.

    of: rows of the table whose users and items these are; 0: of this one.
    """
    rng, of = np.random.default_rng(seed), of or rows
    users = rng.zipf(1.3, rows) % (of // USERS_PER_ROW)
    items = rng.zipf(1.2, rows) % (of // ITEMS_PER_ROW)
    kinds = np.array(["open", "cart", "purchase"], dtype=object)[rng.integers(0, 3, rows)]
    return pl.DataFrame(
        {
            USER: pl.Series(users).cast(pl.String),
            ITEM: pl.Series(items).cast(pl.String),
            EVENT: pl.Series(kinds.tolist(), dtype=pl.String),
            TIME: pl.Series(rng.integers(0, 365 * DAY, rows)).cast(pl.Datetime("us", "UTC")),
            VALUE: pl.Series([None], dtype=pl.Float64).new_from_index(0, rows),
            EVENT_ID: pl.Series([None], dtype=pl.String).new_from_index(0, rows),
        }
    )


def measure_filling(file: Path, url: str) -> tuple[dict[str, float], list[Bar]]:
    """Figures of filling an empty store from a parquet file, and of a refresh after 1 % new events."""
    sort_seconds = timed(lambda: pl.scan_parquet(file).sort(USER, TIME, maintain_order=True).collect())
    store = RedisStore(url, RULES, timeout=5)
    sizes, states_seconds, write_seconds = measure_states(file, store)
    mean = sum(sizes) // len(sizes)
    ours, peak = len(sizes) / write_seconds, benchmark_set(url, mean, max(1, BATCH_BYTES // mean), len(sizes))
    files = EventFiles(DataConfig(source="folder", path=str(file.parent), events=RULES))
    full_seconds = timed(lambda: refresh(store, files, None))
    table = pl.read_parquet(file)
    pl.concat([table, make(len(table) // 100, 1, len(table))]).write_parquet(file)
    new_seconds = timed(lambda: refresh(store, files, None))
    same_seconds = timed(lambda: refresh(store, files, None))
    store.close()
    figures = {
        "users": len(sizes),
        "bytes_of_a_mean_state": mean,
        "bytes_of_the_largest_state": max(sizes),
        "polars_scan_and_sort_seconds": sort_seconds,
        "states_seconds": states_seconds,
        "states_over_scan_and_sort": states_seconds / sort_seconds,
        "writes_per_second": ours,
        "redis_benchmark_writes_per_second": peak,
        "writes_over_redis_benchmark": ours / peak,
        "full_refresh_seconds": full_seconds,
        "refresh_of_1_percent_seconds": new_seconds,
        "refresh_of_nothing_seconds": same_seconds,
        "refresh_of_1_percent_over_full": new_seconds / full_seconds,
    }
    ratios = (
        ("states_over_scan_and_sort", "<=", 3.0),
        ("writes_over_redis_benchmark", ">=", 0.5),
        ("refresh_of_1_percent_over_full", "<=", 0.05),
    )
    return figures, [Bar(name, figures[name], op, bar) for name, op, bar in ratios]


def measure_states(file: Path, store: RedisStore) -> tuple[list[int], float, float]:
    """Sizes of the states of all users, seconds to make them, seconds to write them."""
    table, parts = pl.read_parquet(file).with_row_index(ROW), list[list[tuple[str, bytes]]]()
    states_seconds = timed(lambda: parts.extend(table_states([table], RULES, MEMORY)))
    states = [state for part in parts for state in part]
    fill = store.start_fill().fill
    write_seconds = timed(lambda: store.write_users(states, fill))
    return [len(data) for _, data in states], states_seconds, write_seconds


def benchmark_set(url: str, size: int, depth: int, n: int) -> float:
    """SETs in a second of `redis-benchmark` on one connection: n values of `size` bytes, `depth` in one batch.

    Raises DependencyError without it.
    """
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        raise DependencyError("redis-benchmark is not on PATH: install redis-tools")
    options = ["-t", "set", "-d", size, "-P", depth, "-n", n, "-c", 1, "-r", n, "--csv"]
    command = [program, "-s", url.removeprefix("unix://"), *map(str, options)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return float(next(line for line in lines if line.startswith('"SET"')).split(",")[1].strip('"'))


def measure_reading(url: str, seed: int) -> tuple[dict[str, float], list[Bar]]:
    """Figures of reading one user."""
    store = RedisStore(url, RULES, timeout=5)
    store.start_fill()
    figures: dict[str, float] = {}
    bars = []
    for user, n in (("light", 10), (HEAVY, 1_000_000)):
        events = make(max(n, 200), seed).head(n).with_columns(pl.lit(user).alias(USER)).with_row_index(ROW)
        store.write_users(states_of_table(events, RULES))
        size = len(store.read_users([user])[0].to_bytes())
        bare = bare_pipeline(url, size)
        pairs = [(timed(partial(store.read_users, [user])), timed(bare)) for _ in range(READS)]  # in turn
        read, pipelines = zip(*pairs, strict=True)
        figures |= {
            f"{user}_bytes": size,
            f"{user}_read_ms": 1_000 * statistics.median(read),
            f"{user}_bare_pipeline_ms": 1_000 * statistics.median(pipelines),
            f"{user}_read_over_bare": statistics.median(read) / statistics.median(pipelines),
        }
        bars.append(Bar(f"{user}_read_over_bare", figures[f"{user}_read_over_bare"], "<=", 1.5))
    store.close()
    return figures, bars


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
