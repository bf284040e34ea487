"""The load on a service: a process of its own, which imports none of our packages.

`python -P load_worker.py` reads a JSON object from standard input: host, port, requests (whole HTTP requests as
text, asked in turn) and either clients and seconds (closed: each client asks again when it has its answer), or
arrivals (open: seconds from the start at which a request is sent, whether or not earlier ones were answered). It
writes a JSON object of lists to standard output, an entry for each request: at (seconds from the start when it was
sent), late (seconds that it was sent after its arrival), seconds until its answer, status (0: the connection broke),
whole (whether the answer is of the model and not degraded).

Known load generators either cannot send at given times and tell how long each refusal took, or need more CPU for a
request than a small service does.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvloop
from httptools import HttpResponseParser

WHOLE = (b'"source":"model","degraded":[],', b'"status":"up"')
"""One of them stands in an answer as it should be."""

LAST_SECONDS = 30.0
"""Seconds to wait for the answers that are due at the end."""


class Connection(asyncio.Protocol):
    """A connection, on which one request at a time waits for its answer."""

    def __init__(self) -> None:
        self.open = True
        self._answer: asyncio.Future[tuple[int, bool]] | None = None
        self._parser, self._body = HttpResponseParser(self), list[bytes]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport  # of uvloop, which knows nothing of asyncio.WriteTransport

    def data_received(self, data: bytes) -> None:
        """Parse a part of an answer."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand the answer on."""
        self.open = self.open and self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            body = b"".join(self._body)
            self._answer.set_result((self._parser.get_status_code(), any(text in body for text in WHOLE)))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((0, False))

    async def ask(self, request: bytes) -> tuple[int, bool]:
        """Status of the answer, and whether it is whole."""
        if not self.open:
            return 0, False
        self._body.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


class Load:
    """Sends requests in turn, over connections that are used again, and notes their answers."""

    def __init__(self, host: str, port: int, requests: Sequence[str]) -> None:
        self._address = host, port
        self._requests = itertools.cycle([request.encode() for request in requests])
        self._idle: list[Connection] = []
        self._began = 0.0
        self.answers: list[tuple[float, float, float, int, bool]] = []

    async def closed(self, clients: int, seconds: float) -> None:
        """So many clients, each of which asks again when it has its answer."""

        async def client() -> None:
            while time.perf_counter() - self._began < seconds:
                await self._ask()

        self._began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, arrivals: Sequence[float]) -> None:
        """A request at each of these seconds from the start."""
        self._began, asked = time.perf_counter(), list[asyncio.Task[None]]()
        for arrival in arrivals:
            if (wait := self._began + arrival - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.create_task(self._ask(arrival)))
        if asked:
            await asyncio.wait(asked, timeout=LAST_SECONDS)

    async def _ask(self, arrival: float | None = None) -> None:
        sent = time.perf_counter()
        status, whole = 0, False
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            status, whole = await connection.ask(next(self._requests))
            if connection.open:
                self._idle.append(connection)
            else:
                connection.close()
        except OSError:  # refused: as a connection that broke
            pass
        at = sent - self._began
        late = 0.0 if arrival is None else at - arrival
        self.answers.append((at, late, time.perf_counter() - sent, status, whole))

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._address)
        return connection


async def run(given: dict[str, Any]) -> dict[str, list[float]]:
    """The answers to a load, by column."""
    load = Load(given["host"], given["port"], given["requests"])
    if "arrivals" in given:
        await load.open(given["arrivals"])
    else:
        await load.closed(given["clients"], given["seconds"])
    columns: list[Any] = [list(column) for column in zip(*load.answers, strict=True)] or [[]] * 5
    return dict(zip(("at", "late", "seconds", "status", "whole"), columns, strict=True))


if __name__ == "__main__":
    json.dump(uvloop.run(run(json.load(sys.stdin))), sys.stdout)
