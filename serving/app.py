"""The service. One request: store -> user tower -> index -> reranker -> slate -> log -> answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import polars as pl
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from features.content.encoder_config import open_encoders
from features.errors import StoreError
from features.interactions import now_micros
from features.log.records import Event
from features.schema import DataConfig, EventRules
from features.store.base import FeatureStore
from recsys.ranking.slate import Slate
from serving.routes.responses import Narrow, expose, live_of, narrowed, slate_answer, stage
from serving.state.service import Service
from serving.routes.items import add_items
from serving.state.snapshot import Live, Servable, card
from serving.routes.page import add_page
from serving.routes.search import Desk, Open, add_search
from serving.settings import ServeSettings
from serving.schemas import (
    ApiError,
    ErrorAnswer,
    EventIn,
    EventResult,
    EventsAnswer,
    SlateAnswer,
    add_errors,
    answer,
    bounded_body,
    checked_id,
    parse_events,
)

T = TypeVar("T")
InThread = Callable[..., Any]
logger = logging.getLogger("recsys.serving")

ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorAnswer, "description": "the request cannot be answered"},
    503: {"model": ErrorAnswer, "description": "no bundle, or the event log cannot be written"},
}
Count = Annotated[int, Query(ge=1, le=100, description="how many")]


def _bundle(path: Path) -> Servable:
    from recsys.bundle.io import load_bundle

    bundle: Servable = load_bundle(path)
    return bundle


def _current(root: Path) -> Path:
    from recsys.bundle.io import current

    path: Path = current(root)
    return path


def _events(data: DataConfig) -> pl.DataFrame:
    from features.tables.read import read_tables

    return read_tables(data).events


def create_app(
    settings: ServeSettings,
    *,
    load: Callable[[Path], Servable] = _bundle,
    current: Callable[[Path], Path] = _current,
    events: Callable[[DataConfig], pl.DataFrame] = _events,
    connect: Callable[[EventRules], FeatureStore] | None = None,
    now: Callable[[], int] = now_micros,
    encoders: Open = open_encoders,
) -> FastAPI:
    """The application, not started yet; encoders: opens those of queries; the others are arguments of `Service`."""
    service = Service(settings, load=load, current=current, events=events, connect=connect, now=now)
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
    in_thread = _threads(service)
    _add_users(app, service, in_thread)
    add_items(app, service, desk, in_thread)
    add_search(app, service, desk, in_thread)
    _add_events(app, service, in_thread)
    _add_state(app, service)
    add_page(app)
    return app


def recommend(service: Service, live: Live, user_id: str, k: int, placement: str) -> tuple[Slate, str, list[str]]:
    """The slate of one user, where it comes from ("model" or "popular"), and what could not be used."""
    trace: dict[str, float] = {}
    with stage(trace, "store"):
        state, degraded = service.read_user(live, user_id)
    with stage(trace, "rank"):
        repeats = live.bundle.data.placements[placement].repeats
        seen = live.rows(() if repeats else state.seen)
        states = live.states(state, service.now())
        if states.positive.any():
            try:
                return live.recommend(states, seen, k, trace), "model", degraded
            except Exception:  # a model that fails on one user must not take the page down
                logger.exception("the recommender failed for a history of %d items", len(state.items))
                degraded = [*degraded, "recommender"]
        return live.popular(seen, k, trace), "popular", degraded


def _threads(service: Service) -> InThread:
    """Runs work in a thread, as many at once as the settings say, over all routes that share it."""
    limiter: list[anyio.CapacityLimiter] = []  # made inside the event loop

    async def run(work: Callable[..., T], *args: Any) -> T:
        if not limiter:
            limiter.append(anyio.CapacityLimiter(service.settings.threads))
        return await anyio.to_thread.run_sync(work, *args, limiter=limiter[0])

    return run


def _add_users(app: FastAPI, service: Service, in_thread: InThread) -> None:
    @app.get("/v1/users/{user_id:path}/recommendations", responses={200: {"model": SlateAnswer}}, tags=["users"])
    async def recommendations(
        user_id: str, k: Count = 20, placement: str | None = None, filter: Narrow = None
    ) -> Response:
        """Items for a user, best first. An unknown user gets the most popular ones; `source` says so."""
        live = await narrowed(live_of(service), filter, in_thread)
        checked_id(user_id, "user_id")
        places = live.bundle.data.placements
        where = next(iter(places)) if placement is None else placement
        if where not in places:
            raise ApiError(
                422, "unknown_placement", f"there is no such placement; there are: {', '.join(places)}", "placement"
            )
        slate, source, degraded = await in_thread(recommend, service, live, user_id, k, where)
        shown = await expose(service, slate, where, source=source, degraded=degraded, user_id=user_id)
        return slate_answer(slate, live, shown)

    @app.get("/v1/users/{user_id:path}/history", tags=["users"])
    async def history(user_id: str, limit: Annotated[int, Query(ge=1, le=512)] = 50) -> Response:
        """What the store knows of a user, newest first. Items that are not known here come without a title."""
        live = live_of(service)
        checked_id(user_id, "user_id")
        state, degraded = await in_thread(service.read_user, live, user_id)
        rows = live.bundle.catalog.ids.rows(state.items).tolist()
        happened = zip(state.items, rows, state.events, state.times.tolist(), state.values.tolist(), strict=True)
        events = [
            {
                **(live.cards[row] if row >= 0 and service.growth.there(item) else card(item, None, None, None)),
                "event": event,
                "timestamp": at,
                "value": value,
            }
            for item, row, event, at, value in happened
        ]
        newest = events[::-1][:limit]
        return answer({"user_id": user_id, "degraded": degraded, "total": len(events), "events": newest})

    @app.get("/v1/users", tags=["users"])
    async def users(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
        """Users who were active last."""
        live = live_of(service)
        try:
            return answer({"users": await in_thread(live.store.recent_users, limit), "degraded": []})
        except StoreError:
            return answer({"users": [], "degraded": ["store"]})


def _add_events(app: FastAPI, service: Service, in_thread: InThread) -> None:
    one = EventIn.model_json_schema()
    body = {"oneOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}]}

    @app.post(
        "/v1/events",
        status_code=202,
        responses={202: {"model": EventsAnswer}, 413: {"model": ErrorAnswer}, 400: {"model": ErrorAnswer}},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}},
        tags=["events"],
    )
    async def post_events(request: Request) -> Response:
        """Tell what users did: one event or a list. Accepted means on disk; the very next answer knows of it."""
        raw = await bounded_body(request)
        found, good = await in_thread(parse_events, raw, service.now())
        accepted = [e for e in found if isinstance(e, Event)]
        degraded: list[str] = []
        if accepted:
            await service.log.append(accepted)
            degraded = await in_thread(service.push, accepted)
        results = [_result(e, service.live) if isinstance(e, Event) else e for e in found]
        said = EventsAnswer(
            accepted=good, rejected=len(found) - good, degraded=degraded, results=results
        ).model_dump()
        if accepted:
            return answer(said, 202)
        first = results[0]
        why = {"code": "no_event_accepted", "message": f"{first.place} {first.reason}", "place": first.place}
        return answer({"error": why, **said}, 422)


def _result(event: Event, live: Live | None) -> EventResult:
    known = None if live is None else event.item_id in live.bundle.catalog.ids
    return EventResult(status="accepted", event_id=event.event_id, known_item=known)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["state"])
    async def healthz() -> Response:
        """The process is up."""
        return answer({"status": "up"})

    @app.get("/readyz", tags=["state"])
    async def readyz() -> Response:
        """200 when requests can be answered, though perhaps degraded; 503 without a bundle or a log."""
        live, fault = service.live, service.log.fault
        ready = live is not None and not fault
        notes = {**service.notes, **({"log": fault} if fault else {})}
        status = "unready" if not ready else "degraded" if notes or service.behind else "ready"
        bundle = live.bundle.fingerprint if live else None
        return answer({"status": status, "bundle": bundle, "notes": notes}, 200 if ready else 503)

    @app.get("/v1/about", tags=["state"])
    async def about() -> Response:
        """What is served: the bundle, the placements, the event of a click on the page, whether there is search."""
        live = live_of(service)
        data = live.bundle.data
        event, least = next(iter(data.events.positive.items()), ("click", None))
        return answer(
            {
                "bundle": live.bundle.fingerprint,
                "items": len(live.cards),
                "placements": {name: place.model_dump() for name, place in data.placements.items()},
                "click": {"event": event, "value": least},
                "search": live.bundle.content is not None,
            }
        )
