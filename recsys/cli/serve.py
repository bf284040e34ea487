"""`recsys serve` and `recsys search`: the service, and one search without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from recsys.cli.options import print_json


def serve(
    bundles: Path | None = typer.Option(None, help="Folder of the bundles; `current` in it is served. [bundles]"),
    log: Path | None = typer.Option(None, help="Folder of the event log. [state/log]"),
    host: str | None = typer.Option(None, help="Address to listen on. [127.0.0.1]"),
    port: int | None = typer.Option(None, help="Port to listen on. [8000]"),
) -> None:
    """Serve the current bundle: the page at /, the API at /v1, its documentation at /docs.

    Every option can be given as RECSYS_SERVE__NAME. The feature store is at REDIS_URL, else a private server.
    Ctrl-C stops it after the requests under way. Example: recsys serve --bundles bundles --port 8000
    """
    import logging
    import os

    # requests share the cores already: more threads inside each would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    import uvicorn
    from pydantic import ValidationError

    from features.errors import ConfigError
    from serving.app import create_app
    from serving.settings import ServeSettings

    given = {"bundles": bundles, "log": log, "host": host, "port": port}
    try:
        settings = ServeSettings.model_validate({})
        settings = ServeSettings(**{**settings.model_dump(), **{k: v for k, v in given.items() if v is not None}})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"setting {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"
        ) from None
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


def search(
    text: str | None = typer.Option(None, help="Words."),
    image: Path | None = typer.Option(None, help="A picture: JPEG, PNG, WebP or GIF."),
    audio: Path | None = typer.Option(None, help="A sound: WAV, FLAC, OGG or MP3."),
    video: Path | None = typer.Option(None, help="A video: MP4 or WebM."),
    k: int = typer.Option(10, min=1, max=1000, help="How many items."),
    bundles: Path = typer.Option(Path("bundles"), help="Folder of the bundles; `current` in it is searched."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Find items by words, a picture, a sound, a video, or any mixture of them, and say in what they are near.

    Parts that cannot be read are told on standard error. Example: recsys search --text "a dog on a beach"
    """
    from rich.console import Console

    from features.content.parts import Audio, Content, Image, Part, Text, Video
    from features.errors import ConfigError, ContentError
    from recsys.bundle.io import load_bundle
    from recsys.bundle.query import search_bundle
    from recsys.bundle.registry import current_bundle

    kinds: list[tuple[Callable[[Any], Part], object]] = [(Text, text), (Image, image), (Audio, audio), (Video, video)]
    content = Content(tuple(kind(given) for kind, given in kinds if given is not None))
    if not content.parts:
        raise ConfigError("nothing to search by: give --text, --image, --audio or --video")
    found = search_bundle(load_bundle(current_bundle(bundles)), content, k)
    for part, reason in found.failed:
        typer.echo(f"{part} not read: {reason}", err=True)
    if not found.read:
        raise ContentError("nothing of the query could be read")
    if as_json:
        print_json(found)
    else:
        Console().print(found.render())
