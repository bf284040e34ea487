"""The decision to publish, on ranks whose NDCG@10 is known: rank 1 has 1, rank 3 has 1 / 2, a miss has 0."""

import json

import numpy as np
import pytest

from experiments.evaluation.decision import MARGINS, MIN_USERS, decide
from experiments.evaluation.ranking import Outcome

MISS = np.inf


def outcome(ranks):
    """One event of each user, found at the given ranks."""
    n = len(ranks)
    rows, flags = np.arange(n), np.ones(n, dtype=np.bool_)
    return Outcome("x", np.array(ranks, dtype=float), rows, rows, rows, flags, flags, rows, 0.0, 0.0, 0.0, 0.0, 0.0)


def judged(new, served, **options):
    """The decision on one placement."""
    return decide({"home": (outcome(new), outcome(served))}, **options)


def test_the_defaults():
    assert MARGINS == {"ndcg": 0.01}
    assert MIN_USERS == 30


def test_a_better_one_is_published():
    decision = judged([1] * 30, [3] * 30)
    assert decision.publish
    (difference,) = decision.differences
    assert (difference.placement, difference.metric, difference.users) == ("home", "ndcg", 30)
    assert (difference.served, difference.tolerated) == (0.5, 0.005)
    assert (difference.change.mean, difference.change.low, difference.change.high) == (0.5, 0.5, 0.5)
    assert decision.reason == (
        "not worse than what is served: home: NDCG@10 +0.5000 [+0.5000, +0.5000] against 0.5000, 30 users"
    )


def test_an_equal_one_is_published():
    decision = judged([3] * 30, [3] * 30)
    assert decision.publish
    assert decision.differences[0].change.mean == 0


@pytest.mark.parametrize(("margin", "publish"), [(0.6, True), (0.5, True), (0.4, False)])
def test_the_margin_is_a_share_of_the_served_mean(margin, publish):
    """Half of the NDCG is lost, by every user: the interval is a point. The margin itself is not yet worse."""
    decision = judged([3] * 40, [1] * 40, margins={"ndcg": margin})
    assert decision.publish is publish
    assert decision.differences[0].tolerated == margin


def test_a_worse_one_is_not_published():
    decision = judged([MISS] * 30, [3] * 30)
    assert not decision.publish
    assert decision.reason == (
        "worse than what is served: home: NDCG@10 -0.5000 [-0.5000, -0.5000] against 0.5000, 30 users "
        "(tolerated: -0.0050)"
    )


def test_a_loss_that_may_be_chance_is_published():
    """One user of 30 loses a hit: a third of the resamples do not draw this user, so the interval ends at 0."""
    decision = judged([MISS] + [1] * 29, [1] * 30)
    assert decision.publish
    change = decision.differences[0].change
    assert change.mean == pytest.approx(-1 / 30)
    assert change.high == 0


def test_a_loss_of_half_of_the_users_is_no_chance():
    """Of 30 users 15 lose a hit: -0.5, with a standard error of 0.5 / sqrt(30) = 0.09."""
    decision = judged([MISS] * 15 + [1] * 15, [1] * 30)
    assert not decision.publish
    assert -0.4 < decision.differences[0].change.high < -0.2


def test_the_difference_is_paired_by_user():
    """Each user loses about a third of a hit. Unpaired, the spread between the users would hide it."""
    served, new = [1] * 20 + [10] * 20, [2] * 20 + [MISS] * 20  # 1 -> 0.6309, 0.2891 -> 0
    change = judged(new, served).differences[0].change
    assert change.mean == pytest.approx((0.6309 - 1 - 0.2891) / 2, abs=1e-4)
    assert change.high - change.low < 0.05


def test_too_few_users_publish_nothing():
    decision = judged([1] * 29, [3] * 29)
    assert not decision.publish
    assert decision.differences == ()
    assert decision.reason == ("too few users to judge: home 29; 30 are needed; the events count again the next time")
    assert decide({}).reason.startswith("too few users to judge: none;")


def test_each_placement_with_enough_users_is_judged():
    good, bad, few = (outcome([1] * 30), outcome([3] * 30)), (outcome([3] * 30), outcome([1] * 30)), outcome([1] * 5)
    decision = decide({"home": good, "again": bad})
    assert not decision.publish
    assert "again: NDCG@10 -0.5000" in decision.reason
    assert "home" not in decision.reason
    decision = decide({"home": good, "again": (outcome([MISS] * 5), few)})
    assert decision.publish
    assert [difference.placement for difference in decision.differences] == ["home"]


def test_several_metrics_can_have_margins():
    decision = judged([3] * 30, [1] * 30, margins={"ndcg": 0.9, "hr": 0.01})
    assert decision.publish
    assert [(d.metric, d.change.mean) for d in decision.differences] == [("ndcg", -0.5), ("hr", 0)]


def test_a_served_bundle_that_finds_nothing_is_replaced():
    assert judged([MISS] * 30, [MISS] * 30).publish


def test_the_decision_is_plain_json():
    facts = json.loads(json.dumps(judged([1] * 30, [3] * 30).to_dict()))
    assert facts["publish"] is True
    assert facts["differences"][0]["change"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
