"""Bodies of requests: they are bounded before they are parsed.

orjson parses them and rejects NaN, numbers too large for a double and halves of surrogate pairs. Invalid input gives
a 4xx response that names the error, never a 500.
"""

import json
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from features.errors import describe_invalid
from serving.errors import ApiError

Model = TypeVar("Model", bound=BaseModel)


MAX_BODY_BYTES = 1 << 20

MAX_PLACE = 64
"""Characters of a field's name in an error."""


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


def parse_model(model: type[Model], body: bytes, code: str) -> Model:
    """A body as a model. Raises ApiError 400 where it is not JSON, and `code` with the first invalid field."""
    try:
        return model.model_validate(parse_json(body))
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError(code, f"{place or 'body'}: {reason}", place or "body") from None
