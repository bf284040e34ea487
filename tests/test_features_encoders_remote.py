"""Embeddings by HTTP from a real server with failures: each content gets its own vector or a reason."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import fake_embeddings as fake
import numpy as np
import pytest
from fake_embeddings import KEY, TEXT_ONLY, Clock, FakeEmbeddings, G, gemini, text_part, texts, unit

from features.content.encoders.gemini import GeminiEncoder
from features.content.encoders.openai_compatible import OpenAICompatibleEncoder
from features.content.encoders.remote import EmbeddingService, PreparedRequest, RetryableError, RetryPolicy, embed_all
from features.content.parts import Content, Image, Limits, Text
from features.content.spaces import SpaceKey
from features.errors import ConfigError, SpaceError

D = 8


@pytest.fixture
def server():
    with FakeEmbeddings(D) as running:
        yield running


def openai(server, clock, **more):
    options = {"dimension": D, "api_key": KEY, "retry_policy": clock.retry_policy()} | more
    return OpenAICompatibleEncoder(Limits(), f"{server.url}/v1/", "m", **options)


ENCODERS: dict[str, Callable[..., Any]] = {"openai": openai, "gemini": partial(gemini, TEXT_ONLY)}


@pytest.fixture(params=ENCODERS)
def encoder(request, large, clock):
    """Either encoder at the server `large`, d = 128."""
    return ENCODERS[request.param](large, clock, dimension=G)


def expected(encoder, word):
    """The vector of a text in the format of the request."""
    gemini = isinstance(encoder, GeminiEncoder)
    return unit([text_part(f"title: none | text: {word}")] if gemini else word, G)


# both encoders


def test_each_content_gets_its_own_vector_in_order(encoder, large):
    words = [f"word {i}" for i in range(7)]
    steps: list[int] = []
    embedded = encoder.encode(
        [*texts(*words[:3]), Content(), Content.of(Text(" \n")), *texts(*words[3:])], progress=steps.append
    )
    rows = [0, 1, 2, 5, 6, 7, 8]
    np.testing.assert_allclose(embedded.vectors[rows], [expected(encoder, w) for w in words], atol=1e-6)
    assert embedded.present.tolist() == [i in rows for i in range(9)]
    assert not embedded.vectors[3:5].any()
    assert embedded.vectors.dtype == np.float32
    assert embedded.failures == ()
    assert sum(steps) == 9
    assert len(large.requests) == 1


def test_contents_without_text_send_no_request(encoder, large):
    for contents in ([], [Content(), Content.of(Text(""))]):
        embedded = encoder.encode(contents)
        assert embedded.vectors.shape == (len(contents), G)
        assert not embedded.present.any()
    assert large.requests == []


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_temporary_failures_are_retried_with_growing_waits(encoder, large, clock, code):
    large.script = [fake.status(code), fake.status(code), fake.status(code)]
    embedded = encoder.encode(texts("a"))
    np.testing.assert_allclose(embedded.vectors[0], expected(encoder, "a"), atol=1e-6)
    assert clock.slept == [1.0, 2.0, 4.0]


def test_the_number_of_attempts_is_bounded(encoder, large, clock):
    large.script = [fake.status(503)] * 9
    with pytest.raises(SpaceError, match=r"answers 503: .*scripted 503.*tried 4 times in 7 s"):
        encoder.encode(texts("a"))
    assert len(large.requests) == 4


@pytest.mark.parametrize("seconds", [30, 0])
def test_retry_after_is_honoured(encoder, large, clock, seconds):
    large.script = [fake.status(429, headers=[("Retry-After", str(seconds))])]
    encoder.encode(texts("a"))
    assert clock.slept == [max(1.0, seconds)]


def test_retry_after_may_be_a_date(encoder, large, clock):
    at = datetime.now(UTC) + timedelta(seconds=50)
    large.script = [fake.status(429, headers=[("Retry-After", format_datetime(at, usegmt=True))])]
    encoder.encode(texts("a"))
    assert 40 < clock.slept[0] <= 50


def test_a_wait_beyond_the_total_time_is_not_waited(encoder, large, clock):
    large.script = [fake.status(429, headers=[("Retry-After", "3600")])]
    with pytest.raises(SpaceError, match="asks to wait 3600 s; tried 1 times"):
        encoder.encode(texts("a"))
    assert clock.slept == []


@pytest.mark.parametrize("fault", [fake.truncated(), fake.drop(), fake.status(200, body="not JSON at all")])
def test_an_incomplete_response_is_retried(encoder, large, clock, fault):
    large.script = [fault]
    embedded = encoder.encode(texts("a", "b"))
    np.testing.assert_allclose(embedded.vectors[1], expected(encoder, "b"), atol=1e-6)
    assert clock.slept == [1.0]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_time_out_is_retried(name, large, clock):
    done = threading.Event()
    large.script = [fake.stall(done)]
    encoder = ENCODERS[name](large, clock, dimension=G, timeout=0.3)
    embedded = encoder.encode(texts("a"))
    done.set()
    np.testing.assert_allclose(embedded.vectors[0], expected(encoder, "a"), atol=1e-6)
    assert clock.slept == [1.0]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_unreachable_server_is_an_error(name, clock):
    with FakeEmbeddings() as stopped:
        pass
    with pytest.raises(SpaceError, match=r"cannot be reached: nothing listens there: .*; tried 4 times"):
        ENCODERS[name](stopped, clock, dimension=G).encode(texts("a"))


@pytest.mark.parametrize("code", [302, 401, 403, 404])
def test_permanent_failures_raise_at_once_with_the_message_of_the_server(encoder, large, clock, code):
    large.script = [fake.status(code)]
    with pytest.raises(SpaceError, match=f"answers {code}: .*scripted {code}"):
        encoder.encode(texts("a", "b"))
    assert len(large.requests) == 1
    assert clock.slept == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], "3 contents were sent and 2 vectors were received|not one vector for each index"),
        (lambda v: [*v, v[0]], "3 contents were sent and 4 vectors were received"),
        (lambda v: [*v[:2], v[2][:-1]], "vector 2 of 3 has 127 numbers, 128 are expected"),
        (lambda v: [v[0], [float("nan"), *v[1][1:]], v[2]], "vector 1 of 3 is of length nan"),
        (lambda v: [v[0], [float("inf"), *v[1][1:]], v[2]], "vector 1 of 3 is of length inf"),
        (lambda v: [[0.0] * G, *v[1:]], "vector 0 of 3 is of length 0.0"),
        (lambda v: [["x"] * G, *v[1:]], "not made of numbers|not a list of embeddings"),
    ],
)
def test_an_invalid_response_is_an_error_without_retry(encoder, large, clock, change, message):
    large.script = [fake.vectors(change)]
    with pytest.raises(SpaceError, match=message):
        encoder.encode(texts("a", "b", "c"))
    assert clock.slept == []


@pytest.mark.parametrize("body", ["[]", "7", '{"data": 7, "embeddings": 7}', '{"data": [null], "embeddings": ["x"]}'])
def test_json_of_another_shape_is_an_error(encoder, large, body):
    large.script = [fake.status(200, body=body)]
    with pytest.raises(
        SpaceError, match=r"not one vector for each index|not a list of embeddings|0 vectors were received"
    ):
        encoder.encode(texts("a"))


def test_a_rejected_content_is_located_and_the_others_are_embedded(encoder, large):
    words = ["a", "b", "c", f"some {fake.POISON}", "d", "e", "f"]
    embedded = encoder.encode(texts(*words))
    assert embedded.present.tolist() == [True, True, True, False, True, True, True]
    rows = [0, 1, 2, 4, 5, 6]
    np.testing.assert_allclose(embedded.vectors[rows], [expected(encoder, words[i]) for i in rows], atol=1e-6)
    assert not embedded.vectors[3].any()
    [failure] = embedded.failures
    assert (failure.row, failure.part) == (3, 0)
    assert "no poison" in failure.reason


def test_a_rejection_of_every_content_is_an_error(encoder, large):
    large.script = [fake.status(400)] * 9
    with pytest.raises(SpaceError, match=r"every one of 3 contents is refused; the first: .*scripted 400"):
        encoder.encode(texts("a", "b", "c"))


def test_an_unpaired_surrogate_is_replaced(encoder):
    embedded = encoder.encode(texts("\ud800", "x\ud800y"))
    np.testing.assert_allclose(embedded.vectors, [expected(encoder, w) for w in ("?", "x?y")], atol=1e-6)
    assert embedded.failures == ()


def test_the_key_is_sent_and_not_in_messages(encoder, large):
    encoder.encode(texts("a"))
    headers = {name.lower(): value for name, value in large.requests[0][1].items()}
    assert KEY in (headers.get("x-goog-api-key"), headers.get("authorization", "").removeprefix("Bearer "))
    assert KEY not in repr(encoder)
    assert KEY not in str(encoder.space())
    server_message = f"your key {KEY} is wrong \x1b[31m" + "x" * 5000
    large.script = [fake.status(403, body={"error": {"message": server_message, "status": "S"}})]
    with pytest.raises(SpaceError) as caught:
        encoder.encode(texts("a"))
    message = str(caught.value)
    assert KEY not in message
    assert "***" in message
    assert "\x1b" not in message
    assert len(message) < 500
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_invalid_in_a_header(name, server, clock, key):
    with pytest.raises(ConfigError, match="API key") as caught:
        ENCODERS[name](server, clock, dimension=G, api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["", "example.com/v1", "ftp://example.com", "http://", "http://u:secret@example.com"])
def test_an_invalid_address(url):
    with pytest.raises(ConfigError, match="base_url") as caught:
        OpenAICompatibleEncoder(Limits(), url, "m")
    assert "secret" not in str(caught.value)
    if url:  # an empty address is the default of google-genai
        with pytest.raises(ConfigError, match="base_url") as caught:
            GeminiEncoder(TEXT_ONLY, api_key=KEY, base_url=url)
        assert "secret" not in str(caught.value)


# retries and batches


def test_jitter_is_full_and_bounded():
    bounds, clock = [], Clock()

    def lowest(low, high):
        bounds.append((low, high))
        return 0.0

    retry_policy = RetryPolicy(12, 1e9, clock.sleep, lambda: clock.now, lowest)

    def never():
        raise RetryableError("no")

    with pytest.raises(SpaceError):
        retry_policy.run("here", never)
    assert bounds == [(0.0, min(2.0**i, 60.0)) for i in range(12)]


def test_batches_are_bounded_by_count_and_bytes():
    sizes = [5, 5, 5, 30, 1, 0, 1, 1, 1]
    sent: list[list[int]] = []
    steps: list[int] = []

    def prepare(content):
        at = int(content.parts[0].text)
        return PreparedRequest(at if sizes[at] else None, (0,), sizes[at])

    def send(batch):
        sent.append(list(batch))
        return [[1.0, float(at)] for at in batch]

    service = EmbeddingService("here", None, Clock().retry_policy(), 1.0)
    embedded = embed_all(
        service,
        SpaceKey("m", "1", 2),
        texts(*map(str, range(9))),
        prepare,
        send,
        max_requests=3,
        max_bytes=12,
        progress=steps.append,
    )
    assert sent == [[0, 1], [2], [3], [4, 6, 7], [8]]
    assert steps == [2, 1, 1, 4, 1]
    assert embedded.present.tolist() == [True] * 5 + [False] + [True] * 3
    np.testing.assert_allclose(embedded.vectors[3], np.array([1, 3]) / np.sqrt(10), rtol=1e-6)


# the format of OpenAI


def test_openai_vectors_are_matched_by_index(server, clock):
    server.script = [fake.shuffled()]
    words = [f"w{i}" for i in range(9)]
    embedded = openai(server, clock).encode(texts(*words))
    np.testing.assert_allclose(embedded.vectors, [unit(w, D) for w in words], atol=1e-6)


def test_openai_sends_the_dimension_only_when_it_is_given(monkeypatch, server, clock):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert openai(server, clock).space() == SpaceKey(
        "m", f"{server.url[7:]}/v1", D, preprocessing="texts of a content joined by line breaks"
    )
    assert server.requests == []
    encoder = openai(server, clock, dimension=None, api_key=None)
    assert encoder.space().dimension == D
    assert encoder.space("query") == encoder.space("document")
    assert "dimensions" not in server.requests[0][2]
    assert "Authorization" not in server.requests[0][1]
    openai(server, clock).encode(texts("a"))
    path, _, body = server.requests[-1]
    assert path == "/v1/embeddings"
    assert body == {"model": "m", "input": ["a"], "encoding_format": "float", "dimensions": D}


def test_openai_reads_its_key_from_the_environment(monkeypatch, server, clock):
    for value, sent in ((f"{KEY}\n", f"Bearer {KEY}"), ("", None)):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        openai(server, clock, api_key=None).encode(texts("a"))
        assert server.requests[-1][1].get("Authorization") == sent


def test_openai_joins_texts_skips_pictures_and_batches(server, clock):
    contents = [Content.of(Text("a"), Image(b"not read"), Text("b")), Content.of(Image(b"x")), *texts("c", "d")]
    embedded = openai(server, clock, batch=2).encode(contents, task="query")
    np.testing.assert_allclose(embedded.vectors[[0, 2, 3]], [unit(t, D) for t in ("a\nb", "c", "d")], atol=1e-6)
    assert embedded.present.tolist() == [True, False, True, True]
    assert embedded.failures == ()
    assert [body["input"] for _, _, body in server.requests] == [["a\nb", "c"], ["d"]]
