"""`recsys data`, `recsys embed`: get a data set, check tables, embed contents."""

from typing import Any

import typer

from recsys.cli.options import CONFIG, config_path, print_json, progress_bars

data_app = typer.Typer(help="Get a data set by name; check tables against the data contract.", no_args_is_help=True)


@data_app.command("get")
def data_get(
    name: str = typer.Argument(..., metavar="CONFIG_OR_NAME", help=CONFIG),
    force: bool = typer.Option(False, "--force", help="Write anew what is there already."),
    as_json: bool = typer.Option(False, "--json", help="Print source.json as one line."),
) -> None:
    """Write the tables of a data set into its folder: items.parquet, events.parquet, source.json.

    Example: recsys data get movielens
    """
    import json

    from experiments.config import load_config
    from features.tables.sources import get

    config = load_config(config_path(name)).data
    typer.echo(f"getting {config.source} into {config.path}", err=True)  # a download draws its own progress bar
    folder = get(config, force=force)
    manifest = folder / "source.json"
    told: dict[str, Any] = {"name": config.source}
    if manifest.is_file():
        told = json.loads(manifest.read_text(encoding="utf-8"))
    if as_json:
        print_json(told | {"path": str(folder)})
        return
    typer.echo(f"{config.source} is in {folder}" + (f", from {told['origin']}" if "origin" in told else ""))
    for file, about in told.get("files", {}).items():
        typer.echo(f"  {file}: {about['rows']:,} rows")
    for note in told.get("notes", []):
        typer.echo(f"  note: {note}")
    if "terms" in told:
        typer.echo(f"  terms of use: {told['terms']}")
    typer.echo(f"next: recsys data check {name}")


@data_app.command("check")
def data_check(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Read the tables and report what was kept, repaired and set aside, with places and what to do.

    Example: recsys data check configs/movielens.yaml
    """
    from rich.console import Console

    from experiments.config import load_config
    from features.tables.read import read_tables

    config = load_config(config_path(name)).data
    with progress_bars() as reporter:
        report = read_tables(config, progress=reporter.steps).report
    if as_json:
        print_json(report.to_dict())
    else:
        Console().print(report.render())


def embed(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    retry: bool = typer.Option(False, "--retry", help="Try again what could not be read before."),
    refetch: bool = typer.Option(False, "--refetch", help="Embed again what is behind URLs."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Turn what items show, say and sound like into vectors; only what is new or changed is computed.

    May be killed and run again at any time. The next `recsys train` uses what is there.
    Example: recsys embed movielens
    """
    from dataclasses import asdict

    from experiments.config import load_config
    from experiments.dataset import embed_catalog

    config = load_config(config_path(name))
    with progress_bars() as reporter:
        done, items = embed_catalog(config, retry=retry, refetch=refetch, progress=reporter.steps)
    if as_json:
        encoders = [
            asdict(one) | {"space": str(one.space), "items_per_second": one.per_second} for one in done.encoders
        ]
        print_json({"items": items.to_dict(), "encoders": encoders, "failures": str(done.failures)})
        return
    for one in done.encoders:
        typer.echo(
            f"{one.encoder}: {one.readable:,} of {one.contents:,} items have it; {one.cached:,} known, "
            f"{one.computed:,} computed ({one.per_second:,.1f}/s), {one.failed:,} parts failed"
        )
        for failure in one.first:
            typer.echo(f"  item {failure.row + 1}, part {failure.part + 1}: {failure.reason}")
    if any(one.failed for one in done.encoders):
        typer.echo(f"all failures: {done.failures}")
