"""Hostile connections to a real server: endless, huge, slow and too many. Each is cut, and others are served."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from fastapi import FastAPI
from service_harness import serving
from toy_service import ToyFiller, ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents

from features.store.memory import MemoryStore
from serving import http
from serving.app import create_app

HEAD = b"Host: localhost\r\n"
MEGABYTE = 1 << 20
FULL = 16 * MEGABYTE
"""More than the buffers of two sockets hold, with what the server reads before it refuses."""

WRITES = (
    b"POST /v1/events",
    b"POST /v1/rank",
    b"POST /v1/search",
    b"POST /v1/users/u/merge",
    b"PUT /v1/items/i1",
    b"DELETE /v1/items/nothing",
    b"GET /v1/about",
    b"POST /nowhere",
)
JSON = b"Content-Type: application/json\r\n"


def toy_app(folder: Path) -> FastAPI:
    shelf = ToyShelf(with_contents(toy_bundle(folder)))
    return create_app(
        toy_settings(folder, search_bytes=MEGABYTE),
        load=shelf.load,
        current=shelf.current,
        upsert=toy_upsert,
        filler=ToyFiller(folder),
        connect=MemoryStore,
        encoders=toy_encoders,
    )


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def address(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with serving(toy_app(tmp_path_factory.mktemp("limits")), request.param) as url:
        yield str(urlsplit(url).hostname), int(urlsplit(url).port or 0)


def read(connection: socket.socket) -> bytes:
    """All that a connection receives until it ends."""
    received = b""
    try:
        while chunk := connection.recv(1 << 16):
            received += chunk
    except ConnectionError:
        pass
    return received


def status_of(received: bytes) -> tuple[int, str]:
    """Status and code of the last answer in what was received."""
    head, _, body = received[received.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), orjson.loads(body).get("code", "")


def pour(address: tuple[str, int], start: bytes, part: bytes) -> tuple[int, bytes]:
    """Bytes that the server took of an endless repetition of a part before it cut the connection; its answer."""
    taken, received = 0, list[bytes]()
    with socket.create_connection(address, timeout=30) as connection:
        reader = threading.Thread(target=lambda: received.append(read(connection)))
        reader.start()
        block = part * (MEGABYTE // len(part))
        try:
            connection.sendall(start)
            while taken < 100 * MEGABYTE:
                connection.sendall(block)
                taken += len(block)
        except ConnectionError:
            pass
        reader.join()
    return taken, received[0]


def answers(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n")
        assert status_of(read(connection)) == (200, "")


@pytest.mark.parametrize(
    ("start", "part", "code"),
    [
        (b"GET / HTTP/1.1\r\nX: ", b"x", (431, "head_too_large")),
        (b"GET / HTTP/1.1\r\n", b"x", (431, "head_too_large")),  # a name without an end
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n", (431, "head_too_large")),
        (b"GET / HTTP/1.1\r\n", b"X: " + b"y" * 8000 + b"\r\n", (431, "head_too_large")),
        (b"GET /", b"x", (414, "url_too_long")),
        (b"", b"\r\n", (431, "head_too_large")),
        (b"", b"X", (400, "bad_request")),
        (
            b"POST /v1/events HTTP/1.1\r\n" + HEAD + JSON + b"Transfer-Encoding: chunked\r\n\r\n1;x=",
            b"y",
            (400, "bad_request"),
        ),
        (
            b"POST /v1/events HTTP/1.1\r\n" + HEAD + JSON + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: ",
            b"y",
            (400, "bad_request"),
        ),
    ],
)
def test_what_has_no_end_is_cut(address: tuple[str, int], start: bytes, part: bytes, code: tuple[int, str]) -> None:
    taken, received = pour(address, start, part)
    assert taken < FULL
    assert status_of(received) == code
    answers(address)


def test_a_header_of_100_mb_takes_no_memory(address: tuple[str, int]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    for _ in range(5):
        assert pour(address, b"GET / HTTP/1.1\r\nX: ", b"x")[0] < FULL
    assert resident() - before < 64 * MEGABYTE


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"X: y\r\n" * 97, 200),  # with Host, Connection and Y
        (b"X: y\r\n" * 98, 431),
        (b"X: " + b"y" * (65_536 - 30), 200),
        (b"X: " + b"y" * (65_536 - 29), 431),
    ],
)
def test_the_largest_head(address: tuple[str, int], headers: bytes, status: int) -> None:
    """Host: localhost, Connection: close, Y: and X: have 4 + 9 + 10 + 5 + 1 + 1 bytes without the value of X."""
    with socket.create_connection(address, timeout=20) as connection:
        head = HEAD + b"Connection: close\r\nY:\r\n" + headers.removesuffix(b"\r\n")
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + head + b"\r\n\r\n")
        assert status_of(read(connection))[0] == status


@pytest.mark.parametrize("request_", WRITES, ids=bytes.decode)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_mb_is_not_taken(address: tuple[str, int], request_: bytes, chunked: bool) -> None:
    length = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: 52428800\r\n"
    part = b"10000\r\n" + b" " * 65536 + b"\r\n" if chunked else b" " * 65536
    taken, received = pour(address, request_ + b" HTTP/1.1\r\n" + HEAD + JSON + length + b"\r\n", part)
    assert taken < FULL
    expected = {b"DELETE /v1/items/nothing": 404, b"GET /v1/about": 200, b"POST /nowhere": 404}.get(request_, 413)
    assert status_of(received)[0] == expected
    answers(address)


def test_a_connection_goes_on_after_a_body_that_was_too_large(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        length = MEGABYTE + 1
        connection.sendall(b"POST /v1/events HTTP/1.1\r\n" + HEAD + JSON + b"Content-Length: %d\r\n\r\n" % length)
        connection.sendall(b" " * length)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n")
        received = read(connection)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert status_of(received) == (200, "")


def test_a_client_may_wait_for_leave_to_send_a_body(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        body = b'{"user_id": "u", "items": ["i1"]}'
        head = b"POST /v1/rank HTTP/1.1\r\nConnection: close\r\nExpect: 100-continue\r\n" + HEAD + JSON
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert status_of(read(connection)) == (200, "")


# --- several requests on one connection


def test_requests_that_come_at_once_are_answered_in_order(address: tuple[str, int]) -> None:
    paths = [b"/healthz", b"/nowhere", b"/v1/about", b"/healthz"]
    sent = b"".join(b"GET " + path + b" HTTP/1.1\r\n" + HEAD + b"\r\n" for path in paths)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(sent + b"hello\r\n\r\n")  # what cannot be parsed ends the connection, after the answers
        received = read(connection)
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses[:4] == [200, 404, 200, 200]
    assert statuses[4:] in ([], [400])


def test_too_many_requests_at_once_end_the_connection(address: tuple[str, int]) -> None:
    sent = (b"GET /v1/about HTTP/1.1\r\n" + HEAD + b"\r\n") * 5000
    with socket.create_connection(address, timeout=30) as connection:
        reader = threading.Thread(target=lambda: received.append(read(connection)))
        received: list[bytes] = []
        reader.start()
        with suppress(ConnectionError):
            connection.sendall(sent)
        reader.join()
    assert 1 <= received[0].count(b"HTTP/1.1 200") <= 2 * http.MAX_WAITING
    answers(address)


def test_an_upgrade_leaves_the_connection_open(address: tuple[str, int]) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET /v1/about HTTP/1.1\r\n" + HEAD + upgrade + b"\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


# --- slow clients


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits of a second; the server looks once a second."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "SEND_SECONDS", "REST_SECONDS"):
        monkeypatch.setattr(http, name, 1.0)


def dribble(connection: socket.socket, text: bytes, done: Callable[[], bool]) -> None:
    """Send a byte every tenth of a second."""
    try:
        for at in range(len(text)):
            if done():
                return
            connection.sendall(text[at : at + 1])
            time.sleep(0.1)
    except ConnectionError:
        pass


@pytest.mark.usefixtures("hurried")
def test_200_slow_heads_are_cut_and_do_not_stop_others(address: tuple[str, int]) -> None:
    connections = [socket.create_connection(address, timeout=60) for _ in range(200)]
    try:
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(20):
            answers(address)
        assert [status_of(read(connection)) for connection in connections] == [(408, "slow_head")] * 200
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.usefixtures("hurried")
def test_a_head_that_goes_on_byte_by_byte_is_cut(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=60) as connection:
        received = list[bytes]()
        reader = threading.Thread(target=lambda: received.append(read(connection)))
        reader.start()
        dribble(connection, b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 100, lambda: bool(received))
        reader.join()
    assert status_of(received[0]) == (408, "slow_head")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("request_", [*WRITES[:5]], ids=bytes.decode)
def test_a_slow_body_is_cut_on_every_route(address: tuple[str, int], request_: bytes) -> None:
    with socket.create_connection(address, timeout=60) as connection:
        head = request_ + b" HTTP/1.1\r\n" + HEAD + JSON + b"Content-Length: 1000\r\n\r\n"
        connection.sendall(head + b"{")
        assert status_of(read(connection)) == (408, "slow_body")


@pytest.mark.usefixtures("hurried")
def test_a_body_that_keeps_pace_is_taken(address: tuple[str, int]) -> None:
    """Four seconds, of which a limit of one second and 4096 bytes a second allow 5 and more."""
    with socket.create_connection(address, timeout=60) as connection:
        body = b'{"user_id": "u", "items": ["i1"]}' + b" " * 40_000
        head = b"POST /v1/rank HTTP/1.1\r\nConnection: close\r\n" + HEAD + JSON
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 10_000):
            connection.sendall(body[at : at + 10_000])
            time.sleep(0.8)
        assert status_of(read(connection)) == (200, "")


@pytest.mark.usefixtures("hurried")
def test_connections_that_are_not_used_are_closed(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=60) as connection:
        assert read(connection) == b""
    with socket.create_connection(address, timeout=60) as connection:  # after an answer, a rest of its body
        connection.sendall(b"POST /v1/events HTTP/1.1\r\n" + HEAD + JSON + b"Content-Length: 99999999\r\n\r\n")
        assert status_of(read(connection)) == (413, "body_too_large")
    with socket.create_connection(address, timeout=60) as connection:  # after an answer
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert status_of(read(connection)) == (200, "")


@pytest.mark.usefixtures("hurried")
def test_a_client_that_does_not_read_is_cut(address: tuple[str, int]) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(address)
        connection.sendall((b"GET /static/page.js HTTP/1.1\r\n" + HEAD + b"\r\n") * 100)
        connection.sendall((b"GET /static/page.js HTTP/1.1\r\n" + HEAD + b"\r\n") * 100)
        until = time.monotonic() + 60
        while True:  # a reset is an error of sending
            assert time.monotonic() < until
            try:
                connection.send(b"\r\n", socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except ConnectionError:
                break
            time.sleep(0.1)
    answers(address)


def test_a_connection_too_many_is_refused(tmp_path: Path) -> None:
    with serving(toy_app(tmp_path), "uvloop", limit_concurrency=3) as url:
        address = str(urlsplit(url).hostname), int(urlsplit(url).port or 0)
        held = [socket.create_connection(address, timeout=20) for _ in range(3)]
        try:
            for connection in held:
                connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n")
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            with socket.create_connection(address, timeout=20) as fourth:
                received = read(fourth)
            assert b"retry-after: 1\r\n" in received
            assert status_of(received) == (503, "too_many_connections")
        finally:
            for connection in held:
                connection.close()
        until = time.monotonic() + 20
        while True:  # a place is free when the server has seen the end of a connection
            assert time.monotonic() < until
            with socket.create_connection(address, timeout=20) as next_:
                next_.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n")
                if read(next_).startswith(b"HTTP/1.1 200"):
                    break
