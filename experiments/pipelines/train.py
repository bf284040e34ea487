"""One training run, top to bottom; each line takes what the line above returned."""

import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.config import RunConfig
from experiments.dataset import Dataset, encode_contents, keep_frequent, load_dataset
from experiments.evaluation.ranking import Comparison, Outcome, evaluate, join_windows
from experiments.pipelines.fit import (
    RERANKED,
    TOWERS,
    FittedRecommender,
    SelectedModel,
    fit_baseline,
    fit_selected,
    train_two_stage,
)
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.splits import Split, check_no_leak
from experiments.tracking import plots
from experiments.tracking.mlflow import Tracker
from experiments.tracking.progress import Reporter
from features.interactions import DAY
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import publish_bundle
from recsys.interfaces import Recommender


def train(
    config: RunConfig, tracker: Tracker, reporter: Reporter, *, publish: bool = True
) -> tuple[Path, list[Comparison]]:
    """Train, compare with the baselines on the newest window, fit the same recipe on everything, publish a bundle.

    What is served has seen the tested window too: the table is of the recipe, and the newest events are not wasted,
    nor the items that they made frequent.
    A leave-last-out split serves what it judged. Returns the bundle's folder and one table for each placement.
    Raises any RecsysError; a failed run publishes nothing.
    """
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    kept, splits = evaluation_windows(config, dataset)[-1]
    kept = encode_contents(kept, config, reporter.steps)
    if kept.content_note:
        reporter.say(kept.content_note)
    first = next(iter(splits.values()))
    if kept.left_out:
        reporter.say(
            f"{kept.left_out:,} events left out: items with fewer than {config.data.min_train_events} "
            "before the validation window"
        )
    tracker.start(
        config.name,
        config.model_dump(),
        {
            "data_hash": dataset.hash,
            "split_hash": first.hash,
            "code_version": code_version(),
            "seed": str(config.seed),
        },
    )
    try:
        outcomes, recipe, trained = fit_and_evaluate(config, kept, splits, reporter, tracker)
        tables = [comparison(config, name, [split], outcomes[name]) for name, split in splits.items()]
        if first.cut is not None:
            reporter.say("the same recipe on all events, to be served")
            if least := config.data.min_train_events:  # what has become frequent since belongs to it
                frequent = keep_frequent(dataset, dataset.events.latest + 1, least)
                kept = encode_contents(frequent, config, reporter.steps, space=kept.space)
            trained = fit_selected(
                config, kept, kept.events, recipe, lambda line: reporter.say(format_line(line)), reporter.steps
            )
        figures = plots.draw(recipe.selection.history, tables[0].outcomes)
        path = save_bundle(
            Path(config.bundles),
            kept.catalog,
            trained.recommender,
            trained.statistics,
            manifest_facts(config, dataset, [first], tables),
            kept.space,
        )
        if publish:
            publish_bundle(path)
        record_run(tracker, tables, figures, path)
        if recipe.reranker is not None:
            tracker.metrics({f"importance.{name}": share for name, share in recipe.reranker.importance.items()})
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    return path, tables


def evaluate_run(config: RunConfig, reporter: Reporter) -> list[Comparison]:
    """Every baseline and the two towers, fitted anew in every window: one table for each placement."""
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    every = evaluation_windows(config, dataset)
    gathered: dict[str, list[list[Outcome]]] = {name: [] for name in config.data.placements}
    for number, (kept, splits) in enumerate(every, 1):
        reporter.say(
            f"window {number} of {len(every)}: {len(kept.catalog):,} items, {kept.left_out:,} events left out"
        )
        kept = encode_contents(kept, config, reporter.steps)
        for name, outcomes in fit_and_evaluate(config, kept, splits, reporter, None)[0].items():
            gathered[name].append(outcomes)
    return [
        comparison(
            config, name, [splits[name] for _, splits in every], [join_windows(w) for w in zip(*parts, strict=True)]
        )
        for name, parts in gathered.items()
    ]


def fit_and_evaluate(
    config: RunConfig, dataset: Dataset, splits: dict[str, Split], reporter: Reporter, tracker: Tracker | None
) -> tuple[dict[str, list[Outcome]], SelectedModel, FittedRecommender]:
    """Fit every baseline and the real recommender once; evaluate each in every placement."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in splits}
    first = next(iter(splits.values()))
    done = reporter.steps("contenders", len(config.baselines) + 1)

    def judge(name: str, recommender: Recommender, seconds: float) -> None:
        for placement, split in splits.items():
            repeats = config.data.placements[placement].repeats
            outcome = evaluate(
                name, recommender, split, dataset.catalog, split.test, repeats=repeats, seconds=seconds
            )
            outcomes[placement].append(outcome)
            told = f"NDCG@10 {outcome.per_user('ndcg').mean():.4f}"
            reporter.say(f"{name} · {placement}: {told}, fitted in {seconds:.1f} s")

    for name, arguments in config.baselines.items():
        started = time.perf_counter()
        baseline = fit_baseline(name, arguments, dataset, first.train)
        check_no_leak(first.cut, **{name: baseline})
        judge(name, baseline, time.perf_counter() - started)
        done(1)

    def report(line: dict[str, float]) -> None:
        reporter.say(format_line(line))
        if tracker and "ndcg_at_10" in line:  # the fit that is validated; the one after repeats its passes
            tracker.metrics(line, int(line["epoch"]))

    started = time.perf_counter()
    recipe, trained = train_two_stage(config, dataset, splits, report, reporter.steps)
    seconds = time.perf_counter() - started
    judge(TOWERS, trained.retrieval, seconds)
    if config.reranker is not None:  # where nothing could be learned, retrieval stands under both names
        judge(RERANKED, trained.recommender, seconds)
    done(1)
    return outcomes, recipe, trained


def format_line(values: dict[str, float]) -> str:
    """A pass of training as one line."""
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items())


def comparison(config: RunConfig, placement: str, splits: list[Split], outcomes: list[Outcome]) -> Comparison:
    """The table of one placement."""
    repeats = "repeats allowed" if config.data.placements[placement].repeats else "repeats excluded"
    several = f" ({len(splits)} windows)" if len(splits) > 1 else ""
    return Comparison(
        title=f"{config.name} · {placement}: {repeats}",
        placement=placement,
        note=splits[-1].note + several,
        hashes=tuple(split.hash for split in splits),
        outcomes=tuple(outcomes),
        ours=TOWERS if config.reranker is None else RERANKED,
        seed=config.seed,
    )


def manifest_facts(
    config: RunConfig, dataset: Dataset, splits: list[Split], tables: list[Comparison]
) -> dict[str, Any]:
    """What the manifest of the bundle records."""
    return {
        "config": config.model_dump(mode="json"),
        "data_hash": dataset.hash,
        "split_hash": splits[0].hash if splits else None,
        "code_version": code_version(),
        "seed": config.seed,
        "metrics": [table.to_dict() for table in tables],
    }


def record_run(tracker: Tracker, tables: list[Comparison], figures: dict[str, Any], bundle: Path) -> None:
    """Final metrics, plots and the bundle."""
    for table in tables:
        for row in table.rows:
            name = "".join(c if c.isalnum() else "_" for c in f"{table.placement}.{row['name']}")
            tracker.metrics({f"{name}.{key}": row[key]["mean"] for key in ("hr_at_10", "ndcg_at_10")})
    for plot, figure in figures.items():
        tracker.figure(plot, figure)
    tracker.artifact(bundle, "bundle")


def report_dataset(dataset: Dataset, reporter: Reporter) -> None:
    """What was read, and what was not used."""
    for count in dataset.report.counts:
        reporter.say(f"{count.table}: {count.read:,} rows read, {count.kept:,} kept, {count.rejected:,} rejected")
    if dataset.unknown_items:
        reporter.say(f"{dataset.unknown_items:,} logged events are of items that the tables do not have: left out")
    if dataset.duplicates:
        reporter.say(f"{dataset.duplicates:,} logged events are in the tables already: counted once")
    events = dataset.events
    if early := int((events.times // DAY < dataset.catalog.published[events.items] // DAY).sum()):
        reporter.say(f"{early:,} events are older than the publication of their item: as targets they are in no list")
    reporter.say(
        f"{events.n_users:,} users, {events.n_items:,} items, {len(events):,} events, "
        f"{int(events.positive.sum()):,} positive; data {dataset.hash}"
    )


def code_version() -> str:
    """Version of the package, and the git commit where there is one."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{metadata.version('recsys')}+{done.stdout.strip() or 'unknown'}"
