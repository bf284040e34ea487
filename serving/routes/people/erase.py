"""Route that erases a person from what the service owns, as `recsys users erase` does: the log, its exports and the
feature store."""

import asyncio
from functools import partial
from typing import Final

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, Field

from features.erasure.erase import Scope, UpkeepRunningError, erase_user
from features.instants import format_instant
from features.store.redis import RedisStore
from serving.errors import ApiError, json_response
from serving.routes.responses import snapshot_of
from serving.schemas.fields import checked_id
from serving.state.service import ServiceState

ELSEWHERE: Final = (
    "this call does not reach rejected rows, slates, outcomes of runs (mlruns, data/experiments) and other files: "
    "run `recsys users erase` with --config, --slates and --also where they are; the rows of your tables stay there, "
    "and are left out when the tables are read"
)

RETRY_SECONDS: Final = 10
"""Seconds after which a refused erasure is worth another try."""


class PlaceOut(BaseModel):
    """One place. erased: lines, rows or keys; left: where the person still is, after a search of all of it."""

    name: str
    erased: int
    left: int


class ErasureResponse(BaseModel):
    """What was erased."""

    user_id: str
    status: str = Field(description="erased; or incomplete: a place still has the person, so send the call again")
    erased_at: str = Field(description="events that were accepted later belong to a new person of the same id")
    places: list[PlaceOut]
    notes: list[str] = Field(description="what this call cannot reach, and what remains to be done")


def add_erasure(app: FastAPI, service: ServiceState) -> None:
    """Add the route."""

    @app.delete("/v1/users/{user_id:id}", responses={200: {"model": ErasureResponse}}, tags=["users"])
    async def delete_user(user_id: str) -> Response:
        """Erase a person from the log, its exports and the feature store, and search these for what is left.

        Other calls go on meanwhile. One erasure runs at a time: another call gets 503 `busy`. Who comes back is a new
        person.
        """
        checked_id(user_id, "user_id")
        store = snapshot_of(service).store
        url = store.url if isinstance(store, RedisStore) else None
        try:  # in a thread of its own: reading the whole log may take longer than any other request
            erase = partial(erase_user, Scope(service.settings.log, redis_url=url), user_id)
            report = await asyncio.to_thread(erase)
        except UpkeepRunningError as error:
            raise ApiError("busy", str(error), "log", {"Retry-After": str(RETRY_SECONDS)}) from None
        await asyncio.to_thread(service.follow_erasures)
        response = ErasureResponse(
            user_id=user_id,
            status="incomplete" if report.n_left else "erased",
            erased_at=format_instant(report.erased_at),
            places=[PlaceOut(name=place.name, erased=place.found, left=place.n_left) for place in report.places],
            notes=[*report.notes, ELSEWHERE],
        )
        return json_response(response.model_dump())
