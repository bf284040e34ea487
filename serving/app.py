"""The HTTP application. A recommendation request passes store, user tower, index, reranker, slate and event log."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import polars as pl
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from features.content.encoder_config import open_encoders
from features.content.spaces import Embedded
from features.instants import now_micros
from features.schema import EventRules
from features.store.base import FeatureStore
from recsys.bundle.registry import current_bundle, find_bundle
from serving.access.guard import Guard
from serving.errors import Problem, add_errors
from serving.http import MAX_HEAD_BYTES, MAX_HEADERS, MAX_URL_BYTES
from serving.openapi.document import describe
from serving.routes.bodies.recommendations import add_recommendations_by_body
from serving.routes.console.preview import add_preview
from serving.routes.console.state import add_state
from serving.routes.corrections import add_corrections
from serving.routes.events import add_events
from serving.routes.health import add_health
from serving.routes.items.audience import add_audience
from serving.routes.items.bulk import add_bulk_items
from serving.routes.items.change import add_item_changes
from serving.routes.items.read import add_items, add_media
from serving.routes.items.similar import add_similar
from serving.routes.items.turns import ItemTurns
from serving.routes.pages.about import add_about
from serving.routes.pages.files import add_page
from serving.routes.pages.map import add_map
from serving.routes.paths import CanonicalUrl
from serving.routes.people.erase import add_erasure
from serving.routes.people.read import add_user
from serving.routes.search import add_search
from serving.routes.shop.rules import add_rules
from serving.routes.strict import StrictRoute, add_heads
from serving.routes.users import add_users
from serving.servable import ServableBundle
from serving.settings import ServeSettings
from serving.state.catalog_updater import Upsert
from serving.state.encoder_pool import EncoderPool, OpenEncoders
from serving.state.gauges import Gauges
from serving.state.item_vectors import DescribedItems, SharedVectors
from serving.state.service import ServiceState
from serving.state.store.filler import Filler
from serving.state.thread_pool import KnowCall, thread_pool
from serving.telemetry.middleware import Observe
from serving.telemetry.traces import of_application

logger = logging.getLogger("recsys.serving")

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the URL or the body cannot be read"},
    401: {"model": Problem, "description": "the call needs a key, or its key is unknown or expired"},
    403: {
        "model": Problem,
        "description": "the role of the key is too small, or the page's origin not allowed",
    },
    408: {"model": Problem, "description": "the request arrives too slowly"},
    414: {"model": Problem, "description": f"the URL exceeds {MAX_URL_BYTES} bytes"},
    421: {"model": Problem, "description": "the service does not answer to the name in the header Host"},
    422: {"model": Problem, "description": "the request is invalid"},
    429: {"model": Problem, "description": "the limit of the key is reached; Retry-After says for how long"},
    431: {
        "model": Problem,
        "description": f"more than {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes of them",
    },
    503: {
        "model": Problem,
        "description": "overload, no bundle is served, or the event log cannot be written",
    },
}


def _load_bundle(path: Path) -> ServableBundle:
    from recsys.bundle.serving_copy import load_serving_bundle

    bundle: ServableBundle = load_serving_bundle(path)
    return bundle


def _upsert_items(bundle: ServableBundle, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> ServableBundle:
    from recsys.bundle.model import Bundle
    from recsys.bundle.upsert import upsert_items

    assert isinstance(bundle, Bundle)
    upserted: ServableBundle = upsert_items(bundle, items, channels)
    return upserted


def _place_items(bundle: ServableBundle, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> ServableBundle:
    from recsys.bundle.model import Bundle
    from recsys.bundle.upsert import place_items

    assert isinstance(bundle, Bundle)
    placed: ServableBundle = place_items(bundle, items, channels)
    return placed


def _merge_indexes(bundle: ServableBundle) -> None:
    from recsys.bundle.model import Bundle
    from recsys.bundle.upsert import merge_indexes

    assert isinstance(bundle, Bundle)
    merge_indexes(bundle)


def _lifespan(
    service: ServiceState, encoder_pool: EncoderPool, gauges: Gauges
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Starts the service and its background tasks with the application, and stops them with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        vectors = SharedVectors(service.settings.log, encoder_pool.embed_items)
        background_tasks = [
            asyncio.create_task(updates.run(vectors.embed)) for updates in (service.catalog_updater, service.variants)
        ]
        background_tasks.append(asyncio.create_task(gauges.run()))
        if service.settings.preload:
            if service.settings.workers > 1 and service.snapshot is not None:  # the other workers answer until then
                await encoder_pool.prepare(service.snapshot)
            background_tasks.append(asyncio.create_task(encoder_pool.keep_ready(service)))
        try:
            yield
        finally:
            for task in background_tasks:
                task.cancel()
            await encoder_pool.close()
            await service.stop()

    return lifespan


def _add_guard(app: FastAPI, service: ServiceState) -> None:
    """Add the middleware. The last that is added sees a call first."""
    settings = service.settings
    app.add_middleware(KnowCall)
    app.add_middleware(Guard, settings=settings, keys=service.keys, now=service.now)
    app.add_middleware(CanonicalUrl)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("Authorization", "X-API-Key", "Content-Type", "X-Request-Id", "If-Match"),
            expose_headers=("Retry-After", "X-Request-Id", "ETag"),
        )
    app.add_middleware(Observe)


def _add_routes(
    app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, gauges: Gauges, place: Upsert
) -> None:
    """Add the routes. place: see `create_app`."""
    settings = service.settings
    app.router.route_class = StrictRoute
    in_thread = thread_pool(service.turns, service.settings.threads)
    described = DescribedItems(settings.log, encoder_pool.embed_items, place, settings.search_seconds)
    add_users(app, service, described, in_thread)
    add_recommendations_by_body(app, service, in_thread)
    add_similar(app, service, in_thread)
    add_audience(app, service, in_thread)
    add_items(app, service, in_thread)
    add_media(app, service, in_thread)
    turns = ItemTurns()
    add_item_changes(app, service, encoder_pool, in_thread, turns)
    add_bulk_items(app, service, encoder_pool, in_thread, turns)
    add_search(app, service, encoder_pool, in_thread)
    add_events(app, service, in_thread)
    add_corrections(app, service, in_thread)
    add_user(app, service, in_thread)
    add_erasure(app, service)
    add_rules(app, service, in_thread)
    add_preview(app, service, in_thread)
    add_state(app, service)
    add_health(app, service, gauges)
    add_about(app, service)
    add_map(app, service, in_thread)
    add_page(app)
    add_heads(app)


def create_app(
    settings: ServeSettings,
    *,
    load: Callable[[Path], ServableBundle] = _load_bundle,
    current: Callable[[Path], Path] = current_bundle,
    find: Callable[[Path, str], Path] = find_bundle,
    upsert: Upsert = _upsert_items,
    place: Upsert = _place_items,
    merge: Callable[[ServableBundle], None] = _merge_indexes,
    connect: Callable[[EventRules], FeatureStore] | None = None,
    private_url: str | None = None,
    filler: Filler | None = None,
    now: Callable[[], int] = now_micros,
    encoders: OpenEncoders = open_encoders,
) -> FastAPI:
    """Returns the application, not started yet.

    place: adds items to a bundle for one list; encoders: opens the encoders of queries and of new items; the other
    parameters: see `ServiceState`.
    """
    service = ServiceState(
        settings,
        load=load,
        current=current,
        find=find,
        upsert=upsert,
        merge=merge,
        connect=connect,
        private_url=private_url,
        filler=filler,
        now=now,
    )
    encoder_pool = EncoderPool(settings, encoders)
    gauges = Gauges(service, encoder_pool)

    app = FastAPI(
        title="recsys",
        version="1",
        description="Recommendations, similar items, search and events. An accepted event affects the next response.",
        lifespan=_lifespan(service, encoder_pool, gauges),
        telemetry=of_application(),
        docs_url=None,  # FastAPI's page loads a script from another host; static/docs.html replaces it
        redoc_url=None,
        redirect_slashes=False,  # a redirect has an empty body, and names the host that the client wrote
        responses=ERRORS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service, app.state.encoder_pool = service, encoder_pool
    app.openapi = describe(app.openapi)  # type: ignore[method-assign]
    _add_guard(app, service)
    add_errors(app)
    _add_routes(app, service, encoder_pool, gauges, place)
    return app
