"""A warm start: continue the training of a bundle on the events that are new to it, and publish the result.

An event is new when the bundle was not trained on it (`recsys.bundle.trained_events`). Its time does not count:
events that arrive late are learned too, and a wrong clock hides nothing. The evaluation of the previous bundle goes
by time: the bundle was fitted on events that are later than a late one, so late events are not evaluated.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.config import RunConfig
from experiments.dataset import Dataset, encode_contents, extend_dataset, load_dataset
from experiments.evaluation.ranking import Comparison, evaluate
from experiments.pipelines.fit import RERANKED, TOWERS, FittedRecommender, SelectedModel, fit_selected
from experiments.pipelines.train import (
    comparison,
    format_line,
    manifest_facts,
    report_dataset,
    run_tags,
    write_bundle,
)
from experiments.preflight import preflight, publishing
from experiments.splits import Split, targets
from experiments.tracking.mlflow import Tracker
from experiments.tracking.progress import Reporter
from experiments.tracking.record import record_tables, run_name
from features.arrays import Bools
from features.catalog import Catalog
from features.errors import BundleError, ConfigError, DataError, SpaceError
from recsys.bundle.formats import MANIFEST
from recsys.bundle.io import load_bundle, trained_events
from recsys.bundle.model import Bundle
from recsys.bundle.registry import find_bundle, publish_bundle
from recsys.bundle.trained_events import new_events
from recsys.ranking.reranker import Reranker
from recsys.recommender import TwoStageRecommender
from recsys.towers.training import fit_towers
from recsys.towers.warm_start import PASSES, transfer_weights


def train_from(
    config: RunConfig, name: str, tracker: Tracker, reporter: Reporter, *, publish: bool = True
) -> tuple[Path, list[Comparison]]:
    """Continue the training of a bundle on the events that are new to it, write the result and publish it.

    name: fingerprint of the bundle, a prefix of it, `current`, or a folder. All events are used for
    training, so the tables show the previous bundle on the new events, not the new one. Returns the folder of the
    new bundle and one table for each placement that has targets. Raises any RecsysError; a run that fails publishes
    nothing.
    """
    preflight(config, bundles=True)
    with publishing(config, publish=publish):
        return _train_from(config, name, tracker, reporter, publish)


def _started_from(root: Path, name: str) -> Path:
    """The folder of a bundle, which is given as a folder or by its name. Raises BundleError."""
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    try:
        return find_bundle(root, name)
    except BundleError:
        if name and Path(name).is_dir():
            raise BundleError(f"{name} is a folder without {MANIFEST}: give one of a bundle, or a name") from None
        raise


def _train_from(
    config: RunConfig, name: str, tracker: Tracker, reporter: Reporter, publish: bool
) -> tuple[Path, list[Comparison]]:
    bundle = load_bundle(_started_from(Path(config.bundles), name))
    check_comparable(config, bundle)
    check_compatible(config, bundle)
    dataset, new = load_extended(config, bundle, reporter)
    tags = run_tags(config, dataset) | {"from": bundle.fingerprint} | run_name(f"train from {bundle.fingerprint}")
    tracker.start(config.name, config.recorded(), tags)
    try:
        tables = evaluate_previous(config, bundle, dataset, reporter)
        report_reranker(config, bundle, reporter)
        trained = continue_training(config, bundle.catalog, bundle.recommender, dataset, new, reporter)
        facts = manifest_facts(config, dataset, tables) | continued_from(bundle)
        path = write_bundle(config, dataset, trained, facts)
        if publish:
            publish_bundle(path, "recsys train --from")
        record_tables(tracker, tables, {})
        tracker.bundle(path, current=publish)
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    return path, tables


def continued_from(bundle: Bundle) -> dict[str, Any]:
    """What the manifest of a continued bundle records about the previous one."""
    return {"from": bundle.fingerprint, "warm_starts": warm_starts(bundle) + 1}


def warm_starts(bundle: Bundle) -> int:
    """Number of warm starts since the bundle was last trained from scratch; at least 1 where it is not recorded."""
    return int(bundle.manifest.get("warm_starts", int("from" in bundle.manifest)))


def check_comparable(config: RunConfig, bundle: Bundle) -> None:
    """Raise ConfigError when the bundle cannot be evaluated on the data of the configuration."""
    ours, previous = config.data, bundle.data
    if (ours.source, ours.path) != (previous.source, previous.path):
        raise ConfigError(
            f"the configuration is of {ours.source} in {ours.path}, and {bundle.path} of {previous.source} in "
            f"{previous.path}: train without --from, or continue from a bundle of the same data"
        )
    types, previous_types = (", ".join(data.events.types) or "none" for data in (ours, previous))
    if types != previous_types:
        raise ConfigError(
            f"data.events distinguishes the event types {types}, and that of {bundle.path} {previous_types}: "
            "set it back, or train without --from"
        )


def check_compatible(config: RunConfig, bundle: Bundle) -> None:
    """Raise ConfigError or SpaceError when training cannot continue from the bundle with the configuration."""
    if config.split.kind == "leave-last-out" or bundle.manifest["config"]["split"]["kind"] == "leave-last-out":
        raise ConfigError(
            f"{bundle.path}: a bundle of a leave-last-out split was not fitted on all events until its last one, and "
            "training cannot continue from it; split by time"
        )
    if config.encoder is None and bundle.content is not None:
        raise SpaceError(
            f"encoder is null, and the contents of {bundle.path} are in {bundle.content.space}; set encoder back"
        )
    if config.encoder is not None and bundle.content is None:
        raise SpaceError(
            f"encoder is {config.encoder.kind}, and {bundle.path} was trained without contents; set encoder to null"
        )


def load_extended(config: RunConfig, bundle: Bundle, reporter: Reporter) -> tuple[Dataset, Bools]:
    """The current data on the extended catalogue of the bundle, and its new events (n,) bool.

    The contents are in the content space of the bundle. Raises DataError when no positive event is new.
    """
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    dataset = extend_dataset(bundle.catalog, dataset, config.data.min_train_events)
    events, until = dataset.events, bundle.recommender.fitted_until
    later: Bools = events.times > until
    new = new_to(bundle, dataset)
    if trained_events(bundle) is None:
        reporter.say(
            f"{bundle.path} does not record which events it was trained on: those after {np.datetime64(until, 'us')} "
            "UTC count as new, and late ones are not learned; the bundle of this run records them"
        )
    if not (new & events.positive).any():
        raise DataError(
            f"no positive event is new to {bundle.path}, which was fitted until {np.datetime64(until, 'us')} UTC: "
            "there is nothing to train on; add events to the tables or the log"
        )
    n_new_items = len(dataset.catalog) - len(bundle.catalog)
    late = int((new & ~later).sum())
    reporter.say(
        f"{int(new.sum()):,} events and {n_new_items:,} items are new since the bundle was trained; {late:,} of the "
        f"events are not later than its latest one, of {np.datetime64(until, 'us')} UTC: learned, but not evaluated"
    )
    return encode_contents(dataset, config, reporter.steps, space=bundle.content), new


def new_to(bundle: Bundle, dataset: Dataset) -> Bools:
    """(n,) bool: the events of the data set that the bundle was not trained on.

    Of a bundle that does not record its events, these are the later ones. Raises BundleError.
    """
    trained = trained_events(bundle)
    if trained is None:
        return dataset.events.times > bundle.recommender.fitted_until
    return new_events(dataset.event_keys(), trained)


def evaluate_previous(config: RunConfig, bundle: Bundle, dataset: Dataset, reporter: Reporter) -> list[Comparison]:
    """The table of each placement that has targets: the previous bundle on the later events.

    Each event after the bundle's latest one is predicted from the earlier events of its user. Events of items that
    the bundle does not contain are not evaluated.
    """
    since, known = bundle.recommender.fitted_until, dataset.events.items < len(bundle.catalog)
    if dataset.events.latest <= since:
        reporter.say("the previous bundle is not evaluated: no event is later than its latest one")
        return []
    rows = np.arange(dataset.events.n_items)
    events = dataset.events.renumbered(np.where(rows < len(bundle.catalog), rows, -1), len(bundle.catalog))
    n_unknown = int((~known & (dataset.events.times > since)).sum())
    reporter.say(f"{n_unknown:,} of the later events are of items that the bundle does not contain: not evaluated")
    model = TOWERS if bundle.recommender.reranker is None else RERANKED
    tables = []
    for name, placement in config.data.placements.items():
        try:
            test = targets(events, since + 1, events.latest + 1, "prequential", placement.repeats)
        except DataError as error:
            reporter.say(f"{name}: {error}")
            continue
        past = events.before(since + 1)
        split = Split(f"bundle {bundle.fingerprint}, prequential", since + 1, None, past, past, test, test)
        outcome = evaluate(
            model, bundle.recommender, split, bundle.catalog, test, repeats=placement.repeats, seconds=0
        )
        tables.append(replace(comparison(config, name, [split], [outcome]), ours=model))
        ndcg = outcome.per_user("ndcg").mean()
        reporter.say(f"previous bundle · {name}: NDCG@10 {ndcg:.4f} on {len(test):,} events")
    return tables


def report_reranker(config: RunConfig, bundle: Bundle, reporter: Reporter) -> None:
    """Say that a reranker is configured, and that the bundle has none which could be kept."""
    if config.reranker and bundle.recommender.reranker is None:
        reporter.say(f"{bundle.path} has no reranker: the new bundle serves the order of the retrieval scores")


def continue_training(
    config: RunConfig,
    catalog: Catalog,
    previous: TwoStageRecommender,
    dataset: Dataset,
    new: Bools,
    reporter: Reporter,
) -> FittedRecommender:
    """A recommender of `catalog`, with towers trained on the new events (n,) bool for PASSES epochs.

    dataset: its catalogue extends `catalog` (`extend_dataset`). The reranker is kept. Where there is none, the result
    has none either.
    """

    def report(line: dict[str, float]) -> None:
        reporter.say(format_line(line))

    torch.manual_seed(config.seed)  # embeddings of new categories are random at the start
    fitted = fit_towers(
        dataset.catalog,
        dataset.events,
        config.towers,
        config.training,
        seed=config.seed,
        epochs=PASSES,
        start=transfer_weights(previous.towers, catalog, dataset.catalog, dataset.events, config.towers),
        only=new,
        report=report,
        progress=reporter.steps,
    )
    reranker = previous.reranker if config.reranker and isinstance(previous.reranker, Reranker) else None
    selected = SelectedModel(fitted, reranker)
    return fit_selected(config, dataset, dataset.events, selected, report, reporter.steps, refit=False)
