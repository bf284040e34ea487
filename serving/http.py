"""The HTTP server of the service: uvicorn, with its refusals in the shape of an `ErrorResponse`."""

from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.errors import ApiError

MAX_URL_BYTES = 65_535
"""Largest URL (path and query) in bytes: httptools keeps the places of its parts as 16-bit numbers."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. A request that cannot be parsed is answered before any route sees it."""

    url = b""

    def on_url(self, url: bytes) -> None:
        """Keep one byte more than the limit: an endless URL takes no more memory, and the request is refused."""
        super().on_url(url[: MAX_URL_BYTES + 1 - len(self.url)])

    def send_400_response(self, msg: str) -> None:
        """Refuse the request and close the connection."""
        error = ApiError(400, "bad_request", "the request is not valid HTTP/1.1", "")
        if len(self.url) > MAX_URL_BYTES:
            place = next((name for name in ("filter", "exclude") if f"{name}=".encode() in self.url), "path")
            named = "exclude" if place == "exclude" else "the filter"
            message = f"the URL exceeds {MAX_URL_BYTES} bytes: send fewer ids in {named}, or shorter ones"
            error = ApiError(414, "url_too_long", message, place)
        response = error.response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (error.status, head, bytes(response.body)))
        self.transport.close()


class HttpServer(uvicorn.Server):
    """The server. A second Ctrl-C does not end it before log and store are closed."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end, once: a terminal sends Ctrl-C to every process of a pipeline, and people press it again."""
        if not self.should_exit:
            super().handle_exit(sig, frame)


def http_server(app: FastAPI, **options: Any) -> uvicorn.Server:
    """A server of the application, not started. options: of `uvicorn.Config`, such as host and port."""
    return HttpServer(
        uvicorn.Config(app, http=HttpProtocol, ws="none", access_log=False, server_header=False, **options)
    )
