"""Routes of recommendations by a body: for a user, a session that is not stored, or items, with long lists of ids."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from features.log.records import Event
from features.schema import EventRules
from recsys.retrieval.filters import Filter
from serving.errors import ApiError, Problem, json_response
from serving.event_validation import validate_event
from serving.openapi.bodies import request_body
from serving.routes.lists.answer import Asked, answer_lists
from serving.routes.responses import snapshot_of
from serving.schemas.body import bounded_body, parse_model
from serving.schemas.events import EventResult
from serving.schemas.fields import Id
from serving.schemas.slates import RecommendationsResponse
from serving.state.service import ServiceState
from serving.state.thread_pool import InThread

MAX_SESSION, MAX_EXCLUDED = 200, 10_000
"""Events and example items of one call; excluded ids."""

MAX_LISTS = 10
"""Lists of one call."""

VISITOR = "visitor"
"""User of the events of a session without a user."""


class SessionEvent(BaseModel):
    """What a visitor did: as an event, without a user. It is not stored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item_id: Id
    event: str
    timestamp: str | None = Field(default=None, description="ISO 8601 with zone; default: now, in the order sent")
    value: float | None = None


class ForIn(BaseModel):
    """Whom and what lists are for: a user, events of a session, example items, or several of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id | None = None
    session: Annotated[list[SessionEvent], Field(max_length=MAX_SESSION)] = []
    items: Annotated[list[Id], Field(max_length=MAX_SESSION)] = Field(
        default=[], description="examples of what is liked: the same as positive events, before those of the session"
    )
    exclude: Annotated[list[Id], Field(max_length=MAX_EXCLUDED)] = Field(
        default=[], description="ids of items that are not returned; joins `exclude` of the filter"
    )


class ListIn(BaseModel):
    """A list of recommended items."""

    model_config = ConfigDict(extra="forbid", strict=True)

    placement: str | None = Field(default=None, description="default: the first of the configuration")
    limit: Annotated[int, Field(ge=1, le=100)] = Field(default=20, description="number of items")
    filter: Filter | None = Field(default=None, description="which items may be returned")
    explain: bool = Field(default=False, description="say why each item is shown")


class RecommendationsIn(ForIn, ListIn):
    """One list, and whom it is for."""

    cursor: str | None = Field(default=None, description="of the page before; send the other fields as they were")


class ListsIn(ForIn):
    """Several lists for one page, which show no item and no product twice."""

    lists: Annotated[list[ListIn], Field(min_length=1, max_length=MAX_LISTS)] = Field(
        description="each is filled after those before it"
    )


class ListsResponse(BaseModel):
    """The lists, as they were asked for. They have no cursor."""

    lists: list[RecommendationsResponse]


def parse_one(body: bytes, rules: EventRules, now: int) -> list[Asked]:
    """The list that a body asks for. rules: of the served bundle; now: µs. Raises ApiError 400 or 422."""
    given = parse_model(RecommendationsIn, body, "bad_recommendations")
    return [_asked(given, given, _session(given, rules, now), given.cursor)]


def parse_several(body: bytes, rules: EventRules, now: int) -> list[Asked]:
    """The lists that a body asks for; see `parse_one`."""
    given = parse_model(ListsIn, body, "bad_recommendations")
    session = _session(given, rules, now)
    return [replace(_asked(given, wanted, session, None), pages=False) for wanted in given.lists]


def _asked(given: ForIn, wanted: ListIn, session: Sequence[Event], cursor: str | None) -> Asked:
    allowed = wanted.filter or Filter()
    allowed = allowed.model_copy(update={"exclude": (*allowed.exclude, *given.exclude)})
    sent = [*given.items, *(event.model_dump() for event in given.session)]
    of = {"path": "recommendations by body", "session or items": orjson.dumps(sent).decode()}
    user = given.user_id or ""
    return Asked(user, wanted.limit, wanted.placement, allowed, cursor, wanted.explain, of, session=session)


def _session(given: ForIn, rules: EventRules, now: int) -> list[Event]:
    """Example items and the session as events. Raises ApiError 422."""
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
    return session


def add_recommendations_by_body(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the routes."""
    errors: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (413, 415)}

    async def answers(
        request: Request, parse: Callable[[bytes, EventRules, int], list[Asked]]
    ) -> list[dict[str, Any]]:
        body = await bounded_body(request)

        def ask() -> list[Asked]:
            return parse(body, snapshot_of(service).bundle.data.events, service.now())

        return await answer_lists(request, service, ask, in_thread)

    @app.post(
        "/v1/recommendations",
        responses={200: {"model": RecommendationsResponse}, 410: {"model": Problem}, **errors},
        openapi_extra=request_body(RecommendationsIn),
        tags=["users"],
    )
    async def recommend(request: Request) -> Response:
        """Recommended items for a user, for a session that is not stored, or for example items, best first.

        The answer is that of `GET /v1/users/{user_id}/recommendations` after these events. Nothing of the body is
        stored, but for the exposure.
        """
        (answer,) = await answers(request, parse_one)
        return json_response(answer)

    @app.post(
        "/v1/recommendations/lists",
        responses={200: {"model": ListsResponse}, **errors},
        openapi_extra=request_body(ListsIn),
        tags=["users"],
    )
    async def recommend_lists(request: Request) -> Response:
        """Several lists for one page, e.g. of several placements. None shows an item or a product of another one.

        Each is filled after those before it, and is an answer and an exposure of its own.
        """
        return json_response({"lists": await answers(request, parse_several)})
