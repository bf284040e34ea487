"""Retrieval of cold items: a tenth of the items lose all their events, and must be found by their content.

A query is a positive event with a cold item that the user has not seen before; it is one of at most 5,000 events that
are drawn. The history of a query is the user's earlier events with warm items. Its target is ranked among the cold
items, and among all items without those of the history. The models are fitted on all events of warm items, including
those later than the query: the test separates items, not times. With `cut` it separates times: the models are fitted
on the events before the cut, and the items that first occur after it are cold. There is then a validation window, so
that a reranker is fitted as well and the served order is judged besides retrieval alone.

The references are linear: the TF-IDF profile, the content bridge, the sum of both in standard scores, and EASE^R
carried to cold items by their words. Each is fitted once and ranks with each of DECAYS; the better figure counts,
because the protocol has no validation window.
"""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from experiments.bench.runner import Bar, Result
from experiments.config import RunConfig, load_config
from experiments.dataset import Dataset, encode_contents, keep_frequent, load_dataset
from experiments.evaluation.ranking import DEPTH, K, interval_dict, rank_targets
from experiments.pipelines.fit import RERANKED, TOWERS, SelectedModel, fit_selected, select_model
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.splits import Targets
from features.arrays import Bools, Doubles, Floats, Ints
from features.catalog import item_texts
from features.content.encoder_config import BuiltinConfig
from features.errors import ConfigError, DataError, describe_invalid
from features.interactions import Interactions, Ragged
from features.progress import silent
from recsys.baselines.content import ContentBridge, TfidfProfile, fit_bridge, fit_tfidf
from recsys.baselines.ease import fit_ease_bridge
from recsys.dense_recommender import DenseRecommender
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import bootstrap, paired_bootstrap
from recsys.interfaces import Recommender
from recsys.towers.training import fit_towers

MAX_EVENTS = 5000

DECAYS = (0.8, 0.95)
"""Weights of an item of a history relative to the next newer one, of which each reference has the better one."""

BRIDGE, SUM, PROFILE, EASE = "content bridge", "bridge + TF-IDF", "TF-IDF profile", "EASE^R bridge"
AMONG_COLD, AMONG_ALL = "among cold", "among all"
COLD_BAR, ALL_BAR = "among cold, over the best reference", "among all, over the TF-IDF profile"


@dataclass(frozen=True)
class ScoreSumRecommender(DenseRecommender):
    """The sum of the content bridge and the TF-IDF profile, each in standard scores over the cold items."""

    bridge: ContentBridge
    profile: TfidfProfile
    cold: Bools

    def scores(self, positives: Ragged) -> Floats:
        """(b, n) float32."""
        total = np.zeros((len(positives), len(self.cold)), dtype=np.float32)
        for model in (self.bridge, self.profile):
            scores = model.scores(positives)
            cold = scores[:, self.cold]
            total += (scores - cold.mean(1, keepdims=True)) / cold.std(1, keepdims=True).clip(min=1e-9)
        return total


@dataclass(frozen=True)
class ColdTest:
    """The data set of n items, the mask cold (n,) of the cold ones, the events to fit on, and the targets to rank."""

    dataset: Dataset
    cold: Bools
    fit: Interactions
    targets: Targets


def run(
    *,
    short: bool = False,
    config: str = "configs/demo-posters.yaml",
    seed: int = 0,
    passes: int | None = None,
    cut: float | None = None,
    category: str | None = None,
    without: str | None = None,
) -> Result:
    """HR@10 of the towers and of the linear references, and their paired differences over users.

    config: a configuration whose data exist. seed: of the choice of cold items and events. passes: of the towers, by
    default as configured; with cut, the maximum. cut: share of the events, the oldest, that the models are fitted on;
    the items that occur only later are cold. category: all items of this category are cold, instead of a random
    tenth. without: a kind of content, such as image; the towers are fitted a
    second time as if the items had none of it, which shows its contribution. short: two passes, 500 events.

    Raises ConfigError when cut needs a split by time, for cut and category together, for a category that no item
    has, or when content of kind `without` cannot be left out; DataError when there is no event to rank.
    """
    settings = load_config(Path(config))
    if cut is not None and category is not None:
        raise ConfigError("--cut and --category each decide which items are cold: give one of them")
    configs = _tower_configs(settings, config, cut, without)
    epochs = 2 if short else passes or settings.training.epochs
    n_events = 500 if short else MAX_EVENTS
    test = _cold_test(settings, config, seed=seed, cut=cut, category=category, n_events=n_events)
    references, models = _references(test, seed), dict[str, Recommender]()
    seconds = {}
    for name, variant in configs.items():
        encoded = encode_contents(test.dataset, variant)
        started = time.perf_counter()
        towers = variant.changed({"training.epochs": epochs})
        models |= _fitted(name, towers, replace(encoded, events=test.fit), validated=cut is not None)
        seconds[f"{name}: fit_seconds"] = round(time.perf_counter() - started, 1)
    users = test.targets.states.users
    hits = _reference_hits(references, test)
    for among, found in _hits(models, test).items():
        hits[among] |= found
    ours = RERANKED if RERANKED in models else TOWERS
    figures: dict[str, Any] = {
        "items": len(test.cold),
        "items_cold": int(test.cold.sum()),
        "events": len(test.targets.item),
        "users": len(np.unique(users)),
        "data_hash": test.dataset.hash,
    } | seconds
    for name in hits[AMONG_COLD]:
        figures |= {f"{name}, {among}: hr_at_10": float(hits[among][name].mean()) for among in hits}
    for among, hits_of_model in hits.items():
        figures |= _differences(hits_of_model, users, ours, among, seed)
    return Result(figures, _bars(hits, ours))


def _tower_configs(settings: RunConfig, path: str, cut: float | None, without: str | None) -> dict[str, RunConfig]:
    """Model name -> configuration of the towers: as configured, and without one kind of content where that is wanted.

    Raises ConfigError when cut needs a split by time, or when content of kind `without` cannot be left out.
    """
    if cut is not None and settings.split.kind != "time":
        raise ConfigError(f"{path}: split.kind is {settings.split.kind}; --cut needs split.kind time")
    configs = {TOWERS: settings}
    if without is not None:
        if not isinstance(settings.encoder, BuiltinConfig):
            raise ConfigError(f"{path}: --without {without} needs an encoder of kind builtin")
        try:
            configs[f"{TOWERS} without {without}"] = settings.changed(
                {"encoder.without": (*settings.encoder.without, without)}
            )
        except ValidationError as error:
            raise ConfigError(f"{path}: --without {without}: {describe_invalid(error.errors())[0].reason}") from None
    return configs


def _cold_test(
    settings: RunConfig, path: str, *, seed: int, cut: float | None, category: str | None, n_events: int
) -> ColdTest:
    """The cold items, and at most n_events of their positive events as targets.

    Raises ConfigError for a category that no item has; DataError when no cold item has a positive event by a user
    with a history.
    """
    dataset = load_dataset(settings)
    if cut is None:  # with a cut all items stay: which ones become frequent is not known at the cut
        dataset = keep_frequent(dataset, dataset.events.latest + 1, settings.data.min_train_events)
    events, n_items = dataset.events, len(dataset.catalog)
    rng = np.random.default_rng(seed)
    cold = np.zeros(n_items, dtype=np.bool_)
    if category is not None:
        names = dataset.catalog.category_names
        if category not in names:
            raise ConfigError(f"{path}: no item has the category {category!r}; choose from {', '.join(names[:20])}")
        cold = (dataset.catalog.categories == names.index(category)).any(1)
        fit = warm = events.where(~cold[events.items])
    elif cut is None:
        cold[rng.permutation(n_items)[: n_items // 10]] = True
        fit = warm = events.where(~cold[events.items])
    else:
        fit = events.before(int(np.quantile(events.times, cut)))
        cold[events.items] = True
        cold[fit.items] = False
        warm = events.where(~cold[events.items])
    queries = np.flatnonzero(events.positive & cold[events.items])  # positions of events
    queries = np.sort(rng.permutation(queries)[:n_events])
    states = warm.states(events.users[queries], events.times[queries])
    state, seen = events.states(events.users[queries], events.times[queries]).seen_items().pairs()
    # no list holds an item that the user has seen: an event that repeats one cannot be found
    known = np.isin(np.arange(len(queries)) * n_items + events.items[queries], state * n_items + seen)
    kept = np.flatnonzero((states.positives().lengths > 0) & ~known)
    queries, states = queries[kept], states[kept]
    if not len(queries):
        raise DataError(
            f"{path}: no positive event of a cold item by a user with a history; choose another --seed or --cut"
        )
    targets = Targets(states, np.arange(len(queries), dtype=np.int64), events.items[queries])
    return ColdTest(dataset, cold, fit, targets)


def _references(test: ColdTest, seed: int) -> dict[str, list[DenseRecommender]]:
    """The linear models that the towers are compared with, one for each of DECAYS.

    EASE^R is left out where its matrix takes too much memory.
    """
    texts = item_texts(test.dataset.catalog.frame)
    profile, bridge = fit_tfidf(test.fit, texts), fit_bridge(test.fit, texts, seed=seed)
    models: dict[str, list[DenseRecommender]] = {
        PROFILE: [replace(profile, decay=decay) for decay in DECAYS],
        BRIDGE: [replace(bridge, decay=decay) for decay in DECAYS],
        SUM: [
            ScoreSumRecommender(
                profile.popularity,
                profile.fitted_until,
                replace(bridge, decay=decay),
                replace(profile, decay=decay),
                test.cold,
            )
            for decay in DECAYS
        ],
    }
    with contextlib.suppress(DataError):
        ease = fit_ease_bridge(test.fit, texts)
        models[EASE] = [replace(ease, decay=decay) for decay in DECAYS]
    return models


def _reference_hits(references: dict[str, list[DenseRecommender]], test: ColdTest) -> dict[str, dict[str, Doubles]]:
    """HR@10 of each query (q,) by the better one of each kind of reference, chosen for each of the two judgements."""
    hits: dict[str, dict[str, Doubles]] = {AMONG_COLD: {}, AMONG_ALL: {}}
    for name, models in references.items():
        tried = [_hits({name: model}, test) for model in models]
        for among, found in hits.items():
            found[name] = max((hit[among][name] for hit in tried), key=lambda values: float(values.mean()))
    return hits


def _fitted(name: str, config: RunConfig, dataset: Dataset, *, validated: bool) -> dict[str, Recommender]:
    """The towers fitted on all events of the data set, under this name.

    validated: passes are chosen on a validation window over every item, as `recsys train` does, and the reranker is
    added under a name of its own.
    """
    events, say = dataset.events, lambda line: None
    if not validated:
        fitted = fit_towers(
            dataset.catalog, events, config.towers, config.training, seed=config.seed, epochs=config.training.epochs
        )
        selected = SelectedModel(fitted, None)
        return {name: fit_selected(config, dataset, events, selected, say, silent, refit=False).retrieval}
    every_item = config.changed({"data.min_train_events": 0})
    window, splits = evaluation_windows(every_item, dataset)[-1]
    selected = select_model(config, window, splits, say, silent)
    trained = fit_selected(config, window, events, selected, say, silent)
    models: dict[str, Recommender] = {name: trained.retrieval}
    if config.reranker is not None:  # without ranking examples the recommender is retrieval alone
        models[name.replace(TOWERS, RERANKED)] = trained.recommender
    return models


def _hits(models: dict[str, Recommender], test: ColdTest) -> dict[str, dict[str, Doubles]]:
    """HR@10 of each query (q,), by the items that the target is ranked among and by model."""
    hits: dict[str, dict[str, Doubles]] = {AMONG_COLD: {}, AMONG_ALL: {}}
    for name, model in models.items():
        for among, hits_of_model in hits.items():
            allow = test.cold if among == AMONG_COLD else None
            ranks, _ = rank_targets(model, test.targets, test.dataset.catalog, repeats=False, allow=allow)
            hits_of_model[name] = metrics.hit(ranks, K, depth=DEPTH)
    return hits


def _differences(hits: dict[str, Doubles], users: Ints, ours: str, among: str, seed: int) -> dict[str, Any]:
    """Intervals over users of our HR@10, and of its difference from each model except the bridge.

    hits: model -> (q,); users (q,).
    """
    by_user = {name: metrics.per_user(hit, users)[0] for name, hit in hits.items()}
    figures = {f"{ours}, {among}: by user, 95 %": interval_dict(bootstrap(by_user[ours], seed=seed))}
    for name in by_user:
        if name not in (ours, BRIDGE):
            difference = paired_bootstrap(by_user[ours], by_user[name], seed=seed)
            figures[f"{ours} - {name}, {among}: by user, 95 %"] = interval_dict(difference)
    return figures


def _bars(hits: dict[str, dict[str, Doubles]], ours: str) -> list[Bar]:
    """Our HR@10 over that of the best reference among the cold items, and over the TF-IDF profile among all."""
    among_cold, among_all = hits[AMONG_COLD], hits[AMONG_ALL]
    best = max(among_cold[name].mean() for name in (PROFILE, BRIDGE, SUM, EASE) if name in among_cold)
    cold_ratio = _ratio(among_cold[ours].mean(), best)
    all_ratio = _ratio(among_all[ours].mean(), among_all[PROFILE].mean())
    return [
        Bar(COLD_BAR, cold_ratio, ">=", 1.1),
        Bar(ALL_BAR, all_ratio, ">=", 2.0),
    ]


def _ratio(ours: float, reference: float) -> float:
    """NaN when the reference is 0."""
    return float(ours / reference) if reference else float("nan")
