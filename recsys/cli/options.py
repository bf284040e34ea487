"""Shared by the commands: help texts of options, configurations by name, output."""

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import socket

    from rich.console import RenderableType

    from experiments.evaluation.ranking import Comparison
    from experiments.tracking.progress import Reporter

RULES = "File of a shop's rules about what is shown, in YAML."
CONFIG = "A configuration file, or the name of a shipped configuration: movielens, complete-journey, beauty, ..."

MAX_SECONDS = 365 * 86_400
MIN_BYTES = 64 << 20


def given_path(text: str | Path) -> Path:
    """The parser of every path that a command takes.

    Raises BadParameter for an empty one, which a shell passes where a variable is not set, and which would be taken
    for the working folder; and for one whose bytes are not UTF-8, which polars does not take.
    """
    if text == "":
        raise typer.BadParameter("the path is empty: name a file or a folder")
    if any("\ud800" <= character <= "\udfff" for character in str(text)):
        raise typer.BadParameter(f"{os.fsencode(text)!r} is not UTF-8: rename it, or choose another path")
    return Path(text)


def given_text(text: str) -> str:
    """The parser of a name that a command takes: a shell passes an empty one where a variable is not set.

    Raises BadParameter for it, and for a text that no server and no file takes as a name.
    """
    from features.ids import TEXT_RULES, id_error

    if reason := id_error(text, TEXT_RULES):
        raise typer.BadParameter(reason)
    return text


def log_folder(folder: Path) -> Path:
    """The folder of an event log that a command reads. Raises ConfigError when it does not exist, or is no log."""
    from features.errors import ConfigError
    from features.log.segments import NO_LOG, is_log

    takes = "--log takes the folder of the event log"
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "there is no such folder"
        raise ConfigError(f"{folder}: {what}; {takes}")
    if not is_log(folder):
        raise ConfigError(f"{folder} {NO_LOG}; {takes}")
    return folder


def config_path(name: str) -> Path:
    """See `experiments.config.find_config`."""
    from experiments.config import find_config

    return find_config(name)


def bundles_folder(root: Path) -> Path:
    """The folder of the bundles. Raises ConfigError when there is no such folder."""
    from features.errors import ConfigError

    if not root.exists():
        raise ConfigError(f"{root}: no such folder of bundles; run `recsys train CONFIG`, or give --bundles FOLDER")
    if not root.is_dir():
        raise ConfigError(f"{root}: a file; --bundles takes the folder that `recsys train` wrote bundles to")
    if (root / "manifest.json").is_file():
        raise ConfigError(f"{root} is a bundle; its parent holds the bundles: give --bundles {root.parent}")
    return root


def bind(host: str, port: int) -> "list[socket.socket]":
    """Sockets of all addresses of a host, before anything else is loaded; they refuse connections until they listen.

    port: 0 takes a free one.

    Raises ConfigError for a port that is taken or not allowed, and for a host that is not one of this machine.
    """
    import errno
    import socket

    from features.errors import ConfigError

    remedies = {
        errno.EADDRINUSE: f"port {port} is taken: choose another one with --port",
        errno.EACCES: f"port {port} needs the rights of root: choose one from 1024 on with --port",
        errno.EADDRNOTAVAIL: f"{host} is not an address of this machine: choose another one with --host",
    }
    if not host:  # the system would take it for all addresses
        raise ConfigError("the host is empty: give an address with --host, e.g. 127.0.0.1; 0.0.0.0 is all of them")
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            listener = socket.socket(family, kind, protocol)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
    except (socket.gaierror, UnicodeError):  # the latter for a name that no host can have
        raise ConfigError(f"host {host!r} has no address: choose one of this machine with --host") from None
    except OSError as error:
        for listener in sockets:
            listener.close()
        message = remedies.get(
            error.errno or 0, f"{host} port {port}: {error.strerror}; choose another --host or --port"
        )
        raise ConfigError(message) from None
    return sockets


def print_json(value: object) -> None:
    """Print a value as one line of JSON; it may contain numpy values."""
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode())


def show(table: "RenderableType", width: int = 100) -> None:
    """Print a table for people. width: the smallest number of columns; a narrower table cuts its figures off."""
    from rich.console import Console

    Console(width=max(Console().width, width)).print(table)


def print_tables(tables: "list[Comparison]") -> None:
    """Print the tables of an evaluation, one for each placement."""
    for table in tables:
        show(table.render(), 175)


def progress_bars() -> "AbstractContextManager[Reporter]":
    """Progress bars and lines on standard error while a command runs."""
    from experiments.tracking.progress import terminal

    return terminal()


def seconds_of(option: str, text: str | None) -> float | None:
    """Seconds of a duration such as 30s, 5m, 12h or 7d; None for None. Raises BadParameter."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]] if found else 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise typer.BadParameter(f"{option} {text!r}: give a number and s, m, h or d, e.g. 5m, at most 365d")
    return seconds


def bytes_of(option: str, text: str) -> int:
    """Bytes of a size such as 500M or 4G, in powers of 1024. Raises BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    size = float(found[1]) * 1024 ** (1 + "KMGT".index(found[2].upper())) if found else 0.0
    if not MIN_BYTES <= size < 2**50:
        raise typer.BadParameter(f"{option} {text!r}: give a number and M, G or T, e.g. 4G, at least 64M")
    return int(size)


def micros_of(option: str, text: str) -> int:
    """Time (µs since 1970 UTC) of a date or an ISO 8601 time; without an offset it is UTC. Raises BadParameter."""
    from datetime import UTC, datetime

    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{option} {text!r}: give a date or a time, e.g. 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round(at.timestamp() * 1e6)


def repeat(work: Callable[[], None], pause: float) -> None:
    """Do something every `pause` seconds until Ctrl-C or SIGTERM. An error is printed, and the next time comes."""
    import signal
    from threading import Event
    from time import monotonic

    from features.errors import RecsysError

    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        due = monotonic() + pause
        try:
            work()
        except (RecsysError, OSError) as error:
            typer.echo(f"error: {error}; the next try is in {max(0.0, due - monotonic()):.0f} s", err=True)
        stop.wait(max(0.0, due - monotonic()))
