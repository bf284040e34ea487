"""`recsys log`: the event log of the service; `recsys events`: events that other systems send into it."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from recsys.cli.options import (
    CONFIG,
    MAX_SECONDS,
    config_path,
    given_path,
    given_text,
    log_folder,
    print_json,
    seconds_of,
    show,
)

if TYPE_CHECKING:
    from features.log.upkeep.retention import Held
    from serving.event_consumer import ConsumerReport, EventConsumer
    from serving.settings import ServeSettings

log_app = typer.Typer(
    help="The event log: what it holds, copies of it, and what is deleted from it.", no_args_is_help=True
)

events_app = typer.Typer(help="Events that other systems send.", no_args_is_help=True)

FOLDER = "Folder of the event log. [setting LOG of the service, else state/log]"
AS_JSON = "Print the report as one line."


@log_app.command("status")
def log_status(
    log: Path | None = typer.Option(None, help=FOLDER, parser=given_path),
    check: bool = typer.Option(False, "--check", help="Read all of it: count records and damaged lines exactly."),
    as_json: bool = typer.Option(False, "--json", help=AS_JSON),
) -> None:
    """Show the streams of the log, and how far each registered reader is.

    Example: recsys log status --log state/log
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    from rich.table import Table

    from features.log.readers import registered
    from features.log.status import log_status
    from features.log.upkeep.retention import STALE_SECONDS, expire

    settings = _settings(log)
    status = log_status(settings.log, check=check)
    _, held = expire(settings.log, settings.log_limits, registered(settings.log), dry_run=True)
    if as_json:
        print_json({**asdict(status), "held": [asdict(segments) for segments in held]})
        return

    def at(time: int | None) -> str:
        return "" if time is None else f"{datetime.fromtimestamp(time / 1e6, UTC):%Y-%m-%d %H:%M}"

    table = Table("stream", "segments", "bytes", "records", "oldest (UTC)", "newest (UTC)", "damaged", "torn bytes")
    for s in status.streams:
        records = f"{'' if s.exact else 'about '}{s.records:,}"
        damaged = "not counted" if s.damaged is None else f"{s.damaged:,}"
        times = at(s.oldest), at(s.newest)
        table.add_row(s.stream, f"{s.segments:,}", f"{s.bytes:,}", records, *times, damaged, f"{s.torn:,}")
    show(table, 120)
    for reader in status.readers:
        behind, stale = reader.behind, reader.behind and reader.seconds > STALE_SECONDS
        typer.echo(f"reader {reader.name}: {reader.stream}, {behind:,} bytes behind, {reader.seconds:,.0f} s ago")
        if stale:
            typer.echo(f"  run it, or delete {settings.log}/readers/{reader.name}.json if it no longer exists")
    for segments in held:
        typer.echo(_describe(segments))


@log_app.command("export")
def log_export(
    stream: str = typer.Argument("events", help="events, exposures, items (their changes) or corrections."),
    out: Path = typer.Option(..., help="Folder of the files, one a day: OUT/2026-01-31.parquet.", parser=given_path),
    log: Path | None = typer.Option(None, help=FOLDER, parser=given_path),
    reader: str | None = typer.Option(
        None, help="Register the export: retention keeps what it has not exported.", parser=given_text
    ),
    as_json: bool = typer.Option(False, "--json", help=AS_JSON),
) -> None:
    """Write what is new in a stream to parquet files by day. A second run changes nothing.

    Events have the columns of the events table. Training counts an event once that is in the log and in a table.
    Example: recsys log export events --out exports/events --reader nightly
    """
    from dataclasses import asdict

    from features.errors import ConfigError
    from features.log.export import export
    from features.log.records import STREAMS

    if stream not in STREAMS:
        raise ConfigError(f"{stream!r} is no stream of the log; choose from {', '.join(STREAMS)}")
    named = next(name for name in STREAMS if name == stream)
    report = export(_settings(log).log, named, out, reader=reader or "")
    if as_json:
        print_json(asdict(report))
        return
    typer.echo(f"{report.records:,} new records in {len(report.days):,} files")
    if report.damaged:
        typer.echo(f"{report.damaged:,} damaged lines skipped")


@log_app.command("outcomes")
def log_outcomes(
    out: Path = typer.Argument(..., help="The parquet file to write, e.g. outcomes.parquet.", parser=given_path),
    within: str = typer.Option("7d", help="Length of the window after an exposure in which events count."),
    log: Path | None = typer.Option(None, help=FOLDER, parser=given_path),
    as_json: bool = typer.Option(False, "--json", help=AS_JSON),
) -> None:
    """Write what happened after each answer: one row for each item that was exposed, with the events that followed.

    Example: recsys log outcomes outcomes.parquet --within 7d
    """
    from dataclasses import asdict

    from features.log.outcomes.table import write_outcomes

    seconds = seconds_of("--within", within)
    assert seconds is not None
    report = write_outcomes(_settings(log).log, out, int(seconds * 1e6))
    if as_json:
        print_json(asdict(report))
        return
    typer.echo(f"{out}: {report.rows:,} items of {report.answers:,} answers; {report.complete:,} windows are over")
    none = report.events - report.by_request - report.by_user
    typer.echo(
        f"{report.events:,} events: {report.by_request:,} belong to the answer that they name, {report.by_user:,} to "
        f"the latest one to their user, {none:,} to none"
    )
    if report.left_out:
        typer.echo(f"{len(report.left_out):,} seldom event types have no columns, e.g. {report.left_out[0]!r}")
    if report.damaged:
        typer.echo(f"{report.damaged:,} damaged lines skipped")


@log_app.command("prune")
def log_prune(
    log: Path | None = typer.Option(None, help=FOLDER, parser=given_path),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be deleted."),
    as_json: bool = typer.Option(False, "--json", help=AS_JSON),
) -> None:
    """Delete old exposures, compact the changes of items, and take over segments of earlier versions.

    The service does the same every hour, with the same settings: RECSYS_SERVE__EXPOSURES_DAYS and others.
    Example: recsys log prune --dry-run
    """
    from dataclasses import asdict

    from features.errors import LogError
    from features.log.upkeep.prune import prune

    settings = _settings(log)
    report = prune(settings.log, settings.log_limits, dry_run=dry_run)
    if report is None:
        raise LogError(f"another process prunes {settings.log}: try again in a moment")
    if as_json:
        print_json(asdict(report))
        return
    if report.taken_over:
        typer.echo(f"{report.taken_over:,} segments of an earlier version taken over")
    if report.waiting:
        typer.echo(f"{report.waiting:,} segments of an earlier version stay: a service of it may be running")
    if report.compacted:
        typer.echo(f"{report.compacted:,} segments of item changes compacted")
    for deleted in report.deleted:
        verb = "would be deleted" if dry_run else "deleted"
        typer.echo(f"{deleted.stream}: {deleted.segments:,} segments, {deleted.bytes:,} bytes {verb}")
    for held in report.held:
        typer.echo(_describe(held))
    for key in report.damaged:
        typer.echo(f"{key} has damaged lines: it is kept and not compacted")
    if not report.deleted:
        typer.echo("nothing to delete")


def _describe(held: "Held") -> str:
    return f"{held.stream}: {held.segments:,} segments, {held.bytes:,} bytes over the limit kept: {held.why}"


def _settings(log: Path | None) -> "ServeSettings":
    """The settings of the service, of a log that exists. Raises ConfigError."""
    import os

    from serving.settings import load_settings

    settings = load_settings(os.environ, log=log)
    log_folder(settings.log)
    return settings


@events_app.callback()
def _group() -> None:
    pass


@events_app.command("consume")
def events_consume(
    stream: str = typer.Argument(..., help="Name of the Redis Stream.", parser=given_text),
    group: str = typer.Option("recsys", help="Consumer group. Each group gets every entry once.", parser=given_text),
    consumer: str | None = typer.Option(
        None, help="Name in the group, e.g. of a pod that keeps it. [host and process id]", parser=given_text
    ),
    config: str | None = typer.Option(
        None, metavar="CONFIG", help=f"Refuse types that misspell one of its data.events. {CONFIG}"
    ),
    log: Path | None = typer.Option(
        None,
        help="Folder of the event log. [data.log of CONFIG, else setting LOG, else state/log]",
        parser=given_path,
    ),
    idle: float = typer.Option(
        60.0, min=0.0, max=MAX_SECONDS, help="Seconds after which the entries of a dead consumer are taken over."
    ),
    once: bool = typer.Option(False, "--once", help="Take what is there, and end."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Take events from a Redis Stream at REDIS_URL into the event log. Ctrl-C or SIGTERM ends it in order.

    An entry is acknowledged when its event is on disk. Entries that are no events go to the stream STREAM:dead.
    Example: REDIS_URL=redis://localhost:6379/0 recsys events consume clicks
    """
    import logging
    import os
    import socket
    from dataclasses import asdict

    from experiments.config import load_config
    from features.errors import ConfigError
    from features.log.event_log import EventLog
    from features.store.stream import StreamGroup
    from serving.event_consumer import EventConsumer
    from serving.settings import load_settings

    data = load_config(config_path(config)).data if config is not None else None
    settings = load_settings(os.environ)
    if settings.redis_url is None:
        raise ConfigError("REDIS_URL is not set: it names the server of the stream, e.g. redis://localhost:6379/0")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    entries = StreamGroup(settings.redis_url, stream, group, consumer or f"{socket.gethostname()}-{os.getpid()}")
    folder = log or Path((data and data.log) or settings.log)
    writer = EventLog(folder)
    taking = EventConsumer(entries, writer, rules=data.events if data else None, idle=idle)
    try:
        if once:
            taking.drain()
        else:
            _run(taking)
    finally:
        entries.leave()
        writer.close()
    if as_json:
        print_json(asdict(taking.report))
    else:
        _show(taking.report, entries.dead)


def _run(taking: "EventConsumer") -> None:
    """Take events until Ctrl-C or SIGTERM."""
    import signal
    from threading import Event

    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    taking.run(stop)


def _show(report: "ConsumerReport", dead: str) -> None:
    """dead: name of the dead-letter stream."""
    typer.echo(f"{report.accepted:,} events accepted, {report.dead:,} entries moved to {dead}")
    if report.claimed:
        typer.echo(f"{report.claimed:,} entries taken over from other consumers")
    if report.lost:
        typer.echo(f"{report.lost:,} entries were deleted from the stream before they were read: raise its MAXLEN")
