"""Team draft: by hand, and what must never happen."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.evaluation.interleaving import preference
from recsys.interleaving import FIRST, SECOND, team_draft


def drafted(first, second, coins):
    rows, teams = team_draft(np.array([first]), np.array([second]), np.array([coins], dtype=bool))
    return rows[0].tolist(), teams[0].tolist()


def test_by_hand():
    # round 1: the first begins with 1, the second takes 2, since 1 is gone; round 2: the second begins with 5
    assert drafted([1, 2, 3, 4], [1, 2, 5, 6], [0, 1, 0, 0]) == ([1, 2, 5, 3], [0, 1, 1, 0])
    assert drafted([1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1]) == ([5, 1, 6, 2], [1, 0, 1, 0])


def test_a_list_that_ends_leaves_its_turns():
    assert drafted([1, -1, -1], [2, 3, 4], [0, 0, 0]) == ([1, 2, 3], [0, 1, 1])
    assert drafted([-1, -1, -1], [-1, -1, -1], [0, 0, 0]) == ([-1, -1, -1], [-1, -1, -1])
    assert drafted([1, 2, -1], [2, 1, -1], [0, 0, 0]) == ([1, 2, -1], [0, 1, -1])


orders = st.permutations(range(8)).flatmap(lambda p: st.integers(0, 8).map(lambda n: [*p[:n], *[-1] * (8 - n)]))


@given(st.lists(st.tuples(orders, orders, st.lists(st.booleans(), min_size=8, max_size=8)), min_size=1, max_size=4))
def test_what_must_never_happen(lines):
    first, second, coins = (np.array([line[i] for line in lines]) for i in range(3))
    rows, teams = team_draft(first, second, coins)
    for a, b, chosen, team in zip(first.tolist(), second.tolist(), rows.tolist(), teams.tolist(), strict=True):
        items = [row for row in chosen if row >= 0]
        assert len(set(items)) == len(items) == min(8, len({*a, *b} - {-1}))
        assert [row >= 0 for row in chosen] == [side >= 0 for side in team]
        for number, own in ((FIRST, a), (SECOND, b)):
            taken = [own.index(row) for row, side in zip(chosen, team, strict=True) if side == number]
            assert taken == sorted(taken)  # each side chooses in its own order
            for at, (row, side) in enumerate(zip(chosen, team, strict=True)):
                if side == number:  # nothing better of its own was left
                    assert {*own[: own.index(row)]} <= {*chosen[:at]}
        counts = [team.count(side) for side in (FIRST, SECOND)]
        if len({*a} - {-1}) == len({*b} - {-1}) == 8:
            assert counts == [4, 4]


def test_equal_chances_at_every_position():
    """Over all coins each list of other items fills each position equally often."""
    n = 2000
    lists = np.tile(np.arange(6), (n, 1))
    _, teams = team_draft(lists, lists + 6, np.random.default_rng(0).random((n, 6)) < 0.5)
    assert np.abs(teams.mean(axis=0) - 0.5).max() < 4 * 0.5 / n**0.5


def test_a_preference_by_hand():
    # user 0: the second wins one of two events; user 1: the first wins its only one
    found = preference(np.array([1.0, 0, 0]), np.array([0.0, 0, 1]), [0, 0, 1])
    assert (found.users, found.wins, found.losses) == (2, 0.25, 0.5)
    assert found.difference.mean == -0.25
