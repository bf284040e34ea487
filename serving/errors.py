"""Error responses of the API: problem documents (RFC 9457), all of the same shape."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from features.errors import BundleError, LogError, RecsysError, StoreError, describe_invalid
from serving.telemetry.metrics import REFUSED
from serving.telemetry.request_id import HEADER, SCOPE

PROBLEMS: Final[Mapping[str, tuple[int, str]]] = MappingProxyType(
    {
        "bad_request": (400, "The request is not HTTP/1.1"),
        "bad_url": (400, "The URL is not UTF-8"),
        "bad_host": (400, "The request has not one header Host"),
        "bad_json": (400, "The body is not JSON"),
        "bad_form": (400, "The body is not a form"),
        "disconnected": (400, "The body ended too early"),
        "no_key": (401, "The call needs a key"),
        "unknown_key": (401, "The key is unknown"),
        "expired_key": (401, "The key has expired"),
        "role_too_small": (403, "The role of the key is too small"),
        "wrong_origin": (403, "A page of another host calls"),
        "not_found": (404, "There is no such path"),
        "unknown_item": (404, "The item is unknown"),
        "not_live_yet": (404, "The item is being embedded"),
        "no_picture": (404, "The item has no picture"),
        "no_media": (404, "The item has no such sound or video"),
        "no_map": (404, "The bundle has no map"),
        "method_not_allowed": (405, "The path does not take this method"),
        "slow_head": (408, "The request arrives too slowly"),
        "slow_body": (408, "The body arrives too slowly"),
        "merged_before": (409, "The users were merged the other way round"),
        "no_rules_file": (409, "The service has no file of rules"),
        "cursor_expired": (410, "The cursor has expired"),
        "rules_changed": (412, "The rules have changed since they were read"),
        "body_too_large": (413, "The body is too large"),
        "url_too_long": (414, "The URL is too long"),
        "bad_encoding": (415, "The body is compressed"),
        "bad_type": (415, "The body is not declared as what it must be"),
        "wrong_host": (421, "The service does not answer to this name"),
        "bad_id": (422, "An id is invalid"),
        "bad_parameter": (422, "A parameter of the URL is invalid"),
        "unknown_parameter": (422, "The path has no such parameter"),
        "unknown_placement": (422, "The placement is unknown"),
        "unknown_variant": (422, "No experiment has this variant"),
        "bad_preview": (422, "The call for a preview is invalid"),
        "bad_filter": (422, "The filter is invalid"),
        "bad_cursor": (422, "The cursor is not of this list"),
        "bad_events": (422, "The body is neither an event nor a list of events"),
        "no_event_accepted": (422, "No event was accepted"),
        "bad_query": (422, "The query is invalid"),
        "nothing_asked": (422, "The query is empty"),
        "nothing_read": (422, "No part of the query could be read"),
        "bad_item": (422, "A field of the item is invalid"),
        "bad_items": (422, "The body has no lines, or too many"),
        "no_item_accepted": (422, "No item was accepted"),
        "bad_rules": (422, "A rule is invalid"),
        "bad_media": (422, "A file or its URL is invalid"),
        "bad_merge": (422, "The merge is invalid"),
        "bad_list": (422, "The list to rank is invalid"),
        "bad_recommendations": (422, "The call for recommendations is invalid"),
        "too_many_requests": (429, "The limit of the key is reached"),
        "head_too_large": (431, "The headers are too large"),
        "client_gone": (499, "The client has disconnected"),
        "internal": (500, "The service has a defect"),
        "no_bundle": (503, "No bundle is served"),
        "no_content": (503, "The bundle cannot be searched"),
        "busy": (503, "The service is overloaded"),
        "too_many_connections": (503, "There are too many connections"),
        "unavailable": (503, "A component is not available"),
        "slow": (504, "The query was not encoded in time"),
    }
)
"""Code of an error -> HTTP status and title."""

PROBLEM_TYPE: Final = "application/problem+json"
"""Media type of an error (RFC 9457, section 3)."""


class ApiError(Exception):
    """An error response: code (for programs, one of PROBLEMS), detail (for people), the place of the error, headers
    of the response, and further members of its body."""

    def __init__(
        self,
        code: str,
        detail: str,
        place: str = "",
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.place = code, detail, place
        self.status, self.title = PROBLEMS[code]
        self.headers, self.more = headers or {}, more or {}

    def response(self) -> Response:
        """The HTTP response of this error, which is counted."""
        REFUSED.labels(self.status, self.code).inc()
        facts = {"type": f"/docs#{self.code}", "title": self.title, "status": self.status, "detail": self.detail}
        response = json_response({**facts, "code": self.code, "place": self.place, **self.more}, self.status)
        response.headers.update({"Content-Type": PROBLEM_TYPE, **self.headers})
        return response


NOT_FOUND = "there is no such path; percent-encode each id, its / as %2F"


def json_response(content: Any, status: int = 200) -> Response:
    """A response with a JSON body; the content may hold numpy arrays and dataclasses."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json", headers={"Cache-Control": "no-store"})


class Problem(BaseModel):
    """The body of every error response: a problem document (RFC 9457)."""

    type: str = Field(description="where the page /docs explains the code", examples=["/docs#bad_id"])
    title: str = Field(description="what the code means", examples=["An id is invalid"])
    status: int = Field(description="the HTTP status", examples=[422])
    detail: str = Field(description="what is wrong in this request, and the remedy")
    code: str = Field(description="for programs", json_schema_extra={"enum": [*PROBLEMS]})
    place: str = Field(description="the field, parameter or part of the service; may be empty", examples=["user_id"])


PLACES: dict[type[RecsysError], str] = {LogError: "log", StoreError: "store", BundleError: "bundle"}
"""Place of an error that a request met in a part of the service."""


def allowed_methods(request: Request) -> list[str]:
    """The methods that the path of a request takes."""
    methods = {"OPTIONS"}
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return sorted(methods)


def add_errors(app: FastAPI) -> None:
    """Add handlers that turn every exception into an `Problem`."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RecsysError)
    async def recsys_error(request: Request, error: RecsysError) -> Response:
        place = next((place for kind, place in PLACES.items() if isinstance(error, kind)), "service")
        return ApiError("unavailable", str(error), place).response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = describe_invalid(error.errors())[0]
        place = ".".join(map(str, first.place[1:]))
        return ApiError("bad_parameter", f"{place}: {first.reason}", place).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        allowed = ""
        if error.status_code == 405:
            allowed = ", ".join(allowed_methods(request))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": allowed})
        message = {404: NOT_FOUND, 405: f"this path does not take {request.method}; it takes {allowed}"}.get(
            error.status_code, str(error.detail)
        )
        response = ApiError(code, message, "path").response()
        response.headers.update({**(error.headers or {}), **({"Allow": allowed} if allowed else {})})
        return response

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> Response:
        response = ApiError("internal", "internal error; the service's log has the details", "").response()
        response.raw_headers.append((HEADER, request.scope[SCOPE].encode()))  # it is sent outside of all middleware
        return response
