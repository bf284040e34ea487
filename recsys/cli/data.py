"""`recsys data` and `recsys embed`: get a data set, check tables, embed contents."""

from typing import Any

import typer

from recsys.cli.options import CONFIG, config_path, print_json, progress_bars, show

data_app = typer.Typer(
    help="Get a data set by name, and check tables against the data contract.", no_args_is_help=True
)


@data_app.command("get")
def data_get(
    name: str = typer.Argument(..., metavar="CONFIG_OR_NAME", help=CONFIG),
    force: bool = typer.Option(False, "--force", help="Overwrite existing tables."),
    category: str | None = typer.Option(None, help="Source amazon-2023: the category, e.g. All_Beauty."),
    as_json: bool = typer.Option(False, "--json", help="Print source.json as one JSON object."),
) -> None:
    """Write the tables of a data set into its folder: items.parquet, events.parquet, source.json.

    Example: recsys data get movielens
    """
    import json
    from functools import partial

    from experiments.config import load_config
    from experiments.simulation.people import SIMULATED
    from experiments.simulation.shoppers import shopper_events
    from features.tables.sources import get
    from features.tables.sources.amazon_2023 import of_category

    run = load_config(config_path(name))
    config = run.data if category is None else of_category(run.data, category)
    typer.echo(f"getting {config.source} into {config.path}", err=True)  # a download shows its own progress bar
    folder = get(config, force=force, simulate=partial(shopper_events, seed=run.seed))
    manifest = folder / "source.json"
    facts: dict[str, Any] = {"name": config.source}
    if manifest.is_file():
        facts = json.loads(manifest.read_text(encoding="utf-8"))
    if as_json:
        print_json(facts | {"path": str(folder)})
        return
    typer.echo(f"{config.source} is in {folder}" + (f", from {facts['origin']}" if "origin" in facts else ""))
    for file, table in facts.get("files", {}).items():
        typer.echo(f"  {file}: {table['rows']:,} rows")
    for note in facts.get("notes", []):
        typer.echo(f"  note: {note}")
    if facts.get("simulated"):
        typer.echo(f"  the events are {SIMULATED}")
    if "terms" in facts:
        typer.echo(f"  terms of use: {facts['terms']}")
    typer.echo(f"next: recsys data check {name}")


@data_app.command("check")
def data_check(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one JSON object."),
) -> None:
    """Read the tables and the event log, and report what `recsys train` would: rows kept, repaired and rejected, with
    their places and what to do, and why training would be refused. Exit status 1 when the tables cannot be read.

    Example: recsys data check configs/movielens.yaml
    """
    from experiments.config import load_config
    from experiments.dataset import load_dataset
    from experiments.pipelines.rolling_windows import evaluation_windows
    from experiments.preflight import check_log
    from features.errors import ConfigError, DataError

    config = load_config(config_path(name))
    check_log(config.data.log)
    with progress_bars() as reporter:
        dataset = load_dataset(config, reporter.steps)
    refusal = None
    try:
        evaluation_windows(config, dataset)
    except (ConfigError, DataError) as error:
        refusal = str(error)
    if as_json:
        print_json(dataset.report.to_dict() | {"refusal": refusal})
        return
    show(dataset.report.render())
    if refusal is not None:
        typer.echo(f"training would be refused: {refusal}")


def embed(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    retry: bool = typer.Option(False, "--retry", help="Try again contents that could not be read before."),
    refetch: bool = typer.Option(False, "--refetch", help="Fetch URLs again and embed what they return."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one JSON object."),
) -> None:
    """Compute the vectors of item contents: texts, images, sounds and videos. Unchanged contents are not recomputed.

    The command can be killed and run again at any time: finished vectors are kept. The next `recsys train` uses them.
    Example: recsys embed movielens
    """
    from dataclasses import asdict

    from experiments.config import load_config
    from experiments.dataset import embed_catalog

    config = load_config(config_path(name))
    with progress_bars() as reporter:
        report, items = embed_catalog(config, retry=retry, refetch=refetch, progress=reporter.steps)
    if as_json:
        encoders = [
            asdict(encoder) | {"space": str(encoder.space), "items_per_second": encoder.per_second}
            for encoder in report.encoders
        ]
        print_json({"items": items.to_dict(), "encoders": encoders, "failures": str(report.failures)})
        return
    for encoder in report.encoders:
        typer.echo(
            f"{encoder.encoder}: {encoder.readable:,} of {encoder.contents:,} items have it; {encoder.cached:,} "
            f"cached, {encoder.computed:,} computed ({encoder.per_second:,.1f}/s), {encoder.failed:,} parts failed"
        )
        for failure in encoder.first:
            typer.echo(f"  item {failure.row + 1}, part {failure.part + 1}: {failure.reason}")
    if any(encoder.failed for encoder in report.encoders):
        typer.echo(f"all failures: {report.failures}")
