"""Error responses of the API. All of them have the same JSON shape."""

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from features.errors import BundleError, LogError, RecsysError, StoreError, describe_invalid
from serving.telemetry.metrics import REFUSED
from serving.telemetry.request_id import HEADER, SCOPE


class ApiError(Exception):
    """An error response: HTTP status, code (for programs), message (for people), the place of the error, and headers
    of the response."""

    def __init__(
        self, status: int, code: str, message: str, place: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.place = status, code, message, place
        self.headers = headers or {}

    def response(self) -> Response:
        """The HTTP response of this error, which is counted."""
        REFUSED.labels(self.status, self.code).inc()
        response = json_response(
            {"error": {"code": self.code, "message": self.message, "place": self.place}}, self.status
        )
        response.headers.update(self.headers)
        return response


NOT_FOUND = "there is no such path; percent-encode each id, its / as %2F"


def json_response(content: Any, status: int = 200) -> Response:
    """A response with a JSON body; the content may hold numpy arrays and dataclasses."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json", headers={"Cache-Control": "no-store"})


class ErrorResponse(BaseModel):
    """The body of every error response."""

    class Detail(BaseModel):
        """The error and its place."""

        code: str
        message: str
        place: str

    error: Detail


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
    """Add handlers that turn every exception into an `ErrorResponse`."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RecsysError)
    async def recsys_error(request: Request, error: RecsysError) -> Response:
        place = next((place for kind, place in PLACES.items() if isinstance(error, kind)), "service")
        return ApiError(503, "unavailable", str(error), place).response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = describe_invalid(error.errors())[0]
        place = ".".join(map(str, first.place[1:]))
        return ApiError(422, "bad_parameter", f"{place}: {first.reason}", place).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        allowed = ""
        if error.status_code == 405:
            allowed = ", ".join(allowed_methods(request))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": allowed})
        message = {404: NOT_FOUND, 405: f"this path does not take {request.method}; it takes {allowed}"}.get(
            error.status_code, str(error.detail)
        )
        response = ApiError(error.status_code, code, message, "path").response()
        response.headers.update({**(error.headers or {}), **({"Allow": allowed} if allowed else {})})
        return response

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> Response:
        response = ApiError(500, "internal", "internal error; the service's log has the details", "").response()
        response.raw_headers.append((HEADER, request.scope[SCOPE].encode()))  # it is sent outside of all middleware
        return response
