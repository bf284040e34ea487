"""The answer to a call for recommendations: its lists are made in one go, and each is logged as an exposure."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request
from starlette.types import Scope

from features.log.records import Event, Exposure
from recsys.retrieval.filters import Filter
from serving.errors import ApiError
from serving.routes.explain import Answer, why_shown
from serving.routes.lists.recommend import NOTHING, recommend
from serving.routes.responses import (
    DEADLINE,
    exploration_of,
    list_of,
    log_exposure,
    sample_of,
    slate_content,
    snapshot_of,
)
from serving.state.arms import Arm
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import InThread, TimeUpError, in_time
from serving.telemetry.request_id import id_of_answer


def placement_of(snapshot: ServingSnapshot, placement: str | None) -> str:
    """The name of the placement that is asked for, the first by default. Raises ApiError 422 when it is unknown."""
    placements = snapshot.bundle.data.placements
    name = next(iter(placements)) if placement is None else placement
    if name not in placements:
        raise ApiError("unknown_placement", f"unknown placement; available: {', '.join(placements)}", "placement")
    return name


@dataclass(frozen=True)
class Asked:
    """A list that a call asks for.

    user_id: "" for none; of: what the list depends on besides the other fields, the kind first; in_url: the request
    whose URL holds the cursor, None for a body; session: see `recommend`; pages: whether the answer has a cursor.
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
    pages: bool = True


@dataclass(frozen=True)
class Listed:
    """A list that was made: what it is made from, the answer, and what else its exposure holds."""

    arm: Arm
    answer: Answer
    exposed: dict[str, Any]
    explain: bool


async def answer_lists(
    request: Request, service: ServiceState, ask: Callable[[], Sequence[Asked]], in_thread: InThread
) -> list[dict[str, Any]]:
    """The lists that a call asks for, as fields of `RecommendationsResponse`. The exposure of each is logged.

    ask: reads the call. All is computed in one go: each change between threads costs CPU time.
    """
    make = partial(_make, service, ask, request.scope)
    try:
        made = await in_time(in_thread, make)
    except TimeUpError:
        made = await in_thread(partial(make, at_once=True))
    return await asyncio.gather(*(_show(request, service, listed, in_thread) for listed in made))


def _make(
    service: ServiceState, ask: Callable[[], Sequence[Asked]], scope: Scope, *, at_once: bool = False
) -> list[Listed]:
    """The lists of a call. None shows a product of those before it. at_once: see `recommend`."""
    current, asked, made, besides = snapshot_of(service), ask(), list[Listed](), NOTHING
    answer_id = id_of_answer(scope)
    for number, one in enumerate(asked, 1):
        name = placement_of(current, one.placement)
        request_id = answer_id if len(asked) == 1 else f"{answer_id}.{number}"
        of = {**one.of, "user_id": one.user_id, "placement": name}
        given = name, one.user_id, one.item_filter, one.cursor, of
        arm, page = list_of(service, current, *given, exclude=one.exclude, request=one.in_url)
        wanted = one.user_id, one.limit, name, page, request_id, one.session
        answer = recommend(service, arm, *wanted, besides=besides, at_once=at_once)
        snapshot = arm.snapshot
        exposed = {
            "placement": name,
            "request_id": request_id,
            "user_id": one.user_id,
            "variant": arm.variant,
            "source": answer.source,
            "exploration": exploration_of(snapshot, answer.slate),
            "sample": sample_of(snapshot, answer.recommended),
        }
        made.append(Listed(arm, answer if one.pages else replace(answer, cursor=None), exposed, one.explain))
        if number < len(asked):
            besides = np.union1d(besides, snapshot.products.keys_of(answer.slate.rows))
    return made


async def _show(request: Request, service: ServiceState, listed: Listed, in_thread: InThread) -> dict[str, Any]:
    """A list as it is answered, after its exposure is logged."""
    answer, snapshot, why, degraded = listed.answer, listed.arm.snapshot, None, listed.answer.degraded
    if listed.explain:
        try:
            why = await in_time(in_thread, why_shown, service, snapshot, answer)
        except TimeUpError:
            degraded = [*dict.fromkeys([*degraded, DEADLINE])]
    is_noted = listed.exposed["user_id"] and listed.arm.rules.shown_days
    remember = partial(_remember, in_thread, service, snapshot) if is_noted else None
    exposure = await log_exposure(
        request, service, answer.slate, degraded=degraded, remember=remember, **listed.exposed
    )
    known = answer.recommended.probabilities
    return slate_content(answer.slate, snapshot, exposure, answer.cursor, why=why, probabilities=known)


async def _remember(
    in_thread: InThread, service: ServiceState, snapshot: ServingSnapshot, exposure: Exposure
) -> list[str]:
    """Note in the store what a user was shown, for the rules of rotation. Returns the components that failed."""
    shown = exposure.user_id, exposure.items, exposure.timestamp, service.experiments.shown_days
    try:
        return await in_time(in_thread, service.keeper.add_shown, snapshot.store, *shown)
    except TimeUpError:
        return [DEADLINE]
