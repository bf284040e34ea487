"""EASE over neighbours: by hand, against EASE, and against a solution column by column, sparse and dense."""

import numpy as np
import pytest
from toy_data import noise, toy_log

from features.errors import ConfigError
from recsys.baselines import fit_ease, fit_item_knn
from recsys.ranking import local_ease
from recsys.ranking.local_ease import fit_local_ease

TRIANGLE = toy_log([(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4), (2, 2, 5)], n_items=4)
"""Users of items 0 to 3: three, two, one, none. Users of two items: 0 and 1 two, 0 and 2 one."""


def test_by_hand():
    weights = fit_local_ease(TRIANGLE, k=2, regularization=1.0)
    assert weights.dtype == np.float32
    expected = np.zeros((4, 4))
    expected[[1, 2], 0] = 2 / (2 + 1), 1 / (1 + 1)  # no user has 1 and 2: each is solved alone
    expected[0, [1, 2]] = 2 / (3 + 1), 1 / (3 + 1)
    np.testing.assert_allclose(weights.toarray(), expected, rtol=1e-6)


def test_the_nearer_of_two_neighbours_is_kept():
    weights = fit_local_ease(TRIANGLE, k=1, regularization=1.0).toarray()
    assert weights[1, 0] == pytest.approx(2 / 3)
    assert weights[2, 0] == 0


def test_a_tie_that_exceeds_k_is_dropped():
    tied = toy_log([(u, i, 2 * u + j) for u, pair in enumerate([(0, 1), (0, 2), (0, 3)]) for j, i in enumerate(pair)])
    assert not fit_local_ease(tied, k=2).toarray()[:, 0].any()
    assert (fit_local_ease(tied, k=3).toarray()[:, 0] > 0).tolist() == [False, True, True, True, False, False]


def test_with_all_items_as_neighbours_it_equals_ease():
    events = noise(n_users=400, n_items=20)
    assert (fit_item_knn(events, k=19).similarity.toarray() > 0).sum() == 20 * 19
    np.testing.assert_allclose(
        fit_local_ease(events, k=19, regularization=50.0).toarray(),
        fit_ease(events, regularization=50.0).weights,
        atol=2e-5,
    )


@pytest.mark.parametrize("max_dense_bytes", [0, 1 << 30])
def test_each_column_is_solved_among_its_own_neighbours(monkeypatch, max_dense_bytes):
    """Co-occurrences are in a sparse matrix, and in a dense one."""
    monkeypatch.setattr(local_ease, "_MAX_DENSE_BYTES", max_dense_bytes)
    events = noise()
    weights = fit_local_ease(events, k=5, regularization=10.0).toarray()
    x = np.zeros((events.n_users, events.n_items))
    x[events.positives().users, events.positives().items] = 1
    for item, column in enumerate(weights.T):
        (neighbours,) = np.nonzero(column)
        assert 1 <= len(neighbours) <= 5
        ridge = x[:, neighbours].T @ x[:, neighbours] + 10 * np.eye(len(neighbours))
        solved = np.linalg.inv(ridge) @ (x[:, neighbours].T @ x[:, item])
        np.testing.assert_allclose(column[neighbours], solved, rtol=1e-4)


def test_a_setting_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="regularization=0"):
        fit_local_ease(TRIANGLE, k=2, regularization=0)
