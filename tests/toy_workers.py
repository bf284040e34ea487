"""A service of several workers with a toy bundle: python toy_workers.py FOLDER DESCRIPTOR WORKERS is its parent.

Each answer names its process in the header X-Worker.
"""

import os
import sys
from pathlib import Path
from socket import socket
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from toy_service import ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents

from serving.app import create_app
from serving.settings import ServeSettings
from serving.workers.supervisor import run_workers
from serving.workers.worker import run_worker


class NameWorker:
    """Middleware that names the process."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", str(os.getpid()).encode())]
            await send(message)

        await self.app(scope, receive, sending)


def toy_app(settings: ServeSettings, private_url: str | None) -> FastAPI:
    shelf = ToyShelf(with_contents(toy_bundle(settings.bundles.parent)))
    toys: dict[str, Any] = {"load": shelf.load, "current": shelf.current, "encoders": toy_encoders}
    app = create_app(settings, private_url=private_url, upsert=toy_upsert, merge=lambda bundle: None, **toys)
    app.add_middleware(NameWorker)
    return app


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(run_worker(toy_app))
    folder, listening, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    settings = toy_settings(folder, workers=workers, store_timeout=2.0, follow_seconds=0.2)
    run_workers(settings, [socket(fileno=listening)], [sys.executable, __file__])
