"""Requests that the HTTP server itself refuses: each gets an error of the one shape."""

import json
import signal
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from fastapi import FastAPI
from service_harness import facts_of, serving
from toy_service import ToyFiller, ToyShelf, toy_bundle, toy_encoders, toy_settings

from features.store.memory import MemoryStore
from serving.app import create_app
from serving.http import MAX_URL_BYTES, http_server


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    folder = tmp_path_factory.mktemp("http")
    shelf = ToyShelf(toy_bundle(folder))
    app = create_app(
        toy_settings(folder),
        load=shelf.load,
        current=shelf.current,
        filler=ToyFiller(folder),
        connect=MemoryStore,
        encoders=toy_encoders,
    )
    with serving(app) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


def send(address: tuple[str, int], *pieces: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of the response to bytes that are sent piece by piece."""
    with socket.create_connection(address, timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(status.split(" ")[1]), headers, json.loads(body)


def get(url: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {url} HTTP/1.1", "Host: localhost", "Connection: close", *more, "", ""]).encode(
        "latin-1"
    )


def test_a_url_of_the_limit_is_served_and_a_longer_one_is_refused(address: tuple[str, int]) -> None:
    path = "/v1/users/new/recommendations?limit=1&filter="
    body = quote(json.dumps({"exclude": ["i0"]}))
    longest = path + body + "%20" * ((MAX_URL_BYTES - len(path + body)) // 3)
    longest += "&" * (MAX_URL_BYTES - len(longest))
    status, _, response = send(address, get(longest))
    assert (status, [item["item_id"] for item in response["items"]]) == (200, ["i1"])
    status, headers, response = send(address, get(longest + "&"))
    assert (status, headers["content-type"], headers["connection"]) == (414, "application/problem+json", "close")
    assert response == {
        "type": "/docs#url_too_long",
        "title": "The URL is too long",
        "status": 414,
        "detail": "the URL exceeds 65535 bytes: send fewer ids in the filter, or shorter ones",
        "code": "url_too_long",
        "place": "filter",
    }


@pytest.mark.parametrize("n", [2_000, 9_999])
def test_a_filter_of_many_ids_is_refused_with_the_limit(address: tuple[str, int], n: int) -> None:
    ids = [f"d3b07384-d9a0-4e9b-8c5d-{k:012d}" for k in range(n)]
    url = "/v1/users/new/recommendations?filter=" + quote(json.dumps({"exclude": ids}), safe="")
    request = get(url)
    pieces = [request[at : at + 4000] for at in range(0, len(request), 4000)]
    for sent in ([request], pieces):
        status, _, response = send(address, *sent)
        assert (status, response["code"]) == (414, "url_too_long")


def test_many_ids_to_leave_out_are_refused_with_the_limit(address: tuple[str, int]) -> None:
    status, _, response = send(address, get("/v1/users/new/recommendations?exclude=" + "x," * 32_760))
    assert (status, response["place"]) == (414, "exclude")
    assert response["detail"].endswith("65535 bytes: send fewer ids in exclude, or shorter ones")


def test_1300_uuids_fit(address: tuple[str, int]) -> None:
    ids = [f"d3b07384-d9a0-4e9b-8c5d-{k:012d}" for k in range(1300)]
    url = "/v1/users/new/recommendations?limit=1&filter=" + quote(json.dumps({"exclude": ids}), safe="")
    assert send(address, get(url))[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,  # TLS
        b"GET /v1/about HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /v1/about HTTP/1.1\r\nHo st: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: two\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_an_error_of_the_one_shape(address: tuple[str, int], request_: bytes) -> None:
    status, headers, response = send(address, request_)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert response["code"] == "bad_request"
    assert set(response) == {"type", "title", "status", "detail", "code", "place"}


def test_bytes_above_ascii_in_the_path_are_refused(address: tuple[str, int]) -> None:
    status, _, response = send(address, get("/v1/items/\xff"))
    assert (status, response["code"] in ("bad_request", "bad_url")) == (400, True)


def test_an_upgrade_to_another_protocol_is_not_followed(address: tuple[str, int]) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
    request = get("/v1/about", *upgrade).replace(b"Connection: close", b"Connection: Upgrade, close")
    status, _, response = send(address, request)
    assert (status, response["items"]) == (200, 12)


def test_a_second_ctrl_c_does_not_skip_the_end() -> None:
    server = http_server(FastAPI())
    for _ in range(3):
        server.handle_exit(signal.SIGINT, None)
    assert (server.should_exit, server.force_exit) == (True, False)
    assert server._captured_signals == [signal.SIGINT]  # each is raised again when the server has ended


def test_a_method_that_a_path_does_not_take_is_told_with_those_it_takes(address: tuple[str, int]) -> None:
    status, headers, response = send(
        address, b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert (status, headers["allow"]) == (405, "get, head, options")
    assert facts_of(response) == {
        "code": "method_not_allowed",
        "detail": "this path does not take POST; it takes GET, HEAD, OPTIONS",
        "place": "path",
    }


def test_http_1_1_demands_a_host_and_1_0_does_not(address: tuple[str, int]) -> None:
    status, _, response = send(address, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert (status, response["code"]) == (400, "bad_host")
    status, _, response = send(address, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (status, response) == (200, {"status": "up"})
