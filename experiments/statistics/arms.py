"""The arms of a running test: means and ratios of users, what the time before explains, and their differences."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import chisquare, t

from features.arrays import Doubles
from features.errors import DataError
from recsys.evaluation.bootstrap import Interval


@dataclass(frozen=True)
class Arm:
    """A metric of one arm. estimate: its value; influence (n,): what each user adds to it, of mean 0.

    The variance of the estimate is that of the mean of the influences.
    """

    estimate: float
    influence: Doubles

    @classmethod
    def of_means(cls, values: Doubles) -> "Arm":
        """The mean of values (n,), one a user."""
        _check(len(values))
        mean = float(values.mean())
        return cls(mean, values - mean)

    @classmethod
    def of_ratios(cls, totals: Doubles, weights: Doubles) -> "Arm":
        """Sum of totals / sum of weights, both (n,): for example purchases for each answer.

        The answers of one user depend on each other, so users are the unit: the delta method (Deng, Knoblich & Lu
        2018, "Applying the delta method in metric analytics"). Raises DataError where weights sum to 0.
        """
        _check(len(totals))
        if not weights.sum() > 0:
            raise DataError("a ratio whose denominator is 0 in one arm: no user has a weight")
        ratio = float(totals.sum() / weights.sum())
        return cls(ratio, (totals - ratio * weights) / float(weights.mean()))

    @property
    def users(self) -> int:
        """Number of users n."""
        return len(self.influence)

    @property
    def variance(self) -> float:
        """Of the estimate."""
        return float(np.square(self.influence).sum()) / (self.users - 1) / self.users


def _check(users: int) -> None:
    if users < 2:
        raise DataError(f"an arm of {users} users has no variance: at least 2 are needed")


def difference(treatment: Arm, control: Arm, *, level: float = 0.95) -> Interval:
    """The treatment's estimate minus the control's, with the interval of Welch 1947."""
    change, error, freedom = _welch(treatment, control)
    half = float(t.ppf((1 + level) / 2, freedom)) * error if error else 0.0
    return Interval(change, change - half, change + half)


def p_value(treatment: Arm, control: Arm) -> float:
    """Two-sided, of the hypothesis that both arms have the same value; it agrees with `difference`."""
    change, error, freedom = _welch(treatment, control)
    return float(2 * t.sf(abs(change) / error, freedom)) if error else float(change == 0)


def _welch(treatment: Arm, control: Arm) -> tuple[float, float, float]:
    """The change, its standard error, and the degrees of freedom."""
    variances = np.array([treatment.variance, control.variance])
    change, total = treatment.estimate - control.estimate, float(variances.sum())
    parts = float((variances**2 / (np.array([treatment.users, control.users]) - 1)).sum())
    return change, total**0.5, total**2 / parts if parts else np.inf


def cuped(values: Doubles, before: Doubles) -> Doubles:
    """(n,): values without what the time before explains; the mean of all users stays.

    values, before (n,): of all users of all arms; before: what the same users did before the test, which the arms
    cannot have changed. values - theta (before - mean of before), theta = cov(values, before) / var(before) (Deng,
    Xu, Kohavi & Walker 2013).
    """
    centred = before - before.mean()
    variance = float(centred @ centred)
    theta = float(centred @ (values - values.mean())) / variance if variance > 0 else 0.0
    adjusted: Doubles = values - theta * centred
    return adjusted


def sample_ratio_mismatch(users: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """P-value of the numbers of users of the arms, if they are assigned by `shares` (Fabijan et al. 2019).

    A small one says that the assignment or the log is broken: then no result of the test can be believed. Raises
    DataError where users and shares are not of the same arms, or there are no users.
    """
    if set(users) != set(shares) or len(users) < 2:
        raise DataError(
            f"arms with users: {sorted(users)}; arms with shares: {sorted(shares)}; at least two, the same"
        )
    counts = np.array([users[name] for name in shares], dtype=np.float64)
    expected = np.array(list(shares.values()), dtype=np.float64)
    if not counts.sum() or (expected <= 0).any():
        raise DataError(
            "the numbers of users cannot be compared with shares: no users, or a share that is not above 0"
        )
    return float(chisquare(counts, expected / expected.sum() * counts.sum()).pvalue)
