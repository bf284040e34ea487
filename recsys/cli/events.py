"""`recsys events`: events from a Redis Stream."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from recsys.cli.options import CONFIG, config_path, given_path, print_json

if TYPE_CHECKING:
    from serving.event_consumer import ConsumerReport, EventConsumer

events_app = typer.Typer(help="Events that other systems send.", no_args_is_help=True)


@events_app.callback()
def _group() -> None:
    pass


@events_app.command("consume")
def events_consume(
    stream: str = typer.Argument(..., help="Name of the Redis Stream."),
    group: str = typer.Option("recsys", help="Consumer group. Each group gets every entry once."),
    consumer: str = typer.Option("", help="Name in the group, e.g. of a pod that keeps it. [host and process id]"),
    config: str = typer.Option(
        "", metavar="CONFIG", help=f"Refuse types that misspell one of its data.events. {CONFIG}"
    ),
    log: Path | None = typer.Option(
        None,
        help="Folder of the event log. [data.log of CONFIG, else setting LOG, else state/log]",
        parser=given_path,
    ),
    idle: float = typer.Option(
        60.0, min=0.0, help="Seconds after which the entries of a dead consumer are taken over."
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

    data = load_config(config_path(config)).data if config else None
    settings = load_settings(os.environ)
    if settings.redis_url is None:
        raise ConfigError("REDIS_URL is not set: it names the server of the stream, e.g. redis://localhost:6379/0")
    if not (stream and group):
        raise ConfigError("STREAM and --group need names: give each a text")
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
