"""The closed loop: one turn of few people against a real service, and its figures by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.bench import runner
from experiments.bench.loop import benchmark
from experiments.bench.loop import turn as turn_module
from experiments.bench.loop.turn import Estimate, Shown, Turn, Visitors, _true_gain
from experiments.bench.loop.world import Size, World
from experiments.evaluation.off_policy.policies import Policy
from experiments.evaluation.off_policy.slots import Slots
from experiments.simulation.behaviour import Behaviour
from experiments.simulation.people import People
from features.interactions import Ragged
from recsys.evaluation.bootstrap import Interval


def turn(seed=0, low=0.1, truth=0.2, online=0.3):
    estimate = Estimate(Interval(low + 0.1, low, low + 0.2), truth)
    tested = None if online is None else Estimate(Interval(0.5, 0.4, 0.6), online)
    return Turn(seed, 1.0, 10, 5.0, estimate, "", tested is not None, tested, {"control": 5, "before": 5}, 1.0)


def test_an_estimate_agrees_by_its_interval_or_its_sign():
    above = Estimate(Interval(0.5, 0.4, 0.6), 0.7)
    assert (above.inside, above.agrees) == (False, True)
    assert (replace(above, truth=0.6).inside, replace(above, truth=-0.1).agrees) == (True, False)
    wide = Estimate(Interval(0.5, -0.4, 1.4), -0.1)
    assert (wide.inside, wide.agrees) == (True, True)


def test_bars_are_seventeen_of_twenty():
    refused = replace(turn(16), offline=None, refusal="too few", online=None)
    others = [refused, turn(17, low=0.9), turn(18, online=None), turn(19, online=-1.0)]
    turns = [turn(number) for number in range(16)] + others
    offline, online = benchmark._bars(turns)
    assert (offline.value, offline.bar, offline.holds) == (18, 17, True)
    assert (online.value, online.bar, online.holds) == (17, 17, True)
    assert [math.ceil(benchmark.SHARE * n) for n in (1, 3, 20)] == [1, 3, 17]


def test_the_report_has_a_row_for_each_seed(tmp_path):
    turns = [turn(7), turn(8, low=0.9, online=None)]
    figures = benchmark._figures(Size(), turns, 1.0)
    benchmark._write(tmp_path, figures, benchmark._bars(turns), turns)
    text = (tmp_path / "loop.md").read_text()
    assert "**Simulated: no person did any of this.**" in text
    assert "* turns whose true gain is inside the offline interval: 1 of 2 (needed: 2)" in text
    rows = [line for line in text.splitlines() if line.startswith(("| 7", "| 8"))]
    first = (
        "| 7 | 10 | +0.2000 [+0.1000, +0.3000] | +0.2000 | yes | yes | +0.5000 [+0.4000, +0.6000] | +0.3000 | no |"
    )
    assert rows == [first, "| 8 | 10 | +1.0000 [+0.9000, +1.1000] | +0.2000 | no | no |  |  |  |"]
    report = {
        "bench": "loop",
        "short": False,
        "machine": {"cores": 1},
        "versions": {},
        "figures": figures,
        "bars": [],
    }
    runner.render(report)


def two_people():
    """Each of two people likes one of two items by a half, and the other by nothing."""
    axes = np.eye(2)
    people = People(axes, axes.copy(), axes[::-1].copy(), 0.0, 1.0, 0.01)
    behaviour = Behaviour(bias=1.0, most=1.0, fatigue=0.5, converts=1.0, delay=1.5)
    return World(people, behaviour, ("x", "y"), ("ann", "bob"), Size(rounds=3), Path(), Path())


def test_the_true_gain_by_hand():
    """First slot: bob, day 1, position 2; B shows y, which bob saw once, A x. Second: ann; both show x."""
    choices, one = Ragged.of([[0, 1], [0, 1]]), np.ones(2)
    names = (("ann", "bob"), ("x", "y"), ("q", "r"))
    users, answers, positions = np.array([1, 0]), np.array([0, 1]), np.array([2, 1])
    slots = Slots(*names, users, answers, answers, positions, choices, choices.begin, one, one, 0, 0)
    counts = np.zeros((2, 2, 2), np.uint16)
    counts[1, 1, 1] = 1
    policy = Policy("b", np.array([1, 2]), np.zeros(4))
    gain = _true_gain(two_people(), slots, policy, Shown({"q": (1, 1), "r": (0, 0)}, counts))
    assert gain == pytest.approx((0.5 * 0.5 / 2 + 0) / 2)


class FakeShop:
    """Answers everybody with x and y, and keeps what is posted by round."""

    def __init__(self):
        self.posted, self.number = [], 0

    def answers(self, users, placement, k):
        self.number += 1
        items = [{"item_id": item, "position": place} for place, item in enumerate(("x", "y"), 1)]
        return [{"request_id": f"{self.number}-{place}", "items": items} for place in range(len(users))]

    def post(self, events):
        self.posted.append(list(events))


def test_purchases_come_on_their_day_and_name_the_answer(monkeypatch):
    monkeypatch.setattr(turn_module, "K", 2)
    shop: Any = FakeShop()
    visitors = Visitors(two_people(), shop, seed=1)
    shown = visitors.explore(np.tile([0, 1], 200))
    assert len(shop.posted) == 4  # three rounds and the end
    clicks = [event for posted in shop.posted for event in posted if event["event"] == "click"]
    days = {event["event_id"]: day for day, posted in enumerate(shop.posted) for event in posted}
    bought = [event for posted in shop.posted for event in posted if event["event"] == "purchase"]
    key = ("user_id", "item_id", "request_id", "position")
    assert sorted([event[k] for k in key] for event in clicks) == sorted([event[k] for k in key] for event in bought)
    waits = [days[event["event_id"]] - shown.requests[event["request_id"]][1] for event in bought]
    assert set(waits) == {1, 2, 3}  # none at once: each delay is above 0
    assert shop.posted[3]
    assert {event["event"] for event in shop.posted[3]} == {"purchase"}
    assert shown.counts[:, 0, 0].tolist() == [0, 200, 400]
    assert {event["event"] for event in shop.posted[0]} == {"view", "click"}


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
