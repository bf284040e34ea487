"""What a run fits: the baselines by name, and the two stages of the real recommender."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.evaluation.ranking import headline_metrics, published_batches
from experiments.splits import Split, Targets, check_no_leak
from features.catalog import Catalog, item_texts
from features.interactions import Interactions
from features.progress import StartProgress
from recsys import baselines
from recsys.dense_recommender import DenseRecommender
from recsys.interfaces import Candidates
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import RankingExamples, Reranker, fit_reranker
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.index import Index
from recsys.towers.cold_start import place_cold_items
from recsys.towers.model import TwoTowers
from recsys.towers.training import FittedTowers, Report, fit_towers

TOWERS, RERANKED = "two towers", "two towers + reranker"
POPULAR_DAYS = 30.0
"""Strangers get what was popular in this many days."""


def fit_baseline(
    name: str, arguments: Mapping[str, float], dataset: Dataset, events: Interactions
) -> DenseRecommender:
    """Fit one baseline; its kind is the first word of its name."""
    kind = name.split()[0]
    texts = [item_texts(dataset.catalog.frame)] if kind in baselines.NEED_TEXTS else []
    return baselines.KINDS[kind](events, *texts, **arguments)


@dataclass(frozen=True)
class FittedRecommender:
    """The real recommender fitted on some events.

    recommender: with the reranker, where there is one; retrieval: without; towers: of both; statistics: of items.
    """

    towers: FittedTowers
    recommender: TwoStageRecommender
    retrieval: TwoStageRecommender
    statistics: ItemStatistics


@dataclass(frozen=True)
class SelectedModel:
    """What the validation window decided: how many passes the towers make, and the order of candidates."""

    selection: FittedTowers
    reranker: Reranker | None


def select_model(
    config: RunConfig, dataset: Dataset, splits: Mapping[str, Split], report: Report, progress: StartProgress
) -> SelectedModel:
    """Fit towers on `fit`, choose their epochs on the first placement's validation window, learn the order on all.

    The reranker learns from candidates of towers that have not seen its window. Raises LeakError by the guard.
    """
    name, split = next(iter(splits.items()))
    repeats = config.data.placements[name].repeats
    validation = sample_states(split.validation, config.training.validation_states, config.seed)

    def validate(model: TwoTowers) -> dict[str, float]:
        return headline_metrics(
            build_two_stage(model, split.fit, config), validation, dataset.catalog, repeats=repeats
        )

    selection = fit_towers(
        dataset.catalog,
        split.fit,
        config.towers,
        config.training,
        seed=config.seed,
        validate=validate,
        report=report,
        progress=progress,
    )
    check_no_leak(split.validation_cut, vocabulary=dataset, selection=selection)
    reranker = None
    if config.reranker is not None:
        reranker = train_reranker(
            config, dataset, splits, build_two_stage(selection.model, split.fit, config, dataset.catalog)
        )
    return SelectedModel(selection, reranker)


def fit_selected(
    config: RunConfig,
    dataset: Dataset,
    events: Interactions,
    recipe: SelectedModel,
    report: Report,
    progress: StartProgress,
    *,
    again: bool = True,
) -> FittedRecommender:
    """The recommender on `events`, by what validation decided; again=False keeps the towers that it was decided on.

    The reranker then orders candidates of towers that have seen its window: it knows no item by its id.
    """
    towers = recipe.selection
    if again:
        towers = fit_towers(
            dataset.catalog,
            events,
            config.towers,
            config.training,
            seed=config.seed,
            epochs=towers.epochs,
            report=report,
            progress=progress,
        )
    retrieval = build_two_stage(towers.model, events, config, dataset.catalog)
    if recipe.reranker is None:
        return FittedRecommender(towers, retrieval, retrieval, ItemStatistics.of(events))
    features = PairFeatures.of(dataset.catalog, retrieval.vectors, events)
    ranked = replace(retrieval, reranker=Reranker(recipe.reranker.booster, features))
    return FittedRecommender(towers, ranked, retrieval, features.statistics)


def train_two_stage(
    config: RunConfig, dataset: Dataset, splits: Mapping[str, Split], report: Report, progress: StartProgress
) -> tuple[SelectedModel, FittedRecommender]:
    """Choose on validation, then fit on all of `train`; a leave-last-out split refits nothing.

    Raises LeakError by the guard.
    """
    split = next(iter(splits.values()))
    recipe = select_model(config, dataset, splits, report, progress)
    trained = fit_selected(config, dataset, split.train, recipe, report, progress, again=split.cut is not None)
    check_no_leak(
        split.cut,
        vocabulary=dataset,
        towers=trained.towers,  # their negatives too: drawn from the vocabulary
        popularity=trained.retrieval.fallback,
        features=trained.statistics,
    )
    return recipe, trained


def build_two_stage(
    model: TwoTowers, events: Interactions, config: RunConfig, catalog: Catalog | None = None
) -> TwoStageRecommender:
    """The first stage around trained towers; strangers get what was popular of late in `events`.

    With the catalogue, items without events are placed by it, which takes seconds: not needed to compare passes.
    """
    vectors = model.item_vectors() if catalog is None else place_cold_items(model, catalog, events, seed=config.seed)
    return TwoStageRecommender(
        towers=model,
        vectors=vectors,
        index=Index(vectors, config.retriever, seed=config.seed),
        fallback=baselines.fit_popular(events, days=POPULAR_DAYS),
        reranker=None,
        candidates=config.reranker.candidates if config.reranker else 0,
        fitted_until=events.latest,
    )


def train_reranker(
    config: RunConfig, dataset: Dataset, splits: Mapping[str, Split], first: TwoStageRecommender
) -> Reranker | None:
    """Fit the reranker on what users of the validation window took among the first stage's candidates.

    Every placement teaches its share of the groups, with its own rule on repeats: one order serves them all.
    """
    assert config.reranker is not None
    split = next(iter(splits.values()))
    features = PairFeatures.of(dataset.catalog, first.vectors, split.fit)
    check_no_leak(split.validation_cut, features=features)
    lessons = []
    for name, each in splits.items():
        repeats = config.data.placements[name].repeats
        acquainted = each.validation.states.positives().lengths > 0  # strangers are never given to the reranker
        known = each.validation.where(acquainted[each.validation.state])
        targets = sample_states(known, max(1, config.reranker.groups // len(splits)), config.seed)
        shape = len(targets.states), config.reranker.candidates
        candidates = Candidates(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))
        for at, there in published_batches(targets.states.as_of, dataset.catalog):
            part = targets.states[at].compact()
            seen = None if repeats else part.seen_items()
            found = first.retrieve(part, config.reranker.candidates, allow=there, exclude=seen)
            candidates.rows[at], candidates.scores[at] = found.rows, found.scores
        n = len(dataset.catalog)
        asked = np.arange(len(candidates))[:, None] * n + candidates.rows
        relevant = np.isin(asked, targets.state * n + targets.item) & (candidates.rows >= 0)
        lessons.append(RankingExamples(targets.states, candidates, relevant))
    return fit_reranker(features, lessons, config.reranker, seed=config.seed)


def sample_states(targets: Targets, most: int, seed: int) -> Targets:
    """At most `most` of the states, drawn by the seed, with their targets."""
    n = len(targets.states)
    if n <= most:
        return targets
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(n)[:most]] = True
    return targets.where(chosen[targets.state])
