"""`recsys train`, `nightly`, `tune` and `slates`: train, search settings, write slates of all users."""

import shlex
from pathlib import Path

import typer

from recsys.cli.bundle import BUNDLE
from recsys.cli.options import (
    CONFIG,
    RULES,
    bundles_folder,
    config_path,
    given_path,
    given_text,
    print_json,
    print_tables,
    progress_bars,
    show,
)


def train(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(
        False, "--json", help="Print the folder of the bundle and the tables as one JSON object."
    ),
    track: bool = typer.Option(True, "--track/--no-track", help="Record the run in MLflow."),
    publish: bool = typer.Option(
        True,
        "--publish/--no-publish",
        help="Make the bundle current: the service loads it. After --no-publish, see `recsys bundle`.",
    ),
    start: str | None = typer.Option(
        None,
        "--from",
        metavar="BUNDLE",
        help=f"Continue the training of a bundle on the events since then. {BUNDLE} A folder is accepted too.",
    ),
) -> None:
    """Train the two towers and the reranker, compare them with the baselines, and write and publish a bundle.

    Example: recsys train movielens. To continue training on newer events: recsys train movielens --from current
    """
    from experiments.config import load_config
    from experiments.pipelines.train import train as run
    from experiments.pipelines.warm_start import train_from
    from experiments.tracking.mlflow import MlflowTracker, NullTracker

    config = load_config(config_path(name))
    tracker = MlflowTracker() if track else NullTracker()
    with progress_bars() as reporter:
        if start is None:
            path, tables = run(config, tracker, reporter, publish=publish)
        else:
            path, tables = train_from(config, start, tracker, reporter, publish=publish)
    if as_json:
        print_json({"bundle": str(path), "tables": [table.to_dict() for table in tables]})
    else:
        print_tables(tables)
        typer.echo(f"bundle {path} is current" if publish else _next_step(path))


def _next_step(bundle: Path) -> str:
    """The command after --no-publish: a comparison where another bundle is current."""
    options = "" if bundle.parent == Path("bundles") else f" --bundles {shlex.quote(str(bundle.parent))}"
    if (bundle.parent / "current").is_dir():
        return f"next: recsys bundle compare current {bundle.name}{options}"
    return f"next: recsys bundle publish {bundle.name}{options} (no bundle is current there yet)"


def nightly(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    full_every: int = typer.Option(
        7, min=1, help="Train one in N published bundles from scratch; the others continue from the served one."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one JSON object."),
    track: bool = typer.Option(True, "--track/--no-track", help="Record the night in MLflow."),
) -> None:
    """Refresh the store, embed, train without the newest events, compare with what is served, and publish or not.

    The store is the one at REDIS_URL; it is left alone where that is not set. Exit status 0: a bundle was published,
    or none was because the new one is worse or no event is new. 1: a step failed, and what was served still is. The
    report is in nightly.json in the folder of the bundles. Example: recsys nightly movielens --full-every 7
    """
    import os
    from dataclasses import asdict

    from experiments.config import load_config
    from experiments.pipelines.nightly import nightly as run
    from experiments.tracking.mlflow import MlflowTracker, NullTracker

    config = load_config(config_path(name))
    tracker = MlflowTracker() if track else NullTracker()
    url = os.environ.get("REDIS_URL") or None
    with progress_bars() as reporter:
        night = run(config, tracker, reporter, redis_url=url, full_every=full_every)
    if as_json:
        print_json(asdict(night))
        return
    for line in night.lines():
        typer.echo(line)


def slates(
    out: Path = typer.Argument(
        ...,
        help="Output folder: part-*.parquet with user_id, position, item_id, score, source.",
        parser=given_path,
    ),
    bundle: str = typer.Option("current", help=BUNDLE),
    bundles: Path = typer.Option(Path("bundles"), help="Folder of the bundles.", parser=given_path),
    k: int = typer.Option(20, min=1, max=1000, help="Number of items for each user."),
    placement: str | None = typer.Option(
        None, help="Placement whose rule on repeats is applied. [first placement of the bundle]"
    ),
    part: str = typer.Option(
        "1/1", metavar="I/N", help="Write share I of N, to divide the job among processes or machines."
    ),
    rules: Path | None = typer.Option(None, help=RULES, parser=given_path),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one JSON object."),
) -> None:
    """Write the best items of every user in the tables and the log, for e-mail and for offline evaluation.

    The command can be killed and run again: finished files are kept. Example: recsys slates data/slates --k 50
    """
    from dataclasses import asdict

    from experiments.pipelines.batch_slates import write_slates
    from features.errors import ConfigError
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle

    share = part.split("/")
    if len(share) != 2 or not all(text.isdecimal() for text in share):
        raise ConfigError(f"--part {part}: give I/N, e.g. 1/4 to 4/4")
    numbers = int(share[0]), int(share[1])
    loaded = load_bundle(find_bundle(bundles_folder(bundles), bundle))
    with progress_bars() as reporter:
        report = write_slates(
            loaded, out, k=k, placement=placement, part=numbers, rules=rules, progress=reporter.steps
        )
    if as_json:
        print_json(asdict(report) | {"folder": str(report.folder)})
        return
    typer.echo(
        f"{out}: {report.rows:,} rows for {report.users:,} users written; "
        f"{report.existing_shards} of {report.shards} shards existed before"
    )
    if report.note:
        typer.echo(f"no row was written: {report.note}")


def tune(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    trials: int = typer.Option(30, min=1, help="Number of trials in total, including those of earlier runs."),
    minutes: float | None = typer.Option(None, min=0.0, help="No trial starts after this many minutes."),
    only: str | None = typer.Option(
        None, help="Settings to search, e.g. towers.dropout,training.learning_rate. [all]", parser=given_text
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the trials and the best settings as one JSON object."),
    track: bool = typer.Option(
        True, "--track/--no-track", help="Record the search in MLflow, with a run for each trial."
    ),
) -> None:
    """Search the best settings of the towers on the validation window. Print the trials and the best as YAML.

    The command can be stopped at any time; it continues when it is run again. Trials have no reranker and do not use
    the test events. Evaluate the best settings with `recsys evaluate`.
    Example: recsys tune movielens --trials 20 --only towers.dropout,training.learning_rate
    """
    from dataclasses import asdict

    from experiments.config import load_config
    from experiments.pipelines.tune import tune as run
    from experiments.tracking.mlflow import MlflowTracker, NullTracker

    keys = [key.strip() for key in (only or "").split(",") if key.strip()]
    config, tracker = load_config(config_path(name)), MlflowTracker() if track else NullTracker()
    with progress_bars() as reporter:
        result = run(config, tracker, reporter, trials=trials, minutes=minutes, only=keys)
    if as_json:
        print_json(asdict(result))
    else:
        show(result.render(), 175)
