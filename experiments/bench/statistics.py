"""Statistics on simulated experiments with a known truth: do intervals cover it, and are alarms as rare as they say?

A simulated experiment has 2,000 users, whose values are log-normal, or a log-normal amount with a probability: both
have heavy tails. Off-policy rows are of a bandit with ten items and four kinds of users, whose expected rewards are
known; the model of the reward is a fifth too low, and wrong by as much again from item to item.
"""

import resource
import time
from dataclasses import dataclass

import numpy as np

from experiments.bench.runner import Bar, Result
from experiments.statistics import arms, off_policy
from experiments.statistics.off_policy import LoggedRows
from experiments.statistics.sequential import confidence_sequence, group_sequential
from features.arrays import Doubles
from recsys.evaluation.bootstrap import Interval, bootstrap_ratios, paired_bootstrap

EXPERIMENTS, SHORT_EXPERIMENTS, USERS = 2_000, 40, 2_000
RESAMPLES = 2_000
EFFECTS = (0.0, 0.02, 0.05)
LOOKS, DAYS = range(200, USERS + 1, 100), 30
SRM_DRAWS, SRM_LEVEL = 20_000, 0.01
TAIL = 0.8
"""Standard deviation of the logarithm of what a user does: the largest of 2,000 is ten times the mean or more."""

SPREAD = 0.3
"""Standard deviation of the logarithm of what a variant changes for one user."""

ITEMS, KINDS = 10, 4
SHARES = {"good": 0.8, "medium": 0.1, "poor": 0.002}
"""Overlap -> share of the logged policy that is uniform; the rest shows what the judged policy shows least."""

SIZES = (500, 2_000, 8_000)
"""Numbers of off-policy rows in the table of bias and deviation."""


def run(*, short: bool = False, seed: int = 0) -> Result:
    """Coverage, false alarms, bias and deviation. short: 40 experiments each, no bars."""
    n = SHORT_EXPERIMENTS if short else EXPERIMENTS
    coverage = {
        f"{name}, effect {effect:.0%}": value
        for effect in EFFECTS
        for name, value in {**_paired(effect, n, seed), **_two_arms(effect, n, seed)}.items()
    }
    off = {overlap: _off_policy(overlap, n, seed) for overlap in SHARES}
    looks, mismatch = _looks(n, seed), _mismatch(seed)
    errors = {(overlap, rows): _errors(overlap, rows, n, seed) for overlap in SHARES for rows in SIZES}
    size = _size(short, seed)
    figures = {
        "experiments": n,
        "users": USERS,
        "coverage": coverage,
        "off policy, coverage": {f"{overlap} overlap": figure for overlap, figure in off.items()},
        "off policy, errors": {
            f"{overlap} overlap, {rows} rows, {name}": {"bias": bias, "deviation": deviation}
            for (overlap, rows), found in errors.items()
            for name, (bias, deviation) in found.items()
        },
        "looks": looks,
        "sample ratio alarms": mismatch,
        "bootstrap": size,
    }
    bars = [*_bars(coverage, off["good"]["DR"], looks), *_error_bars(errors)]
    bars += [
        *_between("sample ratio alarms", mismatch, 0.007, 0.013),
        Bar("refused, poor overlap", off["poor"]["refused"], ">=", 0.95),
        Bar("refused, good overlap", off["good"]["refused"], "<=", 0.01),
        Bar("bootstrap seconds", size["seconds"], "<=", 60),
        Bar("bootstrap GiB", size["GiB"], "<=", 2),
    ]
    return Result(figures, [] if short else bars)


def _bars(coverage: dict[str, float], of_dr: float, looks: dict[str, float]) -> list[Bar]:
    bars = []
    for name, value in {**coverage, "DR, good overlap": of_dr}.items():
        bars += _between(f"coverage, {name}", value, 0.93, 0.97)
        if name.endswith("effect 0%"):
            bars += _between(f"A/A alarms, {name}", 1 - value, 0.03, 0.07)
    limits = (
        ("confidence sequence, covers at all looks", ">=", 0.94),
        ("confidence sequence, last width over fixed", "<=", 1.7),
        ("confidence sequence, false alarms in 30 looks", "<=", 0.06),
        ("group sequential, false alarms in 30 looks", "<=", 0.06),
    )
    return bars + [Bar(name, looks[name], op, limit) for name, op, limit in limits]


def _error_bars(errors: dict[tuple[str, int], dict[str, tuple[float, float]]]) -> list[Bar]:
    """DR against IPS, whose variance the model lowers; against DM, whose bias rows do not lower, at many rows."""
    squared = {key: {name: b**2 + d**2 for name, (b, d) in found.items()} for key, found in errors.items()}
    pairs = [(rows, "IPS") for rows in SIZES] + [(SIZES[-1], "DM")]
    return [
        Bar(f"squared error of DR over {peer}, {rows} rows", found["DR"] / found[peer], "<=", 1.0)
        for rows, peer in pairs
        for found in [squared["good", rows]]
    ]


def _between(name: str, value: float, low: float, high: float) -> list[Bar]:
    return [Bar(f"{name}, at least", value, ">=", low), Bar(f"{name}, at most", value, "<=", high)]


def _covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def _paired(effect: float, n: int, seed: int) -> dict[str, float]:
    """Coverage of the paired bootstrap: every user has both variants."""
    rng, covered = np.random.default_rng([seed, 1]), 0
    truth = effect * np.exp(TAIL**2 / 2)
    for i in range(n):
        ours, peer = _changed(rng, effect)
        covered += _covers(paired_bootstrap(ours, peer, samples=RESAMPLES, seed=i), truth)
    return {"paired bootstrap": covered / n}


def _changed(rng: np.random.Generator, effect: float) -> tuple[Doubles, Doubles]:
    """Values (USERS,) of users with a variant that changes them by `effect` in the mean, and without."""
    peer = rng.lognormal(0, TAIL, USERS)
    return peer * (1 + effect) * rng.lognormal(-(SPREAD**2) / 2, SPREAD, USERS), peer


def _two_arms(effect: float, n: int, seed: int) -> dict[str, float]:
    """Coverage of two arms with half of the users each: of means, with CUPED, and of ratios."""
    rng, half = np.random.default_rng([seed, 2]), USERS // 2
    covered = {"Welch": 0, "CUPED": 0, "ratio": 0}
    for _ in range(n):
        before = rng.lognormal(0, TAIL, USERS)
        answers = rng.integers(1, 20, USERS).astype(np.float64)
        values = 0.7 * before + 0.3 * rng.lognormal(0, TAIL, USERS)
        values[:half] *= 1 + effect
        truth = effect * np.exp(TAIL**2 / 2)
        for name, y in (("Welch", values), ("CUPED", arms.cuped(values, before))):
            change = arms.difference(arms.Arm.of_means(y[:half]), arms.Arm.of_means(y[half:]))
            covered[name] += _covers(change, truth)
        ratios = (arms.Arm.of_ratios((values * answers)[at], answers[at]) for at in (slice(half), slice(half, None)))
        covered["ratio"] += _covers(arms.difference(*ratios), truth)
    return {name: hits / n for name, hits in covered.items()}


def _looks(n: int, seed: int) -> dict[str, float]:
    """Figures of tests that are looked at while they run, of paired differences."""
    rng, truth, bounds = (
        np.random.default_rng([seed, 3]),
        0.02 * np.exp(TAIL**2 / 2),
        group_sequential(np.arange(1, DAYS + 1) / DAYS),
    )
    covers, alarms, alarms_z, widths = 0, 0, 0, []
    looks, days = np.array(LOOKS), np.linspace(USERS / DAYS, USERS, DAYS).astype(np.int64)
    for _ in range(n):
        ours, peer = _changed(rng, 0.02)
        means, deviations = _running(ours - peer, looks)
        intervals = [
            confidence_sequence(m, d, int(k), planned=USERS) for m, d, k in zip(means, deviations, looks, strict=True)
        ]
        covers += all(_covers(interval, truth) for interval in intervals)
        widths.append((intervals[-1].high - intervals[-1].low) / (2 * 1.96 * deviations[-1] / USERS**0.5))
        ours, peer = _changed(rng, 0.0)
        means, deviations = _running(ours - peer, days)
        alarms += any(
            not _covers(confidence_sequence(m, d, int(k), planned=USERS), 0)
            for m, d, k in zip(means, deviations, days, strict=True)
        )
        alarms_z += bool((np.abs(means) / deviations * np.sqrt(days) > bounds).any())
    return {
        "confidence sequence, covers at all looks": covers / n,
        "confidence sequence, last width over fixed": float(np.mean(widths)),
        "confidence sequence, false alarms in 30 looks": alarms / n,
        "group sequential, false alarms in 30 looks": alarms_z / n,
    }


def _running(values: Doubles, at: np.ndarray) -> tuple[Doubles, Doubles]:
    """Means and standard deviations of the first at (k,) of values (n,)."""
    means = np.cumsum(values)[at - 1] / at
    squares = np.cumsum(values**2)[at - 1] / at
    return means, np.sqrt((squares - means**2) * at / (at - 1))


def _mismatch(seed: int) -> float:
    """Share of alarms at SRM_LEVEL where users are assigned as said."""
    treated = np.random.default_rng([seed, 4]).binomial(USERS, 0.5, SRM_DRAWS)
    counts, draws = np.unique(treated, return_counts=True)
    p = [arms.sample_ratio_mismatch({"a": int(c), "b": USERS - int(c)}, {"a": 0.5, "b": 0.5}) for c in counts]
    return float(draws[np.array(p) < SRM_LEVEL].sum()) / SRM_DRAWS


@dataclass(frozen=True)
class Bandit:
    """Expected rewards (KINDS, ITEMS), a model of them, and the probabilities of both policies."""

    expected: Doubles
    model: Doubles
    logged: Doubles
    target: Doubles

    @classmethod
    def of(cls, uniform: float) -> "Bandit":
        """One bandit for all experiments: SHARES gives `uniform`."""
        rng = np.random.default_rng(7)
        expected = rng.beta(1, 4, (KINDS, ITEMS))
        model = expected * rng.uniform(0.6, 1.0, expected.shape)
        target = np.exp(3 * expected) / np.exp(3 * expected).sum(1, keepdims=True)
        logged = np.full(expected.shape, uniform / ITEMS)
        logged[np.arange(KINDS), target.argmin(1)] += 1 - uniform
        return cls(expected, model, logged, target)

    @property
    def truth(self) -> float:
        """The mean reward under the judged policy; all kinds of users are equally frequent."""
        return float((self.target * self.expected).sum(1).mean())

    def rows(self, n: int, rng: np.random.Generator) -> LoggedRows:
        """n rows of n / 2 users: with the expected probability a log-normal reward of mean 1."""
        users = np.arange(n) // 2
        kind = rng.integers(KINDS, size=users[-1] + 1)[users]
        item = (rng.random(n)[:, None] > np.cumsum(self.logged, axis=1)[kind]).sum(1).clip(max=ITEMS - 1)
        rewards = (rng.random(n) < self.expected[kind, item]) * rng.lognormal(-0.125, 0.5, n)
        expected = (self.target * self.model).sum(1)
        return LoggedRows(
            rewards, self.logged[kind, item], self.target[kind, item], users, self.model[kind, item], expected[kind]
        )


def _off_policy(overlap: str, n: int, seed: int) -> dict[str, float]:
    """Share of experiments that are refused, and coverage of the intervals of the others, of 2 * USERS rows."""
    bandit, rng = Bandit.of(SHARES[overlap]), np.random.default_rng([seed, 5])
    refused, covered = 0, dict.fromkeys(off_policy.ESTIMATORS, 0)
    for i in range(n):
        rows = bandit.rows(2 * USERS, rng)
        if off_policy.overlap(rows).refusal:
            refused += 1
            continue
        for name, interval in off_policy.estimates(rows, samples=RESAMPLES // 2, seed=i).items():
            covered[name] += _covers(interval, bandit.truth)
    return {"refused": refused / n} | {name: hits / max(1, n - refused) for name, hits in covered.items()}


def _errors(overlap: str, rows: int, n: int, seed: int) -> dict[str, tuple[float, float]]:
    """Bias and standard deviation of each estimator."""
    bandit, rng = Bandit.of(SHARES[overlap]), np.random.default_rng([seed, 6])
    found = [off_policy.point_estimates(bandit.rows(rows, rng)) for _ in range(n)]
    values = {name: np.array([estimates[name] for estimates in found]) for name in off_policy.ESTIMATORS}
    return {name: (float(v.mean()) - bandit.truth, float(v.std())) for name, v in values.items()}


def _size(short: bool, seed: int) -> dict[str, float]:
    """Seconds and memory of the bootstrap of 10 metrics of 100,000 users, 10,000 resamples."""
    users, resamples = (1_000, 100) if short else (100_000, 10_000)
    values = np.random.default_rng(seed).lognormal(size=(users, 10))
    started = time.perf_counter()
    bootstrap_ratios(values, samples=resamples, seed=seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"users": users, "resamples": resamples, "seconds": time.perf_counter() - started, "GiB": peak}
