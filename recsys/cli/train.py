"""`recsys train`, `tune` and `slates`: what is fitted, and what is made with it."""

from pathlib import Path

import typer

from recsys.cli.bundle import ONE
from recsys.cli.options import CONFIG, config_path, print_json, print_tables, progress_bars


def train(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(
        False, "--json", help="Print the bundle's folder and the tables as one JSON object."
    ),
    track: bool = typer.Option(True, "--track/--no-track", help="Record the run in MLflow."),
    publish: bool = typer.Option(
        True, "--publish/--no-publish", help="Let the service take the bundle; else see `recsys bundle`."
    ),
    start: str | None = typer.Option(
        None, "--from", metavar="BUNDLE", help=f"Go on from it with the events since then. {ONE} Or its folder."
    ),
) -> None:
    """Train the two towers and the reranker, compare them with the baselines, write and publish a bundle.

    Example: recsys train movielens; a day later: recsys train movielens --from current
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
        typer.echo(f"bundle {path} is current" if publish else f"next: recsys bundle compare current {path.name}")


def slates(
    out: Path = typer.Argument(..., help="Folder for part-*.parquet: user_id, position, item_id, score, source."),
    bundle: str = typer.Option("current", help=ONE),
    bundles: Path = typer.Option(Path("bundles"), help="Folder of the bundles."),
    k: int = typer.Option(20, min=1, max=1000, help="Items for each user."),
    placement: str | None = typer.Option(None, help="Whose rule on repeats holds. [the bundle's first]"),
    part: str = typer.Option("1/1", metavar="I/N", help="The I-th of N shares: one process or machine each."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Write the best items of every user of the tables and the log, for e-mail and for judging offline.

    May be killed and run again: what is there is kept. Example: recsys slates data/slates --k 50
    """
    from dataclasses import asdict

    from experiments.pipelines.batch_slates import write_slates
    from features.errors import ConfigError
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle

    share = part.split("/")
    if len(share) != 2 or not all(text.isdecimal() for text in share):
        raise ConfigError(f"--part {part}: give I/N, e.g. 1/4 to 4/4")
    numbered = int(share[0]), int(share[1])
    chosen = load_bundle(find_bundle(bundles, bundle))
    with progress_bars() as reporter:
        done = write_slates(chosen, out, k=k, placement=placement, part=numbered, progress=reporter.steps)
    if as_json:
        print_json(asdict(done) | {"folder": str(done.folder)})
        return
    typer.echo(f"{out}: {done.rows:,} rows for {done.users:,} users; {done.there} of {done.shards} shards were there")


def tune(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    trials: int = typer.Option(30, min=1, help="How many are to be there in the end."),
    minutes: float | None = typer.Option(None, min=0.0, help="No trial begins after so many minutes."),
    only: str = typer.Option("", help="Settings to search, as towers.dropout,training.learning_rate. [all]"),
    as_json: bool = typer.Option(False, "--json", help="Print the trials and the best settings as one JSON object."),
    track: bool = typer.Option(True, "--track/--no-track", help="Record the search in MLflow, a run for each trial."),
) -> None:
    """Search settings of the towers by the validation window: trials, and the best as lines of a configuration.

    May be stopped at any time: run again, it goes on. Without the reranker, and test events are not looked at: what
    the best is worth, `recsys evaluate` says.
    Example: recsys tune movielens --trials 20 --only towers.dropout,training.learning_rate
    """
    from dataclasses import asdict

    from rich.console import Console

    from experiments.config import load_config
    from experiments.pipelines.tune import tune as run
    from experiments.tracking.mlflow import MlflowTracker, NullTracker

    keys = [key.strip() for key in only.split(",") if key.strip()]
    config, tracker = load_config(config_path(name)), MlflowTracker() if track else NullTracker()
    with progress_bars() as reporter:
        found = run(config, tracker, reporter, trials=trials, minutes=minutes, only=keys)
    if as_json:
        print_json(asdict(found))
    else:
        Console(width=max(Console().width, 175)).print(found.render())
