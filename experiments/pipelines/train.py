"""A training run: read the data, fit and evaluate the models, refit on all events, write a bundle."""

import itertools
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from pydantic_core import to_json, to_jsonable_python

from experiments.config import RunConfig
from experiments.dataset import Dataset, encode_contents, keep_frequent, load_dataset
from experiments.evaluation.baselines import FittedBaseline, fit_chosen
from experiments.evaluation.choice import Choice, describe_choices
from experiments.evaluation.outcomes import check_replaceable, outcome_rows
from experiments.evaluation.ranking import Comparison, Outcome, RulesAt, evaluate, join_windows
from experiments.pipelines.fit import (
    RERANKED,
    RULED,
    TOWERS,
    FittedRecommender,
    SelectedModel,
    fit_selected,
    train_two_stage,
)
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.preflight import preflight, publishing
from experiments.splits import Split
from experiments.tracking import plots
from experiments.tracking.mlflow import NullTracker, Tracker
from experiments.tracking.progress import Reporter, Stages
from experiments.tracking.record import record_outcomes, record_tables, run_name
from experiments.tracking.versions import code_version, environment
from features.errors import DataError, DependencyError
from recsys.bundle.io import save_bundle
from recsys.bundle.item_map import fit_map
from recsys.bundle.registry import publish_bundle
from recsys.interfaces import Recommender
from recsys.ranking.rules import Rules, load_rules
from recsys.ranking.slate_rules import compile_rules, rules_by_user


def train(
    config: RunConfig, tracker: Tracker, reporter: Reporter, *, publish: bool = True
) -> tuple[Path, list[Comparison]]:
    """Train and evaluate on the newest window, refit the selected model on all events, write and publish a bundle.

    The tables compare models that were fitted before the test window. The bundle is refitted afterwards on all events
    and all items that are frequent by then, so that it includes the newest events. With a leave-last-out split, the
    bundle holds the evaluated model itself. Returns the folder of the bundle and one table for each placement. Raises
    any RecsysError; a run that fails publishes nothing.
    """
    preflight(config, bundles=True, cache=True)
    with publishing(config, publish=publish):
        return _train(config, tracker, reporter, publish)


def _train(config: RunConfig, tracker: Tracker, reporter: Reporter, publish: bool) -> tuple[Path, list[Comparison]]:
    stages = Stages(reporter, stage_names(config))
    stages.next()
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    kept, splits = evaluation_windows(config, dataset)[-1]
    if config.encoder is not None:
        stages.next()
    kept = encode_contents(kept, config, reporter.steps)
    report_window(config, kept, reporter)
    first = next(iter(splits.values()))
    tags = run_tags(config, dataset) | {"split_hash": first.hash}
    tracker.start(config.name, config.recorded(), tags | run_name("train"))
    try:
        stages.next()
        outcomes, selected, trained = fit_and_evaluate(config, kept, splits, reporter, tracker)
        tables = [
            comparison(config, name, [split], outcomes[name], config.baselines) for name, split in splits.items()
        ]
        record_outcomes(tracker, window_rows(kept, outcomes), outcome_facts(config, dataset))
        if first.cut is not None:
            stages.next()
            kept, trained = refit_on_all_events(config, dataset, kept, selected, reporter)
        stages.next()
        facts = manifest_facts(config, dataset, tables)
        path = write_bundle(config, kept, trained, facts, continues=first.cut is not None)
        if publish:
            publish_bundle(path, "recsys train")
        figures = plots.draw(selected.selection.history, tables[0].outcomes, selected.judgement)
        record_tables(tracker, tables, figures)
        tracker.bundle(path, current=publish)
        if selected.reranker is not None:
            tracker.metrics({f"importance.{name}": share for name, share in selected.reranker.importance.items()})
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    return path, tables


def stage_names(config: RunConfig) -> list[str]:
    """What a training run does, in order."""
    return [
        "reading the tables",
        *(["encoding the contents of the items"] if config.encoder is not None else []),
        "fitting and evaluating the baselines and the recommender",
        *(["refitting the selected model on all events, to be served"] if config.split.kind == "time" else []),
        "writing the bundle",
    ]


def refit_on_all_events(
    config: RunConfig, dataset: Dataset, kept: Dataset, selected: SelectedModel, reporter: Reporter
) -> tuple[Dataset, FittedRecommender]:
    """The data set and the recommender to serve: the selected model, refitted on all events.

    dataset: all items and events; kept: those of the evaluated window. Items that have become frequent since the cut
    of the window are added; their contents are encoded in the space of the window.
    """
    if min_events := config.data.min_train_events:
        frequent = keep_frequent(dataset, dataset.events.latest + 1, min_events)
        kept = encode_contents(frequent, config, reporter.steps, space=kept.space)
    trained = fit_selected(
        config, kept, kept.events, selected, lambda line: reporter.say(format_line(line)), reporter.steps
    )
    return kept, trained


def evaluate_run(
    config: RunConfig,
    reporter: Reporter,
    *,
    tracker: Tracker | None = None,
    outcomes_file: Path | None = None,
    rules_file: Path | None = None,
) -> list[Comparison]:
    """Fit the baselines and the recommender separately in every window; returns one table for each placement.

    tracker: None records nothing. outcomes_file: where the rank of every event is written to, see `write_outcomes`.
    rules_file: a shop's rules; the recommender is evaluated with them as well.
    """
    tracker = tracker or NullTracker()
    preflight(config, cache=True, outcomes=outcomes_file)
    rules = None if rules_file is None else load_rules(rules_file)
    if outcomes_file is not None:
        check_replaceable(outcomes_file)
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    windows = evaluation_windows(config, dataset)
    hashes = ", ".join(split.hash for _, splits in windows for split in splits.values())
    tags = run_tags(config, dataset) | {"split_hash": hashes} | ({"rules": str(rules_file)} if rules_file else {})
    tracker.start(config.name, config.recorded(), tags | run_name("evaluate"))
    try:
        outcomes_by_placement: dict[str, list[list[Outcome]]] = {name: [] for name in config.data.placements}
        rows = []
        for number, (kept, splits) in enumerate(windows, 1):
            reporter.say(
                f"window {number} of {len(windows)}: {len(kept.catalog):,} items, {kept.left_out:,} events left out"
            )
            kept = encode_contents(kept, config, reporter.steps)
            outcomes = fit_and_evaluate(config, kept, splits, reporter, None, rules)[0]
            rows += window_rows(kept, outcomes, number)
            for name, outcomes_of_window in outcomes.items():
                outcomes_by_placement[name].append(outcomes_of_window)
        record_outcomes(tracker, rows, outcome_facts(config, dataset), outcomes_file)
        tables = [
            comparison(
                config,
                name,
                [splits[name] for _, splits in windows],
                _in_all_windows(outcomes_of_windows),
                config.baselines,
            )
            for name, outcomes_of_windows in outcomes_by_placement.items()
        ]
        record_tables(tracker, tables, plots.draw([], tables[0].outcomes))
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    return tables


def window_rows(dataset: Dataset, outcomes: dict[str, list[Outcome]], window: int = 1) -> list[pl.DataFrame]:
    """The rows for `write_outcomes` of one window; outcomes: by placement."""
    return [
        outcome_rows(outcome, placement, window, dataset.users, dataset.catalog.ids)
        for placement, of in outcomes.items()
        for outcome in of
    ]


def outcome_facts(config: RunConfig, dataset: Dataset) -> dict[str, str]:
    """What a file of outcomes says of itself."""
    return {"config": to_json(config.recorded()).decode()} | run_tags(config, dataset)


def _in_all_windows(windows: list[list[Outcome]]) -> list[Outcome]:
    """The outcomes of each model over all windows. A baseline that a window left out is left out."""
    by_name = [{outcome.name: outcome for outcome in window} for window in windows]
    names = [name for name in by_name[0] if all(name in window for window in by_name)]
    return [join_windows([window[name] for window in by_name]) for name in names]


def fit_and_evaluate(
    config: RunConfig,
    dataset: Dataset,
    splits: dict[str, Split],
    reporter: Reporter,
    tracker: Tracker | None,
    rules: Rules | None = None,
) -> tuple[dict[str, list[Outcome]], SelectedModel, FittedRecommender]:
    """Fit every baseline and the recommender once, and evaluate each of them in every placement.

    rules: of a shop; the recommender is then evaluated with them as well. Returns the outcomes by placement, in the
    order of fitting. Raises LeakError, see `check_no_leak`.
    """
    outcomes, first = {name: list[Outcome]() for name in splits}, next(iter(splits.values()))
    step = reporter.steps("models", len(config.baselines) + 1)

    def add_outcome(
        name: str,
        placement: str,
        recommender: Recommender,
        seconds: float,
        ruling: RulesAt | None = None,
        choices: tuple[Choice, ...] = (),
    ) -> None:
        split, repeats = splits[placement], config.data.placements[placement].repeats
        outcome = evaluate(
            name, recommender, split, dataset.catalog, split.test, repeats=repeats, seconds=seconds, rules=ruling
        )
        outcomes[placement].append(replace(outcome, choices=choices))
        ndcg = outcome.per_user("ndcg").mean()
        reporter.say(f"{name} · {placement}: NDCG@10 {ndcg:.4f}, fitted in {seconds:.1f} s")

    for name in config.baselines:
        for placement, fitted in chosen_baseline(name, config, dataset, splits, reporter).items():
            add_outcome(name, placement, fitted.recommender, fitted.seconds, choices=(fitted.choice,))
        step(1)

    def report(line: dict[str, float]) -> None:
        reporter.say(format_line(line))
        if tracker and "ndcg_at_10" in line:  # the validated fit only: the refit has the same epochs, unvalidated
            tracker.metrics(line, int(line["epoch"]))

    started = time.perf_counter()
    selected, trained = train_two_stage(config, dataset, splits, report, reporter.steps)
    seconds = time.perf_counter() - started
    report_selection(selected, trained, reporter)
    models = {TOWERS: trained.retrieval}
    if config.reranker is not None:  # when no reranker could be fitted, this row repeats the retrieval
        models[RERANKED] = trained.recommender
    for name, placement in itertools.product(models, splits):
        add_outcome(name, placement, models[name], seconds)
    if rules is not None:
        vectors = trained.recommender.vectors
        for note in compile_rules(rules.rules, dataset.catalog, vectors, first.train.latest).notes:
            reporter.say(note)
        for placement in splits:
            ruling = partial(rules_by_user, rules, placement, dataset.catalog, vectors)
            add_outcome(RULED, placement, trained.recommender, seconds, ruling=ruling)
    step(1)
    return outcomes, selected, trained


def chosen_baseline(
    name: str, config: RunConfig, dataset: Dataset, splits: dict[str, Split], reporter: Reporter
) -> dict[str, FittedBaseline]:
    """One baseline for each placement, with a line on the choice of its settings. Raises LeakError.

    Empty when the baseline lacks a package, or cannot be fitted on such data: a line says why, and the others are
    compared all the same.
    """
    try:
        fitted, seconds = fit_chosen(name, config, dataset, splits, code_version())
    except (DependencyError, DataError) as error:
        reporter.say(f"{name} is left out: {error}")
        return {}
    for placement, baseline in fitted.items():
        if baseline.choice.tried:
            cost = f"in {seconds:.1f} s" if seconds else "by an earlier run"
            reporter.say(f"{name} · {placement}: {describe_choices([baseline.choice])}, {cost}")
    return fitted


def report_selection(selected: SelectedModel, trained: FittedRecommender, reporter: Reporter) -> None:
    """Print what exposures taught, how cold items were placed and lifted, and how good probabilities are."""
    for note in selected.notes:
        reporter.say(note)
    for part in (trained.placement, selected.judgement):
        for line in part.lines() if part is not None else ():
            reporter.say(line)


def format_line(values: dict[str, float]) -> str:
    """The figures of one epoch as one line of text."""
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items())


def comparison(
    config: RunConfig, placement: str, splits: list[Split], outcomes: list[Outcome], baselines: Collection[str] = ()
) -> Comparison:
    """The table of one placement, over one or several windows. baselines: a note names those that it lacks."""
    repeats = "repeats allowed" if config.data.placements[placement].repeats else "repeats excluded"
    note = splits[-1].note + (f" ({len(splits)} windows)" if len(splits) > 1 else "")
    if repeated := sum(split.test.repeated for split in splits):
        note += f"; {repeated:,} test events are left out, because their users had seen the items"
    if lacking := [name for name in baselines if name not in {outcome.name for outcome in outcomes}]:
        note += f"; baselines left out, see the lines of the run: {', '.join(lacking)}"
    return Comparison(
        title=f"{config.name} · {placement}: {repeats}",
        placement=placement,
        note=note,
        hashes=tuple(split.hash for split in splits),
        outcomes=tuple(outcomes),
        ours=TOWERS if config.reranker is None else RERANKED,
        seed=config.seed,
    )


def manifest_facts(config: RunConfig, dataset: Dataset, tables: list[Comparison]) -> dict[str, Any]:
    """What the manifest of the bundle records about the run."""
    return {
        "config": to_jsonable_python(config.recorded()),
        "data_hash": dataset.hash,
        "simulated": dataset.simulated,
        "split_hash": tables[0].hashes[0] if tables else None,
        "code_version": code_version(),
        "environment": environment(),
        "seed": config.seed,
        "metrics": [table.to_dict() for table in tables],
    }


def write_bundle(
    config: RunConfig, dataset: Dataset, trained: FittedRecommender, facts: dict[str, Any], *, continues: bool = True
) -> Path:
    """Write a bundle and return its folder.

    dataset: the catalogue and events that the recommender was fitted on; facts: of the manifest; continues: whether
    a later training can continue from it. Raises FileError when it cannot be written.
    """
    return save_bundle(
        Path(config.bundles),
        dataset.catalog,
        trained.recommender,
        trained.statistics,
        facts,
        dataset.space,
        dataset.event_keys() if continues else None,
        fit_map(trained.recommender.vectors, config.seed),
    )


def run_tags(config: RunConfig, dataset: Dataset) -> dict[str, str]:
    """Tags of a tracked run: what it depends on besides its parameters."""
    return {"data_hash": dataset.hash, "code_version": code_version(), "seed": str(config.seed)}


def report_window(config: RunConfig, dataset: Dataset, reporter: Reporter) -> None:
    """Print how the content space was fitted, and how many events the evaluated window does not use."""
    if dataset.content_note:
        reporter.say(dataset.content_note)
    if dataset.left_out:
        reporter.say(
            f"{dataset.left_out:,} events left out: items with fewer than {config.data.min_train_events} "
            "before the validation window"
        )


def report_dataset(dataset: Dataset, reporter: Reporter) -> None:
    """Print what was read, and what is not used."""
    for line in dataset.report.lines():
        reporter.say(line)
    events = dataset.events
    reporter.say(
        f"{events.n_users:,} users, {events.n_items:,} items, {len(events):,} events, "
        f"{int(events.positive.sum()):,} positive; data {dataset.hash}"
    )
