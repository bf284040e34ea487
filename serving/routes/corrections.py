"""Routes that correct what was logged: merge two users, and undo an event."""

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from features.ids import id_keys
from features.log.records import EventUndone, UsersMerged
from serving.errors import ApiError, Problem, json_response
from serving.openapi.bodies import request_body
from serving.schemas.body import bounded_body, parse_model
from serving.schemas.fields import Id, checked_id
from serving.state.service import ServiceState
from serving.state.thread_pool import InThread, budget


class MergeIn(BaseModel):
    """The id whose events go to the user of the path."""

    model_config = ConfigDict(extra="forbid", strict=True)

    from_id: Id = Field(alias="from", description="the id that a person had before the login")


class MergeResponse(BaseModel):
    """The merge is on disk. degraded: components that failed; when it is empty, the next response is that of one
    user."""

    user_id: str
    from_id: str = Field(alias="from")
    status: str = "accepted"
    degraded: list[str]


class UndoResponse(BaseModel):
    """The undo is on disk. known: whether the store held the event before; null when the store was not asked.
    degraded: components that failed; when it is empty, the next response does not count the event."""

    user_id: str
    event_id: str
    status: str = "accepted"
    known: bool | None
    degraded: list[str]


def add_corrections(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the routes."""

    @app.post(
        "/v1/users/{user_id:id}/merge",
        status_code=202,
        responses={
            202: {"model": MergeResponse},
            **{code: {"model": Problem} for code in (409, 413, 415)},
        },
        openapi_extra=request_body(MergeIn),
        tags=["users"],
    )
    async def merge_users(user_id: str, request: Request) -> Response:
        """Give the events of another id to this user, e.g. those before a login. The next response counts them.

        Events of the other id that happen later stay its own.
        """
        checked_id(user_id, "user_id")
        record = await in_thread(_parse_merge, service, user_id, await bounded_body(request))
        await service.log.append([record], budget().left())
        degraded = await in_thread(service.correct, record)
        response = MergeResponse.model_validate({"user_id": user_id, "from": record.from_id, "degraded": degraded})
        return json_response(response.model_dump(by_alias=True), 202)

    @app.delete(
        "/v1/users/{user_id:id}/events/{event_id:id}",
        status_code=202,
        responses={202: {"model": UndoResponse}},
        tags=["users"],
    )
    async def undo_event(user_id: str, event_id: str) -> Response:
        """Undo an event: it does not count any more, in no response and no training, whenever it was or is sent."""
        checked_id(user_id, "user_id")
        checked_id(event_id, "event_id")
        known = await in_thread(_is_known, service, user_id, event_id)
        record = EventUndone(user_id=user_id, event_id=event_id, timestamp=service.now())
        await service.log.append([record], budget().left())
        degraded = await in_thread(service.correct, record)
        response = UndoResponse(user_id=user_id, event_id=event_id, known=known, degraded=degraded)
        return json_response(response.model_dump(), 202)


def _parse_merge(service: ServiceState, user_id: str, body: bytes) -> UsersMerged:
    """The record of a merge. Raises ApiError 400, 409 or 422.

    It takes all events that the store has of the other id: those of a device whose clock is ahead are later than now.
    """
    from_id = parse_model(MergeIn, body, "bad_merge").from_id
    if from_id == user_id:
        raise ApiError("bad_merge", "from: is the user of the path; give the id that it had before", "from")
    service.corrections.read()
    corrections = service.corrections.corrections
    if corrections.closes_circle(from_id, user_id):
        message = f"from: user {user_id!r} was merged into {from_id!r} before; merges are not taken back"
        raise ApiError("merged_before", message, "from")
    snapshot, until = service.snapshot, service.now()
    if snapshot is not None:
        times = service.keeper.read_user(snapshot.store, from_id)[0].times
        until = max([until, *times[-1:].tolist()])
    until = corrections.next_until(from_id, until)
    return UsersMerged(user_id=user_id, from_id=from_id, timestamp=service.now(), until=until)


def _is_known(service: ServiceState, user_id: str, event_id: str) -> bool | None:
    """Whether the store holds an event of a user or of an id that it was merged into; None: it does not answer."""
    if (snapshot := service.snapshot) is None:
        return None
    service.corrections.read()
    key = id_keys([event_id])[0]
    read = [
        service.keeper.read_user(snapshot.store, owner) for owner in service.corrections.corrections.takers(user_id)
    ]
    if any("store" in degraded for _, degraded in read):
        return None
    return any(bool((state.keys == key).any()) for state, _ in read)
