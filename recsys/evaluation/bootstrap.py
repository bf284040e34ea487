"""Bootstrap confidence intervals over users: the events of one user are not independent, so users are resampled."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

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
    """Interval of the mean of values (u,), one value a user. See `bootstrap_ratios`."""
    return bootstrap_ratios(values[:, None], samples=samples, seed=seed, level=level)[0]


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


def bootstrap_ratios(
    totals: Doubles, weights: Doubles | None = None, *, samples: int = 2000, seed: int, level: float = 0.95
) -> list[Interval]:
    """BCa intervals of m ratios, sum of totals / sum of weights, both (u, m): one row a user. None: weights of 1.

    Efron 1987, Efron & Tibshirani 1993, chapter 14: draw u users with replacement, `samples` times; the bounds are
    quantiles of the ratios, moved by their median bias and by the skewness of the influence of users. Users as
    clusters: Field & Welsh 2007. The same seed and u draw the same users, so the figures of one table share their
    resamples.

    The interval of a single user is infinite. Raises DataError when there are no users, a value is not finite, or
    weights sum to nothing; ConfigError when level is outside (0, 1) or samples < 1.
    """
    n, m = totals.shape
    if not 0 < level < 1 or samples < 1:
        raise ConfigError(f"bootstrap of {samples} samples at level {level}: needs samples >= 1 and 0 < level < 1")
    if n == 0:
        raise DataError("bootstrap over 0 users: at least one is needed")
    both = totals if weights is None else np.concatenate((totals, weights), axis=1)
    if not np.isfinite(both).all():
        user, column = np.argwhere(~np.isfinite(both))[0]
        raise DataError(
            f"bootstrap: value {both[user, column]} at position {user} of {n} users is not finite; leave it out"
        )
    if weights is not None and (weights.sum(0) <= 0).any():
        raise DataError("bootstrap of a ratio whose denominator is 0: no user has a weight")
    scale = np.ones(m) if weights is None else weights.mean(0)
    estimates = totals.mean(0) / scale  # (m,)
    if n == 1:
        return [Interval(float(mean), -np.inf, np.inf) for mean in estimates]
    sums = _resampled_sums(both, samples, seed)  # (samples, m or 2 m)
    ratios = sums / n if weights is None else _ratios(sums[:, :m], sums[:, m:])
    influence = (totals - estimates * (1.0 if weights is None else weights)) / scale  # (n, m)
    return [
        Interval(float(estimates[i]), *_bca(ratios[:, i], float(estimates[i]), influence[:, i], level))
        for i in range(m)
    ]


def _resampled_sums(values: Doubles, samples: int, seed: int) -> Doubles:
    """Sums of values (n, m) over n rows that are drawn with replacement, `samples` times: (samples, m)."""
    n, m = values.shape
    rng, sums = np.random.default_rng(seed), np.empty((samples, m))
    step = max(1, _CHUNK // n)
    for at in range(0, samples, step):
        size = min(step, samples - at)
        drawn = rng.integers(n, size=(size, n))
        if m == 1:
            sums[at : at + size, 0] = values[drawn, 0].sum(axis=1)
            continue
        drawn += np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)  # of each row in each resample
        sums[at : at + size] = counts.astype(np.float64) @ values
    return sums


def _ratios(totals: Doubles, weights: Doubles) -> Doubles:
    """totals / weights, NaN where no drawn user has a weight."""
    out = np.full(totals.shape, np.nan)
    np.divide(totals, weights, out=out, where=weights > 0)
    return out


def _bca(resampled: Doubles, estimate: float, influence: Doubles, level: float) -> tuple[float, float]:
    """The bounds of a BCa interval. resampled (s,): estimates of resamples; influence (n,): of each user."""
    resampled = resampled[np.isfinite(resampled)]
    variance = float(np.square(influence).sum())
    if variance <= 1e-24 * max(1.0, estimate**2) or not len(resampled):
        return estimate, estimate
    s = len(resampled)
    below = np.count_nonzero(resampled < estimate) + np.count_nonzero(resampled == estimate) / 2
    bias = ndtri(np.clip(below, 0.5, s - 0.5) / s)
    skew = float(np.power(influence, 3).sum()) / (6 * variance**1.5)
    z = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(resampled, ndtr(bias + z / (1 - skew * z)))
    return float(low), float(high)
