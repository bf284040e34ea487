"""Bootstrap confidence intervals over users: the events of one user are not independent, so users are resampled."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Doubles
from features.errors import ConfigError, DataError

_CHUNK = 1 << 21
"""Users drawn at a time, over several resamples: 16 MiB of indexes."""


@dataclass(frozen=True)
class Interval:
    """A mean over users with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Doubles, *, samples: int = 2000, seed: int, level: float = 0.95) -> Interval:
    """Percentile bootstrap of the mean of values (u,), one value a user.

    Efron & Tibshirani 1993, chapter 13: draw u users with replacement, `samples` times; the bounds are the
    (1 - level) / 2 and (1 + level) / 2 quantiles of the means. Users as clusters: Field & Welsh 2007. The same seed
    and u draw the same users, so the figures of one table share their resamples.

    The interval of a single user is infinite. Raises DataError when there are no users or a value is not finite,
    ConfigError when level is outside (0, 1) or samples < 1.
    """
    n = len(values)
    if not 0 < level < 1 or samples < 1:
        raise ConfigError(f"bootstrap of {samples} samples at level {level}: needs samples >= 1 and 0 < level < 1")
    if n == 0:
        raise DataError("bootstrap over 0 users: at least one is needed")
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
    ours: Doubles, peer: Doubles, *, samples: int = 2000, seed: int, level: float = 0.95
) -> Interval:
    """Interval of mean(ours - peer), both (u,) over the same users in the same order.

    Differences are resampled, so that the difficulty of a user, common to both, cancels out (Koehn 2004, on the
    paired form in evaluation). Raises DataError when the shapes differ, and as `bootstrap`.
    """
    if ours.shape != peer.shape or ours.ndim != 1:
        raise DataError(f"paired bootstrap of shapes {ours.shape} and {peer.shape}: both must be (u,), same users")
    return bootstrap(ours - peer, samples=samples, seed=seed, level=level)
