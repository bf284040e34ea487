"""Schemas of requests and responses, and parsers of ids, times and events.

The size of a body is checked before it is parsed. orjson parses it and rejects NaN, numbers too large for a double
and lone surrogates. Invalid input gives a 4xx response that names the error, never a 500.
"""

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from features.schema import MAX_ID_BYTES
from serving.errors import ApiError

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1000
MAX_NAME_BYTES = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


def id_error(text: str, limit: int = MAX_ID_BYTES) -> str:
    """The reason why a text is not a valid id; "" when it is valid. limit: bytes in UTF-8."""
    if not text:
        return "is empty"
    if match := _CONTROL.search(text):
        return f"contains the character U+{ord(match[0]):04X}; control characters are not allowed in ids"
    if (size := len(text.encode())) > limit:
        return f"has {size} bytes in UTF-8; the maximum is {limit}"
    return ""


def checked_id(text: str, place: str) -> str:
    """The id, checked. Raises ApiError 422 when it is invalid."""
    if reason := id_error(text):
        raise ApiError(422, "bad_id", f"{place} {reason}", place)
    return text


def media_url(item_id: str, image: str | None) -> str | None:
    """URL of an item's image: the item's own URL, or /media/ of this service when the image is a file."""
    if not image:
        return None
    return image if image.startswith(("https://", "http://")) else f"/media/{quote(item_id, safe='')}"


def _id(text: str) -> str:
    if reason := id_error(text):
        raise ValueError(reason)
    return text


def _name(text: str) -> str:
    if reason := id_error(text, MAX_NAME_BYTES):
        raise ValueError(reason)
    return text


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("is not finite")
    return value


def _moment(text: str) -> str:
    micros(text)
    return text


def micros(text: str) -> int:
    """µs since 1970 UTC of an ISO 8601 time with a zone. Raises ValueError when it is invalid or has no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is not an ISO 8601 time such as 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("has no zone: add Z or an offset such as +01:00")
    # naive difference minus the UTC offset: astimezone(UTC) overflows in the years 1 and 9999
    elapsed = (
        moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC) - (moment.utcoffset() or 0 * moment.resolution)
    )
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


Finite = Annotated[float, AfterValidator(_finite)]
Id = Annotated[str, AfterValidator(_id), Field(max_length=MAX_ID_BYTES)]


class EventIn(BaseModel):
    """One event of a user on an item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    item_id: Id
    event: Annotated[str, AfterValidator(_name)] = Field(description="event type, as in the training data")
    timestamp: Annotated[str, AfterValidator(_moment)] | None = Field(
        default=None, description="ISO 8601 with zone, at most one day in the future; default: now"
    )
    value: Finite | None = Field(default=None, description="for example a rating or a quantity")
    event_id: Id | None = Field(default=None, description="makes retries idempotent; default: a generated id")
    request_id: Id | None = Field(default=None, description="request_id of the response that showed the item")
    position: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="position of the item in that response"
    )


class EventResult(BaseModel):
    """The result of one event. Results are in the order of the events sent."""

    status: Literal["accepted", "rejected"]
    event_id: str | None = None
    known_item: bool | None = Field(default=None, description="whether the item is in the served bundle")
    reason: str | None = Field(
        default=None, description="why it is rejected; of an accepted event, that data.events does not name its type"
    )
    place: str | None = None


class EventsResponse(BaseModel):
    """Counts, and one result per event. Accepted events are on disk."""

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
    Field(description="cosine by channel, e.g. behaviour, text, image; null where either side has no vector"),
]


class NearItemOut(ItemOut):
    """One item that is similar to another item or to a query."""

    near: Near


class SlateResponse(BaseModel):
    """A slate of items. `degraded` lists the components that failed; it is empty when all worked."""

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
    """Items similar to one item."""

    items: list[NearItemOut]  # type: ignore[assignment]  # list is invariant; a response is never mutated


class FailedPart(BaseModel):
    """A part of a query or item that was not read, or only partly."""

    part: str
    reason: str


class QueryOut(BaseModel):
    """Modalities of the query that were read, and the parts that failed."""

    read: list[str]
    failed: list[FailedPart]


class SearchResponse(SimilarResponse):
    """Items similar to a query."""

    query: QueryOut


async def bounded_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The body of a request. Reading stops once it exceeds `limit` bytes.

    Raises ApiError 413 when it is larger, and 400 when it ends before its declared length.
    """
    too_large = ApiError(413, "body_too_large", f"the body exceeds {limit} bytes; send less", "body")
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
        raise ApiError(400, "disconnected", "the body ended before its declared length", "body") from None
    return bytes(body)


def first_error(error: ValidationError) -> tuple[str, str]:
    """The first invalid field, and the reason."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:MAX_NAME_BYTES].encode(errors="replace").decode()
    return field, first["msg"].removeprefix("Value error, ")
