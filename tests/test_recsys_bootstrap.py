"""Bootstrap intervals over users: against scipy, and their coverage of the true mean."""

import numpy as np
import pytest
import scipy.stats

from features.errors import ConfigError, DataError
from recsys.evaluation.bootstrap import Interval, bootstrap, bootstrap_ratios, paired_bootstrap


def test_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=300)
    ours = bootstrap(values, samples=20_000, seed=1, level=0.9)
    peer = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="BCa", rng=2
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    # the standard error of a simulated bound is about 0.001 here, the width of the interval 0.19
    assert ours.low == pytest.approx(peer.low, abs=0.005)
    assert ours.high == pytest.approx(peer.high, abs=0.005)


def test_ratios_agree_with_scipy():
    rng = np.random.default_rng(5)
    weights = rng.integers(1, 9, size=(200, 2)).astype(np.float64)
    totals = weights * rng.exponential(size=(200, 2))
    ours = bootstrap_ratios(totals, weights, samples=20_000, seed=1)
    for i, interval in enumerate(ours):
        peer = scipy.stats.bootstrap(
            (totals[:, i], weights[:, i]),
            lambda a, b, axis: a.sum(axis) / b.sum(axis),
            paired=True,
            n_resamples=20_000,
            method="BCa",
            rng=2,
        ).confidence_interval
        assert interval.mean == pytest.approx(totals[:, i].sum() / weights[:, i].sum())
        width = peer.high - peer.low
        assert interval.low == pytest.approx(peer.low, abs=0.03 * width)
        assert interval.high == pytest.approx(peer.high, abs=0.03 * width)


def test_columns_have_the_intervals_that_each_has_alone():
    values = np.random.default_rng(6).exponential(size=(40, 3))
    together = bootstrap_ratios(values, samples=500, seed=3)
    alone = [bootstrap(column, samples=500, seed=3) for column in values.T]
    for a, b in zip(together, alone, strict=True):
        assert (a.mean, a.low, a.high) == pytest.approx((b.mean, b.low, b.high))
    ones = bootstrap_ratios(values, np.ones((40, 3)), samples=500, seed=3)
    assert [(i.low, i.high) for i in ones] == [pytest.approx((i.low, i.high)) for i in together]


def test_a_resample_without_a_weight_is_left_out():
    totals, weights = np.array([[1.0], [0.0], [3.0]]), np.array([[1.0], [0.0], [1.0]])
    (interval,) = bootstrap_ratios(totals, weights, samples=999, seed=0)  # 1 of 27 resamples draws only the middle
    assert interval.mean == 2
    assert 1 <= interval.low < interval.high <= 3


def test_the_interval_covers_the_mean_at_the_given_level():
    rng = np.random.default_rng(3)
    covered = 0
    for i in range(400):
        interval = bootstrap(rng.normal(2.0, 1.0, size=100), samples=400, seed=i)
        covered += interval.low <= 2.0 <= interval.high
    # three standard errors of 400 trials are .033
    assert 0.91 <= covered / 400 <= 0.98


def test_pairing_removes_the_common_variance_of_users():
    rng = np.random.default_rng(4)
    users = rng.normal(0, 10, size=500)
    ours, peer = users + 0.5 + rng.normal(0, 0.5, 500), users
    paired = paired_bootstrap(ours, peer, seed=0)
    assert paired.mean == pytest.approx((ours - peer).mean())
    assert 0.4 < paired.low < 0.5 < paired.high < 0.6
    unpaired = bootstrap(ours, seed=0)
    assert unpaired.high - unpaired.low > 10 * (paired.high - paired.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap(values, seed=7) == bootstrap(values, seed=7)
    assert bootstrap(values, seed=7) != bootstrap(values, seed=8)


def test_equal_values_have_width_zero_and_a_single_user_an_infinite_interval():
    assert bootstrap(np.full(10, 0.25), seed=0) == Interval(0.25, 0.25, 0.25)
    assert bootstrap(np.array([0.25]), seed=0) == Interval(0.25, -np.inf, np.inf)


def test_invalid_values_are_rejected():
    with pytest.raises(DataError, match="0 users"):
        bootstrap(np.array([]), seed=0)
    with pytest.raises(DataError, match="nan at position 1"):
        bootstrap(np.array([1.0, np.nan]), seed=0)
    with pytest.raises(DataError, match=r"\(2,\) and \(3,\)"):
        paired_bootstrap(np.zeros(2), np.zeros(3), seed=0)
    with pytest.raises(DataError, match="denominator is 0"):
        bootstrap_ratios(np.ones((3, 1)), np.zeros((3, 1)), seed=0)
    with pytest.raises(ConfigError, match="level 1"):
        bootstrap(np.zeros(3), seed=0, level=1)
