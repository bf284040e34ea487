"""Gemini by HTTP: parts interleaved as it takes them, what it does not take told, no dollar more than was allowed."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import fake_embeddings as fake
import media
import numpy as np
import pytest
from fake_embeddings import KEY, NOBODY, G, gemini, media_part, text_part, texts, unit

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
    with DecoderPool(1, read=media.deadly) as decoders:
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
    other = [text_part("title: none | text: other")]
    np.testing.assert_allclose(embedded.vectors, [unit(parts, G), unit(other, G)], atol=1e-6)
    path, _, body = large.requests[0]
    assert path.endswith("/models/gemini-embedding-2:batchEmbedContents")
    assert {one["model"] for one in body["requests"]} == {"models/gemini-embedding-2"}
    assert {one["outputDimensionality"] for one in body["requests"]} == {G}


@pytest.mark.parametrize(
    ("task", "prefix", "scheme"),
    [
        ("query", "task: search result | query: ", "retrieval"),
        ("document", "title: none | text: ", "retrieval"),
        ("similarity", "task: sentence similarity | query: ", "similarity"),
    ],
)
def test_tells_tasks_by_prefix(large, clock, task, prefix, scheme):
    encoder = gemini(NOBODY, large, clock)
    embedded = encoder.encode(texts("x"), task=task)
    np.testing.assert_allclose(embedded.vectors[0], unit([text_part(f"{prefix}x")], G), atol=1e-6)
    assert embedded.space == encoder.space(task)
    assert (embedded.space.model, embedded.space.prompt, embedded.space.dimension) == (
        "gemini-embedding-2",
        scheme,
        G,
    )


def test_takes_a_hundred_contents_a_request(large, clock):
    words = [f"w{i}" for i in range(203)]
    embedded = gemini(NOBODY, large, clock).encode(texts(*words))
    assert [len(body["requests"]) for _, _, body in large.requests] == [100, 100, 3]
    made = [unit([text_part(f"title: none | text: {w}")], G) for w in words]
    np.testing.assert_allclose(embedded.vectors, made, atol=1e-6)


def test_splits_requests_by_bytes(workers, large, clock):
    heavy = PNG + bytes(6 * 2**20)
    encoder = gemini(workers, large, clock)
    encoder.encode([Content.of(Image(heavy))] * 3)
    assert [len(body["requests"]) for _, _, body in large.requests] == [2, 1]


def test_leaves_out_what_it_does_not_take(workers, large, clock):
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


def test_files_are_read_in_a_worker_and_one_that_ends_it_is_told(workers, large, clock):
    film = media.video([10, 200])
    content = Content.of(Image(b"die"), Image(PNG), Video(film), Video(film), Video(PNG))
    encoder = gemini(workers, large, clock, spend_at_most=10.0)
    embedded = encoder.encode([content, *texts("a")])
    parts = [media_part(PNG, "image/png"), media_part(film, "video/mp4")]
    other = [text_part("title: none | text: a")]
    np.testing.assert_allclose(embedded.vectors, [unit(parts, G), unit(other, G)], atol=1e-6)
    reasons = {(f.row, f.part): f.reason for f in embedded.failures}
    assert list(reasons) == [(0, 0), (0, 3), (0, 4)]
    assert "ended the worker process" in reasons[0, 0]
    assert "Gemini takes video of 0 s more" in reasons[0, 3]  # each counts as the longest, 120 s
    assert "video as png" in reasons[0, 4]
    assert encoder.estimate([content]).video_seconds == 120


def test_the_limits_of_a_content_hold(large, clock):
    strict = Media(DecoderPool(), Limits(parts=3, text_bytes=4))
    embedded = gemini(strict, large, clock).encode([Content.of(*(Text(t) for t in ("a", "words", "", "b")))])
    np.testing.assert_allclose(embedded.vectors[0], unit([text_part("title: none | text: a")], G), atol=1e-6)
    assert [(f.row, f.part) for f in embedded.failures] == [(0, 1), (0, 3)]


def test_sums_the_seconds_of_a_content(workers, large, clock):
    embedded = gemini(workers, large, clock).encode([Content.of(Audio(wav(100)), Audio(wav(100)), Audio(wav(80)))])
    assert [(f.row, f.part) for f in embedded.failures] == [(0, 1)]


def test_cuts_long_text_and_says_so_in_the_space(large, clock):
    encoder = gemini(NOBODY, large, clock)
    embedded = encoder.encode([Content.of(Text("a" * 40_000), Text("late")), Content.of(Text("語" * 9000))])
    sent = [one["content"]["parts"] for one in large.requests[0][2]["requests"]]
    assert sent[0] == [text_part(("title: none | text: " + "a" * 40_000)[: 4 * 8192])]
    assert sent[1] == [text_part("title: none | text: " + "語" * (8192 - 5))]
    assert [(f.row, f.part) for f in embedded.failures] == [(0, 1)]
    assert "8192 tokens" in encoder.space().preprocessing


def test_estimates_and_stops_before_spending_too_much(workers, large, clock):
    prices = Prices(text=1.0, image=10.0, audio=100.0, video=1000.0)
    contents = [Content.of(Text("b" * 65), Image(PNG)), Content.of(Audio(wav(2.5)))]
    encoder = gemini(workers, large, clock, prices=prices, spend_at_most=0.02)
    cost = encoder.estimate(contents)
    # similarity's prefix has 35 characters: 100 characters are 25 tokens
    assert (cost.contents, cost.images, cost.audio_seconds, cost.video_seconds) == (2, 1, 2.5, 0.0)
    assert cost.tokens == 25 + 270 + 80
    assert cost.dollars == pytest.approx((25 * 1 + 270 * 10 + 80 * 100) / 1e6)
    encoder.encode(contents)
    with pytest.raises(ConfigError, match=r"2 contents may cost \$0.0107, \$0.0093 is left to spend"):
        encoder.encode(contents)
    assert len(large.requests) == 1


def test_two_threads_do_not_spend_the_same_dollar(large, clock):
    class Slow(float):
        """A price that takes a while to be compared."""

        def __gt__(self, other):
            dearer = super().__gt__(other)
            time.sleep(0.05)
            return dearer

    encoder = gemini(NOBODY, large, clock, spend_at_most=0.02)
    encoder.estimate = lambda contents: Estimate(len(contents), dollars=Slow(0.015))
    with ThreadPoolExecutor(3) as pool:
        tries = [pool.submit(encoder.encode, texts("a")) for _ in range(3)]
    assert [type(one.exception()) for one in tries if one.exception()] == [ConfigError, ConfigError]
    assert len(large.requests) == 1


def test_knows_its_own_prices_only(monkeypatch, large, clock):
    encoder = gemini(NOBODY, large, clock)
    assert encoder.estimate(texts("x" * (4_000 - 35))).dollars == pytest.approx(1000 * 0.20 / 1e6)
    with pytest.raises(ConfigError, match="prices are not known"):
        gemini(NOBODY, large, clock, model="gemini-embedding-9")
    with pytest.raises(ConfigError, match="128 to 3072"):
        gemini(NOBODY, large, clock, dimension=64)


def test_finds_its_key_in_the_environment(monkeypatch, large, clock):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set GEMINI_API_KEY"):
        gemini(NOBODY, large, clock, api_key=None)
    monkeypatch.setenv("GOOGLE_API_KEY", f"{KEY}\n")
    gemini(NOBODY, large, clock, api_key=None).encode(texts("a"))
    assert KEY in large.requests[0][1].values()


def test_a_wrong_key_is_not_searched_for_in_the_contents(large, clock):
    body = {"error": {"code": 400, "message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]}}
    large.script = [fake.status(400, body=body)]
    with pytest.raises(SpaceError, match="API key not valid"):
        gemini(NOBODY, large, clock).encode(texts("a", "b"))
    assert len(large.requests) == 1


def test_waits_as_its_error_details_say(large, clock):
    body = {"error": {"code": 429, "message": "quota", "details": [{"retryDelay": "36s"}]}}
    large.script = [fake.status(429, body=body)]
    gemini(NOBODY, large, clock).encode(texts("a"))
    assert clock.slept == [36.0]


def test_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.genai", None)
    monkeypatch.delattr("google.genai", raising=False)
    with pytest.raises(DependencyError, match=r"pip install 'recsys\[native\]'"):
        GeminiEncoder(NOBODY, api_key=KEY)


def test_is_not_led_elsewhere_by_the_environment(monkeypatch, large, clock):
    for name in ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    gemini(NOBODY, large, clock).encode(texts("a"))
    assert large.requests[0][0].endswith("/models/gemini-embedding-2:batchEmbedContents")
    assert "projects" not in large.requests[0][0]
