"""A warm start, top to bottom: a bundle goes on over the events since it was fitted, and is published anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.config import RunConfig
from experiments.dataset import Dataset, encode_contents, extend_dataset, load_dataset
from experiments.evaluation.ranking import Comparison, evaluate
from experiments.pipelines.fit import RERANKED, TOWERS, SelectedModel, fit_selected
from experiments.pipelines.train import (
    code_version,
    comparison,
    format_line,
    manifest_facts,
    record_run,
    report_dataset,
)
from experiments.splits import Split, targets
from experiments.tracking.mlflow import Tracker
from experiments.tracking.progress import Reporter
from features.errors import ConfigError, DataError, SpaceError
from recsys.bundle.io import MANIFEST, load_bundle, save_bundle
from recsys.bundle.model import Bundle
from recsys.bundle.registry import find_bundle, publish_bundle
from recsys.ranking.reranker import Reranker
from recsys.towers.training import fit_towers
from recsys.towers.warm_start import PASSES, transfer_weights


def train_from(
    config: RunConfig, name: str, tracker: Tracker, reporter: Reporter, *, publish: bool = True
) -> tuple[Path, list[Comparison]]:
    """Go on from a bundle (its fingerprint, the beginning of it, `current`, or a folder) with the events since then.

    There is no window left to judge the result on, so the tables are of the bundle before: what it was worth on the
    new events, none of which it had seen. Returns the new bundle's folder and one table for each placement that had
    something to predict. Raises any RecsysError; a failed run publishes nothing.
    """
    bundle = load_bundle(Path(name) if (Path(name) / MANIFEST).is_file() else find_bundle(Path(config.bundles), name))
    check(config, bundle)
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    dataset = extend_dataset(bundle.catalog, dataset, config.data.min_train_events)
    since = bundle.recommender.fitted_until
    new = dataset.events.times > since
    if not (new & dataset.events.positive).any():
        raise DataError(
            f"no positive events since {np.datetime64(since, 'us')} UTC, until when {bundle.path} was fitted: "
            "there is nothing to go on with"
        )
    added = len(dataset.catalog) - len(bundle.catalog)
    reporter.say(f"{int(new.sum()):,} events and {added:,} items since {np.datetime64(since, 'us')} UTC")
    dataset = encode_contents(dataset, config, reporter.steps, space=bundle.content)
    tracker.start(
        config.name,
        config.model_dump(),
        {
            "data_hash": dataset.hash,
            "code_version": code_version(),
            "seed": str(config.seed),
            "from": bundle.fingerprint,
        },
    )

    def report(line: dict[str, float]) -> None:
        reporter.say(format_line(line))

    try:
        splits, tables = judge(config, bundle, dataset, reporter)
        torch.manual_seed(config.seed)  # categories that are new begin at random
        towers = transfer_weights(
            bundle.recommender.towers, bundle.catalog, dataset.catalog, dataset.events, config.towers
        )
        fitted = fit_towers(
            dataset.catalog,
            dataset.events,
            config.towers,
            config.training,
            seed=config.seed,
            epochs=PASSES,
            start=towers,
            since=since,
            report=report,
            progress=reporter.steps,
        )
        order = bundle.recommender.reranker
        order = order if config.reranker and isinstance(order, Reranker) else None
        if config.reranker and order is None:
            reporter.say(f"{bundle.path} has no reranker to go on with: what is published is retrieval alone")
        recipe = SelectedModel(fitted, order)
        trained = fit_selected(config, dataset, dataset.events, recipe, report, reporter.steps, again=False)
        path = save_bundle(
            Path(config.bundles),
            dataset.catalog,
            trained.recommender,
            trained.statistics,
            manifest_facts(config, dataset, splits, tables) | {"from": bundle.fingerprint},
            dataset.space,
        )
        if publish:
            publish_bundle(path)
        record_run(tracker, tables, {}, path)
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    return path, tables


def check(config: RunConfig, bundle: Bundle) -> None:
    """Raises ConfigError or SpaceError where the bundle and the configuration are of different things."""
    mine, its = config.data, bundle.data
    if (mine.source, mine.path) != (its.source, its.path):
        raise ConfigError(
            f"the configuration is of {mine.source} in {mine.path}, and {bundle.path} of {its.source} in {its.path}: "
            "train anew, or go on from a bundle of the same data"
        )
    named = [", ".join(data.events.types) or "none" for data in (mine, its)]
    if named[0] != named[1]:
        raise ConfigError(
            f"of types of events to tell apart data.events names {named[0]}, and that of {bundle.path} {named[1]}: "
            "set it back, or train anew"
        )
    if config.split.kind == "leave-last-out" or bundle.manifest["config"]["split"]["kind"] == "leave-last-out":
        raise ConfigError(
            f"{bundle.path}: a leave-last-out split leaves out events from before the time that it was fitted until: "
            "nothing can go on from there; split by time"
        )
    if config.encoder is None and bundle.content is not None:
        raise SpaceError(f"encoder is null, and the contents of {bundle.path} lie in {bundle.content.space}")
    if config.encoder is not None and bundle.content is None:
        raise SpaceError(f"encoder is {config.encoder.kind}, and {bundle.path} was trained without contents")


def judge(
    config: RunConfig, bundle: Bundle, dataset: Dataset, reporter: Reporter
) -> tuple[list[Split], list[Comparison]]:
    """What the bundle was worth on what it had not seen: each new event by its user's before, with its own items."""
    since, known = bundle.recommender.fitted_until, dataset.events.items < len(bundle.catalog)
    events = replace(dataset.events.where(known), n_items=len(bundle.catalog))
    strange = int((~known & (dataset.events.times > since)).sum())
    reporter.say(f"{strange:,} of the new events are of items that the bundle does not know: not judged")
    splits, tables = [], []
    for name, placement in config.data.placements.items():
        try:
            asked = targets(events, since + 1, events.latest + 1, "prequential", placement.repeats)
        except DataError as error:
            reporter.say(f"{name}: {error}")
            continue
        seen = events.before(since + 1)
        split = Split(f"bundle {bundle.fingerprint}, prequential", since + 1, None, seen, seen, asked, asked)
        ours = TOWERS if bundle.recommender.reranker is None else RERANKED
        outcome = evaluate(
            ours, bundle.recommender, split, bundle.catalog, asked, repeats=placement.repeats, seconds=0
        )
        splits.append(split)
        tables.append(replace(comparison(config, name, [split], [outcome]), ours=ours))
        reporter.say(f"the bundle before · {name}: NDCG@10 {outcome.per_user('ndcg').mean():.4f} on {len(asked):,}")
    return splits, tables
