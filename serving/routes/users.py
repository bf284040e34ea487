"""Routes of users: recommendations, history, who was active last."""

import logging
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from features.errors import StoreError
from recsys.ranking.slate import Slate
from serving.errors import ApiError, json_response
from serving.routes.responses import FilterParameter, log_exposure, slate_response, snapshot_of, timed, with_filter
from serving.schemas import SlateResponse, checked_id
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot, card
from serving.state.thread_pool import InThread

logger = logging.getLogger("recsys.serving")

Count = Annotated[int, Query(ge=1, le=100, description="how many")]


def recommend(
    service: ServiceState, live: ServingSnapshot, user_id: str, k: int, placement: str
) -> tuple[Slate, str, list[str]]:
    """The slate of one user, where it comes from ("model" or "popular"), and what could not be used."""
    trace: dict[str, float] = {}
    with timed(trace, "store"):
        state, degraded = service.read_user(live, user_id)
    with timed(trace, "rank"):
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


def add_users(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    @app.get("/v1/users/{user_id:path}/recommendations", responses={200: {"model": SlateResponse}}, tags=["users"])
    async def recommendations(
        user_id: str, k: Count = 20, placement: str | None = None, filter: FilterParameter = None
    ) -> Response:
        """Items for a user, best first. An unknown user gets the most popular ones; `source` says so."""
        live = await with_filter(snapshot_of(service), filter, in_thread)
        checked_id(user_id, "user_id")
        places = live.bundle.data.placements
        where = next(iter(places)) if placement is None else placement
        if where not in places:
            raise ApiError(
                422, "unknown_placement", f"there is no such placement; there are: {', '.join(places)}", "placement"
            )
        slate, source, degraded = await in_thread(recommend, service, live, user_id, k, where)
        shown = await log_exposure(service, slate, where, source=source, degraded=degraded, user_id=user_id)
        return slate_response(slate, live, shown)

    @app.get("/v1/users/{user_id:path}/history", tags=["users"])
    async def history(user_id: str, limit: Annotated[int, Query(ge=1, le=512)] = 50) -> Response:
        """What the store knows of a user, newest first. Items that are not known here come without a title."""
        live = snapshot_of(service)
        checked_id(user_id, "user_id")
        state, degraded = await in_thread(service.read_user, live, user_id)
        rows = live.bundle.catalog.ids.rows(state.items).tolist()
        happened = zip(state.items, rows, state.events, state.times.tolist(), state.values.tolist(), strict=True)
        events = [
            {
                **(
                    live.cards[row]
                    if row >= 0 and service.catalog_updater.has_item(item)
                    else card(item, None, None, None)
                ),
                "event": event,
                "timestamp": at,
                "value": value,
            }
            for item, row, event, at, value in happened
        ]
        newest = events[::-1][:limit]
        return json_response({"user_id": user_id, "degraded": degraded, "total": len(events), "events": newest})

    @app.get("/v1/users", tags=["users"])
    async def users(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
        """Users who were active last."""
        live = snapshot_of(service)
        try:
            return json_response({"users": await in_thread(live.store.recent_users, limit), "degraded": []})
        except StoreError:
            return json_response({"users": [], "degraded": ["store"]})
