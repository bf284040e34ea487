"""How deep each structure of the index is searched, by hand; and the path of a GPU, whose calls are replaced."""

from types import SimpleNamespace

import numpy as np
import pytest

from features.content.spaces import unit
from recsys.config import RetrieverConfig
from recsys.retrieval import index
from recsys.retrieval.index import Index
from recsys.retrieval.kinds import faiss


def vectors(n, d, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32))


@pytest.fixture
def few(monkeypatch):
    """Structures are built and searched over few items, too."""
    monkeypatch.setattr(index, "BRUTE_FORCE_MAX", 16)


@pytest.fixture
def depths(monkeypatch):
    """The effort of each search of a structure; the parameters that faiss gets are the real ones."""
    found: list[int] = []
    real = Index._parameters

    def recorded(self, effort, selector):
        found.append(effort)
        return real(self, effort, selector)

    monkeypatch.setattr(Index, "_parameters", recorded)
    return found


@pytest.mark.parametrize(
    ("kind", "n", "built"),
    [
        ("exact", 50_001, False),
        ("hnsw", 50_000, False),
        ("hnsw", 50_001, True),
        ("gpu-ivf-pq", 1_000, False),
        ("gpu-ivf-pq", 1_001, True),
        ("gpu-exact", 50_001, False),
    ],
)
def test_the_number_of_items_from_which_on_a_structure_is_built(kind, n, built):
    some = Index.__new__(Index)
    some._configure(np.zeros((n, 1), np.float32), RetrieverConfig(kind=kind))
    assert some._needs_structure is built


@pytest.mark.parametrize(
    ("kind", "lists", "given", "effort"),
    [
        ("ivf-flat", 128, None, 64),
        ("ivf-flat", 25, None, 25),  # never more than there are
        ("ivf-flat", 4_096, None, 64),
        ("ivf-flat", 16_384, None, 256),  # one in 64 lists
        ("ivf-flat", 16_384, 7, 7),
        ("ivf-flat", 25, 30, 25),
        ("hnsw", 0, None, 512),
        ("hnsw", 0, 7, 7),
    ],
)
def test_the_effort_of_a_structure(kind, lists, given, effort):
    some = Index.__new__(Index)
    some._configure(np.zeros((1, 1), np.float32), RetrieverConfig(kind=kind, effort=given))
    some._attach(SimpleNamespace(nlist=lists) if lists else object())
    assert some._effort == effort


def test_a_graph_compares_more_candidates_the_fewer_items_are_allowed(few, depths):
    built = Index(vectors(900, 8), RetrieverConfig(kind="hnsw", effort=20))
    queries = vectors(2, 8, 1)
    built.search(queries, 10)
    built.search(queries, 30)  # at least as many as are asked for
    built.search(queries, 10, allow=np.arange(900) % 9 == 0)  # 20 * sqrt(9), and one more
    built.search(queries, 70, allow=np.arange(900) % 9 == 0)
    built.search(queries, 10, allow=np.arange(900) < 17)  # 20 * sqrt(900 / 17) = 145.5
    assert depths == [20, 30, 61, 70, 146]


def lists_searched(monkeypatch, *, effort, lists, allowed, n=16):
    """How many lists one query searches, whose nearest lists are 0, 1, …; the sample is the items 0 to 15."""
    some = Index.__new__(Index)
    some._configure(np.zeros((n, lists), np.float32), RetrieverConfig(kind="ivf-flat", effort=effort))
    searched = []
    some._structure = SimpleNamespace(search_preassigned_c=lambda b, q, k, order, *rest: searched.append((b, k)))
    some._effort = effort
    some.__dict__["_lists"] = np.eye(lists, dtype=np.float32), np.arange(16), np.arange(16) // (16 // lists)
    used = []
    monkeypatch.setattr(some, "_parameters", lambda count, selector: used.append(count))
    allow = np.isin(np.arange(n), allowed)
    query = np.arange(lists, 0, -1, dtype=np.float32)[None]
    found = some._by_lists(query, 3, allow, int(allow.sum()))
    assert searched == [(1, 3)]
    assert found.rows.shape == (1, 3)
    return used


def test_lists_are_searched_until_they_hold_enough_allowed_items(monkeypatch):
    # e, s / L, f: target t = e (s / L) f^0.25; m: nearest lists that hold fewer than t allowed items
    # 1 * 4 * 0.25^0.25 = 2.83, which list 2 holds: m = 2
    assert lists_searched(monkeypatch, effort=1, lists=4, allowed=[8, 9, 10, 11]) == [3]
    # 3 * 2 * (15 / 16)^0.25 = 5.90: lists 0 to 2 hold 1 + 2 + 2
    assert lists_searched(monkeypatch, effort=3, lists=8, allowed=range(1, 16)) == [4]
    # 3 * 2 * 0.25^0.25 = 4.24 of 4: all lists
    assert lists_searched(monkeypatch, effort=3, lists=8, allowed=[0, 1, 2, 3]) == [8]
    # 4 * 2 * (4 / 64)^0.25 = 4, which lists 0 and 1 hold: but at least 4 lists
    assert lists_searched(monkeypatch, effort=4, lists=8, allowed=[0, 1, 2, 3], n=64) == [4]


def test_more_lists_are_searched_where_the_allowed_items_are_far(monkeypatch):
    # 1 * 2 * 0.5^0.25 = 1.68, which list 4 holds: m = 4 > e f^-0.75 = 1.68
    # t * sqrt(4 * 0.5^0.75) = 2.59, which lists 4 and 5 hold
    assert lists_searched(monkeypatch, effort=1, lists=8, allowed=range(8, 16)) == [6]


def test_every_second_item_of_each_list_is_sampled(few):
    items = vectors(900, 8)
    built = Index(items, RetrieverConfig(kind="ivf-flat"))
    centres, sample, list_of_sample = built._lists  # 22 lists; 900 // (16 * 22) = 2
    assert centres.shape == (22, 8)
    _, nearest = built._structure.quantizer.search(items, 1)
    expected = [np.flatnonzero(nearest[:, 0] == at)[::2].tolist() for at in range(22)]
    assert sample.tolist() == [row for rows in expected for row in rows]
    assert list_of_sample.tolist() == [at for at, rows in enumerate(expected) for _ in rows]
    np.testing.assert_allclose(centres[nearest[0, 0]], built._structure.quantizer.reconstruct(int(nearest[0, 0])))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is the CPU. depths: results asked for in each search; probes: lists searched in each, None: none."""
    found = SimpleNamespace(depths=[], probes=[], devices=[])

    class OnGpu:
        def __init__(self, structure):
            self.structure = structure

        def search(self, queries, k):
            found.depths.append(k)
            found.probes.append(getattr(self.structure, "nprobe", None))
            return self.structure.search(queries, k)

    def copied(resources, device, structure):
        found.devices.append((resources, device))
        return OnGpu(structure)

    for name, value in (
        ("get_num_gpus", lambda: 1),
        ("StandardGpuResources", lambda: "resources"),
        ("index_cpu_to_gpu", copied),
    ):
        monkeypatch.setattr(faiss, name, value, raising=False)
    return found


def test_a_filter_on_a_gpu_searches_deeper(gpu):
    items, queries = vectors(3_000, 8), vectors(2, 8, 1)
    built = Index(items, RetrieverConfig(kind="gpu-exact"))
    assert (built.note, gpu.devices) == ("", [("resources", 0)])
    for allow, depth in (
        (None, 10),
        (np.arange(3_000) % 3 == 0, 46),  # 1.5 * 10 * 3, and one more
        (np.arange(3_000) < 12, 2_048),  # 1.5 * 10 * 250: more than faiss returns
    ):
        gpu.depths.clear()
        found = built.search(queries, 10, allow=allow)
        assert gpu.depths == [depth]
        np.testing.assert_array_equal(found.rows, Index(items).search(queries, 10, allow=allow).rows)
    gpu.depths.clear()
    assert built.search(queries, 2_500).rows.min() >= 0
    assert gpu.depths == [2_048]


def test_a_gpu_is_never_asked_for_more_items_than_there_are(gpu):
    built = Index(vectors(30, 8), RetrieverConfig(kind="gpu-exact"))
    found = built.search(vectors(2, 8, 1), 10, allow=np.arange(30) % 3 == 0)
    assert gpu.depths == [30]
    assert sorted(found.rows[0].tolist()) == list(range(0, 30, 3))


def test_compressed_vectors_on_a_gpu_are_rescored(gpu):
    items, queries = vectors(3_000, 8), vectors(2, 8, 1)
    built = Index(items, RetrieverConfig(kind="gpu-ivf-pq", effort=5, refine=4))
    found = built.search(queries, 10)
    assert (gpu.depths, gpu.probes) == ([40], [5])
    for i, rows in enumerate(found.rows):
        np.testing.assert_allclose(found.scores[i], items[rows] @ queries[i], atol=1e-6)
