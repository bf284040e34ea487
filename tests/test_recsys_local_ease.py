"""EASE among the nearest: by hand, against EASE itself, against a solution of each column, and in both memories."""

import numpy as np
import pytest
from toy_data import noise, toy_log

from features.errors import ConfigError
from recsys.baselines import fit_ease, fit_item_knn
from recsys.ranking import local_ease
from recsys.ranking.local_ease import fit_local_ease

TRIANGLE = toy_log([(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4), (2, 2, 5)], n_items=4)
"""Owners: item 0 three, item 1 two, item 2 one, item 3 none; together: 0 and 1 twice, 0 and 2 once."""


def test_by_hand():
    weights = fit_local_ease(TRIANGLE, k=2, regularization=1.0)
    assert weights.dtype == np.float32
    expected = np.zeros((4, 4))
    expected[[1, 2], 0] = 2 / (2 + 1), 1 / (1 + 1)  # 1 and 2 never together: each for itself
    expected[0, [1, 2]] = 2 / (3 + 1), 1 / (3 + 1)
    np.testing.assert_allclose(weights.toarray(), expected, rtol=1e-6)


def test_of_two_neighbours_the_nearer_is_kept():
    weights = fit_local_ease(TRIANGLE, k=1, regularization=1.0).toarray()
    assert weights[1, 0] == pytest.approx(2 / 3)
    assert weights[2, 0] == 0


def test_a_tie_that_does_not_fit_is_left_out():
    tied = toy_log([(u, i, 2 * u + j) for u, pair in enumerate([(0, 1), (0, 2), (0, 3)]) for j, i in enumerate(pair)])
    assert not fit_local_ease(tied, k=2).toarray()[:, 0].any()
    assert (fit_local_ease(tied, k=3).toarray()[:, 0] > 0).tolist() == [False, True, True, True, False, False]


def test_with_all_items_near_it_is_ease():
    events = noise(n_users=400, n_items=20)
    assert (fit_item_knn(events, k=19).similarity.toarray() > 0).sum() == 20 * 19
    np.testing.assert_allclose(
        fit_local_ease(events, k=19, regularization=50.0).toarray(),
        fit_ease(events, regularization=50.0).weights,
        atol=2e-5,
    )


@pytest.mark.parametrize("most", [0, 1 << 30])
def test_each_column_is_solved_among_its_own_neighbours(monkeypatch, most):
    """With the pairs in a sparse matrix, and in a dense one."""
    monkeypatch.setattr(local_ease, "_MAX_DENSE_BYTES", most)
    events = noise()
    weights = fit_local_ease(events, k=5, regularization=10.0).toarray()
    x = np.zeros((events.n_users, events.n_items))
    x[events.positives().users, events.positives().items] = 1
    for item, column in enumerate(weights.T):
        (near,) = np.nonzero(column)
        assert 1 <= len(near) <= 5
        ridge = x[:, near].T @ x[:, near] + 10 * np.eye(len(near))
        solved = np.linalg.inv(ridge) @ (x[:, near].T @ x[:, item])
        np.testing.assert_allclose(column[near], solved, rtol=1e-4)


def test_a_setting_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="regularization=0"):
        fit_local_ease(TRIANGLE, k=2, regularization=0)
