"""Item statistics by hand."""

import numpy as np
from toy_data import DAY, toy_log

from recsys.item_statistics import ItemStatistics

NEVER = np.iinfo(np.int64).min


def test_counts_by_hand():
    log = toy_log(
        [
            (0, 0, 100 * DAY),
            (1, 0, 93 * DAY),  # exactly 7 days before the latest event: outside the last 7 days
            (2, 0, 93 * DAY + 1),
            (0, 1, 70 * DAY + 1),
            (1, 1, 70 * DAY),
            (0, 2, 99 * DAY, False),  # not positive: not counted
            (1, 3, 1),
        ]
    )
    s = ItemStatistics.of(log)
    assert s.fitted_until == 100 * DAY
    assert s.total.tolist() == [3, 2, 0, 1, 0, 0]
    assert s.recent.tolist() == [3, 1, 0, 0, 0, 0]
    assert s.newest.tolist() == [2, 0, 0, 0, 0, 0]
    assert s.last.tolist() == [100 * DAY, 70 * DAY + 1, NEVER, 1, NEVER, NEVER]


def test_periods_end_at_the_latest_event_of_any_kind():
    s = ItemStatistics.of(toy_log([(0, 0, 10 * DAY), (0, 1, 50 * DAY, False)]))
    assert s.fitted_until == 50 * DAY
    assert s.recent.tolist() == [0] * 6


def test_logs_are_standardised():
    log = toy_log([(0, 0, DAY), (1, 0, DAY), (2, 0, DAY), (0, 1, DAY)], n_items=3)
    counts = np.log1p(np.array([3, 1, 0]))
    expected = (counts - counts.mean()) / counts.std()
    logs = ItemStatistics.of(log).logs()
    np.testing.assert_allclose(logs, np.repeat(expected[:, None], 3, axis=1), rtol=1e-5)
    assert logs.dtype == np.float32


def test_without_events_all_statistics_are_zero():
    s = ItemStatistics.of(toy_log([]))
    assert s.total.tolist() == [0] * 6
    assert s.fitted_until == NEVER
    assert s.logs().tolist() == [[0, 0, 0]] * 6
