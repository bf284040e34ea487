"""The service. One request: store -> user tower -> index -> reranker -> slate -> log -> answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import polars as pl
from fastapi import FastAPI

from features.content.encoder_config import open_encoders
from features.content.spaces import Embedded
from features.interactions import now_micros
from features.schema import DataConfig, EventRules
from features.store.base import FeatureStore
from serving.errors import ErrorAnswer, add_errors
from serving.routes.events import add_events
from serving.routes.health import add_health
from serving.routes.items import add_items
from serving.routes.page import add_page
from serving.routes.search import add_search
from serving.routes.users import add_users
from serving.settings import ServeSettings
from serving.state.catalog_updater import Upsert
from serving.state.encoder_pool import Desk, Open
from serving.state.service import Service
from serving.state.snapshot import Servable
from serving.state.thread_pool import thread_pool

logger = logging.getLogger("recsys.serving")

ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorAnswer, "description": "the request cannot be answered"},
    503: {"model": ErrorAnswer, "description": "no bundle, or the event log cannot be written"},
}


def _bundle(path: Path) -> Servable:
    from recsys.bundle.io import load_bundle

    bundle: Servable = load_bundle(path)
    return bundle


def _current(root: Path) -> Path:
    from recsys.bundle.registry import current

    path: Path = current(root)
    return path


def _events(data: DataConfig) -> pl.DataFrame:
    from features.tables.read import read_tables

    return read_tables(data).events


def _upsert(bundle: Servable, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> Servable:
    from recsys.bundle.model import Bundle
    from recsys.bundle.upsert import grown

    assert isinstance(bundle, Bundle)
    upserted: Servable = grown(bundle, items, channels)
    return upserted


def _merge(bundle: Servable) -> None:
    from recsys.bundle.model import Bundle
    from recsys.bundle.upsert import merge_large

    assert isinstance(bundle, Bundle)
    merge_large(bundle)


def create_app(
    settings: ServeSettings,
    *,
    load: Callable[[Path], Servable] = _bundle,
    current: Callable[[Path], Path] = _current,
    events: Callable[[DataConfig], pl.DataFrame] = _events,
    upsert: Upsert = _upsert,
    merge: Callable[[Servable], None] = _merge,
    connect: Callable[[EventRules], FeatureStore] | None = None,
    now: Callable[[], int] = now_micros,
    encoders: Open = open_encoders,
) -> FastAPI:
    """The application, not started yet; encoders: opens those of queries; the others are arguments of `Service`."""
    service = Service(
        settings, load=load, current=current, events=events, upsert=upsert, merge=merge, connect=connect, now=now
    )
    desk = Desk(settings, encoders)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        beside = [asyncio.create_task(service.growth.run(desk.embed_items))]
        if settings.preload:
            beside.append(asyncio.create_task(desk.keep_ready(service)))
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await desk.close()
            await service.stop()

    app = FastAPI(
        title="recsys",
        version="1",
        description="Recommendations, similar items, search, and events that change the very next answer.",
        lifespan=lifespan,
        docs_url=None,  # the usual page loads its script from another host; ours is static/docs.html
        redoc_url=None,
        responses=ERRORS,
    )
    app.state.service = service
    add_errors(app)
    in_thread = thread_pool(service)
    add_users(app, service, in_thread)
    add_items(app, service, desk, in_thread)
    add_search(app, service, desk, in_thread)
    add_events(app, service, in_thread)
    add_health(app, service)
    add_page(app)
    return app
