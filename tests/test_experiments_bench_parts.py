"""Parts of benchmarks that need a peer, a GPU or much time: with stand-ins of these."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.bench import alignment, check, metrics, runner
from experiments.bench.retrieval import benchmark
from experiments.bench.runner import Bar
from features.content.parts import Content, Limits, Text
from features.errors import ConfigError, RecsysError, SourceError
from recsys.interfaces import Candidates


def test_ranx_gets_the_targets_and_the_ranks_of_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any, Any]] = []
    peer = SimpleNamespace(Qrels=dict, Run=dict, evaluate=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "ranx", peer)
    monkeypatch.setattr(metrics, "PEER_USERS", 2)
    monkeypatch.setattr(metrics, "DEPTH", 20)
    seconds = iter([0.12345, 0.56789])
    works: list[tuple[Any, int]] = []

    def measure(work: Callable[[], Any], repeats: int) -> float:
        works.append((work(), repeats))
        return next(seconds)

    monkeypatch.setattr(metrics, "_seconds", measure)
    rows = np.array([range(4, 24), range(30, 50), range(60, 80)])
    candidates = Candidates(rows, np.tile(-np.arange(20, dtype=np.float32), (3, 1)))
    assert metrics._peer(candidates, np.array([5, 3, 1]), 7) == {
        "peer_users": 2,
        "peer_ranx_basket_seconds": 0.1235,
        "ours_basket_on_peer_users_seconds": 0.5679,
    }
    relevant, run, names = calls[0]
    assert relevant == {"0": {"5": 1}, "1": {"3": 1}}
    assert run == {
        "0": {str(item): 24.0 - item for item in range(4, 24)},
        "1": {str(item): 50.0 - item for item in range(30, 50)},
    }
    assert names == ["hit_rate@10", "recall@10", "ndcg@10", "mrr@10", "map@10"]
    assert calls == [calls[0]] * 2  # the first call compiles
    assert [repeats for _, repeats in works] == [7, 7]
    ours, states = works[1][0]
    assert (ours["mrr"].tolist(), states.tolist()) == ([0.5, 0.0], [0, 1])  # the first target stands second


def test_the_time_of_a_metric_is_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    durations = iter([3.0, 1.0, 2.0])
    assert metrics._seconds(lambda: clock.__setitem__(0, clock[0] + next(durations)), 3) == 1.0


@pytest.mark.parametrize(
    ("tool", "code", "output", "gpu"),
    [
        (None, 0, "unused", None),
        ("/nvidia-smi", 0, "H200, 1 MiB\nH100, 2 MiB\n", "H200, 1 MiB; H100, 2 MiB"),
        ("/nvidia-smi", 0, "\n", None),
        ("/nvidia-smi", 9, "No devices\n", None),
    ],
)
def test_the_gpu_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tool: str | None, code: int, output: str, gpu: str | None
) -> None:
    asked: list[tuple[list[str], dict[str, Any]]] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, options))
        return subprocess.CompletedProcess(command, code, output, "")

    monkeypatch.setattr(runner.shutil, "which", {"nvidia-smi": tool}.get)
    monkeypatch.setattr(runner.subprocess, "run", run)
    assert runner._gpu() == gpu
    if tool:
        assert asked[0][0] == [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        assert asked[0][1] == {"capture_output": True, "text": True, "timeout": 30, "check": False}


def test_vectors_of_files_that_cannot_be_read_are_no_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    contents, limits = [Content.of(Text("a"))], Limits()
    embedded: list[Any] = []
    failures = [SimpleNamespace(reason="empty"), SimpleNamespace(reason="long")]

    def embed(contents: Any, encoders: Any, cache: Any, *, limits: Any) -> None:
        embedded.append((contents, encoders, cache, limits))

    def cached(contents: Any, encoder: Any, cache: Any, *, limits: Any) -> Any:
        assert embedded == [(contents, {"text": encoder}, cache, limits)]
        return SimpleNamespace(failures=failures)

    monkeypatch.setattr(alignment, "embed", embed)
    monkeypatch.setattr(alignment, "cached_vectors", cached)
    encoder: Any = object()
    with pytest.raises(SourceError, match=r"^2 text files cannot be read, the first because: empty$"):
        alignment._vectors(contents, "text", encoder, limits)
    failures.clear()
    embedded.clear()
    assert alignment._vectors(contents, "text", encoder, limits).failures == []
    assert embedded[0] == (contents, {"text": encoder}, alignment.CACHE, limits)


def test_each_part_of_the_benchmark_of_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(material: Any, n: int, names: Any = ("all",)) -> Any:
        return {f"kinds of {n}": names}, [Bar("kinds", 1, "<=", 2)]

    def measure_updates(items: Any, users: Any, seconds: float, *, swap: float) -> Any:
        return {"items": items.tolist(), "users": users, "seconds": seconds, "swap": swap}, []

    monkeypatch.setattr(benchmark, "SIZES", {"exact": (10, 1_000), "hnsw": (50, 60, 70)})
    monkeypatch.setattr(benchmark, "SHORT", 3)
    monkeypatch.setattr(benchmark, "LIVE", 5)
    monkeypatch.setattr(benchmark, "SWAP", 9.0)
    monkeypatch.setattr(benchmark, "measure_peers", lambda material, n: {f"peers of {n}": 1})
    monkeypatch.setattr(benchmark, "measure_updates", measure_updates)
    monkeypatch.setattr(benchmark.speed, "kinds", kinds)
    monkeypatch.setattr(benchmark.speed, "cuts", lambda material, n: ({"cuts": n}, []))
    monkeypatch.setattr(benchmark.speed, "sizes", lambda material, kind, ns: {kind: ns})
    monkeypatch.setattr(benchmark.speed, "filters", lambda material, n, names: ({f"filters of {n}": names}, []))
    material: Any = SimpleNamespace(graph=40, users="users", sampled=lambda n: (np.arange(n), None))

    def figures(part: str, n: int = 100, short: bool = False) -> Any:
        return benchmark._measure(part, material, n, short, 60, 7.0)[0]

    assert figures("live") == {"items": [0, 1, 2, 3, 4], "users": "users", "seconds": 7.0, "swap": 9.0}
    assert figures("live", short=True) == {"items": [0, 1, 2], "users": "users", "seconds": 2.5, "swap": 1.0}
    assert figures("rivals") == {"kinds of 40": ("ivf-flat", "hnsw"), "peers of 100": 1}
    assert figures("rivals", n=30) == {"kinds of 30": ("ivf-flat", "hnsw"), "peers of 30": 1}
    assert figures("sizes") == {"exact": [10, 60], "hnsw": [50, 60]}
    assert figures("filters") == {"filters of 100": (benchmark.speed.BEST, "hnsw")}
    assert figures("filters", short=True) == {"filters of 100": (benchmark.speed.BEST,)}
    assert figures("kinds") == {"kinds of 100": ("all",)}
    assert figures("cuts") == {"cuts": 100}
    assert [bar.name for bar in benchmark._measure("kinds", material, 1, False, 60, 7.0)[1]] == ["kinds"]
    assert benchmark._measure("rivals", material, 1, False, 60, 7.0)[1] == []


@pytest.mark.parametrize(("short", "rows", "bars"), [(True, 200_000, 1), (False, 10_000_000, 3)])
def test_the_figures_of_a_check(monkeypatch: pytest.MonkeyPatch, short: bool, rows: int, bars: int) -> None:
    clock, started = [100.0], list[tuple[list[str], dict[str, Any]]]()
    problems = [{"reason": "a", "count": 5}, {"reason": "other", "count": 9}]

    def make(folder: Path, n: int, seed: int) -> dict[str, int]:
        assert (n, seed) == (rows, 7)
        (folder / "events.parquet").write_bytes(bytes(1_250_000))
        return {"a": 3, "b": 4}

    def run(command: list[str], **options: Any) -> Any:
        started.append((command, options))
        clock[0] += 40.0
        output = json.dumps({"peak_bytes": 5 << 29, "report": {"problems": problems}})
        return subprocess.CompletedProcess(command, 0, f"printed\n{output}\n", "")

    monkeypatch.setattr(check, "make", make)
    monkeypatch.setattr(check.subprocess, "run", run)
    monkeypatch.setattr(check.time, "perf_counter", lambda: clock[0])
    result = check.run(short=short, seed=7)
    assert result.figures == {
        "events": rows,
        "events_parquet_mb": 1.2,
        "threads": 2,
        "seconds": 40.0,
        "events_per_second": rows / 40,
        "peak_rss_gib": 2.5,
        "planted": {"a": 3, "b": 4},
        "found": {"a": 5, "other": 9},
    }
    assert (
        [(bar.name, bar.value, bar.op, bar.bar) for bar in result.bars]
        == [
            ("planted_faults_miscounted", 6.0, "==", 0.0),  # two of a too many, four of b missing
            ("seconds", 40.0, "<=", 60.0),
            ("peak_rss_gib", 2.5, "<=", 4.0),
        ][:bars]
    )
    [(command, options)] = started
    assert command[:2] == [sys.executable, "-c"]
    assert (options["env"]["POLARS_MAX_THREADS"], options["env"]["OMP_NUM_THREADS"]) == ("2", "2")
    assert (options["capture_output"], options["text"], options["check"]) == (True, True, False)


def test_a_check_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "x" * 3000 + " no memory \n")

    def make(folder: Path, n: int, seed: int) -> dict[str, int]:
        return {}

    monkeypatch.setattr(check, "make", make)
    monkeypatch.setattr(check.subprocess, "run", run)
    with pytest.raises(RecsysError) as caught:
        check.run(rows=1)
    assert str(caught.value) == f"bench check: the check of 1 events failed: {'x' * 1990} no memory"
    with pytest.raises(ConfigError, match="bench check --rows 0: give a number from 1 on"):
        check.run(rows=0)


def failing(*, short: bool = False) -> Any:
    raise RecsysError("no data")


def mistaken(*, short: bool = False, size: int = 1) -> Any:
    raise ValueError("negative size")


def test_a_run_of_benchmarks_of_which_none_can_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "BENCHES", {"x": f"{__name__}:failing", "y": f"{__name__}:failing"})
    with pytest.raises(RecsysError) as caught:
        runner.run("all")
    assert str(caught.value) == "no benchmark could be measured: {'x': 'no data', 'y': 'no data'}"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        line for name in "xy" for line in (f"bench {name}", f"bench {name} could not be measured: no data")
    ]


def test_a_mistake_in_a_benchmark_is_one_of_its_options_when_any_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BENCHES", {"x": f"{__name__}:mistaken"})
    with pytest.raises(ConfigError, match=r"^bench x --size 3: negative size; see recsys bench x --help$"):
        runner.run("x", size=3)
    with pytest.raises(ValueError, match=r"^negative size$") as caught:
        runner.run("x")
    assert not isinstance(caught.value, ConfigError)
