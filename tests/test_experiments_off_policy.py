"""Off-policy estimates: against sb-obp's on the same log, by hand, and their refusals."""

import numpy as np
import pytest

from experiments.statistics.off_policy import (
    ESTIMATORS,
    LoggedRows,
    checked_estimates,
    empirical_bernstein,
    estimates,
    gains,
    overlap,
    point_estimates,
)
from features.errors import DataError


def log(n=300, items=4, seed=11):
    """A log of n rows, each of another context, and both policies' and the model's values of all items."""
    rng = np.random.default_rng(seed)
    logged, target, q = rng.dirichlet(np.ones(items), n), rng.dirichlet(np.ones(items), n), rng.random((n, items))
    action = (rng.random(n)[:, None] > np.cumsum(logged, axis=1)).sum(1)
    rewards = rng.exponential(size=n) * (rng.random(n) < 0.4)
    at = np.arange(n)
    return LoggedRows(rewards, logged[at, action], target[at, action], at, q[at, action], (target * q).sum(1))


def test_estimates_are_those_of_obp():
    found = point_estimates(log())
    # obp 0.4.1: DirectMethod, InverseProbabilityWeighting, …, SwitchDoublyRobust(tau=10) on this log
    expected = {
        "DM": 0.49840005929618986,
        "IPS": 0.34724421565749913,
        "SNIPS": 0.3416587944457461,
        "DR": 0.4061200483981373,
        "Switch-DR": 0.42778601776729885,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert list(found) == list(ESTIMATORS)


def test_estimates_by_hand():
    # weights .4 / .02 = 20, 1 and .5
    rows = LoggedRows(
        rewards=np.array([1.0, 2.0, 4.0]),
        logged=np.array([0.02, 0.5, 0.8]),
        target=np.array([0.4, 0.5, 0.4]),
        users=np.array([0, 0, 1]),
        model=np.array([0.5, 1.0, 2.0]),
        model_target=np.array([1.0, 1.0, 4.0]),
    )
    assert point_estimates(rows) == pytest.approx(
        {
            "DM": 6 / 3,
            "IPS": (20 + 2 + 2) / 3,
            "SNIPS": (20 + 2 + 2) / 21.5,
            "clipped IPS": (10 + 2 + 2) / 3,
            "DR": (1 + 10 + 1 + 1 + 4 + 1) / 3,
            "Switch-DR": (1 + 1 + 1 + 4 + 1) / 3,  # the first row counts by the model alone
        }
    )
    found = overlap(rows)
    assert found.effective == pytest.approx(21.5**2 / (400 + 1 + 0.25))
    assert found.largest == pytest.approx(20 / 21.5)


def test_without_a_model_its_estimators_are_left_out():
    rows = LoggedRows(np.ones(4), np.full(4, 0.5), np.full(4, 0.5), np.arange(4))
    assert point_estimates(rows) == {"IPS": 1.0, "SNIPS": 1.0, "clipped IPS": 1.0}


def test_the_same_policy_has_the_mean_reward():
    rows = log()
    same = LoggedRows(rows.rewards, rows.logged, rows.logged, rows.users)
    found, intervals = checked_estimates(same)
    assert found.effective == pytest.approx(300)
    assert [interval.mean for interval in intervals.values()] == [pytest.approx(rows.rewards.mean())] * 3


def test_users_are_resampled_as_a_whole():
    rows = log()
    once = estimates(LoggedRows(rows.rewards, rows.logged, rows.logged, rows.users))["IPS"]
    ten = LoggedRows(*(np.repeat(values, 10) for values in (rows.rewards, rows.logged, rows.logged, rows.users)))
    many = estimates(ten)["IPS"]  # ten equal rows of each user say no more than one
    assert (many.low, many.mean, many.high) == pytest.approx((once.low, once.mean, once.high))


def test_policies_that_are_too_different_are_refused():
    rng = np.random.default_rng(0)
    shown = rng.random(3000) < 0.002  # the item that the judged policy always shows
    rows = LoggedRows(np.ones(3000), np.where(shown, 0.002, 0.998), np.where(shown, 1.0, 0.0), np.arange(3000))
    with pytest.raises(DataError, match=r"rows are worth \d, 100 are needed"):
        checked_estimates(rows)


def test_a_judged_policy_that_shows_what_was_never_shown_is_refused():
    # the logged policy draws one of two items, the judged one shows a third half of the time
    rows = LoggedRows(np.ones(2000), np.full(2000, 0.5), np.full(2000, 0.25), np.arange(2000))
    with pytest.raises(DataError, match=r"a mean of 0.500 .* never showed"):
        checked_estimates(rows)


def test_probabilities_of_another_policy_are_refused():
    rows = LoggedRows(np.ones(2000), np.full(2000, 0.05), np.full(2000, 0.2), np.arange(2000))
    with pytest.raises(DataError, match=r"a mean of 4.000 .* are not those of the two policies"):
        checked_estimates(rows)


@pytest.mark.parametrize("logged", [0.0, 1.5, np.nan, -0.1])
def test_propensities_that_are_none_are_refused(logged):
    with pytest.raises(DataError, match="row 1 has the logged probability"):
        LoggedRows(np.ones(2), np.array([0.5, logged]), np.ones(2), np.arange(2))
    with pytest.raises(DataError, match="0 rows"):
        LoggedRows(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


def test_empirical_bernstein_by_hand():
    # values 0, 0, 2, 2: variance 4 / 3, ln(4 / .05) = 4.382027; bound 2
    interval = empirical_bernstein(np.array([0.0, 0, 2, 2]), 2.0)
    half = (2 * 4 / 3 * 4.382027 / 4) ** 0.5 + 7 * 2 * 4.382027 / 9
    assert interval.high - interval.mean == pytest.approx(half, abs=1e-5)
    assert interval.mean == 1
    with pytest.raises(DataError, match="outside of the bounds"):
        empirical_bernstein(np.array([0.0, 3]), 2.0)


def test_a_gain_is_the_mean_of_differences_and_nothing_where_policies_agree():
    # ours shows the second row's item alone, theirs the first one's; of the third row neither or both show the item
    rewards, logged, users = np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.5, 0.5]), np.arange(3)
    model = np.array([0.5, 1.0, 2.0])
    ours = LoggedRows(rewards, logged, np.array([0.0, 1.0, 1.0]), users, model, np.array([3.0, 1.0, 2.0]))
    theirs = LoggedRows(rewards, logged, np.array([1.0, 0.0, 1.0]), users, model, np.array([0.5, 0.0, 2.0]))
    found = gains(ours, theirs)
    assert list(found) == ["DM", "IPS", "clipped IPS", "DR", "Switch-DR"]
    # DR: ours 3, 1 + 2, 6; theirs .5 + 1, 0, 6
    means = {name: interval.mean for name, interval in found.items()}
    assert means == pytest.approx(
        {"DM": 3.5 / 3, "IPS": 2 / 3, "clipped IPS": 2 / 3, "DR": 4.5 / 3, "Switch-DR": 4.5 / 3}
    )
    assert {(interval.low, interval.high) for interval in gains(ours, ours).values()} == {(0.0, 0.0)}
