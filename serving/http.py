"""The HTTP server of the service: uvicorn, with limits on what a connection may send and how slowly.

uvicorn bounds neither the head of a request nor its time. Refusals have the shape of an `Problem`.
"""

import asyncio
from socket import socket
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.errors import ApiError
from serving.telemetry.metrics import CONNECTIONS
from serving.telemetry.request_id import HEADER, new_id

MAX_URL_BYTES = 65_535
"""Largest URL (path and query) in bytes: httptools keeps the places of its parts as 16-bit numbers."""

MAX_HEAD_BYTES, MAX_HEADERS = 65_536, 100
"""Largest sum of names and values of the headers in bytes, and their largest number."""

MAX_IDLE_BYTES = MAX_URL_BYTES + MAX_HEAD_BYTES + 4096
"""Bytes that may arrive while no head is completed and no body grows: more is an endless head, chunk or trailer."""

MAX_WAITING = 100
"""Requests of one connection that wait for the answer to an earlier one (pipelining)."""

HEAD_SECONDS = 10.0
"""Seconds for the head of a request to arrive, from its first byte; of the first request from the connection on."""

BODY_SECONDS, BODY_RATE = 10.0, 4096
"""Seconds for a body to arrive, and bytes that give it one more second."""

SEND_SECONDS = 60.0
"""Seconds for a client to take an answer."""

GRACE_SECONDS = 10
"""Seconds that running requests have when the server ends."""

DRAIN_SECONDS = 1.0
"""Seconds before them in which idle connections stay open: a request that is on its way is answered."""

REST_BYTES, REST_SECONDS = 2 << 20, 5.0
"""What is still read, and dropped, of a request that was answered or refused before its end."""


HEAD_TOO_LARGE = ApiError(
    "head_too_large",
    f"the request has over {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes of them: send fewer, or shorter ones",
    "header",
)


ENDING: Final = "ending"
"""Attribute of the state that the connections of a server share: whether each answer ends its connection."""

GONE = "recsys.gone"
"""Key in the scope of a call: a function that says whether its client has disconnected."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. A request that cannot be parsed is answered before any route sees it."""

    url = b""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most, self.limit_concurrency = self.limit_concurrency, None  # uvicorn's own refusal is no JSON
        self._reading = "head"  # what arrives: "head", "body", "rest" after a refusal, or "" after a whole request
        self._since = self.loop.time()  # when that began
        self._head_bytes = self._idle_bytes = self._body_bytes = self._rest_bytes = 0
        self._sending_since: float | None = None
        self._fault: ApiError | None = None  # why a callback ended the parsing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection that is one too many."""
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most:
            message = f"there are more than {self._most} open connections; try again in a moment"
            self.refuse(ApiError("too_many_connections", message, "", {"Retry-After": "1"}))
            if len(self.connections) > 2 * self._most:  # too many that are refused
                transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self._reading == "rest":
            self._drop(data)
            return
        if not self._reading:
            self._expect("head")
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > MAX_IDLE_BYTES and self._reading != "rest":
            self._fault = self._fault or (HEAD_TOO_LARGE if self._reading == "head" else None)
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._head_bytes = 0
        if not self._reading:
            self._expect("head")

    def on_url(self, url: bytes) -> None:
        """Keep one byte more than the limit: an endless URL takes no more memory, and the request is refused."""
        super().on_url(url[: MAX_URL_BYTES + 1 - len(self.url)])

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. Raises ValueError, which ends the parsing, when the headers exceed their limits."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._fault = HEAD_TOO_LARGE
            raise ValueError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application. Raises ValueError when too many wait on this connection."""
        if len(self.pipeline) >= MAX_WAITING:
            raise ValueError
        super().on_headers_complete()
        cycle = self.cycle
        self.scope[GONE] = lambda: cycle.disconnected  # type: ignore[literal-required]
        if getattr(self.server_state, ENDING, False):
            self.cycle.keep_alive = False
        self._body_bytes = self._rest_bytes = 0
        self._expect("body")

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, or drop it when the request was answered."""
        self._idle_bytes = 0
        self._body_bytes += len(body)
        if self.cycle.response_complete:
            self._drop(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._expect("")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request; a rest of the body of this one may still arrive."""
        super().on_response_complete()
        if self._reading != "head":
            self._since = self.loop.time()

    def _drop(self, data: bytes) -> None:
        """Count what arrives after an answer. Close the connection when it is too much."""
        self._rest_bytes += len(data)
        if self._rest_bytes > REST_BYTES:
            self.transport.close()

    def _expect(self, part: str) -> None:
        self._reading, self._since, self._idle_bytes = part, self.loop.time(), 0

    def check(self, now: float) -> None:
        """End the connection when its client is too slow. now: time of the event loop; called every second."""
        if not self.transport.get_write_buffer_size():
            self._sending_since = None
        elif self._sending_since is None:
            self._sending_since = now
        elif now - self._sending_since > SEND_SECONDS:
            self.transport.abort()
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # the client waits for the service
            self._since = now
        waited, answered = now - self._since, self.cycle is None or self.cycle.response_complete
        if self._reading == "head" and waited > HEAD_SECONDS:
            if not self._idle_bytes:  # a connection that was opened and not used
                self.transport.close()
                return
            self.refuse(ApiError("slow_head", f"the request did not arrive within {HEAD_SECONDS:g} s", ""))
        elif self._reading == "rest" or (self._reading != "head" and answered):
            if waited > (REST_SECONDS if self._reading else self.timeout_keep_alive):
                self.transport.close()
        elif self._reading == "body" and waited > BODY_SECONDS + self._body_bytes / BODY_RATE:
            message = f"the body arrives more slowly than {BODY_RATE} bytes a second; send it faster"
            self.refuse(ApiError("slow_body", message, "body"))

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        error = self._fault or ApiError("bad_request", "the request is not valid HTTP/1.1", "")
        if len(self.url) > MAX_URL_BYTES:
            place = next((name for name in ("filter", "exclude") if f"{name}=".encode() in self.url), "path")
            named = "exclude" if place == "exclude" else "the filter"
            message = f"the URL exceeds {MAX_URL_BYTES} bytes: send fewer ids in {named}, or shorter ones"
            error = ApiError("url_too_long", message, place)
        self.refuse(error)

    def refuse(self, error: ApiError) -> None:
        """Send a refusal and end the connection; where answers to earlier requests are due, end it after them."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if self.pipeline or (busy and self._reading != "body"):
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not (busy and self.cycle.response_started):
            response = error.response()
            headers = [*response.raw_headers, (HEADER, new_id().encode()), (b"connection", b"close")]
            head = b"".join(b"%s: %s\r\n" % header for header in headers)
            self.transport.write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (error.status, head, bytes(response.body)))
        if busy:  # the application learns that nobody waits
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._expect("rest")
        self.flow.resume_reading()
        self.transport.write_eof()  # closed at once, the connection would be reset before the client reads the answer

    def shutdown(self) -> None:
        """End the connection with the server, after an answer that is due."""
        if self._reading == "rest":
            self.transport.close()
        else:
            super().shutdown()


class HttpServer(uvicorn.Server):
    """The server. A second Ctrl-C does not end it before log and store are closed."""

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            CONNECTIONS.set(len(self.server_state.connections))
            for connection in list(self.server_state.connections):
                connection.check(now)  # type: ignore[union-attr]  # all are HttpProtocol
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Accept no more connections, and end each with an answer; after DRAIN_SECONDS, those that are idle."""
        for server in self.servers:
            server.close()
        setattr(self.server_state, ENDING, True)
        until = asyncio.get_running_loop().time() + DRAIN_SECONDS
        for connection in self.server_state.connections:
            if (cycle := connection.cycle) is not None:  # type: ignore[union-attr]  # all are HttpProtocol
                cycle.keep_alive = False
        while self.server_state.connections and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end, once: a terminal sends Ctrl-C to every process of a pipeline, and people press it again."""
        if not self.should_exit:
            super().handle_exit(sig, frame)


def http_server(app: FastAPI, **options: Any) -> uvicorn.Server:
    """A server of the application, not started.

    options: of `uvicorn.Config`, such as host and port; `limit_concurrency` is the largest number of connections. Its
    log lines are written as those of the process.
    """
    fixed: dict[str, Any] = {"ws": "none", "access_log": False, "server_header": False, "log_config": None}
    return HttpServer(uvicorn.Config(app, http=HttpProtocol, **fixed, **options))
