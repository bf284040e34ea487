"""Intervals by resampling users: the user is the unit, since events of one user are not independent."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Doubles
from features.errors import ConfigError, DataError

_CHUNK = 1 << 21
"""Users drawn at a time over all resamples: 16 MiB of indexes."""


@dataclass(frozen=True)
class Interval:
    """A mean over users and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Doubles, *, samples: int = 2000, seed: int, level: float = 0.95) -> Interval:
    """Percentile bootstrap of the mean of values (u,), one number a user.

    Efron & Tibshirani 1993, chapter 13: draw u users with replacement, `samples` times, and read the (1 - level) / 2
    and (1 + level) / 2 quantiles of the means. Users as clusters: Field & Welsh 2007. The same seed and u draw the
    same users, so figures of one table share their resamples.

    One user tells nothing of the others: the interval is then infinite. DataError on no users or a value that is not
    finite; ConfigError on a level outside (0, 1) or no samples.
    """
    n = len(values)
    if not 0 < level < 1 or samples < 1:
        raise ConfigError(f"bootstrap of {samples} samples at level {level}: needs samples >= 1 and 0 < level < 1")
    if n == 0:
        raise DataError("bootstrap over 0 users: there is nothing to resample")
    if not np.isfinite(values).all():
        i = int((~np.isfinite(values)).argmax())
        raise DataError(f"bootstrap: value {values[i]} at position {i} of {n} users is not finite; leave it out")
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, -np.inf, np.inf)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _CHUNK // n)
    for at in range(0, samples, step):
        size = min(step, samples - at)
        means[at : at + size] = values[rng.integers(n, size=(size, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def paired_bootstrap(
    ours: Doubles, theirs: Doubles, *, samples: int = 2000, seed: int, level: float = 0.95
) -> Interval:
    """Interval of mean(ours - theirs), both (u,) over the same users in the same order; errors as in `bootstrap`.

    Resampling the differences keeps the pairing: what makes a user easy for both cancels out (Koehn 2004 for the
    paired form in evaluation).
    """
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise DataError(f"paired bootstrap of shapes {ours.shape} and {theirs.shape}: both must be (u,), same users")
    return bootstrap(ours - theirs, samples=samples, seed=seed, level=level)
