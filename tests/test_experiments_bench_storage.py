"""The benchmark of the feature store, with few events and times that are given."""

import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from experiments.bench.storage import features as bench
from features.errors import DependencyError
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer

MAKE = bench.make


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = RedisServer()
    yield server.url
    server.stop()


def given_seconds(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    """Let each timed work take the next of these seconds."""
    left = iter(seconds)

    def timed(work: Callable[[], object]) -> float:
        work()
        return next(left)

    monkeypatch.setattr(bench, "timed", timed)


def test_made_events_are_drawn_by_the_seed() -> None:
    events = bench.make(1_000, 3)
    assert events.columns == ["user_id", "item_id", "event", "timestamp", "value", "event_id"]
    assert set(events.get_column("user_id")) <= {str(user) for user in range(20)}  # a user for 50 rows
    assert set(events.get_column("item_id")) <= {str(item) for item in range(10)}  # an item for 100 rows
    assert set(events.get_column("event")) == {"open", "cart", "purchase"}
    times = events.get_column("timestamp")
    assert datetime(1970, 1, 1, tzinfo=UTC) <= times.min() < datetime(1970, 1, 8, tzinfo=UTC)  # type: ignore[operator]
    assert datetime(1970, 12, 24, tzinfo=UTC) < times.max() < datetime(1971, 1, 1, tzinfo=UTC)  # type: ignore[operator]
    assert (events.get_column("value").null_count(), events.get_column("event_id").null_count()) == (1_000, 1_000)
    assert events.get_column("value").dtype == pl.Float64
    assert events.equals(MAKE(1_000, 3))
    assert not events.equals(MAKE(1_000, 4))


def test_filling_is_compared_with_a_sort_and_with_redis_benchmark(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_seconds(monkeypatch, [2.0, 3.0, 0.5, 10.0, 0.25, 0.125])
    asked: list[tuple[str, int, int, int]] = []

    def benchmark_set(*arguments: Any) -> float:
        asked.append(arguments)
        return 160.0

    monkeypatch.setattr(bench, "benchmark_set", benchmark_set)
    file = tmp_path / "events.parquet"
    events = pl.concat([MAKE(300, 1).with_columns(pl.lit(str(user)).alias("user_id")) for user in range(40)])
    events.write_parquet(file)
    figures, bars = bench.measure_filling(file, url)
    store = RedisStore(url, bench.RULES, timeout=5)
    states = [len(state.to_bytes()) for state in store.read_users([str(user) for user in range(40)])]
    mark = store.watermark()
    store.close()
    mean = int(figures["bytes_of_a_mean_state"])
    assert asked == [(url, mean, (1 << 20) // mean, 40)]
    assert figures == {
        "users": 40,
        "bytes_of_a_mean_state": mean,
        "bytes_of_the_largest_state": figures["bytes_of_the_largest_state"],
        "polars_scan_and_sort_seconds": 2.0,
        "states_seconds": 3.0,
        "states_over_scan_and_sort": 1.5,
        "writes_per_second": 80.0,
        "redis_benchmark_writes_per_second": 160.0,
        "writes_over_redis_benchmark": 0.5,
        "full_refresh_seconds": 10.0,
        "refresh_of_1_percent_seconds": 0.25,
        "refresh_of_nothing_seconds": 0.125,
        "refresh_of_1_percent_over_full": 0.025,
    }
    assert mean <= figures["bytes_of_the_largest_state"] <= max(states) + 100
    assert [(bar.name, bar.value, bar.op, bar.bar) for bar in bars] == [
        ("states_over_scan_and_sort", 1.5, "<=", 3.0),
        ("writes_over_redis_benchmark", 0.5, ">=", 0.5),
        ("refresh_of_1_percent_over_full", 0.025, "<=", 0.05),
    ]
    assert pl.read_parquet(file).height == 12_120  # 1 % were added
    assert mark is not None
    assert mark.filled


def test_a_read_is_compared_with_a_bare_pipeline(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given_seconds(monkeypatch, [0.001, 0.004, 0.003, 0.001, 0.002, 0.002, 0.009, 0.005, 0.007, 0.004, 0.008, 0.006])
    monkeypatch.setattr(bench, "READS", 3)
    made: list[int] = []

    def make(rows: int, seed: int) -> pl.DataFrame:
        made.append(rows)
        return MAKE(min(rows, 300), seed)

    monkeypatch.setattr(bench, "make", make)
    figures, bars = bench.measure_reading(url, 0)
    assert made == [200, 1_000_000]
    assert figures["light_bytes"] < figures["heavy_bytes"]
    assert {name: value for name, value in figures.items() if not name.endswith("_bytes")} == {
        "light_read_ms": 2.0,
        "light_bare_pipeline_ms": 2.0,
        "light_read_over_bare": 1.0,
        "heavy_read_ms": 8.0,
        "heavy_bare_pipeline_ms": 5.0,
        "heavy_read_over_bare": 1.6,
    }
    assert [(bar.name, bar.op, bar.bar, bar.holds) for bar in bars] == [
        ("light_read_over_bare", "<=", 1.5, True),
        ("heavy_read_over_bare", "<=", 1.5, False),
    ]
    store = RedisStore(url, bench.RULES, timeout=5)
    light, heavy = store.read_users(["light", "heavy"])
    store.close()
    assert len(light.items) == 10
    assert (len(light.to_bytes()), len(heavy.to_bytes())) == (figures["light_bytes"], figures["heavy_bytes"])


def test_redis_benchmark_sets_values_of_the_size_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        assert options == {"capture_output": True, "text": True, "check": True}
        return subprocess.CompletedProcess(command, 0, '"test","rps"\n"SET","1234.50","0.1"\n"GET","9","1"\n', "")

    monkeypatch.setattr(bench.subprocess, "run", run)
    there = {"valkey-benchmark": "/v"}
    monkeypatch.setattr(bench.shutil, "which", there.get)
    assert bench.benchmark_set("unix:///run/s.sock", 300, 20, 7) == 1234.5
    assert commands == [
        ["/v", "-s", "/run/s.sock", "-t", "set", "-d", "300", "-P", "20", "-n", "7", "-c", "1", "-r", "7", "--csv"],
    ]
    there["redis-benchmark"] = "/r"
    bench.benchmark_set("unix:///run/s.sock", 300, 20, 7)
    assert commands[1][0] == "/r"
    there.clear()
    with pytest.raises(DependencyError, match="redis-benchmark is not on PATH: install redis-tools"):
        bench.benchmark_set("unix:///run/s.sock", 300, 20, 7)


@pytest.mark.parametrize(("short", "rows"), [(True, 200_000), (False, 5_000_000)])
def test_a_run_makes_the_table_and_stops_its_server(monkeypatch: pytest.MonkeyPatch, short: bool, rows: int) -> None:
    stopped: list[str] = []

    class Server:
        url = "unix://server"

        def stop(self) -> None:
            stopped.append(self.url)

    def make(n: int, seed: int) -> pl.DataFrame:
        assert (n, seed) == (rows, 5)
        return pl.DataFrame({"n": [n]})

    def measure_filling(file: Path, url: str) -> tuple[dict[str, float], list[str]]:
        assert pl.read_parquet(file).item() == rows
        return {"filling": 1.0}, [url]

    monkeypatch.setattr(bench, "RedisServer", Server)
    monkeypatch.setattr(bench, "make", make)
    monkeypatch.setattr(bench, "measure_filling", measure_filling)
    monkeypatch.setattr(bench, "measure_reading", lambda url, seed: ({"reading": 2.0}, [f"{url} {seed}"]))
    result = bench.run(short=short, seed=5)
    assert result.figures == {"rows": rows, "filling": 1.0, "reading": 2.0}
    assert result.bars == ["unix://server", "unix://server 5"]
    assert stopped == ["unix://server"]


def test_seconds_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [5.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    assert bench.timed(lambda: clock.__setitem__(0, 7.5)) == 2.5
