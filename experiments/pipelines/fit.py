"""Fitting of the two stages of the recommender, retrieval and reranking."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.evaluation.leaks import check_no_leak, check_vocabulary
from experiments.evaluation.lifts import Judgement
from experiments.evaluation.ranking import headline_metrics
from experiments.pipelines.exposures.answers import read_answers
from experiments.pipelines.reranking import train_reranker
from experiments.splits import Split, check_split
from features.arrays import Floats
from features.catalog import Catalog
from features.interactions import Interactions
from features.progress import StartProgress
from recsys.config import SourceQuotas, TowerConfig, TrainingConfig
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import Reranker
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.index import Index
from recsys.retrieval.popular import fit_popular
from recsys.towers.cold_start import Placement, place_cold_items
from recsys.towers.model import TwoTowers
from recsys.towers.training import FittedTowers, Report, fit_towers

TOWERS, RERANKED, RULED = "two towers", "two towers + reranker", "with the rules"
POPULAR_DAYS = 30.0
"""Cold users get the most popular items of this many days."""

Fit = Callable[..., FittedTowers]
"""`fit_towers`, or what takes its place."""

RETRIEVAL_PRICE = 0.15
"""Share of NDCG@10 of known items that lists of retrieval alone may lose to cold items, unless `discovery` is set."""


@dataclass(frozen=True)
class FittedRecommender:
    """The two-stage recommender, fitted on one set of events.

    towers: the towers of both recommenders; recommender: retrieval and reranker, or retrieval alone when there is no
    reranker; retrieval: the first stage alone; statistics: event counts of the items; placement: of the cold items.
    """

    towers: FittedTowers
    recommender: TwoStageRecommender
    retrieval: TwoStageRecommender
    statistics: ItemStatistics
    placement: Placement


@dataclass(frozen=True)
class SelectedModel:
    """What was selected on the validation window: the number of epochs of the towers, and the reranker.

    selection: the towers that were validated, fitted on the events before the window; judgement: how
    the reranker was judged there; notes: what it learned from exposures, for people to read.
    """

    selection: FittedTowers
    reranker: Reranker | None
    judgement: Judgement | None = None
    notes: tuple[str, ...] = ()


class FittedOnce:
    """`fit_towers` for several recommenders on the same events: towers of equal settings are trained once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Interactions, FittedTowers]] = {}

    def __call__(
        self,
        catalog: Catalog,
        events: Interactions,
        towers: TowerConfig,
        training: TrainingConfig,
        *,
        seed: int,
        epochs: int | None = None,
        **others: Any,
    ) -> FittedTowers:
        """See `fit_towers`. others: do not change what is fitted from one recommender to another."""
        key = id(events), repr(towers), repr(training), seed, epochs
        if key not in self._known:  # the events are kept, so that no others get their id
            self._known[key] = (
                events,
                fit_towers(catalog, events, towers, training, seed=seed, epochs=epochs, **others),
            )
        return self._known[key][1]


def select_model(
    config: RunConfig,
    dataset: Dataset,
    splits: Mapping[str, Split],
    report: Report,
    progress: StartProgress,
    fit: Fit = fit_towers,
) -> SelectedModel:
    """Fit the towers on `fit`, select their epochs on the validation window, and fit the reranker on that window.

    The epochs are selected for the first placement; the reranker learns from all placements. Its candidates come from
    towers that were not fitted on the window. Raises LeakError, see `check_no_leak`.
    """
    name, split = next(iter(splits.items()))
    repeats = config.data.placements[name].repeats
    validation = split.validation.sample(config.training.validation_states, config.seed)

    def validate(model: TwoTowers) -> dict[str, float]:
        return headline_metrics(
            build_two_stage(model, split.fit, config), validation, dataset.catalog, repeats=repeats
        )

    selection = fit(
        dataset.catalog,
        split.fit,
        config.towers,
        config.training,
        seed=config.seed,
        validate=validate,
        report=report,
        progress=progress,
    )
    past = split.fit if split.validation_cut is None else dataset.events.before(split.validation_cut)
    check_no_leak(past, split.validation_cut, vocabulary=dataset, selection=selection)
    if config.reranker is None:
        return SelectedModel(selection, None)
    placement = place_cold_items(selection.model, dataset.catalog, split.fit, price=0, seed=config.seed)
    retrieval = build_two_stage(selection.model, split.fit, config, placement.vectors)
    answers, notes = read_answers(config, dataset, splits)
    return SelectedModel(selection, *train_reranker(config, dataset.catalog, splits, retrieval, answers), notes)


def fit_selected(
    config: RunConfig,
    dataset: Dataset,
    events: Interactions,
    selected: SelectedModel,
    report: Report,
    progress: StartProgress,
    *,
    refit: bool = True,
    fit: Fit = fit_towers,
) -> FittedRecommender:
    """The recommender on `events`: the towers are refitted for the selected epochs, or kept when refit is False.

    The reranker is not refitted. It can score candidates of refitted towers because none of its features is the id of
    an item. Where there is one, retrieval does not lift cold items: the reranker does, and knows more of them.
    """
    towers = selected.selection
    if refit:
        towers = fit(
            dataset.catalog,
            events,
            config.towers,
            config.training,
            seed=config.seed,
            epochs=towers.epochs,
            report=report,
            progress=progress,
        )
    price = RETRIEVAL_PRICE if config.discovery is None else config.discovery
    if selected.reranker is not None:
        price = 0
    placement = place_cold_items(towers.model, dataset.catalog, events, price=price, seed=config.seed)
    retrieval = build_two_stage(towers.model, events, config, placement.vectors)
    if selected.reranker is None:
        return FittedRecommender(towers, retrieval, retrieval, ItemStatistics.of(events), placement)
    features = PairFeatures.of(dataset.catalog, retrieval.vectors, events)
    ranked = replace(retrieval, reranker=replace(selected.reranker, features=features))
    return FittedRecommender(towers, ranked, retrieval, features.statistics, placement)


def train_two_stage(
    config: RunConfig,
    dataset: Dataset,
    splits: Mapping[str, Split],
    report: Report,
    progress: StartProgress,
    fit: Fit = fit_towers,
) -> tuple[SelectedModel, FittedRecommender]:
    """Select the model on `validation`, then fit it on `train`. A leave-last-out split refits nothing.

    fit: `fit_towers`, or one that shares towers (`FittedOnce`). Raises LeakError, see `check_no_leak`.
    """
    split = next(iter(splits.values()))
    for other in splits.values():
        check_split(dataset.events, other)
    check_vocabulary(dataset, split.validation_cut, config.data.min_train_events)
    selected = select_model(config, dataset, splits, report, progress, fit)
    refit = split.cut is not None
    trained = fit_selected(config, dataset, split.train, selected, report, progress, refit=refit, fit=fit)
    check_no_leak(
        split.train if split.cut is None else dataset.events.before(split.cut),
        split.cut,
        vocabulary=dataset,
        towers=trained.towers,  # covers their negatives, which are drawn from the vocabulary
        popularity=trained.retrieval.fallback,
        features=trained.statistics,
        recommender=trained.recommender,
    )
    return selected, trained


def build_two_stage(
    model: TwoTowers, events: Interactions, config: RunConfig, vectors: Floats | None = None
) -> TwoStageRecommender:
    """The first stage of trained towers. Cold users get the items that are popular at the end of `events`.

    vectors (n, d): of the items, with cold ones placed by `place_cold_items`; without, those of the item tower. The
    placement takes seconds, and comparing epochs does not need it.
    """
    vectors = model.item_vectors() if vectors is None else vectors
    return TwoStageRecommender(
        towers=model,
        vectors=vectors,
        index=Index(vectors, config.retriever, seed=config.seed),
        fallback=fit_popular(events, days=POPULAR_DAYS),
        reranker=None,
        candidates=config.reranker.candidates if config.reranker else 0,
        quotas=config.reranker.sources if config.reranker else SourceQuotas(),
        fitted_until=events.latest,
    )
