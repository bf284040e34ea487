"""Items that nobody has touched: a tenth of them loses all its events, and has to be found by its content.

An event is a user's positive one with a cold item; the history is what else the user did before it, warm items only.
It is ranked among the cold items, and among all items (those of the history excluded), at most 5,000 events. All warm
events are fitted on, also those after the event asked about: what is told apart are items, not times. In the other
form time decides: all is fitted before a cut, and cold are the items that come after it; there is then a window to
learn an order from as well, so that what would be served is judged, besides retrieval alone. The references are
linear: the TF-IDF profile, the content bridge, and the sum of both in standard scores.
"""

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
from experiments.pipelines.fit import RERANKED, TOWERS, build_two_stage, fit_selected, select_model
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.splits import Targets
from features.arrays import Bools, Doubles, Floats
from features.catalog import item_texts
from features.content.encoder_config import BuiltinConfig
from features.errors import ConfigError, DataError
from features.interactions import Ragged
from features.progress import silent
from recsys.baselines.content import ContentBridge, TfidfProfile, fit_bridge, fit_tfidf
from recsys.dense_recommender import DenseRecommender
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import bootstrap, paired_bootstrap
from recsys.interfaces import Recommender
from recsys.towers.training import fit_towers

EVENTS, DECAY = 5000, 0.8
BRIDGE, BOTH, PROFILE = "content bridge", "bridge + TF-IDF", "TF-IDF profile"


@dataclass(frozen=True)
class Sum(DenseRecommender):
    """The content bridge and the TF-IDF profile, each in standard scores over the cold items."""

    bridge: ContentBridge
    profile: TfidfProfile
    cold: Bools

    def scores(self, positives: Ragged) -> Floats:
        """(b, n) float32."""
        total = np.zeros((len(positives), len(self.cold)), dtype=np.float32)
        for part in (self.bridge, self.profile):
            scores = part.scores(positives)
            among = scores[:, self.cold]
            total += (scores - among.mean(1, keepdims=True)) / among.std(1, keepdims=True).clip(min=1e-9)
        return total


def run(
    *,
    short: bool = False,
    config: str = "configs/demo-posters.yaml",
    seed: int = 0,
    passes: int | None = None,
    cut: float | None = None,
    without: str | None = None,
) -> Result:
    """config: one whose data are there; seed: which items are cold; passes: of the towers, else as configured, at
    most so many where there is a window to choose by.

    cut: share of the events, the oldest, that all is fitted on; cold are then the items that come later. without: a
    kind of content, as image: the towers are fitted once more as if items had none, which tells what it adds. short:
    two passes, 500 events.
    """
    settings = load_config(Path(config))
    if cut is not None and settings.split.kind != "time":
        raise ConfigError(
            f"{config}: split.kind = {settings.split.kind} has no window in time to choose by: no --cut"
        )
    fitted_on = {TOWERS: settings}
    if without is not None:
        if not isinstance(settings.encoder, BuiltinConfig):
            raise ConfigError(f"{config}: only of an encoder of kind builtin can {without} be left out")
        try:
            fitted_on[f"{TOWERS} without {without}"] = settings.changed(
                {"encoder.without": (*settings.encoder.without, without)}
            )
        except ValidationError as error:
            raise ConfigError(f"without {without}: {error.errors()[0]['msg']}") from None
    dataset = load_dataset(settings)
    if cut is None:  # else every item: which ones become frequent, nobody knew
        dataset = keep_frequent(dataset, dataset.events.latest + 1, settings.data.min_train_events)
    events, n = dataset.events, len(dataset.catalog)
    rng = np.random.default_rng(seed)
    cold = np.zeros(n, dtype=np.bool_)
    if cut is None:
        cold[rng.permutation(n)[: n // 10]] = True
        fit = warm = events.where(~cold[events.items])
    else:
        fit = events.before(int(np.quantile(events.times, cut)))
        cold[events.items] = True
        cold[fit.items] = False
        warm = events.where(~cold[events.items])
    asked = np.flatnonzero(events.positive & cold[events.items])
    asked = np.sort(rng.permutation(asked)[: 500 if short else EVENTS])
    states = warm.states(events.users[asked], events.times[asked])
    asked, states = asked[states.positives().lengths > 0], states[np.flatnonzero(states.positives().lengths > 0)]
    if not len(asked):
        raise DataError(
            f"{config}: no positive event of a cold item by a user with a history: another seed or cut has some"
        )
    targets = Targets(states, np.arange(len(asked), dtype=np.int64), events.items[asked])

    texts = item_texts(dataset.catalog.frame)
    profile, bridge = fit_tfidf(fit, texts, decay=DECAY), fit_bridge(fit, texts, decay=DECAY, seed=seed)
    contenders: dict[str, Recommender] = {
        PROFILE: profile,
        BRIDGE: bridge,
        BOTH: Sum(profile.popularity, profile.fitted_until, bridge, profile, cold),
    }
    made = 2 if short else passes or settings.training.epochs
    seconds = {}
    for name, encoded in fitted_on.items():
        ready = encode_contents(dataset, encoded)
        began = time.perf_counter()
        one = encoded.changed({"training.epochs": made})
        contenders |= _fitted(name, one, replace(ready, events=fit), validated=cut is not None)
        seconds[f"{name}: fit_seconds"] = round(time.perf_counter() - began, 1)
    ours = RERANKED if RERANKED in contenders else TOWERS
    figures: dict[str, Any] = {
        "items": n,
        "items_cold": int(cold.sum()),
        "events": len(asked),
        "users": len(np.unique(states.users)),
        "data_hash": dataset.hash,
    } | seconds
    hits: dict[str, dict[str, Doubles]] = {"among cold": {}, "among all": {}}
    for name, contender in contenders.items():
        for among, found in hits.items():
            ranks, _ = rank_targets(
                contender, targets, dataset.catalog, repeats=False, allow=cold if among == "among cold" else None
            )
            found[name] = metrics.hit(ranks, K, depth=DEPTH)
            figures[f"{name}, {among}: hr_at_10"] = float(found[name].mean())
    linear = (PROFILE, BRIDGE, BOTH)
    for among, found in hits.items():
        users = {name: metrics.per_user(hit, states.users)[0] for name, hit in found.items()}
        figures[f"{ours}, {among}: by user, 95 %"] = interval_dict(bootstrap(users[ours], seed=seed))
        for name in (other for other in users if other not in (ours, BRIDGE)):
            figures[f"{ours} - {name}, {among}: by user, 95 %"] = interval_dict(
                paired_bootstrap(users[ours], users[name], seed=seed)
            )
    best = max(hits["among cold"][name].mean() for name in linear)
    everywhere = hits["among all"]
    return Result(
        figures,
        [
            Bar("among cold, over the best linear", _ratio(hits["among cold"][ours].mean(), best), ">=", 1.15),
            Bar(
                "among all, over the TF-IDF profile",
                _ratio(everywhere[ours].mean(), everywhere[PROFILE].mean()),
                ">=",
                2.0,
            ),
        ],
    )


def _fitted(name: str, config: RunConfig, dataset: Dataset, *, validated: bool) -> dict[str, Recommender]:
    """The towers on all events of the data set; validated: of every item as `recsys train`, and with the reranker."""
    events = dataset.events
    if not validated:
        fitted = fit_towers(
            dataset.catalog, events, config.towers, config.training, seed=config.seed, epochs=config.training.epochs
        )
        return {name: build_two_stage(fitted.model, events, config, dataset.catalog)}
    every_item = config.changed({"data.min_train_events": 0})
    window, splits = evaluation_windows(every_item, dataset)[-1]
    recipe = select_model(config, window, splits, lambda line: None, silent)
    trained = fit_selected(config, window, events, recipe, lambda line: None, silent)
    found: dict[str, Recommender] = {name: trained.retrieval}
    if config.reranker is not None:  # where nothing could be learned, retrieval stands under both names
        found[name.replace(TOWERS, RERANKED)] = trained.recommender
    return found


def _ratio(ours: float, theirs: float) -> float:
    return float(ours / theirs) if theirs else float("nan")
