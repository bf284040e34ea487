"""Tests of differences that are paired by user, and several of them at once."""

import numpy as np
from scipy.stats import false_discovery_control

from features.arrays import Doubles
from features.errors import DataError

_CHUNK = 1 << 22
"""Signs that are drawn at a time."""


def permutation_test(differences: Doubles, *, samples: int = 10_000, seed: int) -> float:
    """Two-sided p-value of the mean of differences (u,), one a user, under the hypothesis that it is zero.

    If both variants were alike, each difference would as well have the other sign: signs are drawn, `samples` times
    (Fisher 1935; in retrieval, Smucker, Allan & Carterette 2007). The observed signs are one of the samples, so the
    p-value is never 0 (Phipson & Smyth 2010). Raises DataError without users.
    """
    n = len(differences)
    if not n:
        raise DataError("permutation test over 0 users: at least one is needed")
    rng, extreme = np.random.default_rng(seed), 0
    observed = abs(float(differences.sum())) * (1 - 1e-12)  # equal sums count, whatever the order of addition
    step = max(1, _CHUNK // n)
    for at in range(0, samples, step):
        signs = rng.integers(2, size=(min(step, samples - at), n), dtype=np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs.astype(np.float64) @ differences) >= observed))
    return (1 + extreme) / (1 + samples)


def holm(p: Doubles) -> Doubles:
    """(m,): p-values of m tests, adjusted: one false one below `level` is at most as probable as that (Holm 1979)."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    out = np.empty(len(p))
    out[order] = adjusted
    return out


def benjamini_hochberg(p: Doubles) -> Doubles:
    """(m,): p-values of m tests, adjusted: of those below `level`, at most this share is false (1995)."""
    adjusted: Doubles = false_discovery_control(p) if len(p) else p
    return adjusted
