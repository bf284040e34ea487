"""Intervals over users: against scipy, and by how often they hold the truth."""

import numpy as np
import pytest
import scipy.stats

from features.errors import ConfigError, DataError
from recsys.evaluation.bootstrap import Interval, bootstrap, paired_bootstrap


def test_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=300)
    ours = bootstrap(values, samples=20_000, seed=1, level=0.9)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    # standard error of a simulated end is about 0.001 here, the interval itself 0.19 wide
    assert ours.low == pytest.approx(theirs.low, abs=0.005)
    assert ours.high == pytest.approx(theirs.high, abs=0.005)


def test_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    held = 0
    for i in range(400):
        interval = bootstrap(rng.normal(2.0, 1.0, size=100), samples=400, seed=i)
        held += interval.low <= 2.0 <= interval.high
    # 95 % less a little for the percentile method at n = 100; three standard errors of 400 trials are .033
    assert 0.91 <= held / 400 <= 0.98


def test_pairing_removes_what_users_have_in_common():
    rng = np.random.default_rng(4)
    users = rng.normal(0, 10, size=500)
    ours, theirs = users + 0.5 + rng.normal(0, 0.5, 500), users
    paired = paired_bootstrap(ours, theirs, seed=0)
    assert paired.mean == pytest.approx((ours - theirs).mean())
    assert 0.4 < paired.low < 0.5 < paired.high < 0.6
    apart = bootstrap(ours, seed=0)
    assert apart.high - apart.low > 10 * (paired.high - paired.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap(values, seed=7) == bootstrap(values, seed=7)
    assert bootstrap(values, seed=7) != bootstrap(values, seed=8)


def test_equal_values_leave_no_doubt_and_a_single_user_all_of_it():
    assert bootstrap(np.full(10, 0.25), seed=0) == Interval(0.25, 0.25, 0.25)
    assert bootstrap(np.array([0.25]), seed=0) == Interval(0.25, -np.inf, np.inf)


def test_refuses_what_it_cannot_resample():
    with pytest.raises(DataError, match="0 users"):
        bootstrap(np.array([]), seed=0)
    with pytest.raises(DataError, match="nan at position 1"):
        bootstrap(np.array([1.0, np.nan]), seed=0)
    with pytest.raises(DataError, match=r"\(2,\) and \(3,\)"):
        paired_bootstrap(np.zeros(2), np.zeros(3), seed=0)
    with pytest.raises(ConfigError, match="level 1"):
        bootstrap(np.zeros(3), seed=0, level=1)
