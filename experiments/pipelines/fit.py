"""Fitting of a run: the baselines by name, and the two stages of the recommender, retrieval and reranking."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.evaluation.ranking import headline_metrics, published_batches
from experiments.splits import Split, Targets, check_no_leak
from features.catalog import Catalog, item_texts
from features.errors import ConfigError
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

TOWERS, RERANKED, RULED = "two towers", "two towers + reranker", "with the rules"
POPULAR_DAYS = 30.0
"""Cold users get the most popular items of this many days."""


def fit_baseline(
    name: str, arguments: Mapping[str, float], dataset: Dataset, events: Interactions
) -> DenseRecommender:
    """Fit one baseline. Its kind is the first word of its name. Raises ConfigError for arguments it cannot use."""
    kind = name.split()[0]
    texts = [item_texts(dataset.catalog.frame)] if kind in baselines.NEED_TEXTS else []
    try:
        return baselines.KINDS[kind](events, *texts, **arguments)
    except ArithmeticError as error:
        raise ConfigError(f"baselines.{name}: {dict(arguments)} cannot be used: {error}") from error


@dataclass(frozen=True)
class FittedRecommender:
    """The two-stage recommender, fitted on one set of events.

    towers: the towers of both recommenders; recommender: retrieval and reranker, or retrieval alone when there is no
    reranker; retrieval: the first stage alone; statistics: event counts of the items.
    """

    towers: FittedTowers
    recommender: TwoStageRecommender
    retrieval: TwoStageRecommender
    statistics: ItemStatistics


@dataclass(frozen=True)
class SelectedModel:
    """What was selected on the validation window: the number of epochs of the towers, and the reranker.

    selection: the towers that were validated, fitted on the events before the window.
    """

    selection: FittedTowers
    reranker: Reranker | None


def select_model(
    config: RunConfig, dataset: Dataset, splits: Mapping[str, Split], report: Report, progress: StartProgress
) -> SelectedModel:
    """Fit the towers on `fit`, select their epochs on the validation window, and fit the reranker on that window.

    The epochs are selected for the first placement; the reranker learns from all placements. Its candidates come from
    towers that were not fitted on the window. Raises LeakError, see `check_no_leak`.
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
    selected: SelectedModel,
    report: Report,
    progress: StartProgress,
    *,
    refit: bool = True,
) -> FittedRecommender:
    """The recommender on `events`: the towers are refitted for the selected epochs, or kept when refit is False.

    The reranker is not refitted. It can score candidates of refitted towers because none of its features is the id of
    an item.
    """
    towers = selected.selection
    if refit:
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
    if selected.reranker is None:
        return FittedRecommender(towers, retrieval, retrieval, ItemStatistics.of(events))
    features = PairFeatures.of(dataset.catalog, retrieval.vectors, events)
    ranked = replace(retrieval, reranker=Reranker(selected.reranker.booster, features))
    return FittedRecommender(towers, ranked, retrieval, features.statistics)


def train_two_stage(
    config: RunConfig, dataset: Dataset, splits: Mapping[str, Split], report: Report, progress: StartProgress
) -> tuple[SelectedModel, FittedRecommender]:
    """Select the model on `validation`, then fit it on `train`. A leave-last-out split refits nothing.

    Raises LeakError, see `check_no_leak`.
    """
    split = next(iter(splits.values()))
    selected = select_model(config, dataset, splits, report, progress)
    trained = fit_selected(config, dataset, split.train, selected, report, progress, refit=split.cut is not None)
    check_no_leak(
        split.cut,
        vocabulary=dataset,
        towers=trained.towers,  # covers their negatives, which are drawn from the vocabulary
        popularity=trained.retrieval.fallback,
        features=trained.statistics,
    )
    return selected, trained


def build_two_stage(
    model: TwoTowers, events: Interactions, config: RunConfig, catalog: Catalog | None = None
) -> TwoStageRecommender:
    """The first stage of trained towers. Cold users get the items that are popular at the end of `events`.

    With `catalog`, cold items get vectors from `place_cold_items`. That takes seconds, and comparing epochs does not
    need it.
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
    config: RunConfig, dataset: Dataset, splits: Mapping[str, Split], retrieval: TwoStageRecommender
) -> Reranker | None:
    """Fit one reranker for all placements on the validation windows; None when there is nothing to learn.

    A query is a state of the window, its candidates are those of the first stage, and its targets are the relevant
    ones. Each placement contributes an equal share of the queries, with its own rule on repeats.
    """
    assert config.reranker is not None
    split = next(iter(splits.values()))
    features = PairFeatures.of(dataset.catalog, retrieval.vectors, split.fit)
    check_no_leak(split.validation_cut, features=features)
    examples = []
    for name, placement_split in splits.items():
        repeats = config.data.placements[name].repeats
        validation = placement_split.validation
        warm = validation.states.positives().lengths > 0  # the reranker does not serve cold users
        warm_targets = validation.where(warm[validation.state])
        targets = sample_states(warm_targets, max(1, config.reranker.groups // len(splits)), config.seed)
        shape = len(targets.states), config.reranker.candidates
        candidates = Candidates(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))
        for rows, published in published_batches(targets.states.as_of, dataset.catalog):
            batch = targets.states[rows].compact()
            seen = None if repeats else batch.seen_items()
            retrieved = retrieval.retrieve(batch, config.reranker.candidates, allow=published, exclude=seen)
            candidates.rows[rows], candidates.scores[rows] = retrieved.rows, retrieved.scores
        n = len(dataset.catalog)
        pairs = (
            np.arange(len(candidates))[:, None] * n + candidates.rows
        )  # (state, item) as one number: (b, candidates)
        relevant = np.isin(pairs, targets.state * n + targets.item) & (candidates.rows >= 0)
        examples.append(RankingExamples(targets.states, candidates, relevant))
    return fit_reranker(features, examples, config.reranker, seed=config.seed)


def sample_states(targets: Targets, max_states: int, seed: int) -> Targets:
    """A random sample of at most `max_states` states, with all their targets."""
    n = len(targets.states)
    if n <= max_states:
        return targets
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(n)[:max_states]] = True
    return targets.where(chosen[targets.state])
