"""Route of what the feature store knows of a user, in numbers."""

from typing import Any, Final

import numpy as np
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, Field

from features.arrays import Ints
from features.catalog import Catalog
from features.instants import format_instant
from serving.errors import json_response
from serving.routes.responses import snapshot_of
from serving.schemas.fields import checked_id
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.store.keeper import LAST_KNOWN
from serving.state.thread_pool import InThread

MAX_LIKES: Final = 3
"""Categories that a user is described by."""


class UserResponse(BaseModel):
    """What the feature store knows of a user. All but the id is null when it did not answer (`degraded`), and this
    process has not read the user of late."""

    user_id: str
    status: str | None = Field(
        description="present; missing: the store has nothing of the user; stale: what it has is too old, or it was "
        "emptied and is being filled"
    )
    events: int | None = Field(description="events that the store keeps, at most `data.events.history`")
    positives: int | None = Field(description="of these, how many are positive")
    seen: int | None = Field(description="items that count as seen")
    likes: list[str] | None = Field(
        description=f"at most {MAX_LIKES} categories that are more frequent among the positive items than in the "
        "catalogue, the most telling first"
    )
    last_event: str | None = Field(description="time of the latest event; null without events")
    degraded: list[str]


def add_user(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the route."""

    @app.get("/v1/users/{user_id:id}", responses={200: {"model": UserResponse}}, tags=["users"])
    async def get_user(user_id: str) -> Response:
        """What the feature store knows of a user, in numbers. An unknown user is not an error."""
        snapshot = snapshot_of(service)
        checked_id(user_id, "user_id")
        return json_response(await in_thread(_numbers, service, snapshot, user_id))


def _numbers(service: ServiceState, snapshot: ServingSnapshot, user_id: str) -> dict[str, Any]:
    """The fields of `UserResponse`."""
    state, degraded = service.keeper.read_user(snapshot.store, user_id)
    facts = dict.fromkeys(UserResponse.model_fields) | {"user_id": user_id, "degraded": degraded}
    if "store" in degraded and LAST_KNOWN not in degraded:
        return facts
    positive = state.labels(snapshot.bundle.data.events).positive
    liked = snapshot.rows(np.array(state.items, dtype=object)[positive])
    return facts | {
        "status": state.status,
        "events": len(state.items),
        "positives": int(positive.sum()),
        "seen": len(state.seen),
        "likes": likes(snapshot.bundle.catalog, liked),
        "last_event": format_instant(int(state.times[-1])) if len(state.times) else None,
    }


def likes(catalog: Catalog, rows: Ints) -> list[str]:
    """The categories that tell rows (p,) apart from the catalogue: at most MAX_LIKES, each of two or more rows.

    A category weighs its number of rows times the logarithm of how much more frequent it is among them than among all
    items: its part of the log-likelihood ratio (Dunning, 1993).
    """
    n = len(catalog.category_names)
    every = np.bincount(catalog.categories[catalog.categories >= 0], minlength=n)  # (n,)
    own = catalog.categories[np.unique(rows)]
    counts = np.bincount(own[own >= 0], minlength=n)  # (n,)
    if not counts.any():
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(counts >= 2, counts * np.log(counts / len(own) / (every / len(catalog))), 0)
    best = np.argsort(-weights, kind="stable")[:MAX_LIKES]
    return [catalog.category_names[c] for c in best.tolist() if weights[c] > 0]
