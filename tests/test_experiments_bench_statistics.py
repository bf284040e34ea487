"""`recsys bench statistics`, short: its figures, and its bars on figures that are given."""

import pytest

from experiments.bench import statistics
from experiments.bench.statistics import Bandit


@pytest.fixture(scope="module")
def result():
    return statistics.run(short=True, seed=1)


def test_intervals_cover_the_truth_about_as_often_as_said(result):
    assert not result.bars
    coverage = result.figures["coverage"]
    assert len(coverage) == 12
    assert min(coverage.values()) > 0.8  # of 40 experiments; 4.4 standard errors below .95
    off = result.figures["off policy, coverage"]
    assert off["good overlap"]["refused"] == 0
    assert off["good overlap"]["DR"] > 0.8
    assert off["poor overlap"]["refused"] > 0.9
    assert result.figures["looks"]["confidence sequence, last width over fixed"] == pytest.approx(1.55, abs=0.02)


def test_errors_are_those_of_theory(result):
    errors = result.figures["off policy, errors"]
    dm, ips = (errors[f"good overlap, 8000 rows, {name}"] for name in ("DM", "IPS"))
    assert dm["bias"] < -0.03  # the model is a fifth too low
    assert abs(ips["bias"]) < 4 * ips["deviation"] / 40**0.5
    assert errors["good overlap, 500 rows, IPS"]["deviation"] == pytest.approx(4 * ips["deviation"], rel=0.5)


def test_the_truth_of_the_bandit_by_its_definition():
    bandit = Bandit.of(0.5)
    assert bandit.truth == pytest.approx(sum(p @ r for p, r in zip(bandit.target, bandit.expected, strict=True)) / 4)
    assert bandit.logged.sum(1) == pytest.approx([1] * 4)
    assert bandit.logged.min() == pytest.approx(0.05)
