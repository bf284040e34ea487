"""Gemini by HTTP: interleaved parts, a failure for each part it does not accept, and a bound on the cost."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import fake_embeddings as fake
import media
import numpy as np
import pytest
from fake_embeddings import KEY, TEXT_ONLY, G, gemini, media_part, text_part, texts, unit

from features.content.encoders.frozen import Media
from features.content.encoders.gemini import Estimate, GeminiEncoder, Prices
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Audio, Content, Image, Limits, Text, Video
from features.errors import ConfigError, DependencyError, SpaceError

PNG = media.picture(form="PNG")


def wav(seconds):
    return media.sound(media.sine(8000, seconds), 8000)


@pytest.fixture(scope="module")
def workers():
    with DecoderPool(1, read=media.read_or_die) as decoders:
        yield Media(decoders, Limits())


def test_interleaves_parts_with_mime_types_and_one_prefix(workers, large, clock):
    sound = wav(0.5)
    content = Content.of(Image(PNG), Text("first"), Audio(sound), Text("second"))
    embedded = gemini(workers, large, clock).encode([content, *texts("other")])
    parts = [
        media_part(PNG, "image/png"),
        text_part("title: none | text: first"),
        media_part(sound, "audio/wav"),
        text_part("second"),
    ]
    other_parts = [text_part("title: none | text: other")]
    np.testing.assert_allclose(embedded.vectors, [unit(parts, G), unit(other_parts, G)], atol=1e-6)
    path, _, body = large.requests[0]
    assert path.endswith("/models/gemini-embedding-2:batchEmbedContents")
    assert {request["model"] for request in body["requests"]} == {"models/gemini-embedding-2"}
    assert {request["outputDimensionality"] for request in body["requests"]} == {G}


@pytest.mark.parametrize(
    ("task", "prefix", "scheme"),
    [
        ("query", "task: search result | query: ", "retrieval"),
        ("document", "title: none | text: ", "retrieval"),
        ("similarity", "task: sentence similarity | query: ", "similarity"),
    ],
)
def test_the_task_is_in_the_prefix(large, clock, task, prefix, scheme):
    encoder = gemini(TEXT_ONLY, large, clock)
    embedded = encoder.encode(texts("x"), task=task)
    np.testing.assert_allclose(embedded.vectors[0], unit([text_part(f"{prefix}x")], G), atol=1e-6)
    assert embedded.space == encoder.space(task)
    assert (embedded.space.model, embedded.space.prompt, embedded.space.dimension) == (
        "gemini-embedding-2",
        scheme,
        G,
    )


def test_sends_a_hundred_contents_in_a_request(large, clock):
    words = [f"w{i}" for i in range(203)]
    embedded = gemini(TEXT_ONLY, large, clock).encode(texts(*words))
    assert [len(body["requests"]) for _, _, body in large.requests] == [100, 100, 3]
    expected = [unit([text_part(f"title: none | text: {w}")], G) for w in words]
    np.testing.assert_allclose(embedded.vectors, expected, atol=1e-6)


def test_splits_requests_by_bytes(workers, large, clock):
    heavy = PNG + bytes(6 * 2**20)
    encoder = gemini(workers, large, clock)
    encoder.encode([Content.of(Image(heavy))] * 3)
    assert [len(body["requests"]) for _, _, body in large.requests] == [2, 1]


def test_parts_that_are_not_accepted_are_failures(workers, large, clock):
    svg, webp = b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF\x1a\0\0\0WEBPVP8 "
    content = Content.of(Text("x"), Image(svg), Image(webp), *[Image(PNG)] * 7, Audio(wav(181)), Audio(PNG))
    embedded = gemini(workers, large, clock).encode([content, Content.of(Image(b""))])
    parts = [text_part("title: none | text: x"), *[media_part(PNG, "image/png")] * 6]
    np.testing.assert_allclose(embedded.vectors[0], unit(parts, G), atol=1e-6)
    assert embedded.present.tolist() == [True, False]
    reasons = {(f.row, f.part): f.reason for f in embedded.failures}
    assert list(reasons) == [(0, 1), (0, 2), (0, 9), (0, 10), (0, 11), (1, 0)]
    assert "Gemini takes png, jpeg" in reasons[0, 2]
    assert "Gemini takes 6 images" in reasons[0, 9]
    assert "180" in reasons[0, 10]
    assert "audio as png" in reasons[0, 11]


def test_files_are_read_in_a_worker_and_one_that_ends_it_is_a_failure(workers, large, clock):
    video = media.video([10, 200])
    content = Content.of(Image(b"die"), Image(PNG), Video(video), Video(video), Video(PNG))
    encoder = gemini(workers, large, clock, spend_at_most=10.0)
    embedded = encoder.encode([content, *texts("a")])
    parts = [media_part(PNG, "image/png"), media_part(video, "video/mp4")]
    text = [text_part("title: none | text: a")]
    np.testing.assert_allclose(embedded.vectors, [unit(parts, G), unit(text, G)], atol=1e-6)
    reasons = {(f.row, f.part): f.reason for f in embedded.failures}
    assert list(reasons) == [(0, 0), (0, 3), (0, 4)]
    assert "ended the worker process" in reasons[0, 0]
    assert "Gemini takes video of 0 s more" in reasons[0, 3]  # each video counts as 120 s, the maximum
    assert "video as png" in reasons[0, 4]
    assert encoder.estimate([content]).video_seconds == 120


def test_the_limits_of_a_content_are_enforced(large, clock):
    strict = Media(DecoderPool(), Limits(parts=3, text_bytes=4))
    embedded = gemini(strict, large, clock).encode([Content.of(*(Text(t) for t in ("a", "words", "", "b")))])
    np.testing.assert_allclose(embedded.vectors[0], unit([text_part("title: none | text: a")], G), atol=1e-6)
    assert [(f.row, f.part) for f in embedded.failures] == [(0, 1), (0, 3)]


def test_sums_the_seconds_of_a_content(workers, large, clock):
    embedded = gemini(workers, large, clock).encode([Content.of(Audio(wav(100)), Audio(wav(100)), Audio(wav(80)))])
    assert [(f.row, f.part) for f in embedded.failures] == [(0, 1)]


def test_cuts_long_text_and_states_it_in_the_space(large, clock):
    encoder = gemini(TEXT_ONLY, large, clock)
    embedded = encoder.encode([Content.of(Text("a" * 40_000), Text("late")), Content.of(Text("語" * 9000))])
    sent = [request["content"]["parts"] for request in large.requests[0][2]["requests"]]
    assert sent[0] == [text_part(("title: none | text: " + "a" * 40_000)[: 4 * 8192])]
    assert sent[1] == [text_part("title: none | text: " + "語" * (8192 - 5))]
    assert [(f.row, f.part) for f in embedded.failures] == [(0, 1)]
    assert "8192 tokens" in encoder.space().preprocessing


def test_estimates_and_stops_before_spending_too_much(workers, large, clock):
    prices = Prices(text=1.0, image=10.0, audio=100.0, video=1000.0)
    contents = [Content.of(Text("b" * 65), Image(PNG)), Content.of(Audio(wav(2.5)))]
    encoder = gemini(workers, large, clock, prices=prices, spend_at_most=0.02)
    cost = encoder.estimate(contents)
    # the similarity prefix has 35 characters: 100 characters are 25 tokens
    assert (cost.contents, cost.images, cost.audio_seconds, cost.video_seconds) == (2, 1, 2.5, 0.0)
    assert cost.tokens == 25 + 270 + 80
    assert cost.dollars == pytest.approx((25 * 1 + 270 * 10 + 80 * 100) / 1e6)
    encoder.encode(contents)
    with pytest.raises(ConfigError, match=r"2 contents may cost \$0.0107, \$0.0093 is left to spend"):
        encoder.encode(contents)
    assert len(large.requests) == 1


def test_two_threads_do_not_spend_the_same_dollar(large, clock):
    class Slow(float):
        """A price with a slow comparison, so that the threads overlap."""

        def __gt__(self, other):
            greater = super().__gt__(other)
            time.sleep(0.05)
            return greater

    encoder = gemini(TEXT_ONLY, large, clock, spend_at_most=0.02)
    encoder.estimate = lambda contents: Estimate(len(contents), dollars=Slow(0.015))
    with ThreadPoolExecutor(3) as pool:
        attempts = [pool.submit(encoder.encode, texts("a")) for _ in range(3)]
    assert [type(attempt.exception()) for attempt in attempts if attempt.exception()] == [ConfigError, ConfigError]
    assert len(large.requests) == 1


def test_rejects_a_model_without_known_prices(monkeypatch, large, clock):
    encoder = gemini(TEXT_ONLY, large, clock)
    assert encoder.estimate(texts("x" * (4_000 - 35))).dollars == pytest.approx(1000 * 0.20 / 1e6)
    with pytest.raises(ConfigError, match="prices are not known"):
        gemini(TEXT_ONLY, large, clock, model="gemini-embedding-9")
    with pytest.raises(ConfigError, match="128 to 3072"):
        gemini(TEXT_ONLY, large, clock, dimension=64)


def test_reads_its_key_from_the_environment(monkeypatch, large, clock):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set GEMINI_API_KEY"):
        gemini(TEXT_ONLY, large, clock, api_key=None)
    monkeypatch.setenv("GOOGLE_API_KEY", f"{KEY}\n")
    gemini(TEXT_ONLY, large, clock, api_key=None).encode(texts("a"))
    assert KEY in large.requests[0][1].values()


def test_an_invalid_key_does_not_start_a_bisection(large, clock):
    body = {"error": {"code": 400, "message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]}}
    large.script = [fake.status(400, body=body)]
    with pytest.raises(SpaceError, match="API key not valid"):
        gemini(TEXT_ONLY, large, clock).encode(texts("a", "b"))
    assert len(large.requests) == 1


def test_waits_for_the_delay_in_the_error_details(large, clock):
    body = {"error": {"code": 429, "message": "quota", "details": [{"retryDelay": "36s"}]}}
    large.script = [fake.status(429, body=body)]
    gemini(TEXT_ONLY, large, clock).encode(texts("a"))
    assert clock.slept == [36.0]


def test_a_missing_package_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.genai", None)
    monkeypatch.delattr("google.genai", raising=False)
    with pytest.raises(DependencyError, match=r"extra `native`"):
        GeminiEncoder(TEXT_ONLY, api_key=KEY)


def test_the_environment_does_not_change_the_api(monkeypatch, large, clock):
    for name in ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    gemini(TEXT_ONLY, large, clock).encode(texts("a"))
    assert large.requests[0][0].endswith("/models/gemini-embedding-2:batchEmbedContents")
    assert "projects" not in large.requests[0][0]


def test_the_defaults(monkeypatch):
    """Vectors in caches and bundles, and bills, depend on them."""
    encoder = GeminiEncoder(TEXT_ONLY, api_key=" key ")
    assert (encoder.space().model, encoder.space().dimension) == ("gemini-embedding-2", 3072)
    assert encoder.space().preprocessing == "interleaved, texts cut at 8192 tokens"
    assert encoder._budget == 1.0
    options = encoder._client._api_client._http_options
    assert options.timeout == 120_000  # milliseconds
    assert encoder._service.client.timeout.read == 120.0
    assert encoder._client._api_client.api_key == "key"
    for dimension in (127, 3073):
        with pytest.raises(ConfigError, match=f"dimension {dimension}; choose 128 to 3072"):
            GeminiEncoder(TEXT_ONLY, dimension=dimension, api_key="key")
    for dimension in (128, 3072):
        assert GeminiEncoder(TEXT_ONLY, dimension=dimension, api_key="key").space().dimension == dimension
