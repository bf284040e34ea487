"""Types of fields that several bodies have: ids, numbers, what an item is in words."""

import math
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from features.ids import NO_NULL, TEXT_RULES, id_error
from features.instants import format_instant, parse_instant
from features.schema import MAX_ID_BYTES, MAX_PRICE
from serving.errors import ApiError

MAX_TEXT, MAX_LABEL, MAX_LABELS = 200_000, 1000, 100
"""Limits: characters of a description or an extra column; of a title or category; categories of an item."""


def checked_id(text: str, place: str) -> str:
    """The id, checked by the rule of `features.ids`. Raises ApiError 422 when it is invalid."""
    if reason := id_error(text):
        raise ApiError("bad_id", f"{place} {reason}", place)
    return text


def media_url(item_id: str, source: str | None, name: str = "") -> str | None:
    """URL of an item's image, or of its sound or video by name; a file has one of this service."""
    if not source:
        return None
    path = f"/media/{quote(item_id, safe='')}"
    return source if source.startswith(("https://", "http://")) else f"{path}/{name}" if name else path


def valid_id(text: str) -> str:
    """The id. Raises ValueError when it is invalid."""
    if reason := id_error(text):
        raise ValueError(reason)
    return text


def event_type(text: str) -> str:
    """The event type. Raises ValueError when it is invalid."""
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


def instant(text: str) -> str:
    """The text of a time. Raises ValueError when it is not one."""
    parse_instant(text)
    return text


Finite = Annotated[float, AfterValidator(_finite)]

Id = Annotated[str, AfterValidator(valid_id), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES})]

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
