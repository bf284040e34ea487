"""`recsys features`: the feature store."""

from pathlib import Path

import typer

from recsys.cli.options import CONFIG, config_path, given_path, print_json, progress_bars

features_app = typer.Typer(help="The feature store: what changes per user between trainings.", no_args_is_help=True)


@features_app.command("refresh")
def features_refresh(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    log: Path | None = typer.Option(
        None, help="Folder of the event log. [data.log of CONFIG, else state/log]", parser=given_path
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Fill the feature store at REDIS_URL from the tables and the event log. A second run changes nothing.

    `recsys serve` does the same when it starts.
    Example: REDIS_URL=redis://localhost:6379/0 recsys features refresh movielens
    """
    import os
    from dataclasses import asdict

    from experiments.config import load_config
    from features.errors import ConfigError
    from features.log.segments import segment_paths
    from features.store.connection import check_url
    from features.store.redis import RedisStore
    from features.store.refresh import refresh
    from features.tables.read import read_tables

    if not (url := os.environ.get("REDIS_URL")):
        raise ConfigError(
            "REDIS_URL is not set: this command fills a running server; set it, e.g. to redis://localhost:6379/0"
        )
    check_url(url)
    if log is not None and not log.exists():
        raise ConfigError(f"{log}: there is no such folder; --log takes the folder of the event log")
    data = load_config(config_path(name)).data
    folder = log or Path(data.log or "state/log")
    segment_paths(folder)  # a log that cannot be listed is an error before the tables are read
    store = RedisStore(url, data.events, timeout=1.0)
    store.ping()
    if warning := store.facts().warning:
        typer.echo(f"warning: {warning}", err=True)
    with progress_bars() as reporter:
        tables = read_tables(data, progress=reporter.steps).events
        report = refresh(store, tables, folder, progress=reporter.steps)
    if as_json:
        print_json(asdict(report))
        return
    typer.echo("filled from the beginning" if report.rebuilt else "updated")
    typer.echo(f"  {report.users:,} users and {report.table_events:,} events from the tables")
    typer.echo(f"  {report.log_events:,} events from the log, {report.damaged:,} damaged lines skipped")
