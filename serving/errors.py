"""Errors of the API: one shape for every answer that is no success."""

from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from features.errors import RecsysError


class ApiError(Exception):
    """An answer that is no success: HTTP status, a code for programs, a message for people, the place at fault."""

    def __init__(self, status: int, code: str, message: str, place: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.place = status, code, message, place

    def response(self) -> Response:
        """The one shape."""
        return json_response(
            {"error": {"code": self.code, "message": self.message, "place": self.place}}, self.status
        )


def json_response(content: Any, status: int = 200) -> Response:
    """JSON bytes; numpy arrays and dataclasses are understood."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json", headers={"Cache-Control": "no-store"})


class ErrorResponse(BaseModel):
    """Every answer that is no success."""

    class Detail(BaseModel):
        """What went wrong, and where."""

        code: str
        message: str
        place: str

    error: Detail


def add_errors(app: FastAPI) -> None:
    """Every error leaves in the one shape."""

    @app.exception_handler(ApiError)
    async def api(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RecsysError)
    async def ours(request: Request, error: RecsysError) -> Response:
        return ApiError(503, "unavailable", str(error), type(error).__name__).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return ApiError(422, "bad_parameter", f"{place}: {first['msg']}", place).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return ApiError(error.status_code, code, str(error.detail), "path").response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return ApiError(500, "internal", "an error of ours; it is in the service's log", "").response()
