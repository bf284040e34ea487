"""The mutable index: by hand, against a dict under random operations, and under threads."""

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from features.content.spaces import SpaceKey, unit
from features.interactions import Ragged
from recsys.config import RetrieverConfig
from recsys.retrieval import index
from recsys.retrieval.index import Index
from recsys.retrieval.mutable_index import MutableIndex

SPACE = SpaceKey("towers", "1", 4)
CORNERS = np.eye(4, dtype=np.float32)


@pytest.fixture(autouse=True)
def structures_for_few_items(monkeypatch):
    """Build and search structures over few items, too."""
    monkeypatch.setattr(index, "BRUTE_FORCE_MAX", 16)


def found(mutable, query, k=10, **options):
    """Rows found by one query."""
    rows = mutable.search(np.asarray(query, np.float32)[None], k, **options).rows[0]
    return rows[rows >= 0].tolist()


def at(*rows):
    return np.array(rows, dtype=np.int64)


def test_upserted_rows_are_found_and_deleted_rows_are_not():
    mutable = MutableIndex(Index(CORNERS[:2]))
    assert found(mutable, [3, 2, 1, 0]) == [0, 1]
    mutable.upsert(at(3, 2), CORNERS[[2, 3]])
    assert (len(mutable), mutable.fresh) == (4, 2)
    assert found(mutable, [3, 2, 1, 0]) == [0, 1, 3, 2]
    mutable.upsert(at(0), CORNERS[[3]])  # item 0 moves to the last corner
    assert found(mutable, [3, 2, 1, 0.5], 3) == [1, 3, 0] or found(mutable, [3, 2, 1, 0.5], 3) == [1, 3, 2]
    mutable.delete(at(1, 3, 77))
    assert sorted(found(mutable, [3, 2, 1, 0])) == [0, 2]
    mutable.upsert(at(1), CORNERS[[0]])  # upserted again, with another vector
    assert found(mutable, [1, 0, 0, 0], 1) == [1]
    np.testing.assert_array_equal(mutable.vectors[[0, 1, 2]], CORNERS[[3, 0, 3]])


def test_of_a_repeated_row_the_last_vector_counts():
    mutable = MutableIndex(Index(CORNERS[:1]))
    mutable.upsert(at(5, 5), CORNERS[[1, 2]])
    assert found(mutable, CORNERS[2], 1) == [5]
    assert mutable.search(CORNERS[1:2], 2).scores.max() == 0
    assert found(mutable, CORNERS[2]) == [5, 0]  # rows 1 to 4 never existed


def test_rows_beyond_those_allowed_are_not_found():
    mutable = MutableIndex(Index(CORNERS[:2]))
    mutable.upsert(at(2, 3), CORNERS[[2, 3]])
    assert found(mutable, [0, 1, 2, 3], allow=np.ones(2, np.bool_)) == [1, 0]
    assert found(mutable, [0, 1, 2, 3], allow=np.array([True, False, True])) == [2, 0]
    assert found(mutable, [0, 1, 2, 3], allow=np.array([True])) == [0]
    assert found(mutable, [0, 1, 2, 3], exclude=Ragged.of([[3, 1]])) == [2, 0]


def test_a_merge_keeps_all_rows_and_concurrent_changes(monkeypatch):
    mutable = MutableIndex(Index(CORNERS[:3]))
    mutable.upsert(at(3), CORNERS[[3]])
    mutable.delete(at(0))
    build = Index.__init__

    def build_then_change(self, *arguments, **options):
        build(self, *arguments, **options)
        mutable.delete(at(1))
        mutable.upsert(at(2, 4), CORNERS[[0, 1]])
        mutable.upsert(at(5), CORNERS[[1]])
        mutable.delete(at(5))

    monkeypatch.setattr(Index, "__init__", build_then_change)
    mutable.merge()
    monkeypatch.undo()
    assert mutable.fresh == 3  # upserted during the merge
    assert found(mutable, [4, 3, 2, 1]) == [2, 4, 3]
    mutable.merge()
    assert mutable.fresh == 0
    assert found(mutable, [4, 3, 2, 1]) == [2, 4, 3]


@pytest.mark.parametrize(
    ("rows", "vectors"),
    [([0], [[1, 0, 0]]), ([0, 1], [[1, 0, 0, 0]]), ([0], [[np.nan, 0, 0, 0]]), ([-1], [[1, 0, 0, 0]])],
)
def test_an_invalid_upsert_is_rejected_and_changes_nothing(rows, vectors):
    mutable = MutableIndex(Index(CORNERS))
    with pytest.raises(ValueError, match=r"needed|from 0"):
        mutable.upsert(at(*rows), np.array(vectors, np.float32))
    assert found(mutable, [4, 3, 2, 1]) == [0, 1, 2, 3]


def test_the_old_index_is_released_when_its_last_search_ends():
    mutable = MutableIndex(Index(CORNERS))
    old = mutable._state
    reference = weakref.ref(old.index)
    mutable.upsert(at(1), CORNERS[[3]])
    mutable.merge()
    gc.collect()
    assert reference() is not None  # a search that started before still uses it
    del old
    gc.collect()
    assert reference() is None


def test_concurrent_searches_see_consistent_states(monkeypatch):
    """Row 0 gets a new vector all the time and is never absent; odd rows stay deleted."""
    rng = np.random.default_rng(0)
    mutable = MutableIndex(
        Index(unit(rng.normal(size=(400, 4)).astype(np.float32)), RetrieverConfig(kind="ivf-flat"))
    )
    odd = at(*range(1, 400, 2))
    mutable.delete(odd)
    stop, violations = threading.Event(), []

    def searching():
        while not stop.is_set():
            rows = found(mutable, [1, 1, 1, 1], 500)
            if rows.count(0) != 1 or len(set(rows)) != len(rows) or any(row % 2 for row in rows if row < 400):
                violations.append(rows)

    threads = [threading.Thread(target=searching) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(300):
        mutable.upsert(at(0, 400 + i % 50), CORNERS[[i % 4, 3]])
        if i % 60 == 0:
            mutable.merge()
    stop.set()
    for thread in threads:
        thread.join()
    assert violations == []


class RandomOperations(RuleBasedStateMachine):
    """Random changes, searches, merges, swaps and restarts, compared with a dict and exact search."""

    config = RetrieverConfig()
    exact = True

    @initialize(n=st.integers(1, 40), seed=st.integers(0, 9))
    def start(self, n, seed):
        self.rng = np.random.default_rng(seed)
        self.items = dict(enumerate(self._vectors(n)))
        self.hidden: set[int] = set()
        self._rebuild()

    def _vectors(self, n):
        return unit(self.rng.normal(size=(n, 4)).astype(np.float32))

    def _rebuild(self):
        """A new index over all items, as in a new bundle; deleted items keep their rows."""
        flat = np.zeros((max(self.items, default=0) + 1, 4), dtype=np.float32)
        for row, vector in self.items.items():
            flat[row] = vector
        self.built = Index(flat, self.config)
        self.mutable = MutableIndex(self.built)
        self.mutable.delete(np.setdiff1d(np.arange(len(flat)), list(self.items)))
        self.changes: list[tuple[str, np.ndarray, np.ndarray | None]] = []
        self.base = set(self.items)

    @rule(rows=st.lists(st.integers(0, 60), min_size=1, max_size=8))
    def upsert(self, rows):
        vectors = self._vectors(len(rows))
        self.items.update(zip(rows, vectors, strict=True))
        self.changes.append(("upsert", at(*rows), vectors))
        self.mutable.upsert(at(*rows), vectors)

    @rule(rows=st.lists(st.integers(0, 60), min_size=1, max_size=8))
    def delete(self, rows):
        for row in rows:
            self.items.pop(row, None)
        self.changes.append(("delete", at(*rows), None))
        self.mutable.delete(at(*rows))

    @rule(row=st.integers(0, 60))
    def hide(self, row):
        self.hidden ^= {row}

    @rule()
    def merge(self):
        self.mutable.merge()

    @rule()
    def swap(self):
        self._rebuild()

    @precondition(lambda self: self.built is not None)
    @rule()
    def kill_and_restart(self):
        """Load the saved index, then replay the logged changes."""
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            self.built.save(Path(folder) / "a", SPACE)
            self.mutable = MutableIndex(Index.load(Path(folder) / "a", SPACE))
            self.mutable.delete(np.setdiff1d(np.arange(len(self.built)), list(self.base)))
            for change, rows, vectors in self.changes:
                if change == "upsert":
                    assert vectors is not None
                    self.mutable.upsert(rows, vectors)
                else:
                    self.mutable.delete(rows)

    @rule(k=st.integers(1, 70), b=st.integers(1, 25), excluded=st.lists(st.integers(0, 60), max_size=5))
    def search(self, k, b, excluded):
        queries = self._vectors(b)
        allow = ~np.isin(np.arange(61), list(self.hidden))
        present = at(*sorted(set(self.items) - self.hidden - set(excluded)))
        got = self.mutable.search(queries, k, allow=allow, exclude=Ragged.of([excluded] * b))
        scores = queries @ np.stack([self.items[row] for row in present.tolist()] or [np.zeros(4)]).T
        for i in range(b):
            rows = got.rows[i][got.rows[i] >= 0]
            assert len(rows) == len(set(rows.tolist())) == min(k, len(present))
            assert np.isin(rows, present).all()
            if len(rows) and self.exact:
                np.testing.assert_allclose(got.scores[i, : len(rows)], -np.sort(-scores[i])[:k], atol=1e-6)
            if len(rows):
                expected = np.stack([self.items[row] for row in rows.tolist()]) @ queries[i]
                np.testing.assert_allclose(got.scores[i, : len(rows)], expected, atol=1e-5)

    @invariant()
    def never_longer_than_the_largest_row(self):
        if hasattr(self, "mutable"):
            assert len(self.mutable) <= 61


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf-flat", "ivf-pq", "gpu-exact", "cut"])
def test_random_operations_agree_with_a_dict(kind):
    config = RetrieverConfig(dimensions=2, refine=2) if kind == "cut" else RetrieverConfig(kind=kind, effort=3)
    machine = type("Machine", (RandomOperations,), {"config": config, "exact": kind in ("exact", "gpu-exact")})
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=25, deadline=None))
