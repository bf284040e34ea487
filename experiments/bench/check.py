"""Time and memory that a check of ten million events against the data contract takes.

Parquet tables are generated from a seed; one event in a hundred violates the contract. A new process, limited to two
threads, reads them. Its time and its peak resident memory are measured; both include the start of Python and the
writing of rejected rows.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from experiments.bench.runner import Bar, Result
from features.errors import ConfigError, RecsysError

ROWS, SHORT_ROWS = 10_000_000, 200_000
THREADS = 2
KINDS = ("view", "cart", "purchase")
BAD = ("unknown item", "null user_id", "timestamp in the future", "value not a finite number", "duplicate event")

CHILD = """
import json, sys
from features.schema import DataConfig, EventRules
from features.tables.read import read_tables
tables = read_tables(DataConfig(source="folder", path=sys.argv[1], events=EventRules(positive={"purchase": None})))
try:
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"peak_bytes": peak, "report": tables.report.to_dict()}))
"""
"""The program of the new process. It reads VmHWM because ru_maxrss starts at the peak of the process that forked."""


def run(*, short: bool = False, rows: int | None = None, seed: int = 0) -> Result:
    """Figures of one check of `rows` events: 10 million, or 200,000 when short. Only 10 million or more have bars of
    time and memory.

    Raises RecsysError when the check fails.
    """
    if rows is None:
        rows = SHORT_ROWS if short else ROWS
    if rows < 1:
        raise ConfigError(f"bench check --rows {rows}: give a number from 1 on; a negative one or 0 is no table")
    with tempfile.TemporaryDirectory() as folder:
        planted = make(Path(folder), rows, seed)
        env = os.environ | {"POLARS_MAX_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
        started = time.perf_counter()
        child = subprocess.run(
            [sys.executable, "-c", CHILD, folder], env=env, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        if child.returncode != 0:
            raise RecsysError(f"bench check: the check of {rows:,} events failed: {child.stderr.strip()[-2000:]}")
        megabytes = (Path(folder) / "events.parquet").stat().st_size / 1e6
    description = json.loads(child.stdout.splitlines()[-1])
    found = {p["reason"]: p["count"] for p in description["report"]["problems"]}
    gib = description["peak_bytes"] / 2**30
    figures = {
        "events": rows,
        "events_parquet_mb": round(megabytes, 1),
        "threads": THREADS,
        "seconds": round(seconds, 2),
        "events_per_second": round(rows / seconds),
        "peak_rss_gib": round(gib, 3),
        "planted": planted,
        "found": found,
    }
    missed = sum(abs(found.get(reason, 0) - count) for reason, count in planted.items())
    bars = [Bar("planted_faults_miscounted", float(missed), "==", 0.0)]
    if rows >= ROWS:
        bars += [Bar("seconds", seconds, "<=", 60.0), Bar("peak_rss_gib", gib, "<=", 4.0)]
    return Result(figures, bars)


def make(folder: Path, rows: int, seed: int) -> dict[str, int]:
    """Write items.parquet and events.parquet with every violation of `BAD`; returns the number of each, by reason.

    User and item ids are text. Items are drawn from a skewed distribution, times from one year. Every event has its
    own event_id.
    """
    rng = np.random.default_rng(seed)
    users, items = max(10, rows // 20), max(10, rows // 100)
    number = pl.int_range(pl.len())
    pl.DataFrame({"item_id": np.arange(items)}).select(
        pl.format("item-{}", "item_id").alias("item_id"), pl.format("Title of item {}", "item_id").alias("title")
    ).write_parquet(folder / "items.parquet")

    # odd rows only: a duplicate repeats the row before it, which is then valid
    bad_rows = rng.permutation(rows // 2)[: rows // 100] * 2 + 1
    parts = np.array_split(bad_rows, len(BAD))
    masks = [np.isin(np.arange(rows), part) for part in parts]  # (rows,) bool each
    unknown, null, future, infinite, duplicate = masks
    frame = pl.DataFrame(
        {
            "user": rng.integers(users, size=rows),
            "item": (items * rng.random(rows) ** 3).astype(np.int64) + np.where(unknown, items, 0),
            "kind": rng.choice(len(KINDS), p=[0.9, 0.07, 0.03], size=rows).astype(np.uint8),
            "second": rng.integers(365 * 86400, size=rows) + np.where(future, 200 * 365 * 86400, 0),
            "value": np.where(infinite, np.inf, rng.random(rows)),
            "null": null,
            "duplicate": duplicate,
        }
    )

    def repeated(value: pl.Expr | str) -> pl.Expr:
        """The value; in a duplicate row, the value of the row before."""
        return pl.when("duplicate").then(None).otherwise(value).forward_fill()

    frame.lazy().select(
        pl.when(~pl.col("null")).then(pl.format("user-{}", repeated("user"))).alias("user_id"),
        pl.format("item-{}", "item").alias("item_id"),
        pl.col("kind").replace_strict(dict(enumerate(KINDS)), return_dtype=pl.String).alias("event"),
        (pl.datetime(2024, 1, 1, time_zone="UTC") + pl.duration(seconds="second")).alias("timestamp"),
        pl.col("value"),
        pl.format("{}-event", repeated(number)).alias("event_id"),
    ).collect().write_parquet(folder / "events.parquet")
    return {reason: int(mask.sum()) for reason, mask in zip(BAD, masks, strict=True)}
