"""The contract of `Retriever`, over every implementation, against brute force; and faiss's two wheels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import BundleError, DependencyError
from features.interactions import Ragged
from recsys import index
from recsys.candidates import Retriever
from recsys.index import ExactIndex, check_faiss

RETRIEVERS = [ExactIndex]


def vectors(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute(items, queries, k, allow, exclude):
    """(row, score) lists of each query, by a loop."""
    out = []
    for i, query in enumerate(queries):
        out_of = set(exclude[i]) if exclude is not None else set()
        allowed = [r for r in range(len(items)) if (allow is None or allow[r]) and r not in out_of]
        out.append(sorted(((float(items[r] @ query), r) for r in allowed), reverse=True)[:k])
    return out


@pytest.mark.parametrize("kind", RETRIEVERS)
@given(data=st.data())
def test_equals_brute_force(kind, data):
    n, b, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99))
    k = data.draw(st.integers(1, n + 5))
    allow = data.draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n).map(np.array))
    rows = st.lists(st.integers(0, n - 1), max_size=n + 3)  # twice the same row, too
    exclude = data.draw(st.none() | st.lists(rows, min_size=b, max_size=b))
    items, queries = vectors(n, 5, seed), vectors(b, 5, seed + 1)
    found = kind(items).search(queries, k, allow=allow, exclude=None if exclude is None else Ragged.of(exclude))
    assert found.rows.shape == (b, k)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    for i, expected in enumerate(brute(items, queries, k, allow, exclude)):
        size = len(expected)
        assert found.rows[i, :size].tolist() == [row for _, row in expected]
        np.testing.assert_allclose(found.scores[i, :size], [score for score, _ in expected], atol=1e-6)
        assert (found.rows[i, size:] == -1).all()
        assert np.isneginf(found.scores[i, size:]).all()


@pytest.fixture(params=RETRIEVERS)
def retriever(request):
    return request.param(vectors(20, 4, 0))


def test_is_a_retriever(retriever):
    assert isinstance(retriever, Retriever)


def test_more_than_there_are_is_padded(retriever):
    found = retriever.search(vectors(2, 4, 1), 50)
    assert sorted(found.rows[0, :20].tolist()) == list(range(20))
    assert (found.rows[:, 20:] == -1).all()
    assert np.isneginf(found.scores[:, 20:]).all()


def test_everything_excluded_or_nothing_allowed_is_all_padding(retriever):
    everything = Ragged.of([list(range(20)), [3]])
    found = retriever.search(vectors(2, 4, 1), 5, exclude=everything)
    assert (found.rows[0] == -1).all()
    assert (found.rows[1] >= 0).all()  # the other query is not touched
    found = retriever.search(vectors(2, 4, 1), 5, allow=np.zeros(20, np.bool_))
    assert (found.rows == -1).all()
    assert np.isneginf(found.scores).all()


def test_excluding_many_still_returns_k(retriever):
    found = retriever.search(vectors(1, 4, 1), 5, exclude=Ragged.of([list(range(15))]))
    assert sorted(found.rows[0].tolist()) == [15, 16, 17, 18, 19]


def test_no_queries_is_no_answer(retriever):
    none = np.zeros((0, 4), np.float32)
    assert retriever.search(none, 3).rows.shape == (0, 3)
    assert retriever.search(none, 3, exclude=Ragged.of([])).rows.shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_queries_that_are_not_finite_are_refused(retriever, bad):
    queries = vectors(2, 4, 1)
    queries[1, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        retriever.search(queries, 3)


@pytest.mark.parametrize("kind", RETRIEVERS)
def test_vectors_that_are_not_finite_are_refused(kind):
    items = vectors(5, 4, 0)
    items[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 5 vectors are not finite"):
        kind(items)


def test_a_search_does_not_touch_what_it_is_given(retriever):
    queries, allow, exclude = vectors(2, 4, 1), np.arange(20) % 2 == 0, Ragged.of([[1], [2, 4]])
    before = queries.copy(), allow.copy(), exclude.flat.copy()
    retriever.search(queries, 30, allow=allow, exclude=exclude)
    for a, b in zip(before, (queries, allow, exclude.flat), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_index_gives_back_its_vectors(tmp_path):
    items = vectors(9, 4, 0)
    built = ExactIndex(items)
    built.save(tmp_path / "index")
    loaded = ExactIndex.load(tmp_path / "index")
    for one in (built, loaded):
        np.testing.assert_array_equal(one.vectors, items)
        assert len(one) == 9
    np.testing.assert_array_equal(
        loaded.search(items[:2], 4).rows,
        built.search(items[:2], 4).rows,
    )


@pytest.mark.parametrize("content", [b"", b"no index", b"IxFI" + b"\xff" * 40])
def test_a_file_that_is_no_index_is_refused_by_name(tmp_path, content):
    (tmp_path / "index").write_bytes(content)
    with pytest.raises(BundleError, match=r"index: faiss cannot read"):
        ExactIndex.load(tmp_path / "index")


# the two wheels of faiss


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes exactly these distributions be installed."""

    def install(*names):
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-1.15.1.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")
        monkeypatch.setattr(index.metadata.sys, "path", [str(tmp_path)])

    return install


@pytest.mark.parametrize("name", ["faiss-cpu", "faiss-gpu"])
def test_one_faiss_is_right(installed, name):
    installed(name)
    check_faiss()


def test_no_faiss_says_what_to_install(installed):
    installed("numpy")
    with pytest.raises(DependencyError, match=r"no faiss is installed: pip install 'recsys\[cpu\]'"):
        check_faiss()


def test_two_faisses_say_what_to_remove(installed):
    installed("faiss-cpu", "faiss-gpu")
    with pytest.raises(DependencyError, match=r"overwrite each other: pip uninstall -y faiss-cpu faiss-gpu"):
        check_faiss()
