"""Remote encoders: waits between attempts, words of messages, and what a request and its estimate hold, by hand."""

import json
from typing import Any

import fake_embeddings as fake
import httpx2
import media
import numpy as np
import pytest
from fake_embeddings import KEY, TEXT_ONLY, FakeEmbeddings, gemini, texts

from features.content.encoders import gemini as gemini_module
from features.content.encoders.frozen import Media
from features.content.encoders.gemini import Estimate, Prices
from features.content.encoders.openai_compatible import MAX_REQUEST_BYTES, OpenAICompatibleEncoder
from features.content.encoders.remote import (
    DEFAULT_RETRY,
    EmbeddingService,
    RefusedError,
    RetryableError,
    RetryPolicy,
    retry_after_seconds,
)
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Audio, Content, Image, Limits, Text, Video
from features.errors import ContentError, SpaceError


class Time:
    """A clock that only sleeping advances."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def policy(self, **bounds: Any) -> RetryPolicy:
        return RetryPolicy(sleep=self.sleep, clock=lambda: self.now, jitter=lambda low, high: high, **bounds)


def failing(retry_after: float = 0.0) -> Any:
    def attempt() -> None:
        raise RetryableError("is busy", retry_after)

    return attempt


def test_a_request_is_sent_six_times_in_five_minutes_at_most() -> None:
    time = Time()
    with pytest.raises(SpaceError) as caught:
        time.policy().run("m", failing())
    assert time.slept == [1, 2, 4, 8, 16]
    assert str(caught.value) == "m is busy; tried 6 times in 31 s. Run again later"
    assert (DEFAULT_RETRY.tries, DEFAULT_RETRY.seconds) == (6, 300)


def test_no_wait_is_longer_than_a_minute_unless_the_server_asks_for_it() -> None:
    time = Time()
    with pytest.raises(SpaceError, match="tried 9 times in 183 s"):
        time.policy(tries=9).run("m", failing())
    assert time.slept == [1, 2, 4, 8, 16, 32, 60, 60]
    time = Time()
    with pytest.raises(SpaceError) as caught:
        time.policy().run("m", failing(100))
    assert time.slept == [100, 100, 100]
    assert str(caught.value) == "m is busy and asks to wait 100 s; tried 4 times in 300 s. Run again later"


def test_a_wait_that_ends_within_the_time_is_waited() -> None:
    time = Time()
    with pytest.raises(SpaceError, match="tried 3 times in 3 s"):
        time.policy(seconds=3).run("m", failing())
    assert time.slept == [1, 2]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *((None, 0.0), ("", 0.0), ("soon", 0.0), ("5", 5.0), (" 7 ", 7.0), ("-3", 0.0)),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),  # past
    ],
)
def test_the_header_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after_seconds(header) == seconds


@pytest.fixture
def service() -> EmbeddingService:
    return EmbeddingService("model m", "s-secret", RetryPolicy(tries=1), 5.0)


def test_texts_of_a_server_are_cut_and_cleaned(service: EmbeddingService) -> None:
    assert service.sanitised("a\nb\x00c  s-secret") == "a b c ***"
    assert service.sanitised("x" * 300) == "x" * 300
    assert service.sanitised("x" * 301) == "x" * 300 + "…"
    assert service.sanitised(" " * 1199 + "xy") == "x"  # no more than 1,200 characters are looked at
    assert EmbeddingService("m", None, RetryPolicy(), 5.0).sanitised("") == ""


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_temporary_failures(service: EmbeddingService, status: int) -> None:
    with pytest.raises(RetryableError) as caught:
        service.raise_for_status(status, "", 3.0)
    assert (str(caught.value), caught.value.retry_after) == (f"answers {status}: without a message", 3.0)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 501])
def test_permanent_failures(service: EmbeddingService, status: int) -> None:
    with pytest.raises(RefusedError) as caught:
        service.raise_for_status(status, "no")
    assert (str(caught.value), caught.value.status) == (f"model m answers {status}: no", status)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx2.ConnectTimeout("to s-secret"), "cannot be reached: there was no answer in time"),
        (httpx2.ReadError("of s-secret"), "cannot be reached: the connection failed or was cut off"),
        (json.JSONDecodeError("x", "abcde", 3), "answers with invalid JSON at character 3 of 5"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "answers with invalid UTF-8"),
    ],
)
def test_incomplete_answers_are_temporary(service: EmbeddingService, error: Exception, message: str) -> None:
    def raises() -> None:
        raise error

    with pytest.raises(RetryableError) as caught:
        service.call(raises)
    assert str(caught.value) == message


@pytest.mark.parametrize(("status", "bisected"), [(400, True), (413, True), (422, True), (404, False)])
def test_a_refused_batch_is_halved_until_the_refused_content_is_alone(
    service: EmbeddingService, status: int, bisected: bool
) -> None:
    sent = []

    def send(requests: Any) -> list[list[float]]:
        sent.append(list(requests))
        if 3 in requests:
            raise RefusedError("no three", status)
        return [[float(request), 0.0] for request in requests]

    if not bisected:
        with pytest.raises(RefusedError, match="no three"):
            service.embed([1, 2, 3, 4, 5], send, 2)
        assert sent == [[1, 2, 3, 4, 5]]
        return
    vectors, refused = service.embed([1, 2, 3, 4, 5], send, 2)
    assert sent == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5]]
    assert refused == {2: "no three"}
    np.testing.assert_array_equal(vectors, [[1, 0], [1, 0], [0, 0], [1, 0], [1, 0]])
    with pytest.raises(SpaceError, match="every one of 2 contents is refused; the first: no three"):
        service.embed([3, 3], send, 2)
    assert service.embed([3], send, 2)[1] == {0: "no three"}  # one alone is a failure of its own


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ([[1.0, 2.0]], "model m: 2 contents were sent and 1 vectors were received; check the model"),
        ([[1.0, 2.0], [1.0]], "model m: vector 1 of 2 has 1 numbers, 2 are expected; set dimension"),
        ([[1.0, 2.0], [0.0, 0.0]], "model m: vector 1 of 2 is of length 0.0, which has no direction"),
        ([[1e308, 1e308], [1.0, 1.0]], "model m: vector 0 of 2 is of length inf, which has no direction"),
        ([[float("nan"), 1.0], [1.0, 1.0]], "model m: vector 0 of 2 is of length nan, which has no direction"),
        ([["a", "b"], [1.0, 1.0]], "model m: the response has vectors that are not made of numbers"),
    ],
)
def test_invalid_vectors(service: EmbeddingService, response: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        service._units(response, 2, 2)
    assert str(caught.value) == message


# OpenAI's protocol


def test_the_request_and_the_defaults_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeEmbeddings(8) as server:
        encoder = OpenAICompatibleEncoder(Limits(), f"{server.url}/v1/", "m", 8)
        encoder.encode(texts("a", "b"))
        path, headers, body = server.requests[0]
    assert path == "/v1/embeddings"
    assert body == {"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 8}
    assert "Authorization" not in headers
    assert (encoder._batch, encoder._service.client.timeout.read, MAX_REQUEST_BYTES) == (64, 60.0, 4_194_304)
    space = encoder.space()
    assert (space.revision, space.preprocessing) == (
        f"{server.url.partition('://')[2]}/v1",
        "texts of a content joined by line breaks",
    )


# Gemini


@pytest.fixture(scope="module")
def workers() -> Any:
    with DecoderPool(1, read=media.read_or_die) as decoders:
        yield Media(decoders, Limits())


def test_the_limits_of_gemini() -> None:
    module = gemini_module
    assert (module.MAX_REQUEST_CONTENTS, module.MAX_REQUEST_BYTES, module.TEXT_TOKENS) == (100, 14_680_064, 8_192)
    assert (module.IMAGES, module.AUDIO_SECONDS, module.VIDEO_SECONDS) == (6, 180.0, 120.0)
    tokens = module.TOKENS_PER_IMAGE, module.TOKENS_PER_AUDIO_SECOND, module.TOKENS_PER_VIDEO_SECOND
    assert tokens == (270, 32, 263)
    assert {"gemini-embedding-2": Prices(0.20, 0.45, 6.50, 12.00)} == module.PRICES
    assert [module._tokens(text) for text in ("", "a", "abcd", "abcde", "é", "abcdé", "日本")] == [
        0,
        1,
        1,
        2,
        1,
        2,
        2,
    ]
    kinds = (media.picture(form="PNG"), media.picture(), media.sound(), media.sound(form="MP3"), media.video([9]))
    assert [module._kind(data) for data in kinds] == ["image", "image", "audio", "audio", "video"]
    assert module._kind(media.picture(form="GIF")) == ""


def test_an_estimate_by_hand(workers: Any, large: FakeEmbeddings, clock: Any) -> None:
    encoder = gemini(workers, large, clock, prices=Prices(1.0, 10.0, 100.0, 1000.0))
    sound = media.sound(media.sine(8000, 0.5), 8000)
    contents = [
        Content.of(Text("abcd"), Image(media.picture(form="PNG")), Image(media.picture())),
        Content.of(Audio(sound), Audio(sound), Video(media.video([9]))),
    ]
    words = 10  # "task: sentence similarity | query: abcd" has 39 characters: four a token
    dollars: Any = pytest.approx((words * 1 + 540 * 10 + 32 * 100 + 31_560 * 1000) / 1e6)
    assert encoder.estimate(contents) == Estimate(
        contents=2,
        tokens=words + 2 * 270 + 32 + 263 * 120,
        images=2,
        audio_seconds=1.0,
        video_seconds=120.0,
        dollars=dollars,
    )
    assert encoder.estimate([]) == Estimate()


def test_what_gemini_does_not_take_is_named(workers: Any, large: FakeEmbeddings, clock: Any) -> None:
    remaining = {"text": 5.0, "image": 1.0, "audio": 10.0, "video": 120.0}
    png = np.frombuffer(media.picture(form="PNG"), np.uint8)
    found = gemini_module._file("image", (png, np.array(1.0)), remaining)
    assert (found.mime, found.seconds, remaining["image"]) == ("image/png", 0.0, 0.0)
    with pytest.raises(ContentError, match="too much image: Gemini takes 6 images in one content; remove some parts"):
        gemini_module._file("image", (png, np.array(1.0)), remaining)
    wav = np.frombuffer(media.sound(), np.uint8)
    assert gemini_module._file("audio", (wav, np.array(10.0)), dict(remaining)).seconds == 10.0
    with pytest.raises(ContentError, match=r"too much audio: Gemini takes audio of 10 s more in one content"):
        gemini_module._file("audio", (wav, np.array(10.1)), remaining)
    with pytest.raises(ContentError, match="image as wav; Gemini takes png, jpeg: convert it"):
        gemini_module._file("image", (wav, np.array(1.0)), remaining)
    assert gemini_module._text("abcdefgh" * 3, remaining) == "abcdefghabcdefghabcd"  # 20 characters: 5 tokens
    with pytest.raises(ContentError, match="the text follows 8,192 tokens of text"):
        gemini_module._text("a", remaining)


@pytest.mark.parametrize(("delay", "slept"), [("17s", 17.0), ("", 1.0)])
def test_the_delay_in_the_details_of_an_error(large: FakeEmbeddings, clock: Any, delay: str, slept: float) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}] if delay else []
    body = {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED", "details": details}}
    large.script = [fake.status(429, body=body)]
    gemini(TEXT_ONLY, large, clock, api_key=KEY).encode(texts("a"))
    assert clock.slept == [slept]


def test_what_a_file_uses_of_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    png, sound = media.picture(form="PNG"), media.sound(media.sine(8000, 0.5), 8000)
    data, amount = gemini_module.measure(png, Limits())
    assert (bytes(data), float(amount)) == (png, 1.0)
    assert float(gemini_module.measure(sound, Limits())[1]) == 0.5
    assert float(gemini_module.measure(media.video([9]), Limits())[1]) == 120.0  # whatever its own length
    monkeypatch.setattr(gemini_module, "AUDIO_SECONDS", 0.4)
    with pytest.raises(ContentError, match="at most 0 s are accepted"):
        gemini_module.measure(sound, Limits())
    monkeypatch.setattr(gemini_module, "MAX_REQUEST_BYTES", len(png))
    gemini_module.measure(png, Limits())
    monkeypatch.setattr(gemini_module, "MAX_REQUEST_BYTES", len(png) - 1)
    with pytest.raises(ContentError) as caught:
        gemini_module.measure(png, Limits())
    assert str(caught.value) == (f"{len(png):,} bytes; Gemini takes {len(png) - 1:,} in a request: make it smaller")
