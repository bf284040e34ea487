"""User-item counts: every sum against a plain loop; favourites in order."""

import numpy as np
import pytest
from toy_data import DAY, noise, rows_of, toy_log

from features.interactions import Ragged
from recsys.ranking.user_item_counts import UserItemCounts

DECAY = 0.995

LOG = toy_log(
    [
        *((0, 2, 1 * DAY), (0, 1, 2 * DAY), (0, 2, 5 * DAY), (0, 3, 6 * DAY, False), (0, 2, 9 * DAY)),
        *((2, 1, 3 * DAY), (2, 0, 4 * DAY), (2, 4, 20 * DAY)),
    ],
    n_items=5,
)
STATES = LOG.states(np.array([0, 1, 2, -1]), np.full(4, 10 * DAY))  # user 1 has no events, -1 is unknown


def test_by_hand():
    counts = UserItemCounts.of(STATES, 5)
    assert counts.key.tolist() == [1, 2, 10, 11]  # user 0: 1, 2; user 2: 0, 1
    assert counts.count.tolist() == [1, 3, 1, 1]
    assert counts.recency.tolist() == pytest.approx([DECAY**2, 1 + DECAY + DECAY**3, 1, DECAY])
    assert counts.first.tolist() == [2 * DAY, 1 * DAY, 4 * DAY, 3 * DAY]
    assert counts.last.tolist() == [2 * DAY, 9 * DAY, 4 * DAY, 3 * DAY]


def test_by_kind_without_items_that_have_none():
    kinds = np.array([1, 0, 0, -1, -1])
    counts = UserItemCounts.of(STATES, 2, kinds)
    assert counts.key.tolist() == [0, 4, 5]  # user 0: kind 0; user 2: kinds 0 and 1
    assert counts.count.tolist() == [4, 1, 1]
    assert counts.recency.tolist() == pytest.approx([1 + DECAY + DECAY**2 + DECAY**3, DECAY, 1])
    assert counts.find(np.array([[0, 1], [0, 1], [-1, 1], [0, 0]])).tolist() == [[0, 3], [3, 3], [3, 2], [3, 3]]


def test_sums_are_those_of_a_plain_loop():
    events = noise()
    states = events.states(np.arange(60)[::-1].copy(), np.full(60, int(np.quantile(events.times, 0.8))))
    counts = UserItemCounts.of(states, 30)
    expected: dict[int, tuple[int, float, int, int]] = {}
    for user, (items, times) in enumerate(
        zip(rows_of(states.positives()), rows_of(states.positive_times()), strict=True)
    ):
        for age, (item, time) in enumerate(zip(items[::-1], times[::-1], strict=True)):
            count, recency, _, last = expected.get(user * 30 + item, (0, 0.0, time, time))
            expected[user * 30 + item] = (count + 1, recency + DECAY**age, time, last)
    assert counts.key.tolist() == sorted(expected)
    found = np.stack([counts.count, counts.recency, counts.first, counts.last], axis=1)
    np.testing.assert_allclose(found, np.array([expected[key] for key in sorted(expected)]))


def test_an_item_is_found_in_its_own_history_only():
    counts = UserItemCounts.of(STATES, 5)
    rows = np.array([[2, 0, -1], [2, 1, 0], [0, 1, 2], [0, -1, -1]])
    none = len(counts.key)
    assert counts.find(rows).tolist() == [[1, none, none], [none] * 3, [2, 3, none], [none] * 3]


def test_an_item_without_a_kind_is_not_found_as_the_last_kind_of_the_user_before():
    counts = UserItemCounts.of(STATES, 2, np.array([0, 1, 0, 1, -1]))
    assert counts.key.tolist() == [0, 1, 4, 5]  # user 0 has both kinds, and user 2
    assert counts.find(np.array([[-1], [-1], [-1], [-1]])).tolist() == [[4]] * 4


def test_favourites_by_recency_among_allowed_items():
    counts = UserItemCounts.of(STATES, 5)
    assert counts.favourites(4, 3).tolist() == [[2, 1, -1], [-1] * 3, [0, 1, -1], [-1] * 3]
    assert counts.favourites(4, 1).tolist() == [[2], [-1], [0], [-1]]
    allow = np.array([True, True, False, True, True])
    assert counts.favourites(4, 2, allow=allow).tolist() == [[1, -1], [-1, -1], [0, 1], [-1, -1]]
    exclude = Ragged.of([[1], [0], [], [2]])
    assert counts.favourites(4, 2, exclude=exclude).tolist() == [[2, -1], [-1, -1], [0, 1], [-1, -1]]


def test_without_states_or_events():
    for states in (STATES[:0], STATES[np.array([1, 3])]):
        counts = UserItemCounts.of(states, 5)
        assert len(counts.key) == len(counts.recency) == len(counts.last) == 0
        assert counts.favourites(len(states), 2).tolist() == [[-1, -1]] * len(states)
        assert counts.find(np.zeros((len(states), 3), np.int64)).tolist() == [[0] * 3] * len(states)
