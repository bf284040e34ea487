"""Route of recommendations by a body: for a user, a session that is not stored, or items, with long lists of ids."""

from typing import Annotated

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from features.schema import EventRules
from recsys.retrieval.filters import Filter
from serving.errors import ApiError, Problem
from serving.event_validation import validate_event
from serving.openapi.bodies import request_body
from serving.routes.responses import snapshot_of
from serving.routes.users import Asked, answer_list
from serving.schemas.body import bounded_body, parse_model
from serving.schemas.events import EventResult
from serving.schemas.fields import Id
from serving.schemas.slates import RecommendationsResponse
from serving.state.service import ServiceState
from serving.state.thread_pool import InThread

MAX_SESSION, MAX_EXCLUDED = 200, 10_000
"""Events and example items of one call; excluded ids."""

VISITOR = "visitor"
"""User of the events of a session without a user."""


class SessionEvent(BaseModel):
    """What a visitor did: as an event, without a user. It is not stored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item_id: Id
    event: str
    timestamp: str | None = Field(default=None, description="ISO 8601 with zone; default: now, in the order sent")
    value: float | None = None


class RecommendationsIn(BaseModel):
    """Whom and what recommendations are for: a user, events of a session, example items, or several of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id | None = None
    session: Annotated[list[SessionEvent], Field(max_length=MAX_SESSION)] = []
    items: Annotated[list[Id], Field(max_length=MAX_SESSION)] = Field(
        default=[], description="examples of what is liked: the same as positive events, before those of the session"
    )
    placement: str | None = Field(default=None, description="default: the first of the configuration")
    limit: Annotated[int, Field(ge=1, le=100)] = Field(default=20, description="number of items")
    filter: Filter | None = Field(default=None, description="which items may be returned")
    exclude: Annotated[list[Id], Field(max_length=MAX_EXCLUDED)] = Field(
        default=[], description="ids of items that are not returned; joins `exclude` of the filter"
    )
    explain: bool = Field(default=False, description="say why each item is shown")
    cursor: str | None = Field(default=None, description="of the page before; send the other fields as they were")


def parse_asked(body: bytes, rules: EventRules, now: int) -> Asked:
    """What a body asks for. rules: of the served bundle; now: µs. Raises ApiError 400 or 422."""
    given = parse_model(RecommendationsIn, body, "bad_recommendations")
    user, (kind, least) = given.user_id or VISITOR, next(iter(rules.positive.items()), ("click", None))
    examples = [{"item_id": item, "event": kind, "value": least} for item in given.items]
    sent = [*examples, *(event.model_dump() for event in given.session)]
    first = now - len(sent)  # µs: those without a time come one after another, the last one now
    session = []
    for at, fields in enumerate(sent):
        event = validate_event({"user_id": user, **fields}, at, first, rules)
        if isinstance(event, EventResult):
            place = (event.place or "").replace(f"events[{at}]", f"session[{at - len(examples)}]")
            raise ApiError("bad_recommendations", f"{place}: {event.reason}", place)
        session.append(event)
    allowed = given.filter or Filter()
    allowed = allowed.model_copy(update={"exclude": (*allowed.exclude, *given.exclude)})
    of = {"path": "recommendations by body", "session or items": orjson.dumps(sent).decode()}
    return Asked(
        given.user_id or "", given.limit, given.placement, allowed, given.cursor, given.explain, of, session=session
    )


def add_recommendations_by_body(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the route."""

    @app.post(
        "/v1/recommendations",
        responses={
            200: {"model": RecommendationsResponse},
            **{code: {"model": Problem} for code in (410, 413, 415)},
        },
        openapi_extra=request_body(RecommendationsIn),
        tags=["users"],
    )
    async def recommend(request: Request) -> Response:
        """Recommended items for a user, for a session that is not stored, or for example items, best first.

        The answer is that of `GET /v1/users/{user_id}/recommendations` after these events. Nothing of the body is
        stored, but for the exposure.
        """
        body = await bounded_body(request)
        asked = await in_thread(parse_asked, body, snapshot_of(service).bundle.data.events, service.now())
        return await answer_list(request, service, asked, in_thread)
