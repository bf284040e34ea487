"""`recsys serve`, `keys`, `doctor` and `search`: the service, its API keys, what it needs, a search without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from recsys.cli.options import bind, bundles_folder, given_path, given_text, print_json, show

keys_app = typer.Typer(
    help="API keys of the service: create, list and revoke them while it runs.", no_args_is_help=True
)

NAME = typer.Argument(..., metavar="NAME", help="Who has the key, e.g. shop-backend.", parser=given_text)
KEYS = typer.Option(
    None, "--keys", help="File of the keys. [setting KEYS of the service, or keys.jsonl]", parser=given_path
)


@keys_app.command("create")
def keys_create(
    name: str = NAME,
    role: str = typer.Option("read", help="What the key may do: read, write (also read) or admin (everything)."),
    limit: str | None = typer.Option(None, help="Calls in a period, e.g. 100/second, 6000/minute. [no limit]"),
    expires: str | None = typer.Option(None, help="Last moment of the key, e.g. 2027-01-31T12:00:00Z. [never]"),
    keys: Path | None = KEYS,
) -> None:
    """Create a key, print it once, and append its SHA-256 to the file. A running service knows it within a second.

    To rotate a key: create one with another name, give it to its user, and revoke the former one.
    Example: recsys keys create shop-backend --role write --limit 200/second
    """
    from serving.access.key_file import create_key
    from serving.access.roles import ROLES

    if role not in ROLES:
        raise typer.BadParameter(f"--role {role!r}: give one of {', '.join(ROLES)}")
    file = _key_file(keys)
    secret = create_key(file, name, role, limit, expires)
    typer.echo(f"{file}: key {name!r} of the role {role}; this is the only time that it is shown:", err=True)
    typer.echo(secret)


@keys_app.command("list")
def keys_list(keys: Path | None = KEYS, as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the keys: name, role, limit, expiry. A key itself is nowhere.

    Example: recsys keys list --keys keys.jsonl
    """
    from rich.table import Table

    from serving.access.key_file import load_keys

    known = load_keys(_key_file(keys))
    if as_json:
        print_json([key.model_dump(exclude={"sha256"}) for key in known])
        return
    table = Table("name", "role", "limit", "expires")
    for key in known:
        table.add_row(key.name, key.role, key.limit or "none", key.expires or "never")
    show(table)


@keys_app.command("revoke")
def keys_revoke(name: str = NAME, keys: Path | None = KEYS) -> None:
    """Remove a key from the file. A running service refuses it within a second.

    Example: recsys keys revoke shop-backend
    """
    from serving.access.key_file import revoke_key

    file = _key_file(keys)
    revoke_key(file, name)
    typer.echo(f"{file}: key {name!r} is revoked")


def _key_file(given: Path | None) -> Path:
    """The file of the keys: of the option, else of the setting, else keys.jsonl."""
    import os

    from serving.settings import load_settings

    return load_settings(os.environ, keys=given).keys or Path("keys.jsonl")


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
    keys: Path | None = typer.Option(
        None, help="File of API keys (`recsys keys`); it is read again when it changes.", parser=given_path
    ),
    unprotected: bool | None = typer.Option(
        None, "--unprotected", help="Listen on any address without keys: a gateway in front checks who calls."
    ),
    host: str | None = typer.Option(None, help="Address to listen on. [127.0.0.1]"),
    port: int | None = typer.Option(None, help="Port to listen on. [8000]"),
    workers: int | None = typer.Option(None, help="Processes that answer requests; SIGUSR1 restarts them. [1]"),
) -> None:
    """Serve the current bundle: a demo page at /, the API at /v1, and its documentation at /docs.

    Without keys, only this machine is served. Every option can be set by an environment variable
    RECSYS_SERVE__NAME. The feature store is the Redis server at REDIS_URL. Without REDIS_URL, the command starts a
    Redis server of its own. Ctrl-C stops the service when the running requests are finished.
    Example: recsys serve --bundles bundles --port 8000
    """
    import os

    # requests run in parallel on the cores: more threads in each of them would only compete
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from features.errors import ConfigError
    from serving.access.origins import check_exposure
    from serving.settings import load_settings

    given = {"bundles": bundles, "log": log, "rules": rules, "experiments": experiments, "host": host, "port": port}
    settings = load_settings(os.environ, **given, keys=keys, unprotected=unprotected, workers=workers)
    if settings.bundles.exists() and not settings.bundles.is_dir():
        raise ConfigError(f"{settings.bundles}: a file; --bundles takes a folder")
    sockets = bind(settings.host, settings.port)
    try:
        addresses = [listener.getsockname()[0] for listener in sockets]
        check_exposure(addresses, keys=settings.keys is not None, unprotected=settings.unprotected)
        if settings.workers > 1:
            from serving.workers.supervisor import run_workers

            run_workers(settings, sockets)
        else:
            from serving.app import create_app
            from serving.workers.run import run_service

            if not run_service(settings, sockets, create_app):
                raise typer.Exit(1)
    finally:
        for listener in sockets:
            listener.close()


_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


def doctor(as_json: bool = typer.Option(False, "--json", help="Print the checks as one JSON object.")) -> None:
    """Check what `recsys serve` would use: bundle, index, encoders, store, clock, log, disk, keys, rules and so on.

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
