"""Which events are held back, by hand: the newer half of the new ones, and not more than a day with enough users."""

import numpy as np
from toy_data import DAY, toy_log

from experiments.pipelines.held_back import HeldBack, hold_back

HOUR = DAY // 24


def log(rows, n_users=100):
    """(user, hour) rows of positive events; all of one item."""
    return toy_log([(user, 0, round(hour * HOUR)) for user, hour in rows], n_users, 1)


def all_new(events):
    return np.ones(len(events), dtype=np.bool_)


def test_half_of_a_day_is_held_back_where_the_bundle_knows_all_but_a_day():
    events = log([(user, user) for user in range(24)] * 2)  # 24 users: two events at each hour of a day
    assert hold_back(events, all_new(events)) == HeldBack(12 * HOUR, 23 * HOUR + 1, 24, 12, 24)


def test_not_more_than_the_last_day_is_held_back():
    events = log([(user, 24 * day + user / 4) for day in range(4) for user in range(40)])
    latest = round(81.75 * HOUR)
    held_back = hold_back(events, all_new(events))
    assert held_back == HeldBack(latest - DAY + 1, latest + 1, 40, 40, 120)


def test_a_last_day_of_too_few_users_is_extended_to_half_of_the_new_events():
    events = log([(user + 20 * day, 24 * day + user / 4) for day in range(4) for user in range(20)])
    assert hold_back(events, all_new(events)) == HeldBack(48 * HOUR, round(76.75 * HOUR) + 1, 40, 40, 40)


def test_known_and_other_events_do_not_count():
    rows = [(0, 1), (1, 2), (2, 3), (3, 4)]
    events = toy_log([*[(user, 0, hour * HOUR) for user, hour in rows], (4, 0, 5 * HOUR, False)], 5, 1)
    new = events.users >= 2  # users 0 and 1 are known, and the event of user 4 is not positive
    assert hold_back(events, new) == HeldBack(4 * HOUR, 4 * HOUR + 1, 1, 1, 1)
    assert hold_back(events, events.users == 4) is None


def test_events_of_one_time_leave_nothing_to_learn():
    events = log([(user, 7) for user in range(40)])
    assert hold_back(events, all_new(events)) == HeldBack(7 * HOUR, 7 * HOUR + 1, 40, 40, 0)


def test_a_clock_that_is_ahead_does_not_end_the_nights():
    """A known event far in the future: the new events are held back all the same."""
    events = log([(99, 100_000), *[(user, user / 2) for user in range(60)]])
    held_back = hold_back(events, events.users != 99)
    assert held_back is not None
    assert (held_back.cut, held_back.users, held_back.learnable) == (15 * HOUR, 30, 30)
