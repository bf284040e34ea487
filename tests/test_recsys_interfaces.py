"""top_k of dense scores, membership in slices, and candidates that are moved with their sources."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.interactions import Ragged
from recsys import interfaces
from recsys.interfaces import Candidates, top_k


def scores():
    return np.array([[0.5, 0.9, -1.0, 0.7], [4.0, 3.0, 2.0, 1.0]], dtype=np.float32)


def test_the_best_come_first():
    candidates = top_k(scores(), 2)
    assert candidates.rows.tolist() == [[1, 3], [0, 1]]
    np.testing.assert_array_equal(candidates.scores, np.array([[0.9, 0.7], [4, 3]], np.float32))
    assert candidates.rows.dtype == np.int64
    assert candidates.scores.dtype == np.float32
    assert len(candidates) == 2


def test_allow_and_exclude_leave_padding_at_the_end():
    allow = np.array([True, True, False, True])
    candidates = top_k(scores(), 4, allow=allow, exclude=Ragged.of([[1, 1], [0, 1, 3]]))
    assert candidates.rows.tolist() == [[3, 0, -1, -1], [-1, -1, -1, -1]]
    assert np.isneginf(candidates.scores[candidates.rows == -1]).all()


def test_a_k_above_the_number_of_items_is_padded():
    candidates = top_k(scores(), 6)
    assert candidates.rows.tolist() == [[1, 3, 0, 2, -1, -1], [0, 1, 2, 3, -1, -1]]
    assert np.isneginf(candidates.scores[:, 4:]).all()


def test_nan_and_minus_infinity_are_never_returned():
    unusable = np.array([[np.nan, 1.0, -np.inf]], dtype=np.float32)
    candidates = top_k(unusable, 3)
    assert candidates.rows.tolist() == [[1, -1, -1]]
    assert candidates.scores.tolist() == [[1.0, -np.inf, -np.inf]]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and scores \(2, 2\)"):
        Candidates(np.zeros((2, 3), np.int64), np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"\(b, k\)"):
        Candidates(np.zeros(3, np.int64), np.zeros(3, np.float32))


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=3),
    st.integers(0, 5),
    st.sampled_from([0, 1 << 24]),
)
def test_membership_in_slices(slices: list[list[int]], width: int, table: int) -> None:
    rows = np.random.default_rng(width).integers(-1, 9, (len(slices), width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interfaces, "MAX_TABLE", table)  # with a table, and by sorting
        found = interfaces.in_slices(Ragged.of(slices), np.arange(len(slices))[:, None], rows)
    assert found.tolist() == [[row in own for row in line] for own, line in zip(slices, rows.tolist(), strict=True)]


def test_candidates_keep_their_sources_when_they_move() -> None:
    found = Candidates(
        np.array([[4, 2, 7, -1]]),
        np.array([[4, 3, 2, -np.inf]], dtype=np.float32),
        np.array([[0, 2, 1, -1]], dtype=np.int32),
        np.array([[5, 6, 7, -1]], dtype=np.int32),
    )
    moved = found.sorted(np.array([[1.0, -np.inf, 3.0, 9.0]]), 5)
    assert moved.rows.tolist() == [[7, 4, -1, -1, -1]]
    assert moved.scores.tolist() == [[3, 1, -np.inf, -np.inf, -np.inf]]
    assert moved.source_names(0) == ["long_term", "own", "", "", ""]
    assert moved.places is not None
    assert moved.places.tolist() == [[7, 5, -1, -1, -1]]
    kept = found.where(np.array([[False, True, True, False]]), 1)
    assert (kept.rows.tolist(), kept.source_names(0)) == ([[2]], ["recent"])
    put = Candidates.empty(2, 4)
    put.put(np.array([1]), found)
    assert put.rows.tolist() == [[-1] * 4, [4, 2, 7, -1]]
    assert put.source_names(1) == ["own", "recent", "long_term", ""]
    put.put(np.array([1]), Candidates(found.rows, found.scores))
    assert put.source_names(1) == [""] * 4
    assert found.of_source("popular").source_names(0) == ["popular"] * 3 + [""]
