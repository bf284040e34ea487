"""The lift of cold items: what is added to their scores, what it costs, and where it ends; and probabilities."""

from dataclasses import replace

import numpy as np
import pytest
from toy_data import noise, toy_catalog, toy_log, toy_stage

from experiments.config import RunConfig
from experiments.evaluation.lifts import LIFTS, Judgement, LiftResult, choose_lift
from experiments.pipelines.reranking import train_reranker
from experiments.splits import time_split
from recsys.config import RerankerConfig, SourceQuotas
from recsys.evaluation.calibration import Calibration, reliability
from recsys.interfaces import Candidates
from recsys.recommender import TwoStageRecommender


@pytest.fixture(scope="module")
def stage():
    """Items 0 to 29 have events, items 30 to 34 have none."""
    events = replace(noise(), n_items=35)
    return *toy_stage(events, toy_catalog(35)), events


def test_cold_items_alone_are_lifted(stage):
    recommender, _, _, events = stage
    states = events.states(np.array([0, 1]), np.full(2, events.latest + 1))
    found = Candidates(np.array([[30, 3, 31, -1], [5, 34, 6, 7]]), np.zeros((2, 4), np.float32))
    plain = recommender.reranker
    lifted = replace(plain, cold_lift=2.5)
    before, after = plain.score(states, found), lifted.score(states, found)
    np.testing.assert_allclose((after[:, :3] - before[:, :3]), [[2.5, 0, 2.5], [0, 2.5, 0]], atol=1e-6)
    assert np.isneginf(after[0, 3])
    assert after[1, 3] == before[1, 3]


def test_a_lift_does_not_change_probabilities(stage):
    recommender, _, _, events = stage
    states = events.states(np.array([0]), np.full(1, events.latest + 1))
    found = Candidates(np.array([[30, 3]]), np.zeros((1, 2), np.float32))
    plain = replace(recommender.reranker, calibration=Calibration(np.array([-1.0, 1]), np.array([0.0, 1])))
    lifted = replace(plain, cold_lift=0.5)
    np.testing.assert_allclose(
        lifted.probabilities(found.rows, lifted.score(states, found)),
        plain.probabilities(found.rows, plain.score(states, found)),
        atol=1e-6,
    )


def curve(*results):
    """Lifts 0, 1, 2, … with (ndcg, hr_cold, hr_warm, share); a quarter of the events is with cold items."""
    return [
        LiftResult(lift, ndcg, hr_cold, hr_warm, share, 0.25)
        for lift, (ndcg, hr_cold, hr_warm, share) in enumerate(results)
    ]


@pytest.mark.parametrize(
    ("share", "results", "lift"),
    [
        (None, [(0.1, 0.0, 0.2, 0.0), (0.0991, 0.01, 0.2, 0.1), (0.0989, 0.02, 0.2, 0.2)], 1),  # at most 1 %
        (None, [(0.1, 0.0, 0.2, 0.0), (0.0980, 0.01, 0.2, 0.1), (0.1000, 0.02, 0.2, 0.2)], 0),  # stops at the first
        (None, [(0.1, 0.0, 0.2, 0.0), (0.1, 0.1, 0.2, 0.1), (0.1, 0.21, 0.2, 0.2)], 1),  # not above warm items
        (None, [(0.1, float("nan"), 0.2, 0.0), (0.1, float("nan"), 0.2, 0.1)], 0),  # no event with a cold item
        (None, [(0.1, 0.0, 0.2, 0.0), (0.1, 0.01, 0.2, 0.25), (0.1, 0.02, 0.2, 0.26)], 1),  # at most what is wanted
        (0.5, [(0.1, 0.0, 0.2, 0.0), (0.1, 0.01, 0.2, 0.25), (0.1, 0.02, 0.2, 0.26)], 2),  # unless more is asked for
        (0.1, [(0.1, 0.0, 0.2, 0.0), (0.05, 0.01, 0.2, 0.1), (0.05, 0.02, 0.2, 0.2)], 1),  # whatever it costs
        (0.0, [(0.1, 0.0, 0.2, 0.0), (0.1, 0.01, 0.2, 0.1)], 0),
        (1.0, [(0.1, 0.0, 0.2, 0.0), (0.1, 0.3, 0.2, 0.1)], 0),  # found as often as warm items before
    ],
)
def test_where_the_lift_ends(share, results, lift):
    assert choose_lift(curve(*results), share, None) == lift


@pytest.mark.parametrize(
    ("price", "results", "lift"),
    [
        (0.1, [(0.1, 0.0, 0.2, 0.0), (0.091, 0.01, 0.2, 0.4), (0.089, 0.02, 0.2, 0.5)], 1),  # more than is wanted
        (0.0, [(0.1, 0.0, 0.2, 0.0), (0.1, 0.01, 0.2, 0.1), (0.099, 0.02, 0.2, 0.2)], 1),  # nothing may be lost
        (1.0, [(0.1, 0.0, 0.2, 0.0), (0.01, 0.1, 0.2, 0.5), (0.01, 0.3, 0.2, 0.9)], 1),  # not above warm items
    ],
)
def test_a_price_decides_alone_how_far_a_lift_goes(price, results, lift):
    assert choose_lift(curve(*results), None, price) == lift
    assert choose_lift(curve(*results), 0.0, price) == 0  # a share of the places comes first


def test_without_an_event_of_a_cold_item_one_line_says_so():
    lifts = tuple(curve((0.1, float("nan"), 0.2, 0.0), (0.1, float("nan"), 0.2, 0.1)))
    lines = [*Judgement(lifts, 0.0, ()).lines()]
    assert lines == ["no event of the validation window is with a cold item: cold items are not lifted"]


def window(rows, n_users, n_items):
    """A run over a log of rows (user, item, time): its configuration, data set and split of the placement."""
    events = toy_log(rows, n_users, n_items)
    config = RunConfig.model_validate(
        {
            "name": "toy",
            "data": {
                "source": "folder",
                "path": ".",
                "events": {"positive": {"take": None}},
                "placements": {"home": {"repeats": True}},
            },
            "encoder": None,
            "reranker": {"candidates": 20, "trees": 5},
        }
    )
    catalog = toy_catalog(n_items)
    split = time_split(events, (50, 80, 100), history="prequential", repeats=True)
    return config, catalog, split


def test_the_curve_starts_without_a_lift_and_the_chosen_lift_is_on_it():
    """Items 0 to 5 are taken before the validation window; 6 and 7 in it alone, by one user in three."""
    rng = np.random.default_rng(0)
    rows = [(user, int(rng.integers(0, 6)), time) for user in range(60) for time in range(10, 50, 5)]
    rows += [(user, 6 + user % 2 if user % 3 == 0 else int(rng.integers(0, 6)), 60) for user in range(60)]
    rows += [(user, 0, 90) for user in range(60)]
    config, catalog, split = window(rows, 60, 8)
    recommender, _, _ = toy_stage(split.fit, catalog, reranked=False)
    reranker, judgement = train_reranker(config, catalog, {"home": split}, replace(recommender, candidates=20))
    assert reranker is not None
    assert judgement is not None
    lifts = judgement.lifts
    assert len(lifts) == len(LIFTS)
    assert lifts[0].lift == 0
    assert reranker.cold_lift in [result.lift for result in lifts]
    shares = [result.share for result in lifts]
    assert shares == sorted(shares)  # a larger lift brings more
    assert shares[-1] == pytest.approx(2 / 8)  # both are shown: lists of ten hold all eight items
    assert reranker.calibration is not None
    probabilities = reranker.calibration.probabilities
    assert (np.diff(probabilities) >= 0).all()
    assert (probabilities >= 0).all()
    assert (probabilities <= 1).all()
    assert sum(each.n for each in judgement.reliability) == 60 * 8  # all candidates of the window
    assert sum(" <- chosen" in line for line in judgement.lines()) == 1


def test_the_trees_learn_from_candidates_of_all_sources(monkeypatch):
    """Pair features do not exist before the training of the reranker: its candidates need them all the same."""
    rng = np.random.default_rng(0)
    rows = [(user, int(rng.integers(0, 30)), time) for user in range(60) for time in range(10, 60, 5)]
    config, catalog, split = window([*rows, *((user, 0, 90) for user in range(60))], 60, 30)
    quotas = SourceQuotas(neighbours=0.5)
    config = config.model_copy(update={"reranker": RerankerConfig(candidates=20, trees=5, sources=quotas)})
    recommender = replace(toy_stage(split.fit, catalog, reranked=False)[0], candidates=20, quotas=quotas)
    read: list[str] = []
    retrieve = TwoStageRecommender.retrieve

    def recorded(*arguments, **filters):
        found = retrieve(*arguments, **filters)
        read.extend(name for state in range(len(found)) for name in found.source_names(state))
        return found

    monkeypatch.setattr(TwoStageRecommender, "retrieve", recorded)
    assert train_reranker(config, catalog, {"home": split}, recommender)[0] is not None
    assert "neighbours" in read


def test_probabilities_are_the_frequencies_of_equal_scores():
    scores = np.repeat(np.array([0.0, 1, 2], np.float32), 10)
    happened = np.zeros(30)
    happened[[0, 10, 11, 12, 20, 21, 22, 23, 24]] = 1  # 1, 3 and 5 of 10
    known = Calibration.of(scores, happened)
    np.testing.assert_allclose(known(np.array([-5.0, 0, 0.5, 1, 2, 9])), [0.1, 0.1, 0.2, 0.3, 0.5, 0.5])


def test_scores_that_fall_where_frequencies_rise_are_pooled():
    scores = np.repeat(np.array([0.0, 1], np.float32), 10)
    happened = np.where(np.arange(20) < 5, 1.0, 0.0)  # 5 of 10 at 0, none of 10 at 1
    known = Calibration.of(scores, happened)
    np.testing.assert_allclose(known(np.array([0.0, 1])), [0.25, 0.25])
    again = Calibration.of_arrays(known.arrays)
    assert again is not None
    assert again(np.array([3.0])) == 0.25


def test_reliability_by_hand():
    bins = reliability(np.array([0.0005, 0.015, 0.011, 0.5]), np.array([0.0, 1, 0, 1]))
    assert [(each.n, each.observed) for each in bins] == [(1, 0), (2, 0.5), (1, 1)]
    assert [each.predicted for each in bins] == pytest.approx([0.0005, 0.013, 0.5])
