"""Routes of users: recommendations and their explanation, history, and the users who were active last."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from features.arrays import Ints
from features.errors import StoreError
from features.instants import format_instant
from features.interactions import UserStates
from features.log.records import Event, Exposure
from features.store.user_state import UserState
from recsys.interfaces import sort_candidates
from recsys.ranking.slate_rules import SlateRules
from recsys.retrieval.filters import Filter
from serving.cursor import MAX_SHOWN, Page
from serving.errors import ApiError, Problem, json_response
from serving.openapi.bodies import request_body
from serving.routes.explain import Answer, why_not, why_shown
from serving.routes.responses import (
    DEADLINE,
    CursorParameter,
    ExcludeParameter,
    FilterParameter,
    exploration_of,
    is_sampled,
    list_of,
    log_exposure,
    number_of,
    sample_of,
    slate_response,
    snapshot_of,
    timed,
)
from serving.schemas.body import bounded_body, parse_model
from serving.schemas.fields import checked_id
from serving.schemas.rank import RankIn, RankResponse
from serving.schemas.slates import RecommendationsResponse, WhyNotResponse
from serving.schemas.users import HistoryResponse, UsersResponse
from serving.servable import ServableBundle
from serving.state.arms import Arm
from serving.state.item_vectors import DescribedItems
from serving.state.service import ServiceState
from serving.state.snapshot import Recommended, ServingSnapshot, card
from serving.state.thread_pool import InThread, TimeUpError, budget, in_time
from serving.telemetry.metrics import count_answer
from serving.telemetry.request_id import id_of_answer

logger = logging.getLogger("recsys.serving")

Count = Annotated[int, Query(ge=1, le=100, description="number of items")]

Choose = Callable[[Ints, int, dict[str, float], SlateRules | None], Recommended]
"""Rows to leave out, k, trace and rules -> the slate; see `ServingSnapshot.recommend`."""


def recommend(
    service: ServiceState,
    arm: Arm,
    user_id: str,
    k: int,
    placement: str,
    page: Page,
    request_id: str = "",
    session: Sequence[Event] = (),
    *,
    at_once: bool = False,
) -> Answer:
    """What one user is recommended in a placement, at most k items: a page of the list.

    user_id: "" for a visitor who is in no store; session: further events, which are not stored; request_id: decides
    what is explored, and whether the candidates are kept; without it neither is done; at_once: no time is left, so
    neither the store nor the model is asked.
    """
    trace, snapshot = dict[str, float](), arm.snapshot
    with timed(trace, "store"):
        shown = arm.rules.ask_for_shown(placement)
        state, degraded = UserState(), list[str]()
        if user_id:
            state, degraded = service.keeper.read_user(snapshot.store, user_id, shown=shown, ask=not at_once)
        if session:
            state = state.with_events(session, snapshot.bundle.data.events)
    degraded = [*([DEADLINE] if at_once else []), *degraded, *arm.failed]
    with timed(trace, "rank"):
        repeats = snapshot.bundle.data.placements[placement].repeats
        seen = snapshot.rows(()) if repeats else snapshot.seen_rows(state)
        states = snapshot.states(state, service.now())
        cold = not states.positive.any()
        rules = arm.rules.of(snapshot.bundle, placement, cold=cold, now=service.now())
        if rules is not None:
            unknown = rules.rotation is not None and (at_once or "store" in degraded)  # what the user was shown
            if rules.notes or unknown or not snapshot.available[[*rules.pins.values()]].all():
                degraded = [*degraded, "rules"]
            rules = snapshot.rotated(rules.after(page.shown), state, page.begun)
        left_out = np.union1d(seen, page.rows(snapshot.products))
        seed = number_of(request_id, "explore") if request_id else None
        keep = bool(request_id) and is_sampled(request_id, service.settings.exposure_sample)
        popular = partial(snapshot.popular, seed=seed, keep=keep)
        personal = partial(snapshot.recommend, states, seed=seed, keep=keep)
        source, choose = ("popular", popular) if cold or at_once else ("model", personal)
        try:
            recommended, cursor = _paged(choose, snapshot, page, left_out, k, trace, rules)
        except Exception:  # a model that fails on one user must not fail the request
            if source == "popular":
                raise
            logger.exception("the recommender failed for a history of %d items", len(state.items))
            source, degraded = "popular", [*degraded, "recommender"]
            recommended, cursor = _paged(popular, snapshot, page, left_out, k, trace, rules)
    return Answer(recommended, source, degraded, state, states, seen, rules, cursor)


def _paged(
    choose: Choose,
    snapshot: ServingSnapshot,
    page: Page,
    left_out: Ints,
    k: int,
    trace: dict[str, float],
    rules: SlateRules | None,
) -> tuple[Recommended, str | None]:
    """What is chosen for a page, and the cursor of the next page. left_out: rows that were seen or shown."""
    k = min(k, MAX_SHOWN - page.shown)
    recommended = choose(left_out, k, trace, rules)
    slate = recommended.slate
    more = snapshot.continues(slate, k, left_out, rules)
    if more and rules is not None and rules.minimum > -np.inf:  # whether an item that remains reaches it
        shown = np.union1d(left_out, np.flatnonzero(snapshot.products.variants(slate.rows)))
        more = len(choose(shown, 1, {}, rules.after(len(slate))).slate) > 0
    cursor = page.next(slate, snapshot.products) if more else None
    return replace(recommended, slate=slate.after(page.shown)), cursor


async def _remember(
    in_thread: InThread, service: ServiceState, snapshot: ServingSnapshot, exposure: Exposure
) -> list[str]:
    """Note in the store what a user was shown, for the rules of rotation. Returns the components that failed."""
    shown = exposure.user_id, exposure.items, exposure.timestamp, service.experiments.shown_days
    try:
        return await in_time(in_thread, service.keeper.add_shown, snapshot.store, *shown)
    except TimeUpError:
        return [DEADLINE]


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
    states = snapshot.states(state, service.now())
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


def placement_of(snapshot: ServingSnapshot, placement: str | None) -> str:
    """The name of the placement that is asked for, the first by default. Raises ApiError 422 when it is unknown."""
    placements = snapshot.bundle.data.placements
    name = next(iter(placements)) if placement is None else placement
    if name not in placements:
        raise ApiError("unknown_placement", f"unknown placement; available: {', '.join(placements)}", "placement")
    return name


@dataclass(frozen=True)
class Asked:
    """A call for recommendations.

    user_id: "" for none; of: what the list depends on besides the other fields, the kind first; in_url: the request
    whose URL holds the cursor, None for a body; session: see `recommend`.
    """

    user_id: str
    limit: int
    placement: str | None
    item_filter: Filter | str | None
    cursor: str | None
    explain: bool
    of: Mapping[str, str]
    exclude: Sequence[str] | None = None
    in_url: Request | None = None
    session: Sequence[Event] = ()


async def answer_list(request: Request, service: ServiceState, asked: Asked, in_thread: InThread) -> Response:
    """The answer to a call for recommendations, whose exposure is logged."""
    snapshot, user_id = snapshot_of(service), asked.user_id
    name = placement_of(snapshot, asked.placement)
    of = {**asked.of, "user_id": user_id, "placement": name}
    args = partial(list_of, exclude=asked.exclude, request=asked.in_url)
    arm, page = await in_thread(args, service, snapshot, name, user_id, asked.item_filter, asked.cursor, of)
    snapshot, request_id = arm.snapshot, id_of_answer(request.scope)
    make = partial(recommend, service, arm, user_id, asked.limit, name, page, request_id, asked.session)
    try:
        answer = await in_time(in_thread, make)
    except TimeUpError:
        answer = await in_thread(partial(make, at_once=True))
    recommended, degraded, sample, why = answer.recommended, answer.degraded, None, None
    try:
        if recommended.candidates is not None:  # of few answers
            sample = await in_time(in_thread, sample_of, snapshot, recommended)
        if asked.explain:
            why = await in_time(in_thread, why_shown, service, snapshot, answer)
    except TimeUpError:
        degraded = [*dict.fromkeys([*degraded, *([DEADLINE] if asked.explain else [])])]
    exposure = await log_exposure(
        request,
        service,
        answer.slate,
        name,
        request_id=request_id,
        source=answer.source,
        degraded=degraded,
        user_id=user_id,
        variant=arm.variant,
        exploration=exploration_of(snapshot, answer.slate),
        sample=sample,
        remember=partial(_remember, in_thread, service, snapshot) if user_id and arm.rules.shown_days else None,
    )
    known = recommended.probabilities
    return slate_response(answer.slate, snapshot, exposure, answer.cursor, why=why, probabilities=known)


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
                **(
                    snapshot.cards[row]
                    if row >= 0 and service.catalog_updater.has_item(item)
                    else card(item, None, None, None)
                ),
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
        asked = Asked(
            user_id, limit, placement, filter, cursor, explain, {"path": "recommendations"}, exclude, request
        )
        return await answer_list(request, service, asked, in_thread)


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
