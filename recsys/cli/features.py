"""`recsys features`: the feature store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from recsys.cli.options import (
    CONFIG,
    bytes_of,
    config_path,
    given_path,
    log_folder,
    print_json,
    progress_bars,
    repeat,
    seconds_of,
)

if TYPE_CHECKING:
    from features.store.jobs.refresh import RefreshReport
    from features.store.redis import RedisStore
    from features.tables.event_files import EventFiles

features_app = typer.Typer(help="The feature store: what changes per user between trainings.", no_args_is_help=True)

LOCKED = 75
"""Exit status when another refresh is running: EX_TEMPFAIL of sysexits.h, try again later."""

DIFFERENT = 3
"""Exit status of `verify` when the store differs from the tables and the log."""

NAME = typer.Argument(..., metavar="CONFIG", help=CONFIG)
LOG = typer.Option(
    None, "--log", help="Folder of the event log. [data.log of CONFIG, else state/log]", parser=given_path
)
MEMORY = typer.Option("4G", help="Memory for the events, e.g. 500M; beyond it, files in TMPDIR are used.")
JSON = typer.Option(False, "--json", help="Print the report as one JSON object.")


@contextmanager
def _opened(name: str, log: Path | None) -> Iterator[tuple["RedisStore", "EventFiles", Path]]:
    """The store at REDIS_URL under the rules of a configuration, its events table, and the folder of the log.

    A lock that another refresh holds ends the command with status LOCKED.
    """
    import os

    from experiments.config import load_config
    from experiments.preflight import check_log
    from features.errors import ConfigError
    from features.store.base import StoreLockedError
    from features.store.connection import check_url
    from features.store.redis import RedisStore
    from features.tables.event_files import EventFiles

    if not (url := os.environ.get("REDIS_URL")):
        raise ConfigError(
            "REDIS_URL is not set: this command needs a running server; set it, e.g. to redis://localhost:6379/0"
        )
    check_url(url)
    data = load_config(config_path(name)).data
    if log is None:
        check_log(data.log)
    folder = Path(data.log or "state/log") if log is None else log_folder(log)
    store = RedisStore(url, data.events, timeout=1.0)
    store.ping()
    if warning := store.facts().warning:
        typer.echo(f"warning: {warning}", err=True)
    try:
        yield store, EventFiles(data), folder
    except StoreLockedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(LOCKED) from None
    finally:
        store.close()


@features_app.command("refresh")
def features_refresh(
    name: str = NAME,
    log: Path | None = LOG,
    every: str | None = typer.Option(None, help="Do it again and again: the time from start to start, e.g. 5m."),
    memory: str = MEMORY,
    as_json: bool = typer.Option(False, "--json", help="Print the report of each refresh as one line."),
) -> None:
    """Bring the feature store at REDIS_URL up to date with the tables and the event log.

    Only what is new is read. A second run changes nothing. Exit status: 0 done; 75 another refresh is running;
    1 any other error, after which it can be run again.
    Example: REDIS_URL=redis://localhost:6379/0 recsys features refresh movielens --every 5m
    """
    from features.store.jobs.refresh import refresh

    pause, limit = seconds_of("--every", every), bytes_of("--memory", memory)
    with _opened(name, log) as (store, tables, folder):

        def once() -> None:
            with progress_bars() as reporter:
                report = refresh(store, tables, folder, memory=limit, progress=reporter.steps)
            _print(report, as_json)

        if pause is None:
            once()
        else:
            repeat(once, pause)


def _print(report: "RefreshReport", as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json(asdict(report))
        return
    typer.echo(f"filled from the beginning: {report.why}" if report.rebuilt else "updated")
    for name in ("added", "grown", "changed", "removed"):
        if files := getattr(report, name):
            typer.echo(f"  {len(files):,} files {name}: {', '.join(files[:3])}{', …' if len(files) > 3 else ''}")
    typer.echo(f"  {report.users:,} users and {report.table_events:,} events from the tables")
    if report.rejected:
        typer.echo(f"  {report.rejected:,} rows are not valid, or of erased users: `recsys data check` says why")
    typer.echo(f"  {report.log_events:,} events from the log, {report.damaged:,} damaged lines skipped")
    if report.dropped:
        typer.echo(f"  {report.dropped:,} stores of other rules, which nobody has read for 30 days, are deleted")
    if report.late:
        typer.echo(f"  {report.late:,} of the events are older than the newest one before")


@features_app.command("backfill")
def features_backfill(
    name: str = NAME,
    start: str = typer.Option(..., "--from", metavar="TIME", help="Time of the first event, e.g. 2026-01-31 (UTC)."),
    end: str = typer.Option(..., "--to", metavar="TIME", help="Time of the first event that is left out."),
    log: Path | None = LOG,
    memory: str = MEMORY,
    as_json: bool = JSON,
) -> None:
    """Write the events of a span of time again, those of the tables and of the log. What is there stays.

    Exit status: as of `refresh`.
    Example: recsys features backfill movielens --from 2026-01-01 --to 2026-02-01
    """
    from features.store.jobs.verify import backfill
    from recsys.cli.options import micros_of

    first, last = micros_of("--from", start), micros_of("--to", end)
    if first >= last:
        raise typer.BadParameter(f"--from {start} is not before --to {end}: no event lies between them")
    with _opened(name, log) as (store, tables, folder):
        users, events = backfill(store, tables, folder, first, last, memory=bytes_of("--memory", memory))
    if as_json:
        print_json({"users": users, "events": events})
    else:
        typer.echo(f"{events:,} events of {users:,} users of the tables, and those of the log, are written")


@features_app.command("status")
def features_status(name: str = NAME, log: Path | None = LOG, as_json: bool = JSON) -> None:
    """How fresh and how large the store is, what is new for it, and what the last refreshes did.

    Example: recsys features status movielens
    """
    from dataclasses import asdict

    from features.store.jobs.status import store_status

    with _opened(name, log) as (store, tables, folder):
        status = store_status(store, tables, folder)
    if as_json:
        print_json(asdict(status))
        return
    filled = "filled" if status.filled else "not filled: run `recsys features refresh`"
    age = "never refreshed" if status.age is None else f"refreshed {status.age:,.0f} s ago"
    typer.echo(f"{filled}, {age}, generation {status.generation or 'none'}")
    limit = f" of {status.limit / 2**20:,.0f} MiB" if status.limit else ""
    typer.echo(f"  {status.users:,} users, {status.bytes / 2**20:,.1f} MiB{limit} used by the server")
    typer.echo(f"  {status.behind:,} bytes of the log are not read yet")
    for what, files in (("new rows", status.new), ("changed or removed rows", status.changed)):
        if files:
            typer.echo(f"  {what} in {', '.join(files[:3])}{', …' if len(files) > 3 else ''}")
    if status.evicted:
        typer.echo("  the server has deleted keys to make room: a running service fills the store again")
    for run in status.runs[:5]:
        kind = "rebuilt" if run["rebuilt"] else "updated"
        typer.echo(f"  {kind} in {run['seconds']:,} s: {run['table_events']:,} + {run['log_events']:,} events")


@features_app.command("verify")
def features_verify(name: str = NAME, log: Path | None = LOG, as_json: bool = JSON) -> None:
    """Compare the state of every user with the tables and the log. It needs the memory of all states.

    Exit status: 0 equal; 3 different; 1 an error.
    Example: recsys features verify movielens
    """
    from dataclasses import asdict

    from features.store.jobs.verify import verify

    with _opened(name, log) as (store, tables, folder):
        found = verify(store, tables, folder)
    if as_json:
        print_json(asdict(found) | {"equal": not found})
    else:
        typer.echo(f"{found.users:,} users compared: {'different' if found else 'all equal'}")
        for kind, what in (
            ("missing", "lacks"),
            ("extra", "has more than the sources"),
            ("other", "has other states of"),
        ):
            if count := getattr(found, kind):
                typer.echo(f"  the store {what} {count:,} users: {', '.join(found.examples[kind])}")
    if found:
        raise typer.Exit(DIFFERENT)
