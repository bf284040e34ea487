"""Schemas of requests and responses, and parsers of ids, times and events.

The size of a body is checked before it is parsed. orjson parses it and rejects NaN, numbers too large for a double
and halves of surrogate pairs. Invalid input gives a 4xx response that names the error, never a 500.
"""

import json
import math
from typing import Annotated, Any, Literal
from urllib.parse import quote

import orjson
from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import ClientDisconnect

from features.errors import describe_invalid
from features.ids import NO_NULL, TEXT_RULES, id_error
from features.instants import format_instant, parse_instant
from features.schema import MAX_ID_BYTES, MAX_POSITION, MAX_PRICE, MIN_POSITION
from serving.errors import ApiError

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1000
MAX_DESCRIBED = 50
"""Items of one list whose content the caller describes: each is encoded."""

MAX_TEXT, MAX_LABEL, MAX_LABELS = 200_000, 1000, 100
"""Limits: characters of a description or an extra column; of a title or category; categories of an item."""

MAX_PLACE = 64
"""Characters of a field's name in an error."""


def checked_id(text: str, place: str) -> str:
    """The id, checked by the rule of `features.ids`. Raises ApiError 422 when it is invalid."""
    if reason := id_error(text):
        raise ApiError("bad_id", f"{place} {reason}", place)
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


def _event_type(text: str) -> str:
    if reason := id_error(text, TEXT_RULES):
        raise ValueError(reason)
    return text


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("is not finite")
    return value


def _utc(text: str) -> str:
    """ISO 8601 text in UTC; a bare date is midnight. Raises ValueError."""
    return format_instant(parse_instant(text, dates=True))


def _without_null(text: str) -> str:
    if NO_NULL.found(text):
        raise ValueError(f"{NO_NULL.reason}: {NO_NULL.advice}")
    return text


def _labels(labels: list[str]) -> list[str]:
    """The labels as the items table has them: without blanks around them, and without empty ones."""
    return [label for text in labels if (label := text.strip())]


def _instant(text: str) -> str:
    parse_instant(text)
    return text


Finite = Annotated[float, AfterValidator(_finite)]
Id = Annotated[str, AfterValidator(_id), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES})]


Label = Annotated[str, Field(max_length=MAX_LABEL), AfterValidator(_without_null)]


class ItemText(BaseModel):
    """What an item is, in words and numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Label | None = None
    description: Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_without_null)] | None = None
    categories: Annotated[list[Label], Field(max_length=MAX_LABELS), AfterValidator(_labels)] | None = Field(
        default=None, description="empty labels are left out"
    )
    price: Annotated[Finite, Field(ge=0, le=MAX_PRICE)] | None = None
    published_at: Annotated[str, AfterValidator(_utc)] | None = Field(
        default=None, description="ISO 8601 with zone, or a date"
    )


class EventIn(BaseModel):
    """One event of a user on an item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    item_id: Id
    event: Annotated[str, AfterValidator(_event_type)] = Field(description="event type, as in the training data")
    timestamp: Annotated[str, AfterValidator(_instant)] | None = Field(
        default=None, description="ISO 8601 with zone, from 1970 to one day from now; default: now"
    )
    value: Finite | None = Field(default=None, description="for example a rating or a quantity")
    event_id: Id | None = Field(default=None, description="makes retries idempotent; default: a generated id")
    request_id: Id | None = Field(default=None, description="request_id of the response that showed the item")
    position: Annotated[int, Field(ge=MIN_POSITION, le=MAX_POSITION)] | None = Field(
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
    explored: bool = Field(description="whether the item stands here by a rule of exploration")


Near = Annotated[
    dict[str, float | None],
    Field(description="cosine by channel, e.g. behaviour, text, image; null where either side has no vector"),
]


class NearItemOut(ItemOut):
    """One item that is similar to another item or to a query."""

    near: Near


class NearestOut(BaseModel):
    """The positive item of the user that is nearest to a recommended item, and the channel where it is clearest."""

    item_id: str
    title: str | None
    channel: str
    cosine: float


class FeatureOut(BaseModel):
    """A feature of the reranker, and what it adds to the score."""

    name: str
    contribution: float


class WhyOut(BaseModel):
    """Why an item is recommended. nearest: null where no item of the history is near; loss: by a rule of rotation."""

    source: str
    nearest: NearestOut | None
    features: list[FeatureOut]
    sentence: str
    loss: float


class RecommendedItemOut(ItemOut):
    """One item for a user. why: only with `explain=true`."""

    probability: float | None = Field(
        default=None, description="that this item is the user's next one; absent for popular items, null for pins"
    )
    why: WhyOut | None = None


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
    cursor: str | None = Field(description="asks for the next page; null at the end of the list")
    trace: dict[str, float]


class RecommendationsResponse(SlateResponse):
    """Items for a user."""

    items: list[RecommendedItemOut]  # type: ignore[assignment]  # as in SimilarResponse


class ListedItem(ItemText):
    """An item of a list: an id alone, or with what the item is. The latter counts where the bundle lacks the item."""

    item_id: Id

    @property
    def fields(self) -> dict[str, Any]:
        """What the item is, as `PUT /v1/items` takes it; empty where the caller does not say."""
        return self.model_dump(exclude={"item_id"}, exclude_none=True)


def _listed(value: Any) -> Any:
    return ListedItem(item_id=_id(value)) if isinstance(value, str) else value


_ID_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}
Listed = Annotated[
    ListedItem,
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_ID_SCHEMA, ListedItem.model_json_schema()]}),
]


def _few_described(items: list[ListedItem]) -> list[ListedItem]:
    if (n := sum(bool(item.fields) for item in items)) > MAX_DESCRIBED:
        raise ValueError(f"describes {n} items, at most {MAX_DESCRIBED} are allowed: send the others as ids")
    return items


class RankIn(BaseModel):
    """Items to put in order for a user."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    items: Annotated[list[Listed], AfterValidator(_few_described)] = Field(
        min_length=1,
        max_length=1000,
        description=f"ids of items, or objects, at most {MAX_DESCRIBED}, with `item_id` and what the item is; an id "
        "that stands twice counts once, as it stands first",
    )


class RankedItemOut(BaseModel):
    """An item of the list. known: whether it is in the served bundle; by_content: whether it is not, and was placed
    by what the caller says of it; the others come last, in the order they came."""

    item_id: str
    position: int
    score: float | None
    probability: float | None = Field(description="that this item is the user's next one; null where it is not known")
    known: bool
    by_content: bool


class RankResponse(BaseModel):
    """The list in order, best first. source: "model", or "popular" for the order by popularity."""

    user_id: str
    bundle: str
    source: str
    degraded: list[str]
    items: list[RankedItemOut]
    trace: dict[str, float]


class WhyNotResponse(BaseModel):
    """Where an item leaves the way into the list of a user; `stage` is "shown" where it does not."""

    item_id: str
    stage: str
    detail: str
    score: float | None
    rank: int | None
    degraded: list[str]


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

    Raises ApiError 413 when it is larger, 415 when it is compressed, and 400 when it ends before its declared length.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        message = "the body has a Content-Encoding; send it uncompressed, without this header"
        raise ApiError("bad_encoding", message, "body")
    too_large = ApiError("body_too_large", f"the body exceeds {limit} bytes; send less", "body")
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
        raise ApiError("disconnected", "the body ended before its declared length", "body") from None
    return bytes(body)


JSON_FAULTS = {
    "surrogate in string": "half of a surrogate pair is no character; send both halves, or neither",
    "infinity": "the number is too large for a double; send a smaller one",
    "unexpected end": "the body ends before its JSON does; send all of it",
    "depth limit": "it has too many levels of nesting; send fewer",
}
"""Part of a message of orjson -> what is wrong there, and the remedy."""


def parse_json(body: bytes) -> Any:
    """The JSON value of a body. Raises ApiError 400, with the place in the body and the remedy, where it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError("bad_json", _not_json(body, error), "body") from None


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Why a body is not JSON, with the remedy."""
    if not body.strip():
        return "the body is empty: send JSON"
    if body.startswith(b"\x1f\x8b"):
        return "the body is compressed (gzip): send it uncompressed"
    encoding = json.detect_encoding(body)
    if encoding == "utf-8-sig":
        return "the body begins with a byte order mark: send UTF-8 without it"
    if encoding != "utf-8":
        return f"the body is in {encoding[:6].upper()}: send it in UTF-8"
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return f"the body is not UTF-8 at byte {wrong.start}: send it in UTF-8"
    fault = next((text for sign, text in JSON_FAULTS.items() if sign in error.msg), "correct it there")
    return f"the body is not JSON at line {error.lineno}, column {error.colno}: {fault}"


def first_error(error: ValidationError) -> tuple[str, str]:
    """The first invalid field, and the reason."""
    first = describe_invalid(error.errors(include_url=False))[0]
    field = ".".join(map(str, first.place))[:MAX_PLACE].encode(errors="replace").decode()
    return field, first.reason
