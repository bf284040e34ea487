"""The outermost middleware: gives each call its id, counts it and times it."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.telemetry.metrics import OTHER, count_request
from serving.telemetry.request_id import HEADER, begin
from serving.telemetry.traces import name_request


class Observe:
    """Middleware that hands every call on. It learns the route from the scope that it hands on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Observe the call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, method = time.perf_counter(), 500, scope["method"]  # 500: of what nothing else catches
        request_id = begin(scope)
        name_request(request_id)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path_format", OTHER)
            count_request(method, route, status, time.perf_counter() - begun)
