"""A service of several workers with toy bundles: python toy_workers.py FOLDER DESCRIPTOR WORKERS [SETTINGS].

This is the parent. SETTINGS are further ones, in JSON. The link `current` in the folder of bundles names the bundle
to serve; without it a bundle is served all the same. Each answer names its process in the header X-Worker.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from toy_service import ToyBundle, broken, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents

from serving.app import create_app
from serving.settings import ServeSettings
from serving.workers.supervisor import run_workers
from serving.workers.worker import run_worker

BROKEN = "broken"
"""File in the folder of a bundle whose model fails."""


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


def publish(bundles: Path, name: str) -> None:
    """Make a bundle, which is named by its fingerprint, the current one."""
    (bundles / name).mkdir(parents=True, exist_ok=True)
    (bundles / "next").unlink(missing_ok=True)
    (bundles / "next").symlink_to(name)
    (bundles / "next").rename(bundles / "current")


def current(bundles: Path) -> Path:
    link = bundles / "current"
    return bundles / link.readlink() if link.is_symlink() else bundles / "toy-1"


def load(path: Path) -> ToyBundle:
    bundle = replace(with_contents(toy_bundle(path.parent.parent)), fingerprint=path.name)
    return broken(bundle) if (path / BROKEN).exists() else bundle


def toy_app(settings: ServeSettings, private_url: str | None) -> FastAPI:
    toys: dict[str, Any] = {"load": load, "current": current, "encoders": toy_encoders}
    app = create_app(settings, private_url=private_url, upsert=toy_upsert, merge=lambda bundle: None, **toys)
    app.add_middleware(NameWorker)
    return app


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(run_worker(toy_app))
    folder, listening, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    more: dict[str, Any] = orjson.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    settings = toy_settings(folder, **{"workers": workers, "store_timeout": 2.0, "follow_seconds": 0.2, **more})
    run_workers(settings, [socket(fileno=listening)], [sys.executable, __file__])
