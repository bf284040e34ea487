"""The closed loop: one turn of few people against a real service, and its figures by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.bench.loop import benchmark
from experiments.bench.loop.turn import Estimate, Turn
from recsys.evaluation.bootstrap import Interval


def turn(seed=0, low=0.1, truth=0.2, online=0.3):
    estimate = Estimate(Interval(low + 0.1, low, low + 0.2), truth)
    tested = None if online is None else Estimate(Interval(0.5, 0.4, 0.6), online)
    return Turn(seed, 1.0, 10, 5.0, estimate, tested is not None, tested, {"control": 5, "before": 5}, 1.0)


def test_an_estimate_agrees_by_its_interval_or_its_sign():
    above = Estimate(Interval(0.5, 0.4, 0.6), 0.7)
    assert (above.inside, above.agrees) == (False, True)
    assert (replace(above, truth=0.6).inside, replace(above, truth=-0.1).agrees) == (True, False)
    wide = Estimate(Interval(0.5, -0.4, 1.4), -0.1)
    assert (wide.inside, wide.agrees) == (True, True)


def test_bars_are_seventeen_of_twenty():
    turns = [turn(number) for number in range(17)] + [turn(17, low=0.9), turn(18, online=None), turn(19, online=-1.0)]
    offline, online = benchmark._bars(turns)
    assert (offline.value, offline.bar, offline.holds) == (19, 17, True)
    assert (online.value, online.bar, online.holds) == (18, 17, True)
    assert [math.ceil(benchmark.SHARE * n) for n in (1, 3, 20)] == [1, 3, 17]


@pytest.fixture(scope="module")
def looped(tmp_path_factory):
    out = tmp_path_factory.mktemp("loop")
    return benchmark.run(short=True, seed=3, out=out), out


def test_a_turn_against_a_service(looped):
    result, out = looped
    assert result.bars == []
    figures = result.figures
    assert (figures["simulated"], figures["turns"]) == (True, 1)
    found = figures["by seed"]["3"]
    # two rounds of 120 answers with three slots, each with a pool
    assert found["slots"] == 2 * 120 * 3
    assert 100 < found["effective"] < found["slots"]
    assert np.isfinite([found["offline"][name] for name in ("mean", "low", "high", "truth")]).all()
    assert found["offline"]["low"] < found["offline"]["mean"] < found["offline"]["high"]
    assert found["as_asked"] == 1
    assert sum(found["users"].values()) == 120
    assert min(found["users"].values()) > 30
    assert found["online"]["low"] < found["online"]["high"]
    assert json.loads((out / "loop.json").read_text())["simulated"] is True
    assert "simulated: no person did any of this" in (out / "loop.md").read_text().lower()
