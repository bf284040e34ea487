"""The benchmark of retrieval: its vectors, its measures, its check of concurrent updates, and filters of indexes."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_data import toy_config, write_tables

from experiments.bench.retrieval import benchmark, concurrent_updates, peers, speed, vectors
from experiments.bench.retrieval.concurrent_updates import Traffic, measure_updates
from experiments.bench.retrieval.vectors import VectorDataset, allowed_masks, milliseconds, recall
from features.content.spaces import unit
from features.errors import ConfigError
from recsys.config import RetrieverConfig
from recsys.interfaces import Candidates
from recsys.retrieval import index as index_module
from recsys.retrieval.index import Index


def clustered(n, seed=0, clusters=20, d=16):
    """Unit vectors (n, d) around centres, and the cluster (n,) of each."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(clusters, d))
    cluster = rng.integers(0, clusters, n)
    return unit((centres[cluster] + 0.6 * rng.normal(size=(n, d))).astype(np.float32)), cluster


@pytest.fixture
def small(monkeypatch):
    """Structures are built for more than 500 items, and a short run has 2,000."""
    monkeypatch.setattr(index_module, "BRUTE_FORCE_MAX", 500)
    monkeypatch.setattr(benchmark, "SHORT", 2000)


@pytest.fixture
def material(tmp_path, small):
    items, _ = clustered(400)
    return VectorDataset(items, clustered(30, seed=1)[0], tmp_path, seed=0, graph=200)


def test_a_short_run_measures_its_parts_and_trains_once(tmp_path, small, monkeypatch):
    write_tables(tmp_path / "data")
    path = str(toy_config(tmp_path, training={"batch_events": 256}))
    monkeypatch.setattr(speed, "ROUNDS", 1)
    result = benchmark.run(short=True, config=path)
    figures = result.figures
    assert figures["kinds: exact: 2000 items"]["recall_at_100"] == 1
    for kind in ("ivf-flat", "ivf-pq", "hnsw"):
        figure = figures[f"kinds: {kind}: 2000 items"]
        assert 0.5 < figure["recall_at_100"] <= 1
        assert 0 < figure["p50_ms"] <= figure["p99_ms"]
        assert figure["bytes_per_item"] > 512
    assert (
        figures["kinds: ivf-pq: 2000 items"]["bytes_per_item"] < figures["kinds: hnsw: 2000 items"]["bytes_per_item"]
    )
    assert figures["filters: ivf-flat: 0.10% allowed, random"]["full answers"] == 1
    assert figures["live: errors"] == []
    assert [bar.name for bar in result.bars if bar.op == "=="] == ["live: errors", "live: wrong rows"]
    assert {bar.name for bar in result.bars if bar.name.startswith("ivf-flat")} == {
        f"ivf-flat, worst mask: {name}" for name in ("recall@100", "full answers", "times unfiltered", "times exact")
    }
    monkeypatch.setattr(vectors, "fit_towers", None)  # the towers are in the cache
    again = benchmark.run(short=True, config=path, part="cuts")
    assert again.figures["cuts: sampled, 2000 items, 48 dimensions, refine 40"]["recall_at_100"] == 1
    with pytest.raises(ConfigError, match="bench retrieval: no part 'speed'; choose from kinds, "):
        benchmark.run(part="speed")


def test_sampled_items_are_deterministic_unit_vectors_near_the_trained_ones(material, tmp_path):
    items, components = material.sampled(300)
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, atol=1e-5)
    (tmp_path / "again").mkdir()
    again = VectorDataset(material.items, material.users, tmp_path / "again", seed=0, graph=200)
    np.testing.assert_array_equal(items, again.sampled(300)[0])
    nearest = (np.asarray(items) @ material.items.T).max(1)
    random_vectors = unit(np.random.default_rng(5).normal(size=(300, 16)).astype(np.float32))
    assert np.median(nearest) > np.median((random_vectors @ material.items.T).max(1)) + 0.1
    assert len(components) == 300
    assert components.max() < len(material.items) // 32


def test_an_index_is_built_once(material, monkeypatch):
    config = RetrieverConfig(kind="ivf-flat")
    first, built = material.index(1000, config)
    assert built["bytes_per_item"] > 2 * 4 * 16
    structure = replace(index_module.RETRIEVER_KINDS["ivf-flat"], build=None)  # type: ignore[arg-type]
    monkeypatch.setitem(index_module.RETRIEVER_KINDS, "ivf-flat", structure)
    second, same = material.index(1000, config)
    assert same == built
    rows = [index.search(material.users, 5).rows for index in (first, second)]
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(
        material.truth(1000)[:, :5], Index(np.array(material.sampled(1000)[0])).search(material.users, 5).rows
    )


def test_recall_is_the_share_of_the_true_rows_without_padding():
    rows = np.array([[1, 2, 3], [4, -1, -1]])
    assert recall(rows, np.array([[3, 9], [4, -1]])) == 0.75  # (1/2 + 1/1) / 2


def test_timed_searches_alternate_and_the_first_round_is_not_counted(monkeypatch):
    order, now = [], [0.0]

    def search(name, costs):
        seconds = iter(costs)

        def timed(queries):
            order.append(name)
            now[0] += next(seconds)

        return timed

    taken = milliseconds(
        {"a": search("a", [9, 1, 5, 3]), "b": search("b", [8, 2, 2, 7])}, [np.zeros(1, np.float32)], 3, lambda: now[0]
    )
    assert order == ["a", "b"] * 4
    assert taken["a"].tolist() == [3000]
    assert taken["b"].tolist() == [2000]


def test_masks_allow_their_share_at_random_by_cluster_and_by_distance():
    components = np.arange(1000) % 10
    nearness = np.arange(1000)[::-1].astype(np.float32)
    masks = allowed_masks(components, nearness, 0.2, np.random.default_rng(0))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"random": 200, "clusters": 200, "far": 200}
    assert len(np.unique(components[masks["clusters"]])) == 2
    assert len(np.unique(components[masks["random"]])) == 10
    assert np.flatnonzero(masks["far"]).min() == 800


@pytest.mark.parametrize("kind", ["ivf-flat", "ivf-pq"])
@pytest.mark.parametrize("shape", ["random", "clusters", "far"])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_lists_are_searched_until_they_hold_enough_allowed_items(small, kind, shape, share):
    """If only the nearest lists were searched, most allowed items would be missed, and recall would be low."""
    items, cluster = clustered(20_000, clusters=200)
    users = clustered(40, seed=1, clusters=5)[0]
    index = Index(items, RetrieverConfig(kind=kind, effort=16, refine=20))
    allow = allowed_masks(cluster, items @ users.mean(0), share, np.random.default_rng(0))[shape]
    rows = np.flatnonzero(allow)
    truth = rows[Index(items[rows]).search(users, 50).rows]
    results = index._by_structure(users, 50, allow, len(rows)).rows
    assert (results >= 0).all()
    assert allow[results].all()
    assert recall(results, truth) > 0.9


class FixedResult:
    """An index whose every search calls `meanwhile` and returns the same rows."""

    def __init__(self, rows, meanwhile=lambda: None):
        self.rows, self.meanwhile = np.array([rows]), meanwhile

    def search(self, queries, k):
        self.meanwhile()
        return Candidates(self.rows, np.zeros(self.rows.shape, np.float32))


def test_results_are_checked_against_the_rows_at_the_start_of_the_search():
    never, items = -np.inf, np.eye(4, dtype=np.float32)
    upserted_at, deleted_at = np.array([1.0, 1.0, never, 1.0]), np.array([never, 2.0, never, never])

    def wrong(rows, meanwhile=lambda traffic: None):
        index: Any = FixedResult(rows)
        traffic = Traffic(index, items, items, deleted_at.copy(), upserted_at.copy())
        index.meanwhile = lambda: meanwhile(traffic)
        traffic.search(0)
        return traffic.wrong

    assert wrong([0, 3, -1]) == {"deleted": 0, "unknown": 0, "twice": 0}
    assert wrong([0, 1]) == {"deleted": 1, "unknown": 0, "twice": 0}
    assert wrong([2, 4]) == {"deleted": 0, "unknown": 2, "twice": 0}
    assert wrong([3, 3]) == {"deleted": 0, "unknown": 0, "twice": 1}

    def upsert(traffic):
        traffic.upserted_at[1] = 9.0

    def delete(traffic):
        traffic.deleted_at[0] = np.inf

    assert wrong([1], upsert) == wrong([0], delete) == {"deleted": 0, "unknown": 0, "twice": 0}


def test_ignored_deletes_and_errors_are_detected(small, monkeypatch):
    items = clustered(1200)[0]
    monkeypatch.setattr(concurrent_updates, "DELETES", 1e9)
    monkeypatch.setattr(concurrent_updates.MutableIndex, "delete", lambda self, rows: None)
    figures, bars = measure_updates(items, items[:9], 0.5, swap=9)
    assert figures["wrong"]["deleted"] > 0
    assert [bar.holds for bar in bars[:2]] == [True, False]

    def fails(self, *_):
        raise ValueError("no")

    monkeypatch.setattr(concurrent_updates.MutableIndex, "search", fails)
    figures, bars = measure_updates(items, items[:9], 0.2, swap=9)
    assert figures["errors"][0] == "ValueError: no"
    assert not bars[0].holds


STUB = """
# Stands in for ann_worker.py.
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
name, folder = sys.argv[1], Path(sys.argv[2])
if name == "usearch":
    sys.exit("no memory")
items, users = np.load(folder / "items.npy"), np.load(folder / "users.npy")
rows = np.argsort(-users @ items.T, axis=1)[:, :50]
np.savez(folder / f"{name}.npz", rows=rows, milliseconds=np.full(len(users), 2.0), seconds=3)
"""


def test_peers_are_measured_on_the_same_items_and_failures_are_reported(material, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(STUB)
    monkeypatch.setattr(peers, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(peers, "environment", lambda folder, pin: sys.executable)
    figures = peers.measure_peers(material, 300)
    assert list(figures) == ["scann==1.4.2: 300 items", "usearch==2.26.6: 200 items", "hnswlib==0.8.0: 200 items"]
    peer = figures["hnswlib==0.8.0: 200 items"]
    assert peer["recall_at_100"] == 0.5
    assert (peer["p99_ms"], peer["queries_a_second"], peer["build_seconds"]) == (2, 500, 3)
    assert figures["usearch==2.26.6: 200 items"]["not_measured"].endswith("failed: no memory")


def test_costs_are_extrapolated_by_a_line_of_logarithms(material, monkeypatch):
    sized: list[int] = []
    monkeypatch.setattr(speed, "milliseconds", lambda *_: {"ours": np.array([len(sized)])})
    real = VectorDataset.index

    def index(self, n, config):
        sized[:] = range(n // 100)  # a hundredth of a millisecond for each item
        return real(self, n, config)

    monkeypatch.setattr(VectorDataset, "index", index)
    figures = speed.sizes(material, "exact", [200, 400, 800])
    fit = figures["exact: ms = a * items^b"]
    assert fit["b"] == pytest.approx(1)
    assert fit["at_1e9"] == pytest.approx(1e7)
    assert figures["exact: 400 items"]["recall_at_100"] == 1


def test_the_bars_are_of_the_best_kind(material):
    figures, bars = speed.kinds(material, 1000)
    assert [bar.name for bar in bars] == [
        "ivf-flat: recall@100",
        "ivf-flat: p99 ms",
        "ivf-flat: throughput over bare faiss, single",
        "ivf-flat: throughput over bare faiss, batch",
    ]
    assert bars[0].value == pytest.approx(figures["ivf-flat: 1000 items"]["recall_at_100"], abs=1e-4)
    assert "hnsw: 200 items" in figures  # the maximum of a graph
