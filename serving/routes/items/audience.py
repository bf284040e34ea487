"""Route of the users whom an item fits."""

from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from features.arrays import Keys
from features.errors import StoreError
from features.history_rules import seen_items, short_keys
from features.ids import id_keys
from features.store.user_state import UserState
from serving.errors import Problem, json_response
from serving.routes.responses import not_live_yet, require_item, snapshot_of, timed
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import InThread

AMONG = 1000
"""Users who are looked at: those who were active last. Each costs a part of a millisecond."""

AT_ONCE = 100
"""Users whose states are read at once: what the store sends in its time-out."""


class FittingUser(BaseModel):
    """A user, and how well the item fits: the cosine of the user's vector and the item's."""

    user_id: str
    position: int
    score: float


class AudienceResponse(BaseModel):
    """The users whom an item fits best, best first."""

    item_id: str
    bundle: str
    degraded: list[str]
    among: int = Field(description="users who were looked at: those who were active last and have a positive event")
    users: list[FittingUser]
    trace: dict[str, float]


def add_audience(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the route."""

    @app.get(
        "/v1/items/{item_id:id}/users",
        responses={200: {"model": AudienceResponse}, 404: {"model": Problem}},
        tags=["items"],
    )
    async def get_audience(
        item_id: str, limit: Annotated[int, Query(ge=1, le=AMONG, description="number of users")] = 20
    ) -> Response:
        """The users whom an item fits best, of those who were active last, e.g. to tell them of it.

        Users who have seen the item are left out. Nothing counts as shown.
        """
        snapshot = snapshot_of(service)
        require_item(service, item_id)
        if (row := snapshot.bundle.catalog.ids.row(item_id)) < 0:
            raise not_live_yet()
        return json_response(await in_thread(_audience, service, snapshot, item_id, row, limit))


def _audience(service: ServiceState, snapshot: ServingSnapshot, item_id: str, row: int, limit: int) -> dict[str, Any]:
    """The fields of `AudienceResponse`."""
    trace, degraded, found = dict[str, float](), list[str](), list[tuple[str, UserState]]()
    with timed(trace, "store"):
        try:
            found = _others(snapshot, short_keys(id_keys([item_id])))
        except StoreError:
            degraded = ["store"]
    with timed(trace, "rank"):
        states = snapshot.states([state for _, state in found], service.now())
        warm = np.flatnonzero(states.positives().lengths > 0)  # (b,)
        scores = snapshot.bundle.recommender.item_scores(states[warm], row) if len(warm) else np.empty(0, np.float32)
        best = np.argsort(-scores, kind="stable")[:limit]
    users = [
        {"user_id": found[user][0], "position": place, "score": score}
        for place, (user, score) in enumerate(zip(warm[best].tolist(), scores[best].tolist(), strict=True), 1)
    ]
    facts = {"item_id": item_id, "bundle": snapshot.bundle.fingerprint, "degraded": degraded, "among": len(warm)}
    return {**facts, "users": users, "trace": trace}


def _others(snapshot: ServingSnapshot, key: Keys) -> list[tuple[str, UserState]]:
    """The users who were active last and have not seen an item, latest first. key (1,): the item's short key."""
    found, names = list[tuple[str, UserState]](), snapshot.store.recent_users(AMONG)
    for begin in range(0, len(names), AT_ONCE):
        part = names[begin : begin + AT_ONCE]
        states = snapshot.store.read_users(part)
        found += [
            (name, state)
            for name, state in zip(part, states, strict=True)
            if not np.isin(key, seen_items(state.seen)).any()
        ]
    return found
