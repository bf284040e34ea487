"""`recsys serve`, `recsys doctor` and `recsys search`: the service, what it needs, and a search without it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from recsys.cli.options import bind, bundles_folder, given_path, print_json, show

if TYPE_CHECKING:
    import socket

    from serving.settings import ServeSettings


def serve(
    bundles: Path | None = typer.Option(
        None,
        help="Folder of the bundles; its `current` bundle is served. [bundles]",
        parser=given_path,
    ),
    log: Path | None = typer.Option(None, help="Folder of the event log. [state/log]", parser=given_path),
    rules: Path | None = typer.Option(
        None, help="File of rules about what is shown, in YAML; it is read again when it changes.", parser=given_path
    ),
    experiments: Path | None = typer.Option(
        None, help="File of experiments, in YAML; it is read again when it changes.", parser=given_path
    ),
    host: str | None = typer.Option(None, help="Address to listen on. [127.0.0.1]"),
    port: int | None = typer.Option(None, help="Port to listen on. [8000]"),
) -> None:
    """Serve the current bundle: a demo page at /, the API at /v1, and its documentation at /docs.

    Every option can be set by an environment variable RECSYS_SERVE__NAME. The feature store is the Redis server at
    REDIS_URL. Without REDIS_URL, the command starts a Redis server of its own. Ctrl-C stops the service when the
    running requests are finished.
    Example: recsys serve --bundles bundles --port 8000
    """
    import os

    # requests run in parallel on the cores: more threads in each of them would only compete
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from features.errors import ConfigError
    from serving.settings import load_settings

    given = {"bundles": bundles, "log": log, "rules": rules, "experiments": experiments, "host": host, "port": port}
    settings = load_settings(os.environ, **given)
    if settings.bundles.exists() and not settings.bundles.is_dir():
        raise ConfigError(f"{settings.bundles}: a file; --bundles takes a folder")
    sockets = bind(settings.host, settings.port)
    try:
        _serve(settings, sockets)
    finally:
        for listener in sockets:
            listener.close()


def _serve(settings: "ServeSettings", sockets: "list[socket.socket]") -> None:
    """Run the service on bound sockets until Ctrl-C, SIGTERM, or SIGHUP, which a terminal sends when it is closed."""
    import errno
    import logging
    import os
    import signal
    from contextlib import suppress

    from features.errors import ConfigError
    from serving.app import create_app
    from serving.http import http_server

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logger = logging.getLogger("recsys")
    logger.setLevel(logging.INFO)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    app = create_app(settings)
    app.state.service.open()  # a log or store that cannot be opened is an error before anything is announced
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        logger.info("serving at http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server = http_server(app, loop="uvloop", timeout_graceful_shutdown=10)
    try:
        with suppress(KeyboardInterrupt):  # Ctrl-C is how the service is stopped
            server.run(sockets=sockets)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConfigError(f"port {settings.port} was taken during the start: choose another with --port") from None
    if app.state.encoder_pool.encodes:  # e.g. a large model is being loaded; everything else is closed
        logging.shutdown()
        os._exit(0)
    if not server.started:
        raise typer.Exit(1)


_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


def doctor(as_json: bool = typer.Option(False, "--json", help="Print the checks as one JSON object.")) -> None:
    """Check what `recsys serve` would use: bundle, index, encoders, store, clock, log, disk, rules, experiments.

    It reads the settings of the service, RECSYS_SERVE__NAME and REDIS_URL, and changes nothing. The exit status is 1
    when a check failed. Example: REDIS_URL=redis://localhost:6379 recsys doctor
    """
    import os
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from serving.doctor import Doctor
    from serving.settings import load_settings

    checks = list(Doctor(load_settings(os.environ)).run())
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        table = Table("", "", "", show_header=False)
        for check in checks:
            table.add_row(check.name, _MARKS[check.status], Text(check.text))
        show(table, 120)
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)


def search(
    text: str | None = typer.Option(None, help="Text to search for."),
    image: Path | None = typer.Option(None, help="An image file: JPEG, PNG, WebP or GIF.", parser=given_path),
    audio: Path | None = typer.Option(None, help="A sound file: WAV, FLAC, OGG or MP3.", parser=given_path),
    video: Path | None = typer.Option(None, help="A video file: MP4 or WebM.", parser=given_path),
    k: int = typer.Option(10, min=1, max=1000, help="Number of items to find."),
    bundles: Path = typer.Option(
        Path("bundles"), help="Folder of the bundles; its `current` bundle is searched.", parser=given_path
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Find items by text, an image, a sound, a video, or a combination, and show which of them each item is near to.

    Parts of the query that cannot be read are reported on standard error.
    Example: recsys search --text "a dog on a beach"
    """
    from features.content.parts import Audio, Content, Image, Part, Text, Video
    from features.errors import ConfigError, ContentError
    from recsys.bundle.io import load_bundle
    from recsys.bundle.query import search_bundle
    from recsys.bundle.registry import current_bundle

    kinds: list[tuple[Callable[[Any], Part], object]] = [(Text, text), (Image, image), (Audio, audio), (Video, video)]
    content = Content(tuple(kind(value) for kind, value in kinds if value is not None))
    if not content.parts:
        raise ConfigError("the query is empty: give --text, --image, --audio or --video")
    for option, file in (("--image", image), ("--audio", audio), ("--video", video)):
        if file is not None:
            _check_file(option, file)
    results = search_bundle(load_bundle(current_bundle(bundles_folder(bundles))), content, k)
    for part, reason in results.failed:
        typer.echo(f"{part} not read: {reason}", err=True)
    if not results.read:
        raise ContentError("no part of the query can be read: see the reasons above")
    if as_json:
        print_json(results)
    else:
        show(results.render())


def _check_file(option: str, file: Path) -> None:
    """Raises ConfigError for a file that is missing or empty, and for what is no file."""
    from features.errors import ConfigError
    from features.files import not_a_file

    if wrong := not_a_file(file):
        raise ConfigError(f"{option} {file}: {wrong}")
    if file.stat().st_size == 0:
        raise ConfigError(f"{option} {file}: the file is empty; give another one")
