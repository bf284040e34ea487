"""The contract of `Retriever`: every implementation against a loop; files; the check of faiss's two wheels."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.content.spaces import SpaceKey, unit
from features.errors import BundleError, ConfigError, DependencyError, SpaceError
from features.interactions import Ragged
from recsys.config import RetrieverConfig
from recsys.interfaces import Retriever
from recsys.retrieval import index
from recsys.retrieval.index import Index
from recsys.retrieval.kinds import check_faiss
from recsys.retrieval.mutable_index import MutableIndex


def upserted(items):
    """A mutable index: the first half of the items is built in another order, then upserted; the second half too."""
    half = (len(items) + 1) // 2
    mutable = MutableIndex(Index(items[:half][::-1]))
    mutable.upsert(np.arange(half), items[:half])
    mutable.upsert(np.arange(half, len(items)), items[half:])
    return mutable


def deleted_and_upserted(items):
    """A mutable index that was merged while every second item was deleted."""
    mutable = MutableIndex(Index(items))
    mutable.delete(np.arange(0, len(items), 2))
    mutable.merge()
    mutable.upsert(np.arange(0, len(items), 2), items[::2])
    return mutable


def exhaustive(**settings):
    """An index whose effort is so large that a search compares every item."""
    return lambda items: Index(items, RetrieverConfig(effort=10_000, refine=10_000, **settings))


EXACT = {
    "exact": Index,
    "mutable": lambda items: MutableIndex(Index(items)),
    "upserted": upserted,
    "deleted and upserted": deleted_and_upserted,
    "hnsw": exhaustive(kind="hnsw"),
    "ivf-flat": exhaustive(kind="ivf-flat"),
    "ivf-pq": exhaustive(kind="ivf-pq"),
    "gpu-exact": exhaustive(kind="gpu-exact"),
    "cut": exhaustive(dimensions=3),
    "cut, hnsw": exhaustive(kind="hnsw", dimensions=3),
}
"""Implementations that return the same items as brute force."""

KINDS = ("exact", "hnsw", "ivf-flat", "ivf-pq", "gpu-exact", "gpu-ivf-pq")


@pytest.fixture(autouse=True)
def structures_for_few_items(monkeypatch):
    """Build and search structures over few items, too."""
    monkeypatch.setattr(index, "BRUTE_FORCE_MAX", 16)


def vectors(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute(items, queries, k, allow, exclude):
    """Lists of (score, row) of each query, by a loop."""
    out = []
    for i, query in enumerate(queries):
        excluded = set(exclude[i]) if exclude is not None else set()
        allowed = [r for r in range(len(items)) if (allow is None or allow[r]) and r not in excluded]
        out.append(sorted(((float(items[r] @ query), r) for r in allowed), reverse=True)[:k])
    return out


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
@settings(max_examples=40)
@given(data=st.data())
def test_equals_brute_force(make, data):
    n, b, seed = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 30)), data.draw(st.integers(0, 99))
    k = data.draw(st.integers(1, n + 5))
    allow = data.draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n).map(np.array))
    rows = st.lists(st.integers(0, n - 1), max_size=n + 3)  # with repeated rows
    exclude = data.draw(st.none() | st.lists(rows, min_size=b, max_size=b))
    items, queries = vectors(n, 5, seed), vectors(b, 5, seed + 1)
    found = make(items).search(queries, k, allow=allow, exclude=None if exclude is None else Ragged.of(exclude))
    assert found.rows.shape == (b, k)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    for i, expected in enumerate(brute(items, queries, k, allow, exclude)):
        size = len(expected)
        assert found.rows[i, :size].tolist() == [row for _, row in expected]
        np.testing.assert_allclose(found.scores[i, :size], [score for score, _ in expected], atol=1e-6)
        assert (found.rows[i, size:] == -1).all()
        assert np.isneginf(found.scores[i, size:]).all()


@pytest.fixture(params=EXACT.values(), ids=list(EXACT))
def retriever(request):
    return request.param(vectors(20, 4, 0))


def test_is_a_retriever(retriever):
    assert isinstance(retriever, Retriever)


def test_a_k_above_the_number_of_items_is_padded(retriever):
    found = retriever.search(vectors(2, 4, 1), 50)
    assert sorted(found.rows[0, :20].tolist()) == list(range(20))
    assert (found.rows[:, 20:] == -1).all()
    assert np.isneginf(found.scores[:, 20:]).all()


def test_everything_excluded_or_nothing_allowed_is_all_padding(retriever):
    everything = Ragged.of([list(range(20)), [3]])
    found = retriever.search(vectors(2, 4, 1), 5, exclude=everything)
    assert (found.rows[0] == -1).all()
    assert (found.rows[1] >= 0).all()  # the other query is not affected
    found = retriever.search(vectors(2, 4, 1), 5, allow=np.zeros(20, np.bool_))
    assert (found.rows == -1).all()
    assert np.isneginf(found.scores).all()


def test_excluding_many_still_returns_k(retriever):
    found = retriever.search(vectors(1, 4, 1), 5, exclude=Ragged.of([list(range(15))]))
    assert sorted(found.rows[0].tolist()) == [15, 16, 17, 18, 19]


def test_no_queries_give_no_candidates(retriever):
    none = np.zeros((0, 4), np.float32)
    assert retriever.search(none, 3).rows.shape == (0, 3)
    assert retriever.search(none, 3, exclude=Ragged.of([])).rows.shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_queries_that_are_not_finite_are_rejected(retriever, value):
    queries = vectors(2, 4, 1)
    queries[1, 2] = value
    with pytest.raises(ValueError, match="finite"):
        retriever.search(queries, 3)


def test_vectors_that_are_not_finite_are_rejected():
    items = vectors(5, 4, 0)
    items[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 5 vectors are not finite"):
        Index(items)


def test_a_search_does_not_change_its_arguments(retriever):
    queries, allow, exclude = vectors(2, 4, 1), np.arange(20) % 2 == 0, Ragged.of([[1], [2, 4]])
    before = queries.copy(), allow.copy(), exclude.flat.copy()
    retriever.search(queries, 30, allow=allow, exclude=exclude)
    for a, b in zip(before, (queries, allow, exclude.flat), strict=True):
        np.testing.assert_array_equal(a, b)


# kinds that compare a part of the items


@pytest.fixture(scope="module")
def clustered():
    """3,000 items around 30 centres, and queries between them."""
    rng = np.random.default_rng(3)
    centres = vectors(30, 16, 1)
    items = unit(centres[rng.integers(0, 30, 3000)] + 0.15 * rng.normal(size=(3000, 16)).astype(np.float32))
    return items, unit(centres[rng.integers(0, 30, 40)] + 0.3 * rng.normal(size=(40, 16)).astype(np.float32))


@pytest.mark.parametrize("share", [1.0, 0.3, 0.05, 0.001])
@pytest.mark.parametrize("dimensions", [None, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_complete_allowed_and_scored_in_all_dimensions(clustered, kind, dimensions, share):
    items, queries = clustered
    built = Index(items, RetrieverConfig(kind=kind, dimensions=dimensions, effort=4, refine=2))
    rng = np.random.default_rng(5)
    allow = rng.random(len(items)) < share
    exclude = [rng.integers(0, len(items), 50).tolist() for _ in queries]
    found = built.search(queries, 20, allow=allow, exclude=Ragged.of(exclude))
    for i, excluded in enumerate(exclude):
        remaining = np.flatnonzero(allow & ~np.isin(np.arange(len(items)), excluded))
        rows = found.rows[i][found.rows[i] >= 0]
        assert len(rows) == len(set(rows.tolist())) == min(20, len(remaining))
        assert np.isin(rows, remaining).all()
        np.testing.assert_allclose(found.scores[i, : len(rows)], items[rows] @ queries[i], atol=1e-5)
        assert (np.diff(found.scores[i, : len(rows)]) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_high_effort_finds_nearly_all_neighbours(clustered, kind):
    items, queries = clustered
    exact = Index(items).search(queries, 20).rows
    found = Index(items, RetrieverConfig(kind=kind, effort=100)).search(queries, 20).rows
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]) > 0.97


def test_fewer_dimensions_retrieve_and_all_dimensions_rank():
    items = unit(np.array([[1, 0, 0.1], [1, 0.1, 0], [0, 1, 0], [0.9, 0.2, 0.9]], np.float32))
    query = np.array([[0.5, 0, 1]], np.float32)  # order by all dimensions: 3, 0, 1, 2; by the first two: 0, 1, 3, 2
    cut = Index(np.repeat(items, 10, 0), RetrieverConfig(dimensions=2, refine=1))
    assert set(cut.search(query, 20).rows[0].tolist()) == set(range(20))
    assert (
        Index(np.repeat(items, 10, 0), RetrieverConfig(dimensions=2, refine=3)).search(query, 10).rows[0].min() == 30
    )
    with pytest.raises(ConfigError, match=r"retriever\.dimensions is 4, but vectors have 3"):
        Index(items, RetrieverConfig(dimensions=4))


def test_without_a_gpu_the_kind_runs_on_the_cpu_with_a_note(clustered):
    items, queries = clustered
    configured = Index(items, RetrieverConfig(kind="gpu-exact"))
    if index.faiss.get_num_gpus():
        pytest.skip("there is a GPU")
    assert configured.note == "no GPU is available: retriever gpu-exact runs as exact on the CPU"
    np.testing.assert_array_equal(configured.search(queries, 5).rows, Index(items).search(queries, 5).rows)
    assert MutableIndex(configured).note == configured.note
    assert Index(items).note == ""


@pytest.mark.gpu
@pytest.mark.skipif(index.faiss.get_num_gpus() == 0, reason="needs a CUDA device and faiss-gpu")
@pytest.mark.parametrize("kind", ["gpu-exact", "gpu-ivf-pq"])
def test_a_gpu_finds_what_the_cpu_finds(clustered, kind):
    items, queries = clustered
    on_gpu = Index(items, RetrieverConfig(kind=kind, effort=100, refine=50))
    assert on_gpu.note == ""
    for allow in (None, np.arange(len(items)) % 3 == 0, np.arange(len(items)) < 12):
        exact, found = (
            Index(items).search(queries, 10, allow=allow).rows,
            on_gpu.search(queries, 10, allow=allow).rows,
        )
        assert (
            np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]) > 0.98
        )


# files

KEY = SpaceKey("towers", "1", 16)


@pytest.mark.parametrize("dimensions", [None, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_finds_what_the_saved_one_finds(clustered, tmp_path, kind, dimensions):
    items, queries = clustered
    built = Index(items, RetrieverConfig(kind=kind, dimensions=dimensions))
    built.save(tmp_path / "a", KEY)
    loaded = Index.load(tmp_path / "a", KEY)
    assert loaded.config == built.config
    assert len(loaded) == 3000
    np.testing.assert_array_equal(loaded.vectors, items)
    for allow in (None, np.arange(3000) % 5 == 0):
        before, after = built.search(queries, 9, allow=allow), loaded.search(queries, 9, allow=allow)
        np.testing.assert_array_equal(after.rows, before.rows)
        np.testing.assert_array_equal(after.scores, before.scores)


def test_vectors_of_another_space_are_rejected_with_both_names(tmp_path):
    Index(vectors(9, 16, 0)).save(tmp_path / "a", KEY)
    with pytest.raises(SpaceError, match=r"a\.json: vectors of two spaces.*\n.*towers@1 .*\n.*towers@2"):
        Index.load(tmp_path / "a", SpaceKey("towers", "2", 16))


@pytest.mark.parametrize("content", [b"", b"no index", b"IxFI" + b"\xff" * 40, None])
@pytest.mark.parametrize("file", ["a.json", "a.npy", "a.faiss"])
def test_an_invalid_file_is_rejected_by_name(tmp_path, file, content):
    Index(vectors(900, 16, 0), RetrieverConfig(kind="ivf-flat")).save(tmp_path / "a", KEY)
    valid = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(valid[: len(valid) // 2] if content is None else content)
    words = r"(not UTF-8 at byte \d+|not JSON at line \d+, column \d+|not what this version writes); train again$"
    with pytest.raises(BundleError, match=rf"{file}: no index can be read from it: {words}"):
        Index.load(tmp_path / "a", KEY)


def test_files_of_two_indexes_are_rejected(tmp_path):
    for n, name in ((900, "a"), (800, "b")):
        Index(vectors(n, 16, 0), RetrieverConfig(kind="hnsw")).save(tmp_path / name, KEY)
    (tmp_path / "b.faiss").replace(tmp_path / "a.faiss")
    with pytest.raises(BundleError, match=r"a\.faiss: no index can be read from it: 800 vectors of 16"):
        Index.load(tmp_path / "a", KEY)
    np.save(tmp_path / "a.npy", vectors(900, 16, 0).astype(np.float64))
    with pytest.raises(BundleError, match=r"a\.npy: .*float64"):
        Index.load(tmp_path / "a", KEY)


# the two wheels of faiss


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function after which exactly these distributions are installed."""

    def install(*names):
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-1.15.1.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return install


@pytest.mark.parametrize("name", ["faiss-cpu", "faiss-gpu"])
def test_one_faiss_is_accepted(installed, name):
    installed(name)
    check_faiss()


def test_without_faiss_the_error_says_what_to_install(installed):
    installed("numpy")
    with pytest.raises(DependencyError, match=r"retrieval needs the package faiss: .* extra `cpu`"):
        check_faiss()


def test_with_two_wheels_the_error_says_what_to_remove(installed):
    installed("faiss-cpu", "faiss-gpu")
    with pytest.raises(DependencyError, match=r"overwrite each other: pip uninstall -y faiss-cpu faiss-gpu"):
        check_faiss()
