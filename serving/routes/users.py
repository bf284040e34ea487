"""Routes of users: recommendations and their explanation, lists to rank, history, who was active last."""

import logging
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from features.arrays import Ints
from features.errors import StoreError
from features.instants import format_instant
from features.interactions import UserStates
from recsys.interfaces import sort_candidates
from serving.cursor import Page
from serving.errors import Problem, json_response
from serving.openapi.bodies import request_body
from serving.routes.explain import why_not
from serving.routes.lists.answer import Asked, answer_lists, placement_of
from serving.routes.lists.recommend import recommend
from serving.routes.responses import (
    CursorParameter,
    ExcludeParameter,
    FilterParameter,
    snapshot_of,
    timed,
)
from serving.schemas.body import bounded_body, parse_model
from serving.schemas.fields import checked_id
from serving.schemas.rank import RankIn, RankResponse
from serving.schemas.slates import RecommendationsResponse, WhyNotResponse
from serving.schemas.users import HistoryResponse, UsersResponse
from serving.servable import ServableBundle
from serving.state.item_vectors import DescribedItems
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot, card
from serving.state.thread_pool import InThread, budget, in_time
from serving.telemetry.metrics import count_answer

logger = logging.getLogger("recsys.serving")

Count = Annotated[int, Query(ge=1, le=100, description="number of items")]


async def rank(
    service: ServiceState, snapshot: ServingSnapshot, given: RankIn, described: DescribedItems, in_thread: InThread
) -> dict[str, Any]:
    """Items in order for one user: the fields of `RankResponse`.

    Items that the bundle lacks are placed by what the request says of them, for a user whom the model knows.
    """
    trace, bundle, ids = dict[str, float](), snapshot.bundle, snapshot.bundle.catalog.ids
    fields = {item.item_id: item.fields for item in reversed(given.items)}  # of an id that stands twice the first
    distinct = [*dict.fromkeys(item.item_id for item in given.items)]
    with timed(trace, "store"):
        state, degraded = await in_thread(service.keeper.read_user, snapshot.store, given.user_id)
    states = snapshot.states([state], service.now())
    known = {item for item in distinct if item in ids and service.catalog_updater.has_item(item)}
    unknown = {item: fields[item] for item in distinct if item not in ids and fields[item]}
    placed = set[str]()
    if unknown and states.positive.any() and bundle.content is not None:
        with timed(trace, "encode"):
            bundle, placed, failed = await described.add(bundle, unknown, service.now())
        budget().begin(service.settings.deadline)  # encoding has limits of its own
        degraded = [*degraded, *failed]
    ranked = [item for item in distinct if item in known or item in placed]
    with timed(trace, "rank"):
        rows = bundle.catalog.ids.rows(ranked)
        columns, source, failed = await in_time(in_thread, _ranked, bundle, states, rows)
    last = [(item, None, None) for item in distinct if item not in known and item not in placed]
    items = [
        {
            "item_id": item,
            "position": place,
            "score": score,
            "probability": probability,
            "known": item in known,
            "by_content": item in placed and source == "model",
        }
        for place, (item, score, probability) in enumerate([*columns, *last], 1)
    ]
    facts = {"user_id": given.user_id, "bundle": bundle.fingerprint, "source": source}
    degraded = [*degraded, *failed]
    count_answer("rank", source, degraded, trace)
    return {**facts, "degraded": degraded, "items": items, "trace": trace}


def _ranked(
    bundle: ServableBundle, states: UserStates, rows: Ints
) -> tuple[list[tuple[str, float, float | None]], str, list[str]]:
    """(item, score, probability) of rows (m,), best first; by "model" or "popular"; the components that failed."""
    source, failed = "model" if states.positive.any() else "popular", list[str]()
    try:
        found = bundle.recommender.rank(states, rows)
    except Exception:  # as in `recommend`
        logger.exception("the recommender failed for a list of %d items", len(rows))
        source, failed = "popular", ["recommender"]
        places = np.empty(len(bundle.popular), dtype=np.int64)  # (n,): place of each item by popularity
        places[bundle.popular] = np.arange(len(bundle.popular))
        found = sort_candidates(rows[None], -places[rows][None].astype(np.float32), len(rows))
    likely = bundle.recommender.probabilities(found.rows[0], found.scores[0]) if source == "model" else None
    probabilities = [None] * len(rows) if likely is None else likely.tolist()
    names = [bundle.catalog.ids.ids[row] for row in found.rows[0].tolist()]
    return [*zip(names, found.scores[0].tolist(), probabilities, strict=True)], source, failed


def add_users(app: FastAPI, service: ServiceState, described: DescribedItems, in_thread: InThread) -> None:
    """Add the routes. described: places items that the bundle lacks."""
    _add_recommendations(app, service, in_thread)
    _add_why_not(app, service, in_thread)
    _add_rank(app, service, described, in_thread)

    @app.get("/v1/users/{user_id:id}/history", responses={200: {"model": HistoryResponse}}, tags=["users"])
    async def get_history(user_id: str, limit: Annotated[int, Query(ge=1, le=100_000)] = 50) -> Response:
        """A user's events in the feature store, newest first. Items that are not in the catalogue have no title."""
        snapshot = snapshot_of(service)
        checked_id(user_id, "user_id")
        state, degraded = await in_thread(service.keeper.read_user, snapshot.store, user_id)
        rows = snapshot.bundle.catalog.ids.rows(state.items).tolist()
        columns = zip(state.items, rows, state.events, state.times.tolist(), state.values.tolist(), strict=True)
        events = [
            {
                **(snapshot.cards[row] if row >= 0 and service.catalog_updater.has_item(item) else card(item)),
                "event": event,
                "timestamp": format_instant(timestamp),
                "value": value,
            }
            for item, row, event, timestamp, value in columns
        ]
        newest = events[::-1][:limit]
        return json_response({"user_id": user_id, "degraded": degraded, "total": len(events), "events": newest})

    @app.get("/v1/users", responses={200: {"model": UsersResponse}}, tags=["users"])
    async def list_users(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
        """Ids of the users who were active last, most recent first."""
        snapshot = snapshot_of(service)
        try:
            return json_response({"users": await in_thread(snapshot.store.recent_users, limit), "degraded": []})
        except StoreError:
            return json_response({"users": [], "degraded": ["store"]})


def _add_recommendations(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    @app.get(
        "/v1/users/{user_id:id}/recommendations",
        responses={200: {"model": RecommendationsResponse}, 410: {"model": Problem}},
        tags=["users"],
    )
    async def get_recommendations(
        request: Request,
        user_id: str,
        limit: Count = 20,
        placement: str | None = None,
        filter: FilterParameter = None,
        exclude: ExcludeParameter = None,
        cursor: CursorParameter = None,
        explain: Annotated[bool, Query(description="say why each item is shown")] = False,
    ) -> Response:
        """Recommended items for a user, best first.

        `source` is "model", or "popular" when the user has no positive item or the recommender failed: the response
        then holds the most popular items. `cursor` asks for the next page, which shows no item and no product again;
        it is null at the end of the list.
        """
        checked_id(user_id, "user_id")
        of = {"path": "recommendations"}
        asked = Asked(user_id, limit, placement, filter, cursor, explain, of, exclude, request)
        (answer,) = await answer_lists(request, service, lambda: [asked], in_thread)
        return json_response(answer)


def _add_rank(app: FastAPI, service: ServiceState, described: DescribedItems, in_thread: InThread) -> None:
    @app.post(
        "/v1/rank",
        responses={200: {"model": RankResponse}, **{code: {"model": Problem} for code in (413, 415)}},
        openapi_extra=request_body(RankIn),
        tags=["users"],
    )
    async def rank_items(request: Request) -> Response:
        """Items of the caller's choice in order for a user, best first. Nothing counts as shown.

        An item that the bundle lacks is placed by its content, where the list says what it is; else it comes last.
        """
        snapshot = snapshot_of(service)
        body = await bounded_body(request)
        given = parse_model(RankIn, body, "bad_list")
        return json_response(await rank(service, snapshot, given, described, in_thread))


def _add_why_not(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    @app.get(
        "/v1/users/{user_id:id}/why-not",
        responses={200: {"model": WhyNotResponse}, 404: {"model": Problem}},
        tags=["users"],
    )
    async def get_why_not(user_id: str, item_id: str, limit: Count = 20, placement: str | None = None) -> Response:
        """The stage at which an item leaves the way into the recommendations of a user. Nothing counts as shown."""
        snapshot = snapshot_of(service)
        checked_id(user_id, "user_id")
        checked_id(item_id, "item_id")
        name = placement_of(snapshot, placement)

        def explain() -> dict[str, Any]:
            arm = service.arm(snapshot, user_id, name)
            answer = recommend(service, arm, user_id, limit, name, Page(service.now()))
            return {**why_not(service, arm.snapshot, answer, item_id), "degraded": answer.degraded}

        return json_response({"item_id": item_id, **await in_thread(explain)})
