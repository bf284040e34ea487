"""Intervals and tests that may be looked at while a test is running."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from features.arrays import Doubles
from features.errors import ConfigError
from recsys.evaluation.bootstrap import Interval

GRID = 801
"""Points of the numerical integration of `group_sequential`."""

HIGHEST = 20.0
"""Bound of looks that are so early that nothing is significant."""


def confidence_sequence(mean: float, deviation: float, n: float, *, planned: float, level: float = 0.95) -> Interval:
    """An interval that holds at all n at once with probability `level`: it may be looked at as often as one likes.

    deviation: of one observation. The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas
    (2021, arXiv 2103.06476, theorem 2.2), with the rho of their section 2.3 that makes it narrowest at `planned`
    observations: 1.5 times as wide there as the interval of a single look. It needs as many observations as the
    central limit theorem; look from some hundred on.
    """
    alpha = 1 - level
    rho = (-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / planned  # rho squared
    half = deviation * float(np.sqrt((n * rho + 1) / (n**2 * rho) * np.log((n * rho + 1) / alpha**2)))
    return Interval(mean, mean - half, mean + half)


def group_sequential(shares: Sequence[float] | Doubles, *, level: float = 0.05) -> Doubles:
    """(k,): |z| from which on look i is significant, so that all k looks together have the two-sided level.

    shares: of the planned observations at each look, ascending, the last at most 1. Lan & DeMets 1983, with the
    spending function 2 - 2 Phi(z(1 - level / 4) / sqrt(share)) on each side, close to O'Brien & Fleming 1979. The
    bounds follow from the density of the sum at each look, by the recursion of Armitage, McPherson & Rowe 1969.
    Raises ConfigError for other shares.
    """
    at = np.asarray(shares, dtype=np.float64)
    if not len(at) or at[0] <= 0 or at[-1] > 1 or (np.diff(at) <= 0).any():
        raise ConfigError(f"looks at shares {list(shares)} of the planned users: they must ascend from above 0 to 1")
    spent = 4 * ndtr(ndtri(level / 4) / np.sqrt(at))  # (k,): level used up to each look
    increments = np.diff(spent, prepend=0.0)
    bounds = np.empty(len(at))
    bounds[0] = min(-ndtri(increments[0] / 2), HIGHEST)
    sums = np.linspace(-1, 1, GRID) * bounds[0] * np.sqrt(at[0])  # of those that go on; the variance at share t is t
    density = np.exp(-(sums**2) / (2 * at[0])) / np.sqrt(2 * np.pi * at[0])
    for i in range(1, len(at)):
        step = np.sqrt(at[i] - at[i - 1])
        weights = density * np.gradient(sums)
        weights[[0, -1]] /= 2  # trapezoids
        low, high = 0.0, HIGHEST
        for _ in range(60):  # bisection: what crosses the bound on either side is the increment
            middle = (low + high) / 2
            crossing = 2 * float(weights @ ndtr((sums - middle * np.sqrt(at[i])) / step))
            low, high = (middle, high) if crossing > increments[i] else (low, middle)
        bounds[i] = (low + high) / 2
        new = np.linspace(-1, 1, GRID) * bounds[i] * np.sqrt(at[i])
        kernel = np.exp(-((new[:, None] - sums) ** 2) / (2 * step**2)) / (np.sqrt(2 * np.pi) * step)  # (GRID, GRID)
        sums, density = new, kernel @ weights
    return bounds
