"""From the body of a search to what is asked: JSON or a form, in memory, and never a path of this machine."""

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
from serving.schemas import Id, first_error

MAX_VALUES = 100_000
"""Of one JSON body: a body of empty lists would take twenty times its own size in memory."""

Media = Annotated[str | bytes | None, Field(description="base64, or an https URL of a host that the bundle names")]


class SearchIn(BaseModel):
    """What to search by: any mixture, at least one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(default=None, description="words")
    image: Media = None
    audio: Media = None
    video: Media = None
    k: Annotated[int, Field(ge=1, le=100)] = Field(default=20, description="how many")
    filter: Filter | None = Field(default=None, description="which items may come; in a form as JSON")
    user_id: Id | None = Field(default=None, description="who asks: items near to both come first")
    weight: Annotated[float, Field(ge=0, le=1)] = Field(default=0.3, description="how much the user counts")


def query_schema() -> dict[str, Any]:
    """JSON schema of `SearchIn` in one piece: references would not be found from within the API's description."""
    schema = SearchIn.model_json_schema()
    schema["properties"]["filter"]["anyOf"][0] = schema.pop("$defs")["Filter"]
    return schema


@dataclass(frozen=True)
class SearchRequest:
    """A search: by what, and the fields that are no content."""

    content: Content
    sent: SearchIn


def parse_query(body: bytes, content_type: str) -> SearchRequest:
    """What is asked. Raises ApiError 400 or 422 saying which field is wrong."""
    form = content_type.partition(";")[0].strip().lower() == "multipart/form-data"
    sent = _form(body, content_type) if form else json_object(body, "bad_query")
    if unknown := next((name for name in sent if name not in SearchIn.model_fields), None):
        fields = ", ".join(SearchIn.model_fields)
        raise ApiError(422, "bad_query", f"there is no such field; there are: {fields}", unknown[:64])
    try:
        asked = SearchIn.model_validate(sent)
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError(422, "bad_query", f"{place}: {reason}", place) from None
    parts: list[Part] = [Text(asked.text)] if asked.text and asked.text.strip() else []
    if asked.image:
        parts.append(Image(media_source(asked.image, "image")))
    if asked.audio:
        parts.append(Audio(media_source(asked.audio, "audio")))
    if asked.video:
        parts.append(Video(media_source(asked.video, "video")))
    if not parts:
        raise ApiError(422, "nothing_asked", "give text, image, audio or video to search by", "body")
    return SearchRequest(Content(tuple(parts)), asked)


def media_source(given: str | bytes, place: str) -> Source:
    """A file's bytes, or a URL; text is never taken for a path."""
    if isinstance(given, bytes) or given.startswith("https://"):
        return given
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, "bad_media", f"{place} is neither base64 nor an https URL", place) from None


def json_object(body: bytes, code: str) -> dict[str, Any]:
    """The one object of a body. Raises ApiError 400, and 422 with a code for what is no such object."""
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise ApiError(422, code, "the body has far more values than are read here", "body")
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "bad_json", f"the body is no JSON that can be read: {error}", "body") from None
    if not isinstance(sent, dict):
        raise ApiError(422, code, "send one object", "body")
    return sent


def _form(body: bytes, content_type: str) -> dict[str, Any]:
    """Fields of multipart/form-data: text, or bytes of those that came as a file."""
    fields: dict[str, Any] = {}
    for name, filename, content in _parts(body, content_type):
        if name in fields:
            raise ApiError(422, "bad_query", "is given twice", name[:64])
        if filename == b"" and not content:
            continue  # what a browser sends of a file field left empty
        try:
            fields[name] = content.decode() if filename is None else content
        except UnicodeDecodeError:
            raise ApiError(422, "bad_query", "is not UTF-8", name[:64]) from None
    if (k := str(fields.get("k", ""))).isdecimal() and len(k) < 10:
        fields["k"] = int(k)
    with suppress(ValueError, TypeError):  # what is no number or no JSON is refused where fields are checked
        fields |= {name: orjson.loads(fields[name]) for name in ("filter", "weight") if name in fields}
    return fields


def _parts(body: bytes, content_type: str) -> list[tuple[str, bytes | None, bytes]]:
    """(name, file name or None, content) of each part of multipart/form-data (RFC 7578)."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    found: list[tuple[str, bytes | None, bytes]] = []
    field, value, disposition, content, ended = bytearray(), bytearray(), bytearray(), bytearray(), bytearray()

    def begin() -> None:
        if len(found) == len(SearchIn.model_fields):
            raise ApiError(422, "bad_query", f"a form has at most {len(found)} fields", "body")
        disposition.clear()
        content.clear()

    def header_end() -> None:
        if field.lower() == b"content-disposition":
            disposition[:] = value
        field.clear()
        value.clear()

    def end() -> None:
        options = parse_options_header(bytes(disposition))[1]
        found.append((options.get(b"name", b"").decode("latin-1"), options.get(b"filename"), bytes(content)))

    def into(buffer: bytearray) -> Callable[[bytes, int, int], None]:
        return lambda data, start, end: buffer.extend(data[start:end])

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise ApiError(400, "bad_form", "multipart/form-data without a boundary", "body")
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": into(field),
                "on_header_value": into(value),
                "on_header_end": header_end,
                "on_part_data": into(content),
                "on_part_end": end,
                "on_end": lambda: ended.append(1),
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise ApiError(400, "bad_form", f"the body is no form that can be read: {str(error)[:200]}", "body") from None
    if not ended:
        raise ApiError(400, "bad_form", "the form ends before its last boundary", "body")
    return found
