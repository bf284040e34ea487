"""What crosses the wire: bodies in, answers out, and the one shape of an error.

Bodies are bounded before they are parsed, then parsed by orjson, which refuses NaN, numbers too large for a double
and lone surrogates; whatever a client sends is answered with a 4xx that says what is wrong, never a 500.
"""

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote
from uuid import uuid4

import orjson
from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from features.interactions import DAY
from features.log.records import Event
from features.schema import MAX_ID_BYTES
from serving.errors import ApiError

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1000
MAX_NAME_BYTES = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


def id_error(text: str, limit: int = MAX_ID_BYTES) -> str:
    """Why a text cannot be an id, "" when it can."""
    if not text:
        return "is empty"
    if found := _CONTROL.search(text):
        return f"contains the character U+{ord(found[0]):04X}, which no id may contain"
    if (size := len(text.encode())) > limit:
        return f"has {size} bytes in UTF-8; at most {limit} are accepted"
    return ""


def checked_id(text: str, place: str) -> str:
    """An id of a path. Raises ApiError 422."""
    if why := id_error(text):
        raise ApiError(422, "bad_id", f"{place} {why}", place)
    return text


def media_url(item_id: str, image: str | None) -> str | None:
    """Where the page finds an item's picture: its own address on the web, or ours."""
    if not image:
        return None
    return image if image.startswith(("https://", "http://")) else f"/media/{quote(item_id, safe='')}"


def _id(text: str) -> str:
    if why := id_error(text):
        raise ValueError(why)
    return text


def _name(text: str) -> str:
    if why := id_error(text, MAX_NAME_BYTES):
        raise ValueError(why)
    return text


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("is not finite")
    return value


def _moment(text: str) -> str:
    micros(text)
    return text


def micros(text: str) -> int:
    """µs since 1970 UTC of an ISO 8601 text with a zone. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is no ISO 8601 time such as 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("has no zone: add Z or an offset such as +01:00")
    # counted from the parts: a conversion to UTC overflows in the years 1 and 9999
    parts = (
        moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC) - (moment.utcoffset() or 0 * moment.resolution)
    )
    return (parts.days * 86_400 + parts.seconds) * 1_000_000 + parts.microseconds


Finite = Annotated[float, AfterValidator(_finite)]
Id = Annotated[str, AfterValidator(_id), Field(max_length=MAX_ID_BYTES)]


class EventIn(BaseModel):
    """One event of a user on an item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    item_id: Id
    event: Annotated[str, AfterValidator(_name)] = Field(description="type of the event, as in the training data")
    timestamp: Annotated[str, AfterValidator(_moment)] | None = Field(
        default=None, description="ISO 8601 with zone, at most a day ahead; default: now"
    )
    value: Finite | None = Field(default=None, description="a rating, a quantity")
    event_id: Id | None = Field(default=None, description="makes sending again harmless; default: made by us")
    request_id: Id | None = Field(default=None, description="of the answer in which the item was shown")
    position: Annotated[int, Field(ge=1, le=10_000)] | None = Field(default=None, description="at which it was shown")


class EventResult(BaseModel):
    """What became of one event, in the order sent."""

    status: Literal["accepted", "rejected"]
    event_id: str | None = None
    known_item: bool | None = Field(default=None, description="whether the served bundle has the item")
    reason: str | None = None
    place: str | None = None


class EventsResponse(BaseModel):
    """Counts and one result for each event. Accepted events are on disk."""

    accepted: int
    rejected: int
    degraded: list[str]
    results: list[EventResult]


class ItemOut(BaseModel):
    """One recommended item."""

    item_id: str
    title: str | None
    categories: list[str]
    image: str | None
    score: float
    position: int
    propensity: float
    reason: str


Near = Annotated[
    dict[str, float | None],
    Field(description="cosine by what is compared, e.g. behaviour, text, image; null: one of the two has none"),
]


class NearItemOut(ItemOut):
    """One item that was found near to another, or to a query."""

    near: Near


class SlateResponse(BaseModel):
    """Recommendations; `degraded` names what could not be used, and is empty when all is well."""

    request_id: str
    user_id: str | None = None
    placement: str
    bundle: str
    variant: str
    source: str
    degraded: list[str]
    items: list[ItemOut]
    trace: dict[str, float]


class SimilarResponse(SlateResponse):
    """Items near to one item."""

    items: list[NearItemOut]  # type: ignore[assignment]  # nobody puts plain items into it


class FailedPart(BaseModel):
    """A part of a query that was not read, or not wholly."""

    part: str
    reason: str


class QueryOut(BaseModel):
    """What became of the parts of a query."""

    read: list[str]
    failed: list[FailedPart]


class SearchResponse(SimilarResponse):
    """Items near to a query."""

    query: QueryOut


async def bounded_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The body, read no further than `limit` bytes. Raises ApiError 413, and 400 when it ends before its length."""
    too_large = ApiError(413, "body_too_large", f"a body has at most {limit} bytes here; send less", "body")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise ApiError(400, "disconnected", "the body ended before its length", "body") from None
    return bytes(body)


def parse_events(body: bytes, now: int) -> tuple[list[Event | EventResult], int]:
    """Each event of a body, or why it is rejected, in order; and how many are good. `now` in µs.

    Raises ApiError 400 when it is no JSON, 422 when it is neither an object nor a list of 1 to MAX_EVENTS objects.
    """
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "bad_json", f"the body is no JSON that can be read: {error}", "body") from None
    if isinstance(sent, dict):
        sent = [sent]
    if not isinstance(sent, list) or not 1 <= len(sent) <= MAX_EVENTS:
        raise ApiError(422, "bad_events", f"send one event, or a list of 1 to {MAX_EVENTS}", "body")
    found = [_event(raw, i, now) for i, raw in enumerate(sent)]
    return found, sum(isinstance(x, Event) for x in found)


def _event(raw: Any, index: int, now: int) -> Event | EventResult:
    place = f"events[{index}]"
    if not isinstance(raw, dict):
        return EventResult(status="rejected", reason="is not an object", place=place)
    try:
        sent = EventIn.model_validate(raw)
        # two events of one request without a time happened in the order sent
        at = now + index if sent.timestamp is None else micros(sent.timestamp)
    except ValidationError as error:
        field, reason = first_error(error)
        return EventResult(status="rejected", reason=reason, place=f"{place}.{field}")
    if at < 0 or at > now + DAY:
        why = "is before 1970" if at < 0 else "is more than a day ahead"
        return EventResult(status="rejected", reason=why, place=f"{place}.timestamp")
    return Event(
        user_id=sent.user_id,
        item_id=sent.item_id,
        event=sent.event,
        timestamp=at,
        value=sent.value,
        event_id=sent.event_id or str(uuid4()),
        request_id=sent.request_id,
        position=sent.position,
        order=index,
    )


def first_error(error: ValidationError) -> tuple[str, str]:
    """The first field that is wrong, and why."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:MAX_NAME_BYTES].encode(errors="replace").decode()
    return field, first["msg"].removeprefix("Value error, ")
