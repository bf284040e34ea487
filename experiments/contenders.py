"""What a run fits: the baselines by name, and the two stages of the real recommender."""

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.evaluate import evaluate
from experiments.splits import Split, Targets, guard
from features.catalog import item_texts
from features.errors import ConfigError
from features.interactions import Interactions
from recsys import baselines
from recsys.baselines.profiles import Baseline
from recsys.candidates import Candidates
from recsys.index import ExactIndex
from recsys.recommender import TwoStage
from recsys.reranker import PairFeatures, Reranker, fit_reranker
from recsys.statistics import ItemStatistics
from recsys.towers import TwoTowers
from recsys.training import FittedTowers, fit_towers

BASELINES: dict[str, Callable[..., Baseline]] = {
    "popular": baselines.fit_popular,
    "item-knn": baselines.fit_item_knn,
    "ease": baselines.fit_ease,
    "als": baselines.fit_als,
    "tfidf": baselines.fit_tfidf,
    "bridge": baselines.fit_bridge,
    "frequency": baselines.fit_frequency,
}
NEED_TEXTS = ("tfidf", "bridge")

TOWERS, RERANKED = "two towers", "two towers + reranker"
POPULAR_DAYS = 30.0
"""Strangers get what was popular in this many days."""


def fit_baseline(name: str, arguments: Mapping[str, float], dataset: Dataset, events: Interactions) -> Baseline:
    """Fit one baseline; its kind is the first word of its name. Raises ConfigError on an unknown kind or argument."""
    kind = name.split()[0]
    if kind not in BASELINES:
        raise ConfigError(f"baselines: no {kind!r}; there are {', '.join(BASELINES)}")
    texts = [item_texts(dataset.catalog.frame)] if kind in NEED_TEXTS else []
    fit = BASELINES[kind]
    try:
        inspect.signature(fit).bind(events, *texts, **arguments)
    except TypeError as error:
        raise ConfigError(f"baselines: {name!r}: {error}; it takes {inspect.signature(fit)}") from None
    return fit(events, *texts, **arguments)


@dataclass(frozen=True)
class Trained:
    """The real recommender of one split, and what is told of how it came to be.

    recommender: as it is served; retrieval: the same without the reranker; selection: the fit that chose the epochs.
    """

    recommender: TwoStage
    retrieval: TwoStage
    statistics: ItemStatistics
    selection: FittedTowers
    seconds: float


def train_two_stage(
    config: RunConfig,
    dataset: Dataset,
    split: Split,
    *,
    repeats: bool,
    report: Callable[[dict[str, float]], Any] | None = None,
) -> Trained:
    """Towers on `fit`, epochs by `validation`, reranker on `validation`, then towers again on all of `train`.

    The reranker learns from candidates of towers that have not seen its window, and then orders those of towers that
    have: it reads scores and counts, not ids. A leave-last-out split refits nothing. Raises LeakError by the guard.
    """
    started = time.perf_counter()
    validation = sample_states(split.validation, config.training.validation_states, config.seed)

    def validate(model: TwoTowers) -> dict[str, float]:
        stage = assemble(model, split.fit, None, config)
        outcome = evaluate("validation", stage, split, dataset.catalog, validation, repeats=repeats, seconds=0)
        return {
            "ndcg_at_10": float(outcome.per_user("ndcg").mean()),
            "hr_at_10": float(outcome.per_user("hr").mean()),
        }

    selection = fit_towers(
        dataset.catalog, split.fit, config.towers, config.training, seed=config.seed, validate=validate, report=report
    )
    guard(split.validation_cut, selection=selection)
    reranker = None
    if config.reranker is not None:
        first = assemble(selection.model, split.fit, None, config)
        reranker = learn_order(config, dataset, split, first, repeats=repeats)
    towers = selection
    if split.cut is not None:
        towers = fit_towers(
            dataset.catalog,
            split.train,
            config.towers,
            config.training,
            seed=config.seed,
            epochs=selection.epochs,
            report=report,
        )
    recommender = assemble(towers.model, split.train, None, config)
    statistics = ItemStatistics.of(split.train)
    features = PairFeatures(dataset.catalog, recommender.vectors, statistics)
    guard(
        split.cut,
        vocabulary=dataset,
        towers=towers,  # their negatives too: drawn from the vocabulary
        popularity=recommender.fallback,
        normalisation=statistics,
        features=features,
    )
    ranked = recommender
    if reranker is not None:
        ranked = assemble(towers.model, split.train, Reranker(reranker.booster, features), config)
    return Trained(ranked, recommender, statistics, selection, time.perf_counter() - started)


def assemble(model: TwoTowers, events: Interactions, reranker: Reranker | None, config: RunConfig) -> TwoStage:
    """The recommender around trained towers; strangers get what was popular of late in `events`."""
    vectors = model.item_vectors()
    return TwoStage(
        towers=model,
        vectors=vectors,
        index=ExactIndex(vectors),
        fallback=baselines.fit_popular(events, days=POPULAR_DAYS),
        reranker=reranker,
        candidates=config.reranker.candidates if config.reranker else 0,
        fitted_until=events.latest,
    )


def learn_order(
    config: RunConfig, dataset: Dataset, split: Split, first: TwoStage, *, repeats: bool
) -> Reranker | None:
    """Fit the reranker on what users of the validation window took among the first stage's candidates."""
    assert config.reranker is not None
    targets = sample_states(split.validation, config.reranker.groups, config.seed)
    states = targets.states
    rows, scores = [], []
    for at in range(0, len(states), 1024):
        part = states[at : at + 1024]
        found = first.recommend(part, config.reranker.candidates, exclude=None if repeats else part.seen_items())
        rows.append(found.rows)
        scores.append(found.scores)
    candidates = Candidates(np.concatenate(rows), np.concatenate(scores))
    taken = np.zeros((len(states), len(dataset.catalog) + 1), dtype=np.bool_)
    taken[targets.state, targets.item] = True
    relevant = taken[np.arange(len(states))[:, None], candidates.rows]  # padding reads the last, empty column
    features = PairFeatures(dataset.catalog, first.vectors, ItemStatistics.of(split.fit))
    guard(split.validation_cut, features=features)
    return fit_reranker(features, states, candidates, relevant, config.reranker, seed=config.seed)


def sample_states(targets: Targets, most: int, seed: int) -> Targets:
    """At most `most` of the states, drawn by the seed, with their targets."""
    n = len(targets.states)
    if n <= most:
        return targets
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(n)[:most]] = True
    return targets.where(chosen[targets.state])
