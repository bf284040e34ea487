"""How each kind of retriever is built: its parameters, read back from faiss."""

import numpy as np
import pytest

from features.content.spaces import unit
from recsys.retrieval.kinds import RETRIEVER_KINDS, _n_lists, faiss

RNG = np.random.default_rng(0)


def vectors(n, d):
    return unit(RNG.normal(size=(n, d)).astype(np.float32))


def test_a_graph():
    kind = RETRIEVER_KINDS["hnsw"]
    graph = kind.build(vectors(50, 4), 0)
    assert (graph.ntotal, graph.d, graph.metric_type) == (50, 4, faiss.METRIC_INNER_PRODUCT)
    assert graph.hnsw.efConstruction == 80
    assert graph.hnsw.nb_neighbors(0) == 2 * 32  # the lowest layer has twice the links
    assert (kind.default_effort, kind.has_lists, kind.compressed) == (512, False, False)
    assert kind.parameters(7, None).efSearch == 7


@pytest.mark.parametrize(("n", "lists"), [(1, 1), (79, 1), (80, 2), (1_000, 25)])
def test_inverted_lists(n, lists):
    kind = RETRIEVER_KINDS["ivf-flat"]
    index = kind.build(vectors(n, 2), 0)
    assert (index.nlist, index.ntotal, index.metric_type) == (lists, n, faiss.METRIC_INNER_PRODUCT)
    assert (kind.default_effort, kind.has_lists, kind.compressed) == (64, True, False)
    assert kind.parameters(7, None).nprobe == 7


@pytest.mark.parametrize(
    ("n", "lists"),
    [(0, 1), (10_000, 250), (30_000, 512), (51_200, 1_024), (1_000_000, 4_096), (10_000_000, 16_384)],
)
def test_the_number_of_inverted_lists_is_a_power_of_2_near_4_roots_of_n(n, lists):
    assert _n_lists(n) == lists


@pytest.mark.parametrize(
    ("n", "d", "pieces", "bits"),
    [
        (600, 8, 2, 4),  # one byte for four dimensions
        (600, 2, 1, 4),
        (600, 14, 2, 4),  # 3 pieces do not divide 14
        (9_983, 4, 1, 4),
        (9_984, 4, 1, 8),  # 39 vectors for each of 256 codes
    ],
)
def test_compressed_vectors(n, d, pieces, bits):
    kind = RETRIEVER_KINDS["ivf-pq"]
    index = kind.build(vectors(n, d), 0)
    assert (index.pq.M, index.pq.nbits, index.ntotal) == (pieces, bits, n)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert (kind.default_effort, kind.has_lists, kind.compressed) == (64, True, True)
    assert kind.parameters(7, None).nprobe == 7


@pytest.mark.parametrize("name", ["ivf-flat", "ivf-pq"])
def test_the_seed_determines_an_index(name):
    items = vectors(2_000, 8)
    first, same, other = (faiss.serialize_index(RETRIEVER_KINDS[name].build(items, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
