"""Off-policy evaluation: what another policy would have earned, from what was shown and with which probability.

A row is one explored slot of one answer: the item that the logging policy drew there, and what the user did. The
slots of a slate are taken as independent. In the formulas r is the reward of a row; w is its weight, the probability
of the shown item under the judged policy divided by that under the logged one; q is a model of the reward. Every
estimate is a ratio of two sums over users, so its interval is that of `bootstrap_ratios`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from experiments.statistics.arms import Arm
from features.arrays import Doubles, Ints
from features.errors import DataError
from recsys.evaluation.bootstrap import Interval, bootstrap_ratios

CLIP = 10.0
"""Weight that clipped IPS stops at, and above which Switch-DR trusts the model alone."""

MIN_EFFECTIVE = 100
"""Effective rows that an estimate needs: with fewer, few rows decide it, and its interval cannot be believed."""


@dataclass(frozen=True)
class LoggedRows:
    """n rows. rewards (n,); logged, target (n,): probability of the shown item under the policy that was logged, and
    under the one that is judged; users (n,): the user of each, 0..; model, model_target (n,): the expected reward of
    the shown item by a model, and its mean over the items that the judged policy would show, or None.
    """

    rewards: Doubles
    logged: Doubles
    target: Doubles
    users: Ints
    model: Doubles | None = None
    model_target: Doubles | None = None

    def __post_init__(self) -> None:
        if not len(self.rewards):
            raise DataError("off-policy evaluation of 0 rows: no slot was explored; add a rule of exploration")
        for name, values in (("logged", self.logged), ("target", self.target)):
            wrong = ~((values >= 0) & (values <= 1)) | ((values == 0) & (name == "logged"))
            if wrong.any():
                at = int(wrong.argmax())
                least = "above 0" if name == "logged" else "0 or more"
                raise DataError(f"row {at} has the {name} probability {values[at]}: it must be {least}, at most 1")

    @property
    def weights(self) -> Doubles:
        """(n,): w."""
        return self.target / self.logged


@dataclass(frozen=True)
class Overlap:
    """How well the logged policy covers the judged one.

    effective: rows that the weighted ones are worth, (sum of w)^2 / sum of w^2 (Kish 1965); largest: share of the
    largest weight in their sum; mean: of the weights, with its 99.9 % interval over users: it is 1 where every item
    that the judged policy shows could be shown by the logged one, and below 1 where some could not.
    """

    rows: int
    effective: float
    largest: float
    mean: Interval

    @property
    def refusal(self) -> str:
        """Why no estimate can be believed, "" if one can."""
        if self.effective < MIN_EFFECTIVE:
            return (
                f"the {self.rows:,} rows are worth {self.effective:.0f}, {MIN_EFFECTIVE} are needed: the policies "
                "are too different; explore more, or for longer, or judge a policy that is closer"
            )
        if self.mean.low <= 1 <= self.mean.high:
            return ""
        wrong = "the judged policy shows items that the logged one never showed; explore them as well"
        if self.mean.low > 1:
            wrong = "the probabilities are not those of the two policies; check where they come from"
        return (
            f"weights have a mean of {self.mean.mean:.3f} [{self.mean.low:.3f}, {self.mean.high:.3f}], not 1: {wrong}"
        )


def overlap(rows: LoggedRows) -> Overlap:
    """The diagnostics of some rows."""
    w = rows.weights
    owner = np.unique(rows.users, return_inverse=True)[1]
    arm = Arm.of_ratios(*(np.bincount(owner, values).astype(np.float64) for values in (w, np.ones(len(w)))))
    half = float(ndtri(0.9995)) * arm.variance**0.5
    total, squares = float(w.sum()), float(np.square(w).sum())
    largest = float(w.max()) / total if total else 1.0
    mean = Interval(arm.estimate, arm.estimate - half, arm.estimate + half)
    return Overlap(len(w), total**2 / squares if squares else 0.0, largest, mean)


def _dm(rows: LoggedRows, q: Doubles, q_target: Doubles) -> Doubles:
    return q_target


def _ips(rows: LoggedRows, q: Doubles, q_target: Doubles) -> Doubles:
    return rows.weights * rows.rewards


def _clipped(rows: LoggedRows, q: Doubles, q_target: Doubles) -> Doubles:
    return np.minimum(rows.weights, CLIP) * rows.rewards


def _dr(rows: LoggedRows, q: Doubles, q_target: Doubles) -> Doubles:
    return q_target + rows.weights * (rows.rewards - q)


def _switch(rows: LoggedRows, q: Doubles, q_target: Doubles) -> Doubles:
    w = rows.weights
    return q_target + np.where(w <= CLIP, w, 0) * (rows.rewards - q)


ESTIMATORS: dict[str, tuple[Callable[[LoggedRows, Doubles, Doubles], Doubles], str, bool]] = {
    "DM": (_dm, "mean of q under the judged policy (Beygelzimer & Langford 2009)", True),
    "IPS": (_ips, "mean of w r (Horvitz & Thompson 1952; Strehl et al. 2010)", False),
    "SNIPS": (_ips, "sum of w r / sum of w (Swaminathan & Joachims 2015)", False),
    "clipped IPS": (_clipped, f"mean of min(w, {CLIP:g}) r (Ionides 2008; Bottou et al. 2013)", False),
    "DR": (_dr, "mean of q under the judged policy + w (r - q) (Dudik, Langford & Li 2011)", True),
    "Switch-DR": (_switch, f"DR whose second part counts up to w = {CLIP:g} (Wang, Agarwal & Dudik 2017)", True),
}
"""Name -> what each row adds, the formula and its source, and whether it needs a model of the reward."""


def estimates(rows: LoggedRows, *, samples: int = 2000, seed: int = 0, level: float = 0.95) -> dict[str, Interval]:
    """The mean reward of a row under the judged policy, by each estimator that the rows allow, without a refusal."""
    sums = _sums(rows)
    return dict(zip(sums, _intervals(list(sums.values()), rows.users, samples, seed, level), strict=True))


def point_estimates(rows: LoggedRows) -> dict[str, float]:
    """`estimates` without intervals."""
    return {name: float(a.sum() / b.sum()) for name, (a, b) in _sums(rows).items()}


def gains(
    ours: LoggedRows, theirs: LoggedRows, *, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """The mean reward of a row under one judged policy minus that under another, of the same rows.

    A row counts with the difference of what it adds to either estimate, so that what both policies show alike cancels
    out. SNIPS is left out: its two sums of weights differ. Where `theirs` is the logged policy itself, its target
    probabilities are the logged ones, and its model of the target that of the shown item.
    """
    our, their, ones = _sums(ours), _sums(theirs), np.ones(len(ours.rewards))
    names = [name for name in our if name in their and name != "SNIPS"]
    pairs = [(our[name][0] - their[name][0], ones) for name in names]
    return dict(zip(names, _intervals(pairs, ours.users, samples, seed, level), strict=True))


def _sums(rows: LoggedRows) -> dict[str, tuple[Doubles, Doubles]]:
    """Estimator -> what each row adds to the two sums (n,) whose ratio is the estimate."""
    ones = np.ones(len(rows.rewards))
    has_model = rows.model is not None and rows.model_target is not None
    q, q_target = (0 * ones if values is None else values for values in (rows.model, rows.model_target))
    return {
        name: (add(rows, q, q_target), rows.weights if name == "SNIPS" else ones)
        for name, (add, _, needs_model) in ESTIMATORS.items()
        if has_model or not needs_model
    }


def checked_estimates(rows: LoggedRows, *, seed: int = 0) -> tuple[Overlap, dict[str, Interval]]:
    """The diagnostics and the estimates. Raises DataError, with the reason, where none can be believed."""
    found = overlap(rows)
    if found.refusal:
        raise DataError(f"no off-policy estimate: {found.refusal}")
    return found, estimates(rows, seed=seed)


def empirical_bernstein(values: Doubles, bound: float, *, level: float = 0.95) -> Interval:
    """An interval of the mean of independent values (n,) in [0, bound] that holds for every n, so it is wide.

    Maurer & Pontil 2009, theorem 4, on both sides. Raises DataError for values outside of [0, bound].
    """
    n = len(values)
    if n < 2 or values.min() < 0 or values.max() > bound:
        raise DataError(
            f"{n} values for bounds 0 and {bound:g}: at least 2 are needed, and none outside of the bounds"
        )
    log = np.log(4 / (1 - level))
    half = float(np.sqrt(2 * values.var(ddof=1) * log / n) + 7 * bound * log / (3 * (n - 1)))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def _intervals(
    pairs: list[tuple[Doubles, Doubles]], users: Ints, samples: int, seed: int, level: float
) -> list[Interval]:
    """Intervals over users of sum a / sum b for pairs of a and b (n,)."""
    owner = np.unique(users, return_inverse=True)[1]
    totals, weights = (  # (u, m)
        np.stack([np.bincount(owner, pair[side]) for pair in pairs], axis=1).astype(np.float64) for side in (0, 1)
    )
    return bootstrap_ratios(totals, weights, samples=samples, seed=seed, level=level)
