"""What a call may ask of a path: only parameters that it has, and HEAD where it takes GET."""

from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from serving.errors import ApiError

CHECKED: Final = "/v1/"
"""Beginning of the paths whose parameters are checked. Links to the pages may have others, e.g. of a campaign."""

RENAMED: Final = {"k": "limit", "n": "limit", "count": "limit", "size": "limit", "user": "user_id", "item": "item_id"}
"""Names that other services have -> ours."""

MAX_NAME = 64
"""Characters of a parameter's name in an error."""


class StrictRoute(APIRoute):
    """A route that refuses parameters of the URL that it does not have, with 422 `unknown_parameter`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The handler of the route behind the check."""
        handle = super().get_route_handler()
        if not self.path.startswith(CHECKED):
            return handle
        known = tuple(parameter.alias for parameter in self.dependant.query_params)

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                check_parameters(request, known)
            response: Response = await handle(request)
            return response

        return checked


def check_parameters(request: Request, known: tuple[str, ...]) -> None:
    """Raises ApiError 422 for a parameter of the URL that is not among the known ones."""
    for name in request.query_params:
        if name not in known:
            near = [RENAMED.get(name, ""), *get_close_matches(name[:MAX_NAME], known, n=1)]
            meant = next((f"did you mean {other}? " for other in near if other in known), "")
            has = f"this path has {', '.join(known)}" if known else "this path has no parameters"
            message = f"{name[:MAX_NAME]!r} is no parameter of this path: {meant}{has}"
            raise ApiError("unknown_parameter", message, name[:MAX_NAME])


def add_heads(app: FastAPI) -> None:
    """Let every path that takes GET take HEAD: the same answer without its body. Nothing counts as shown."""
    for route in [*app.routes]:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
