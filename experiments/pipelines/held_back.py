"""The newest events held back: a new bundle is trained without them, and judged on them beside the served one.

What is judged and what is published are not the same weights. The candidate, which is judged, has not seen the
held-back events. When it is accepted, `Candidate.finish` fits it on these events, too: the continued towers for one
more pass, a full training by a refit with the epochs that were selected. The published bundle is therefore the result
of the judged procedure on all events, as after `recsys train`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from experiments.config import RunConfig
from experiments.dataset import Dataset, encode_contents, extend_dataset, with_catalog
from experiments.evaluation.decision import MIN_USERS
from experiments.evaluation.leaks import check_no_leak
from experiments.evaluation.other_catalog import InCatalog
from experiments.evaluation.ranking import Comparison, evaluate
from experiments.pipelines.fit import RERANKED, TOWERS, FittedRecommender, select_model
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.pipelines.train import comparison, format_line, refit_on_all_events
from experiments.pipelines.warm_start import check_compatible, continue_training, new_to, report_reranker
from experiments.splits import Split, targets
from experiments.tracking.progress import Reporter
from features.arrays import Bools
from features.catalog import Catalog
from features.errors import DataError
from features.instants import DAY
from features.interactions import Interactions
from recsys.bundle.model import Bundle
from recsys.bundle.trained_events import new_events
from recsys.interfaces import Recommender


@dataclass(frozen=True)
class HeldBack:
    """The newest events, which are new to the served bundle.

    cut, end: µs, the times of [cut, end); events, users: the new positive events in there and their users; learnable:
    new positive events before the cut.
    """

    cut: int
    end: int
    events: int
    users: int
    learnable: int


def hold_back(events: Interactions, new: Bools) -> HeldBack | None:
    """The newer half of the new positive events, but not more than the last day; None when no positive event is new.

    new (n,): the events that the served bundle was not trained on. A bundle that is trained every night knows all
    but the last day: half of it is held back, and the other half is what the candidate learns. A last day of fewer
    than MIN_USERS users is too short to judge anything: the newer half is held back then, however long it is.
    """
    fresh = events.where(new & events.positive)
    if not len(fresh):
        return None
    times = np.sort(fresh.times)
    half, last_day = int(times[len(times) // 2]), int(times[-1]) - DAY + 1
    enough = len(np.unique(fresh.users[fresh.times >= last_day])) >= MIN_USERS
    cut = max(half, last_day) if enough else half
    inside = fresh.times >= cut
    n_users, n_inside = len(np.unique(fresh.users[inside])), int(inside.sum())
    return HeldBack(cut, int(times[-1]) + 1, n_inside, n_users, len(fresh) - n_inside)


@dataclass(frozen=True)
class Candidate:
    """A recommender fitted without the held-back events.

    dataset: its catalogue, and the events before the cut; finish: fits it on the held-back events, too, and returns
    the data set and the recommender to publish.
    """

    dataset: Dataset
    fitted: FittedRecommender
    finish: Callable[[], tuple[Dataset, FittedRecommender]]


def warm_candidate(config: RunConfig, served: Bundle, dataset: Dataset, cut: int, reporter: Reporter) -> Candidate:
    """The served bundle, continued on the events before `cut` (µs) that are new to it.

    dataset: all events, as `load_dataset` reads them. Raises ConfigError or SpaceError when the configuration does
    not fit the bundle, and DataError when there is nothing to learn.
    """
    check_compatible(config, served)
    report_reranker(config, served, reporter)
    min_events = config.data.min_train_events

    def extended(catalog: Catalog, part: Dataset) -> Dataset:
        return encode_contents(
            extend_dataset(catalog, part, min_events), config, reporter.steps, space=served.content
        )

    past = extended(served.catalog, before(dataset, cut))
    fitted = continue_training(config, served.catalog, served.recommender, past, new_to(served, past), reporter)

    def finish() -> tuple[Dataset, FittedRecommender]:
        whole = extended(past.catalog, dataset)
        held_back = new_to(served, whole) & new_events(whole.event_keys(), np.sort(past.event_keys()))
        return whole, continue_training(config, past.catalog, fitted.recommender, whole, held_back, reporter)

    return Candidate(past, fitted, finish)


def full_candidate(config: RunConfig, dataset: Dataset, cut: int, reporter: Reporter) -> Candidate:
    """A recommender trained from scratch on the events before `cut` (µs); dataset: all events.

    The model is selected on the newest window of the configured split of these events. Raises DataError when they are
    too few.
    """
    past = before(dataset, cut)
    kept, splits = evaluation_windows(config, past)[-1]
    kept = encode_contents(kept, config, reporter.steps)
    selected = select_model(config, kept, splits, lambda line: reporter.say(format_line(line)), reporter.steps)

    def refit(events: Dataset) -> tuple[Dataset, FittedRecommender]:
        window = replace(kept, events=with_catalog(events, kept.catalog).events)
        return refit_on_all_events(config, events, window, selected, reporter)

    return Candidate(*refit(past), lambda: refit(dataset))


def before(dataset: Dataset, cut: int) -> Dataset:
    """The data set with the events before `cut` (µs) alone."""
    return replace(dataset, events=dataset.events.before(cut))


def compare_with_served(
    config: RunConfig, candidate: Candidate, served: Bundle, dataset: Dataset, held_back: HeldBack, reporter: Reporter
) -> list[Comparison]:
    """One table for each placement that has targets: the served bundle and the candidate on the held-back events.

    dataset: all events. The targets are the new events of items that both contain, and both list these items only.
    In each table the candidate is the last outcome and `ours`. Raises LeakError when the candidate has seen a
    held-back event.
    """
    data, fitted = candidate.dataset, candidate.fitted
    whole = with_catalog(dataset, data.catalog)
    check_no_leak(
        whole.events.before(held_back.cut),
        held_back.cut,
        vocabulary=data,
        towers=fitted.towers,
        popularity=fitted.retrieval.fallback,
        features=fitted.statistics,
        recommender=fitted.recommender,
    )
    events = whole.events
    other = InCatalog(served.recommender, served.catalog.ids, data.catalog.ids)
    only = new_to(served, whole) & other.common[events.items]
    name = TOWERS if fitted.recommender.reranker is None else RERANKED
    models: dict[str, Recommender] = {f"served {served.fingerprint}": other, name: fitted.recommender}
    past, history, tables = events.before(held_back.cut), config.split.history, []
    for placement, rule in config.data.placements.items():
        try:
            test = targets(events, held_back.cut, held_back.end, history, rule.repeats, only=only)
        except DataError as error:
            reporter.say(f"{placement} is not compared: {error}")
            continue
        split = Split(f"held back, {history}", held_back.cut, None, past, past, test, test)
        outcomes = [
            evaluate(
                model_name,
                model,
                split,
                data.catalog,
                test,
                repeats=rule.repeats,
                seconds=0,
                allow=other.common,
            )
            for model_name, model in models.items()
        ]
        tables.append(replace(comparison(config, placement, [split], outcomes), ours=name))
    return tables
