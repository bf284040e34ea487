"""top_k of dense scores, and the shape check of Candidates."""

import numpy as np
import pytest

from features.interactions import Ragged
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
