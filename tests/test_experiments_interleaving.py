"""Interleaving by replay: figures by hand, a better list wins, and equal ones do not."""

import numpy as np
import pytest
from toy_data import toy_catalog, toy_log

from experiments.evaluation.interleaving import replay
from experiments.splits import time_split
from recsys.interfaces import Candidates

CATALOG = toy_catalog(6)


class Fixed:
    """Recommends the same items to everybody."""

    def __init__(self, *rows):
        self.rows = np.array(rows, dtype=np.int64)

    def recommend(self, states, k, *, allow=None, exclude=None):
        rows = np.tile(np.pad(self.rows, (0, k - len(self.rows)), constant_values=-1), (len(states), 1))
        return Candidates(rows, np.where(rows < 0, -np.inf, -np.arange(k)).astype(np.float32))


def targets(taken):
    """Each user takes item 0 early, and then one of `taken`."""
    n = len(taken)
    events = [(u, 0, 1) for u in range(n)] + [(u, 0, 5) for u in range(n)]
    log = toy_log([*events, *((u, item, 10) for u, item in enumerate(taken))], n_users=n)
    return time_split(log, (3, 7, 11), history="prequential", repeats=True).test


def test_a_replay_by_hand():
    # item 1 is only in the first list, 2 only in the second, 3 in both at the top, 5 in none
    found = replay(Fixed(3, 1), Fixed(3, 2), targets([1, 2, 2, 5]), CATALOG, repeats=True)
    assert found.users == 4
    assert (found.wins, found.losses, found.difference.mean) == pytest.approx((0.5, 0.25, 0.25))
    assert replay(Fixed(1), Fixed(), targets([1, 1]), CATALOG, repeats=True).losses == pytest.approx(1)


def test_lists_of_equal_worth():
    found = replay(Fixed(1, 2), Fixed(1, 2), targets([1, 2] * 100), CATALOG, repeats=True)
    assert abs(found.wins - 0.5) < 0.05
    assert found.difference.low < 0 < found.difference.high
    assert found == replay(Fixed(1, 2), Fixed(1, 2), targets([1, 2] * 100), CATALOG, repeats=True)
