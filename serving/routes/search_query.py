"""Parser of search requests: JSON or multipart form. It works in memory and never opens a local path."""

import base64
import binascii
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.content.parts import Audio, Content, Image, Part, Source, Text, Video
from recsys.retrieval.filters import Filter
from serving.errors import ApiError
from serving.schemas.body import first_error, parse_json
from serving.schemas.fields import Id

MAX_VALUES = 100_000
"""Largest number of commas and opening brackets in a JSON body: a bound on its values.

A body of empty lists takes twenty times its size in memory.
"""

Media = Annotated[str | bytes | None, Field(description="base64, or an https URL of a host that the bundle allows")]


class SearchIn(BaseModel):
    """A search request: at least one of text, image, audio and video, and options."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(default=None, description="words to search by")
    image: Media = None
    audio: Media = None
    video: Media = None
    limit: Annotated[int, Field(ge=1, le=100)] = Field(default=20, description="number of items")
    filter: Filter | None = Field(default=None, description="which items may be returned; JSON in a form")
    user_id: Id | None = Field(default=None, description="user who searches: items near both come first")
    weight: Annotated[float, Field(ge=0, le=1)] = Field(default=0.3, description="weight of the user in the score")
    cursor: str | None = Field(
        default=None, description="of the page before; send the other fields but limit as they were"
    )


@dataclass(frozen=True)
class SearchRequest:
    """A parsed search request: the content to search by, and all fields as they were sent."""

    content: Content
    options: SearchIn


def parse_query(body: bytes, content_type: str) -> SearchRequest:
    """Parse the body of a search. Raises ApiError 400 or 422 that names the invalid field."""
    is_form = content_type.partition(";")[0].strip().lower() == "multipart/form-data"
    fields = _form(body, content_type) if is_form else json_object(body, "bad_query")
    if unknown := next((name for name in fields if name not in SearchIn.model_fields), None):
        available = ", ".join(SearchIn.model_fields)
        raise ApiError("bad_query", f"unknown field; available: {available}", unknown[:64])
    try:
        query = SearchIn.model_validate(fields)
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError("bad_query", f"{place}: {reason}", place) from None
    parts: list[Part] = [Text(query.text)] if query.text and query.text.strip() else []
    if query.image:
        parts.append(Image(media_source(query.image, "image")))
    if query.audio:
        parts.append(Audio(media_source(query.audio, "audio")))
    if query.video:
        parts.append(Video(media_source(query.video, "video")))
    if not parts:
        raise ApiError("nothing_asked", "give text, image, audio or video to search by", "body")
    return SearchRequest(Content(tuple(parts)), query)


def media_source(value: str | bytes, place: str) -> Source:
    """The bytes of a file (decoded when base64), or an https URL. Raises ApiError 422 for any other text."""
    if isinstance(value, bytes) or value.startswith("https://"):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError("bad_media", f"{place} is neither base64 nor an https URL", place) from None


def json_object(body: bytes, code: str) -> dict[str, Any]:
    """Parse a body that is one JSON object.

    Raises ApiError 400 when the body is not JSON, 422 with `code` when it is not an object or exceeds MAX_VALUES.
    """
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise ApiError(code, f"the body has more than {MAX_VALUES} commas and brackets; send less", "body")
    parsed = parse_json(body)
    if not isinstance(parsed, dict):
        raise ApiError(code, "the body must be a JSON object", "body")
    return parsed


def _form(body: bytes, content_type: str) -> dict[str, Any]:
    """Fields of a multipart/form-data body: text, or bytes of fields sent as a file."""
    fields: dict[str, Any] = {}
    for name, filename, content in _parts(body, content_type):
        if name in fields:
            raise ApiError("bad_query", "the field occurs more than once", name[:64])
        if filename == b"" and not content:
            continue  # browsers send an empty file field this way
        try:
            fields[name] = content.decode() if filename is None else content
        except UnicodeDecodeError:
            raise ApiError("bad_query", "the field is not valid UTF-8", name[:64]) from None
    if (limit := str(fields.get("limit", ""))).isdecimal() and len(limit) < 10:
        fields["limit"] = int(limit)
    with suppress(ValueError, TypeError):  # `SearchIn` rejects what is not valid JSON
        fields |= {name: orjson.loads(fields[name]) for name in ("filter", "weight") if name in fields}
    return fields


def _parts(body: bytes, content_type: str) -> list[tuple[str, bytes | None, bytes]]:
    """(name, file name or None, content) of each part of a multipart/form-data body (RFC 7578)."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    parts: list[tuple[str, bytes | None, bytes]] = []
    field, value, disposition, content, end_seen = bytearray(), bytearray(), bytearray(), bytearray(), bytearray()

    def begin_part() -> None:
        if len(parts) == len(SearchIn.model_fields):
            raise ApiError("bad_query", f"a form has at most {len(parts)} fields", "body")
        disposition.clear()
        content.clear()

    def end_header() -> None:
        if field.lower() == b"content-disposition":
            disposition[:] = value
        field.clear()
        value.clear()

    def end_part() -> None:
        options = parse_options_header(bytes(disposition))[1]
        parts.append((options.get(b"name", b"").decode("latin-1"), options.get(b"filename"), bytes(content)))

    def append_to(buffer: bytearray) -> Callable[[bytes, int, int], None]:
        return lambda data, start, end: buffer.extend(data[start:end])

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise ApiError("bad_form", "the Content-Type multipart/form-data has no boundary", "body")
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin_part,
                "on_header_field": append_to(field),
                "on_header_value": append_to(value),
                "on_header_end": end_header,
                "on_part_data": append_to(content),
                "on_part_end": end_part,
                "on_end": lambda: end_seen.append(1),
            },
        )
        parser.write(body)
    except FormParserError as error:
        at = getattr(error, "offset", -1)
        where = f" at byte {at}" if at >= 0 else ""
        message = f"the body is not a form of the boundary in its Content-Type{where}: correct it there"
        raise ApiError("bad_form", message, "body") from None
    if not end_seen:
        raise ApiError("bad_form", "the form ends before its last boundary", "body")
    return parts
