"""An embedding service with scripted failures: OpenAI's and Gemini's formats over real HTTP.

Its vectors are a known function of the content in the request, and have length about 3√d, not 1.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from features.content.encoders.frozen import Media
from features.content.encoders.gemini import GeminiEncoder
from features.content.encoders.remote import RetryPolicy
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Limits, Text

KEY = "sk-very-secret-123"
G = 128
"""The minimum dimension of Gemini."""

TEXT_ONLY = Media(DecoderPool(), Limits())
"""For contents with texts only: its workers never start."""

POISON = "poison"
"""A content with this word makes the service reject the entire request with status 400, as real services do."""


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def retry_policy(self, tries=4, seconds=100.0):
        return RetryPolicy(tries, seconds, self.sleep, lambda: self.now, lambda low, high: high)


def texts(*words):
    """One content for each text."""
    return [Content.of(Text(word)) for word in words]


def raw(content, d):
    """The vector (d,) of the service for a content: a text, or a list of Gemini's parts."""
    seed = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()[:8]
    return 3 * np.random.default_rng(int.from_bytes(seed)).standard_normal(d)


def unit(content, d):
    """The same vector, scaled to length 1."""
    vector = raw(content, d)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def text_part(text):
    """A part as google-genai 3.4 sends it."""
    return {"text": text}


def media_part(data, mime):
    """A part as google-genai 3.4 sends it."""
    return {"inline_data": {"data": base64.urlsafe_b64encode(data).decode(), "mime_type": mime}}


class FakeEmbeddings:
    """The service, on a free local port.

    script: functions of (handler, contents) that respond to the next requests, one for each request; requests: (path,
    headers, body) of all requests.
    """

    def __init__(self, d=8):
        self.d = d
        self.script: list[Callable[[Any, Any], None]] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            dimension = fake.d

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append((self.path, dict(self.headers), body))
                self.gemini = self.path.endswith(":batchEmbedContents")
                assert self.gemini or self.path.endswith("/v1/embeddings")
                contents = (
                    [request["content"]["parts"] for request in body["requests"]] if self.gemini else body["input"]
                )
                if fake.script:
                    fake.script.pop(0)(self, contents)
                elif POISON in json.dumps(contents):
                    self.respond(400, {"error": {"code": 400, "message": "no poison", "status": "INVALID_ARGUMENT"}})
                else:
                    self.respond_vectors([raw(content, fake.d).tolist() for content in contents])

            def respond_vectors(self, vectors, order=None):
                self.respond(200, self.response_body(vectors, order))

            def response_body(self, vectors, order=None):
                if self.gemini:
                    return {"embeddings": [{"values": vector} for vector in vectors]}
                order = range(len(vectors)) if order is None else order
                return {"data": [{"index": at, "embedding": vectors[at]} for at in order]}

            def respond(self, status, body, headers=(), cut=None):
                text = (body if isinstance(body, str) else json.dumps(body)).encode()[:cut]
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def gemini(files, server, clock, **more):
    """The Gemini encoder with this service as its server; it sleeps only by the clock."""
    options = {"dimension": G, "api_key": KEY, "base_url": server.url, "retry_policy": clock.retry_policy()} | more
    return GeminiEncoder(files, **options)


def status(code, *, headers=(), body=None):
    """Respond with a status."""
    payload = body or {"error": {"code": code, "message": f"scripted {code}", "status": "SCRIPTED"}}
    return lambda handler, contents: handler.respond(code, payload, headers)


def stall(until):
    """Do not respond until an event is set."""
    return lambda handler, contents: until.wait(10)


def drop():
    """Close the connection in the middle of the body."""

    def act(handler, contents):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"data": [')
        handler.wfile.flush()
        handler.close_connection = True

    return act


def truncated():
    """The start of the JSON, with the Content-Length of that start."""
    return lambda handler, contents: handler.respond(
        200, handler.response_body([[1.0, 2.0, 3.0]] * len(contents)), cut=30
    )


def vectors(change):
    """Respond with changed vectors: change(list of the correct ones, d numbers each)."""

    def act(handler, contents):
        handler.respond_vectors(change([raw(content, handler.dimension).tolist() for content in contents]))

    return act


def shuffled():
    """The correct vectors, in reverse order."""

    def act(handler, contents):
        vectors_in_order = [raw(content, handler.dimension).tolist() for content in contents]
        handler.respond_vectors(vectors_in_order, order=range(len(vectors_in_order) - 1, -1, -1))

    return act
