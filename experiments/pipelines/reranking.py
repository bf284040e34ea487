"""Training of the reranker: its examples, the lift of cold items, and the calibration of its scores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from experiments.config import RunConfig
from experiments.evaluation.leaks import check_no_leak
from experiments.evaluation.lifts import Judgement, choose_lift, lift_results
from experiments.evaluation.ranking import published_batches
from experiments.pipelines.exposures.answers import Answers, examples_of
from experiments.splits import Split, Targets
from features.arrays import Doubles, Floats, Ints
from features.catalog import Catalog
from recsys.config import RerankerConfig
from recsys.evaluation.calibration import Calibration, ReliabilityBin, reliability
from recsys.interfaces import Candidates
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import RankingExamples, RankingRows, Reranker, fit_trees
from recsys.recommender import TwoStageRecommender


def train_reranker(
    config: RunConfig,
    catalog: Catalog,
    splits: Mapping[str, Split],
    retrieval: TwoStageRecommender,
    answers: Mapping[str, Answers] | None = None,
) -> tuple[Reranker | None, Judgement | None]:
    """Fit one reranker for all placements on the validation windows; None when there is nothing to learn.

    A query is a state of the window, its candidates are those of the first stage, and its targets are the relevant
    ones. Each placement contributes an equal share of the queries, with its own rule on repeats. Lift and calibration
    are of the first placement, by trees that were fitted on other users. answers: placement -> what the log shows of
    it, see `read_answers`: each response is a further query, among what was shown.
    """
    assert config.reranker is not None
    split = next(iter(splits.values()))
    features = PairFeatures.of(catalog, retrieval.vectors, split.fit)
    check_no_leak(split.fit, split.validation_cut, features=features)
    queries = [
        _queries(config, config.reranker, features, placement_split, name, retrieval, share=len(splits))
        for name, placement_split in splits.items()
    ]
    shown = [
        examples_of(own, config, name, splits[name], features, retrieval, share=len(splits))
        for name, own in (answers or {}).items()
    ]
    rows = RankingRows.of(
        features,
        [*(query.examples for query in queries), *(each for each in shown if each is not None)],
        seed=config.seed,
    )
    if rows is None:
        return None, None
    reranker = fit_trees(features, rows, config.reranker, seed=config.seed)
    first = queries[0]
    scores = _held_out_scores(first, features, rows, config.reranker, config.seed)
    if scores is None:
        return reranker, None
    targets, examples = first.targets, first.examples
    lifts = tuple(lift_results(targets, examples.candidates, scores, features.is_cold))
    lift = choose_lift(lifts, config.reranker.cold_share, config.discovery)
    is_item = examples.candidates.rows >= 0
    # one of the items that a user takes at one moment is the next one: each is it by an equal share
    happened = (examples.relevant / np.bincount(targets.state, minlength=len(scores))[:, None])[is_item]
    known = scores[is_item]
    bins = _reliability(known, happened, np.repeat(examples.states.users % 2, is_item.sum(1)))
    reranker = replace(reranker, calibration=Calibration.of(known, happened), cold_lift=lift)
    return reranker, Judgement(lifts, lift, bins)


@dataclass(frozen=True)
class _Queries:
    """States of a validation window with their targets, and the same states as ranking examples."""

    targets: Targets
    examples: RankingExamples


def _queries(
    config: RunConfig,
    reranker: RerankerConfig,
    features: PairFeatures,
    split: Split,
    placement: str,
    retrieval: TwoStageRecommender,
    *,
    share: int,
) -> _Queries:
    """The queries of one placement, a `share`-th of all."""
    repeats, validation = config.data.placements[placement].repeats, split.validation
    warm = validation.states.positives().lengths > 0  # the reranker does not serve cold users
    warm_targets = validation.where(warm[validation.state])
    targets = warm_targets.sample(max(1, reranker.groups // share), config.seed)
    shape = len(targets.states), reranker.candidates
    candidates = Candidates(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))
    for rows, published in published_batches(targets.states.as_of, features.catalog):
        batch = targets.states[rows].compact()
        seen = None if repeats else batch.seen_items()
        retrieved = retrieval.retrieve(batch, reranker.candidates, allow=published, exclude=seen, features=features)
        candidates.rows[rows], candidates.scores[rows] = retrieved.rows, retrieved.scores
    n = len(features.catalog)
    pairs = np.arange(len(candidates))[:, None] * n + candidates.rows  # (state, item) as one number: (b, candidates)
    relevant = np.isin(pairs, targets.state * n + targets.item) & (candidates.rows >= 0)
    return _Queries(targets, RankingExamples(targets.states, candidates, relevant))


def _held_out_scores(
    queries: _Queries, features: PairFeatures, rows: RankingRows, config: RerankerConfig, seed: int
) -> Floats | None:
    """Scores (b, k) of the candidates by trees that were fitted on the other half of the users; None without both."""
    states, candidates = queries.examples.states, queries.examples.candidates
    scores = np.full(candidates.rows.shape, -np.inf, dtype=np.float32)
    for half in (0, 1):
        others = rows.users % 2 != half
        if not others.any():
            return None
        own = np.flatnonzero(states.users % 2 == half)
        judge = fit_trees(features, rows.where(others), config, seed=seed)
        scores[own] = judge.score(states[own].compact(), Candidates(candidates.rows[own], candidates.scores[own]))
    return scores


def _reliability(scores: Floats, happened: Doubles, halves: Ints) -> tuple[ReliabilityBin, ...]:
    """Of probabilities (m,) that are calibrated on the other half of the users. halves (m,): 0 or 1."""
    probabilities = np.zeros(len(scores))
    for half in (0, 1):
        own = halves == half
        if own.all() or not own.any():
            return ()
        probabilities[own] = Calibration.of(scores[~own], happened[~own])(scores[own])
    return reliability(probabilities, happened)
