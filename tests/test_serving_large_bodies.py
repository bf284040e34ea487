"""Searches with large bodies, sent slowly and quickly, beside searches by words: the small ones go on."""

import base64
import http.client
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
from service_harness import Flaky, serving
from toy_service import RULES, ToyFiller, ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents

from serving.app import create_app
from serving.state.encoder_pool import MAX_LARGE_BODIES

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=limit"}
LARGE, CLOSED = 20 << 20, 0


def search(address: tuple[str, int], body: bytes, headers: dict[str, str] = JSON) -> int:
    """Status of a search."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    try:
        connection.request("POST", "/v1/search", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def slow_search(address: tuple[str, int], over: threading.Event) -> socket.socket:
    """A search whose body goes on to arrive until `over` is set, faster than what is too slow."""
    link = socket.create_connection(address)
    head = f"POST /v1/search HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/json\r\n"
    link.sendall(f"{head}Content-Length: {LARGE}\r\n\r\n".encode())

    def send() -> None:
        while not over.wait(0.05):
            link.sendall(b" " * 4096)

    threading.Thread(target=send).start()
    return link


def form(size: int) -> bytes:
    part = b'--limit\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return part + os.urandom(size) + b"\r\n--limit--\r\n"


@pytest.mark.parametrize("slow", [MAX_LARGE_BODIES, 0])
def test_searches_by_words_go_on_beside_large_bodies(tmp_path: Path, slow: int) -> None:
    shelf = ToyShelf(with_contents(toy_bundle(tmp_path)))
    app = create_app(
        toy_settings(tmp_path, search_wait=2.0),
        load=shelf.load,
        current=shelf.current,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        connect=lambda rules: Flaky(RULES),
        filler=ToyFiller(tmp_path),
        encoders=toy_encoders,
    )
    no_image = orjson.dumps({"image": base64.b64encode(os.urandom(LARGE)).decode()})
    bodies = [(no_image, JSON), (form(LARGE), FORM), (form(50 << 20), FORM)]
    over, statuses = threading.Event(), list[int]()
    with serving(app) as url:
        parts = urlsplit(url)
        address = str(parts.hostname), int(parts.port or 0)
        links = [slow_search(address, over) for _ in range(slow)]

        def send(body: bytes, headers: dict[str, str]) -> None:
            while not over.is_set():
                try:
                    statuses.append(search(address, body, headers))
                except OSError:  # the service has answered, and closed the connection, before all of it arrived
                    statuses.append(CLOSED)

        clients = [threading.Thread(target=send, args=sent) for sent in bodies]
        try:
            for client in clients:
                client.start()
            found = list[int]()
            # until large ones were refused, or read: random bytes are no image
            while len(found) < 40 or (len(statuses) < 6 if slow else 422 not in statuses):
                found.append(search(address, orjson.dumps({"text": "red"})))
            assert {*found} == {200}
            for link in links:  # the slow ones still hold all places of large bodies
                link.setblocking(False)
                with pytest.raises(BlockingIOError):
                    link.recv(1)
        finally:
            over.set()
            for client in clients:
                client.join()
            for link in links:
                link.close()
    assert {*statuses} <= ({503, 413, CLOSED} if slow else {422, 413, CLOSED})
