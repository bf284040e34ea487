"""An index that changes while it is searched: by hand, against a dict in any order of events, and under threads."""

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
def structures_of_few(monkeypatch):
    """Structures are built and searched even over few items."""
    monkeypatch.setattr(index, "BRUTE_FORCE_MAX", 16)


def found(live, query, k=10, **how):
    """Rows of one query."""
    rows = live.search(np.asarray(query, np.float32)[None], k, **how).rows[0]
    return rows[rows >= 0].tolist()


def at(*rows):
    return np.array(rows, dtype=np.int64)


def test_what_is_put_is_found_by_the_next_search_and_what_is_deleted_by_none():
    live = MutableIndex(Index(CORNERS[:2]))
    assert found(live, [3, 2, 1, 0]) == [0, 1]
    live.upsert(at(3, 2), CORNERS[[2, 3]])
    assert (len(live), live.fresh) == (4, 2)
    assert found(live, [3, 2, 1, 0]) == [0, 1, 3, 2]
    live.upsert(at(0), CORNERS[[3]])  # from the first corner to the last
    assert found(live, [3, 2, 1, 0.5], 3) == [1, 3, 0] or found(live, [3, 2, 1, 0.5], 3) == [1, 3, 2]
    live.delete(at(1, 3, 77))
    assert sorted(found(live, [3, 2, 1, 0])) == [0, 2]
    live.upsert(at(1), CORNERS[[0]])  # back, elsewhere
    assert found(live, [1, 0, 0, 0], 1) == [1]
    np.testing.assert_array_equal(live.vectors[[0, 1, 2]], CORNERS[[3, 0, 3]])


def test_of_a_row_put_twice_at_once_the_last_counts():
    live = MutableIndex(Index(CORNERS[:1]))
    live.upsert(at(5, 5), CORNERS[[1, 2]])
    assert found(live, CORNERS[2], 1) == [5]
    assert live.search(CORNERS[1:2], 2).scores.max() == 0
    assert found(live, CORNERS[2]) == [5, 0]  # rows 1 to 4 were never put


def test_rows_beyond_those_allowed_are_not_found():
    live = MutableIndex(Index(CORNERS[:2]))
    live.upsert(at(2, 3), CORNERS[[2, 3]])
    assert found(live, [0, 1, 2, 3], allow=np.ones(2, np.bool_)) == [1, 0]
    assert found(live, [0, 1, 2, 3], allow=np.array([True, False, True])) == [2, 0]
    assert found(live, [0, 1, 2, 3], allow=np.array([True])) == [0]
    assert found(live, [0, 1, 2, 3], exclude=Ragged.of([[3, 1]])) == [2, 0]


def test_a_merge_keeps_what_is_there_and_what_happened_meanwhile(monkeypatch):
    live = MutableIndex(Index(CORNERS[:3]))
    live.upsert(at(3), CORNERS[[3]])
    live.delete(at(0))
    building = Index.__init__

    def meanwhile(self, *given, **named):
        building(self, *given, **named)
        live.delete(at(1))
        live.upsert(at(2, 4), CORNERS[[0, 1]])
        live.upsert(at(5), CORNERS[[1]])
        live.delete(at(5))

    monkeypatch.setattr(Index, "__init__", meanwhile)
    live.merge()
    monkeypatch.undo()
    assert live.fresh == 3  # what came meanwhile
    assert found(live, [4, 3, 2, 1]) == [2, 4, 3]
    live.merge()
    assert live.fresh == 0
    assert found(live, [4, 3, 2, 1]) == [2, 4, 3]


@pytest.mark.parametrize(
    ("rows", "vectors"),
    [([0], [[1, 0, 0]]), ([0, 1], [[1, 0, 0, 0]]), ([0], [[np.nan, 0, 0, 0]]), ([-1], [[1, 0, 0, 0]])],
)
def test_what_cannot_be_put_is_refused_and_changes_nothing(rows, vectors):
    live = MutableIndex(Index(CORNERS))
    with pytest.raises(ValueError, match=r"needed|from 0"):
        live.upsert(at(*rows), np.array(vectors, np.float32))
    assert found(live, [4, 3, 2, 1]) == [0, 1, 2, 3]


def test_the_old_index_is_released_when_its_last_search_ends():
    live = MutableIndex(Index(CORNERS))
    old = live._state
    held = weakref.ref(old.index)
    live.upsert(at(1), CORNERS[[3]])
    live.merge()
    gc.collect()
    assert held() is not None  # a search that began before goes on in it
    del old
    gc.collect()
    assert held() is None


def test_searches_from_many_threads_never_miss_what_stays_nor_find_what_is_gone(monkeypatch):
    """Row 0 moves between two places all the time and is never absent; odd rows are put and deleted in turn."""
    rng = np.random.default_rng(0)
    live = MutableIndex(Index(unit(rng.normal(size=(400, 4)).astype(np.float32)), RetrieverConfig(kind="ivf-flat")))
    gone = at(*range(1, 400, 2))
    live.delete(gone)
    over, wrong = threading.Event(), []

    def searching():
        while not over.is_set():
            rows = found(live, [1, 1, 1, 1], 500)
            if rows.count(0) != 1 or len(set(rows)) != len(rows) or any(row % 2 for row in rows if row < 400):
                wrong.append(rows)

    threads = [threading.Thread(target=searching) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(300):
        live.upsert(at(0, 400 + i % 50), CORNERS[[i % 4, 3]])
        if i % 60 == 0:
            live.merge()
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []


class Anything(RuleBasedStateMachine):
    """Any order of changes, searches, merges, swaps and kills, beside a dict and exact search."""

    config = RetrieverConfig()
    exact = True

    @initialize(n=st.integers(1, 40), seed=st.integers(0, 9))
    def begin(self, n, seed):
        self.rng = np.random.default_rng(seed)
        self.items = dict(enumerate(self._vectors(n)))
        self.hidden: set[int] = set()
        self._rebuild()

    def _vectors(self, n):
        return unit(self.rng.normal(size=(n, 4)).astype(np.float32))

    def _rebuild(self):
        """A new index over all there is, as a new bundle brings it; what is gone keeps its row."""
        flat = np.zeros((max(self.items, default=0) + 1, 4), dtype=np.float32)
        for row, vector in self.items.items():
            flat[row] = vector
        self.built = Index(flat, self.config)
        self.live = MutableIndex(self.built)
        self.live.delete(np.setdiff1d(np.arange(len(flat)), list(self.items)))
        self.changes: list[tuple[str, np.ndarray, np.ndarray | None]] = []
        self.base = set(self.items)

    @rule(rows=st.lists(st.integers(0, 60), min_size=1, max_size=8))
    def upsert(self, rows):
        vectors = self._vectors(len(rows))
        self.items.update(zip(rows, vectors, strict=True))
        self.changes.append(("upsert", at(*rows), vectors))
        self.live.upsert(at(*rows), vectors)

    @rule(rows=st.lists(st.integers(0, 60), min_size=1, max_size=8))
    def delete(self, rows):
        for row in rows:
            self.items.pop(row, None)
        self.changes.append(("delete", at(*rows), None))
        self.live.delete(at(*rows))

    @rule(row=st.integers(0, 60))
    def hide(self, row):
        self.hidden ^= {row}

    @rule()
    def merge(self):
        self.live.merge()

    @rule()
    def swap(self):
        self._rebuild()

    @precondition(lambda self: self.built is not None)
    @rule()
    def kill_and_restart(self):
        """What was saved is loaded, and what the log has is done again."""
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            self.built.save(Path(folder) / "a", SPACE)
            self.live = MutableIndex(Index.load(Path(folder) / "a", SPACE))
            self.live.delete(np.setdiff1d(np.arange(len(self.built)), list(self.base)))
            for what, rows, vectors in self.changes:
                if what == "upsert":
                    self.live.upsert(rows, vectors)
                else:
                    self.live.delete(rows)

    @rule(k=st.integers(1, 70), b=st.integers(1, 25), out=st.lists(st.integers(0, 60), max_size=5))
    def search(self, k, b, out):
        queries = self._vectors(b)
        allow = ~np.isin(np.arange(61), list(self.hidden))
        there = at(*sorted(set(self.items) - self.hidden - set(out)))
        got = self.live.search(queries, k, allow=allow, exclude=Ragged.of([out] * b))
        scores = queries @ np.stack([self.items[row] for row in there.tolist()] or [np.zeros(4)]).T
        for i in range(b):
            rows = got.rows[i][got.rows[i] >= 0]
            assert len(rows) == len(set(rows.tolist())) == min(k, len(there))
            assert np.isin(rows, there).all()
            if len(rows) and self.exact:
                np.testing.assert_allclose(got.scores[i, : len(rows)], -np.sort(-scores[i])[:k], atol=1e-6)
            if len(rows):
                mine = np.stack([self.items[row] for row in rows.tolist()]) @ queries[i]
                np.testing.assert_allclose(got.scores[i, : len(rows)], mine, atol=1e-5)

    @invariant()
    def never_longer_than_the_largest_row(self):
        if hasattr(self, "live"):
            assert len(self.live) <= 61


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf-flat", "ivf-pq", "gpu-exact", "cut"])
def test_any_order_of_events_answers_as_a_dict(kind):
    chosen = RetrieverConfig(dimensions=2, refine=2) if kind == "cut" else RetrieverConfig(kind=kind, effort=3)
    machine = type("Any", (Anything,), {"config": chosen, "exact": kind in ("exact", "gpu-exact")})
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=25, deadline=None))
