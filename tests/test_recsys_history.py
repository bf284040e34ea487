"""Histories as the user tower reads them, by hand."""

from dataclasses import replace

import numpy as np
from toy_data import toy_log

from recsys.towers.history import History, hours_of_week, wait_buckets

MINUTE = 60 * 10**6
HOUR = 60 * MINUTE


def test_the_newest_events_by_hand():
    log = toy_log([(0, 3, 0), (0, 4, MINUTE, False), (1, 5, 7), (0, 2, 4 * MINUTE)])
    states = log.states(np.array([0, 1, 2, 0]), np.array([11 * MINUTE, 7 + MINUTE, 9, 2 * MINUTE]))
    history = History.newest(states, 2)
    assert history.items.tolist() == [[4, 2], [5, 0], [0, 0], [3, 4]]  # the newest two, padding last
    assert history.positive.tolist() == [[False, True], [True, False], [False, False], [True, False]]
    assert history.gaps.tolist() == [[2, 3], [1, 0], [0, 0], [1, 1]]  # 3 and 7 minutes; 1; none; 1 and 1
    assert not history.hours.any()
    assert not history.types.any()  # types are unknown
    typed = replace(states, types=np.array([3, 1, 2, 4]))  # by user and time: of items 3, 4, 2 and 5
    assert History.newest(typed, 2).types.tolist() == [[1, 2], [4, 0], [0, 0], [3, 1]]
    late = log.states(np.array([0]), np.array([49 * HOUR]))
    assert History.newest(late, 2).hours.tolist() == [[0, 49]]  # of the next event, and of the request


def test_hours_of_the_week_by_hand():
    """1970-01-01 is a Thursday; 2026-11-28 15:10 UTC is a Saturday."""
    times = np.array(
        ["1970-01-01T00:59", "1970-01-08T01:00", "1969-12-31T23:00", "2026-11-28T15:10"], "datetime64[us]"
    )
    assert hours_of_week(times.astype(np.int64)).tolist() == [0, 1, 167, 2 * 24 + 15]


def test_wait_buckets_by_hand():
    """Bucket i holds times above 2^(i-1) - 1 and up to 2^i - 1 minutes; bucket 0 holds no time."""
    minutes = np.array([0, -1, 1, 3, 7, 1440, 2**15 - 1, 2**15, 2**16, 10**6])
    assert wait_buckets(minutes * MINUTE).tolist() == [0, 0, 1, 2, 3, 11, 15, 16, 16, 16]
    assert wait_buckets(np.array([1, MINUTE + 1, 3 * MINUTE + 1])).tolist() == [1, 2, 3]
