"""Statistics of experiments: values by hand, from tables, and from scipy; alarms in simulations."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from experiments.statistics.arms import Arm, cuped, difference, p_value, sample_ratio_mismatch
from experiments.statistics.power import detectable, users_needed
from experiments.statistics.sequential import confidence_sequence, group_sequential
from experiments.statistics.significance import benjamini_hochberg, holm, permutation_test
from features.errors import ConfigError, DataError


def test_the_permutation_test_agrees_with_all_sign_changes():
    differences = np.array([0.3, 0.1, -0.05, 0.4, 0.2, 0.0, 0.15, -0.1])
    exact = scipy.stats.permutation_test(
        (differences, np.zeros(8)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue
    assert permutation_test(differences, samples=40_000, seed=0) == pytest.approx(exact, abs=0.005)


def test_a_p_value_is_never_zero_and_one_without_differences():
    assert permutation_test(np.full(200, 0.1), samples=99, seed=0) == 0.01
    assert permutation_test(np.zeros(5), samples=99, seed=0) == 1
    with pytest.raises(DataError, match="0 users"):
        permutation_test(np.zeros(0), seed=0)


def test_holm_by_hand():
    # ascending .01, .02, .03, .04 times 4, 3, 2, 1: .04, .06, .06, .04 -> never below the one before
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.04, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1, 1])
    assert holm(np.zeros(0)).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_p_values_keep_the_order_and_holm_is_the_stricter(p):
    p = np.array(p)
    strict, lenient = holm(p), benjamini_hochberg(p)
    order = np.argsort(p, kind="stable")
    assert (np.diff(strict[order]) >= -1e-12).all()
    assert (strict >= lenient - 1e-12).all()
    assert (lenient >= p - 1e-12).all()
    assert strict.max() <= 1


def test_benjamini_hochberg_by_hand():
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.01, 0.04, 0.03])), [0.03, 0.04, 0.04])
    assert benjamini_hochberg(np.zeros(0)).shape == (0,)


def test_power_by_hand():
    # (1.959964 + .841621) * 2 / sqrt(400) = .280159
    assert detectable(2.0, 400) == pytest.approx(0.280159, abs=1e-6)
    assert users_needed(2.0, 0.280159) == 400
    assert users_needed(2.0, 0.28) == 401
    assert users_needed(2.0, 0) == np.inf
    assert detectable(2.0, 400, power=0.5) == pytest.approx(0.1 * 1.959964, abs=1e-6)


def test_a_difference_that_is_detectable_is_found_as_often_as_said():
    rng = np.random.default_rng(0)
    effect, found = detectable(1.0, 250), 0
    for _ in range(500):
        values = rng.normal(effect, 1.0, 250)
        found += abs(values.mean()) / (values.std(ddof=1) / 250**0.5) > 1.96
    assert 0.75 < found / 500 < 0.85  # three standard errors are .054


def test_bounds_of_looks_are_those_of_published_tables():
    # Lan & DeMets with O'Brien-Fleming spending, two-sided .05
    np.testing.assert_allclose(group_sequential([0.5, 1]), [2.963, 1.969], atol=1e-3)
    np.testing.assert_allclose(
        group_sequential([0.2, 0.4, 0.6, 0.8, 1]), [4.877, 3.357, 2.680, 2.290, 2.031], atol=1e-3
    )
    np.testing.assert_allclose(group_sequential([1]), [1.959964], atol=1e-6)
    assert group_sequential([0.001, 1])[0] == 20  # so early that nothing is significant


@pytest.mark.parametrize("shares", [[], [0, 1], [0.5, 0.5], [0.6, 0.5], [0.5, 1.1]])
def test_looks_that_do_not_ascend_are_refused(shares):
    with pytest.raises(ConfigError, match="must ascend"):
        group_sequential(shares)


def test_a_confidence_sequence_by_hand_and_narrowest_where_planned():
    # rho^2 = (5.991465 + ln 6.991465) / 1000 = .00793616; half = sqrt(8.93616 / 7936.16 * ln(8.93616 / .0025)) * 2
    interval = confidence_sequence(1.0, 2.0, 1000, planned=1000)
    assert interval.high - 1 == pytest.approx(0.191965, abs=1e-5)
    assert 1 - interval.low == pytest.approx(0.191965, abs=1e-5)

    def width(planned):
        return confidence_sequence(0, 1, 1000, planned=planned).high

    assert width(1000) < width(500)
    assert width(1000) < width(2000)


def test_means_of_arms_agree_with_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.exponential(1.2, 300), rng.exponential(1.0, 200)
    ours = difference(Arm.of_means(a), Arm.of_means(b))
    test = scipy.stats.ttest_ind(a, b, equal_var=False)
    peer = test.confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((peer.low, peer.high))
    assert p_value(Arm.of_means(a), Arm.of_means(b)) == pytest.approx(test.pvalue)
    assert ours.mean == pytest.approx(a.mean() - b.mean())


def test_the_ratio_of_an_arm_by_hand():
    # 6 of 12; influences (1 - .5 * 2) / 4, (2 - .5 * 4) / 4, (3 - .5 * 6) / 4: all users have the same ratio
    same = Arm.of_ratios(np.array([1.0, 2, 3]), np.array([2.0, 4, 6]))
    assert same.estimate == 0.5
    assert same.variance == 0
    # 4 of 8; influences (3 - .5 * 2) / 4 = .5, (1 - .5 * 6) / 4 = -.5; variance (.25 + .25) / 1 / 2
    other = Arm.of_ratios(np.array([3.0, 1]), np.array([2.0, 6]))
    assert other.influence.tolist() == [0.5, -0.5]
    assert other.variance == 0.25
    with pytest.raises(DataError, match="denominator is 0"):
        Arm.of_ratios(np.ones(2), np.zeros(2))
    with pytest.raises(DataError, match="at least 2"):
        Arm.of_means(np.ones(1))


def test_equal_arms_without_variance_have_a_width_of_zero():
    change = difference(Arm.of_means(np.full(3, 2.0)), Arm.of_means(np.full(4, 1.5)))
    assert (change.low, change.mean, change.high) == (0.5, 0.5, 0.5)
    assert p_value(Arm.of_means(np.full(3, 2.0)), Arm.of_means(np.full(4, 1.5))) == 0
    assert p_value(Arm.of_means(np.ones(3)), Arm.of_means(np.ones(4))) == 1


def test_cuped_removes_what_the_time_before_explains():
    before = np.array([1.0, 2, 3, 4])
    np.testing.assert_allclose(cuped(3 * before + 5, before), 12.5)  # all of it: the mean is left
    np.testing.assert_allclose(cuped(before, np.ones(4)), before)  # nothing to explain with
    rng = np.random.default_rng(2)
    before = rng.normal(size=4000)
    values = before + rng.normal(size=4000)
    adjusted = cuped(values, before)
    assert adjusted.mean() == pytest.approx(values.mean())
    assert adjusted.var() == pytest.approx(1, abs=0.1)  # of 2


def test_sample_ratio_mismatch_by_hand():
    # chi-square (520 - 500)^2 / 500 + (480 - 500)^2 / 500 = 1.6, one degree of freedom
    p = sample_ratio_mismatch({"a": 520, "b": 480}, {"a": 0.5, "b": 0.5})
    assert p == pytest.approx(scipy.stats.chi2.sf(1.6, 1))
    assert sample_ratio_mismatch({"b": 100, "a": 900}, {"a": 9, "b": 1}) == 1
    with pytest.raises(DataError, match="the same"):
        sample_ratio_mismatch({"a": 1, "b": 1}, {"a": 1, "c": 1})
    with pytest.raises(DataError, match="not above 0"):
        sample_ratio_mismatch({"a": 1, "b": 1}, {"a": 1, "b": 0})
