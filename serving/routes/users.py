"""Routes of users: recommendations, history, and the users who were active last."""

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

Count = Annotated[int, Query(ge=1, le=100, description="number of items")]


def recommend(
    service: ServiceState, snapshot: ServingSnapshot, user_id: str, k: int, placement: str
) -> tuple[Slate, str, list[str]]:
    """The slate of one user, its source ("model" or "popular"), and the components that failed (`degraded`)."""
    trace: dict[str, float] = {}
    with timed(trace, "store"):
        state, degraded = service.keeper.read_user(snapshot.store, user_id)
    with timed(trace, "rank"):
        repeats = snapshot.bundle.data.placements[placement].repeats
        seen = snapshot.rows(()) if repeats else snapshot.seen_rows(state)
        states, bundle = snapshot.states(state, service.now()), snapshot.bundle
        cold = not states.positive.any()
        rules = service.rules.of(bundle.catalog, bundle.vectors, placement, cold=cold, now=service.now())
        if rules is not None and rules.notes:
            degraded = [*degraded, "rules"]
        if not cold:
            try:
                return snapshot.recommend(states, seen, k, trace, rules), "model", degraded
            except Exception:  # a model that fails on one user must not fail the request
                logger.exception("the recommender failed for a history of %d items", len(state.items))
                degraded = [*degraded, "recommender"]
        return snapshot.popular(seen, k, trace, rules), "popular", degraded


def add_users(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the routes."""

    @app.get("/v1/users/{user_id:id}/recommendations", responses={200: {"model": SlateResponse}}, tags=["users"])
    async def recommendations(
        user_id: str, k: Count = 20, placement: str | None = None, filter: FilterParameter = None
    ) -> Response:
        """Recommended items for a user, best first.

        `source` is "model", or "popular" when the user has no positive item or the recommender failed: the response
        then holds the most popular items.
        """
        snapshot = await with_filter(snapshot_of(service), filter, in_thread)
        checked_id(user_id, "user_id")
        placements = snapshot.bundle.data.placements
        name = next(iter(placements)) if placement is None else placement
        if name not in placements:
            raise ApiError(
                422, "unknown_placement", f"unknown placement; available: {', '.join(placements)}", "placement"
            )
        slate, source, degraded = await in_thread(recommend, service, snapshot, user_id, k, name)
        exposure = await log_exposure(service, slate, name, source=source, degraded=degraded, user_id=user_id)
        return slate_response(slate, snapshot, exposure)

    @app.get("/v1/users/{user_id:id}/history", tags=["users"])
    async def history(user_id: str, limit: Annotated[int, Query(ge=1, le=100_000)] = 50) -> Response:
        """A user's events in the feature store, newest first. Items that are not in the catalogue have no title."""
        snapshot = snapshot_of(service)
        checked_id(user_id, "user_id")
        state, degraded = await in_thread(service.keeper.read_user, snapshot.store, user_id)
        rows = snapshot.bundle.catalog.ids.rows(state.items).tolist()
        columns = zip(state.items, rows, state.events, state.times.tolist(), state.values.tolist(), strict=True)
        events = [
            {
                **(
                    snapshot.cards[row]
                    if row >= 0 and service.catalog_updater.has_item(item)
                    else card(item, None, None, None)
                ),
                "event": event,
                "timestamp": timestamp,
                "value": value,
            }
            for item, row, event, timestamp, value in columns
        ]
        newest = events[::-1][:limit]
        return json_response({"user_id": user_id, "degraded": degraded, "total": len(events), "events": newest})

    @app.get("/v1/users", tags=["users"])
    async def users(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
        """Ids of the users who were active last, most recent first."""
        snapshot = snapshot_of(service)
        try:
            return json_response({"users": await in_thread(snapshot.store.recent_users, limit), "degraded": []})
        except StoreError:
            return json_response({"users": [], "degraded": ["store"]})
