"""POST /v1/search: results, response fields, and rejected requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media import picture
from service_harness import GREEN_PNG, ServiceHarness, b64, endless, service_harness
from toy_service import ToyShelf, toy_bundle, with_contents

from features.log.reader import read
from features.log.records import EXPOSURES, Exposure

RED_PNG = picture(np.full((8, 8, 3), (255, 0, 0), np.uint8), "PNG")


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("steady"), search_bytes=2 << 20) as harness:
        yield harness


def test_text_finds_the_nearest_items(steady: ServiceHarness) -> None:
    # item r is at 8 r degrees from red to green; i3 is hidden, i5 a variant of i4, i9 has no contents
    assert steady.found(text="red", limit=4) == ["i0", "i1", "i2", "i4"]
    assert steady.found(text="green", limit=4) == ["i11", "i10", "i8", "i7"]
    assert steady.found(text="red green", limit=5) == ["i6", "i5", "i7", "i8", "i2"]  # |8 r - 45|
    assert steady.found(text="green", limit=100) == ["i11", "i10", "i8", "i7", "i6", "i5", "i2", "i1", "i0"]


def test_a_response_is_a_slate_that_was_logged(steady: ServiceHarness) -> None:
    response = steady.post(text="red", limit=2).json()
    assert response["items"][1] == {
        "item_id": "i1",
        "title": "Item <b>1</b>",
        "categories": ["odd"],
        "image": None,
        "price": 1.0,
        "score": pytest.approx(np.cos(np.radians(8))),
        "position": 2,
        "propensity": 1.0,
        "reason": "search",
        "explored": False,
        "near": {"text": pytest.approx(np.cos(np.radians(8))), "image": None},
    }
    assert response["items"][0]["near"] == {"text": 1.0, "image": 0.0}
    assert response["query"] == {"read": ["text"], "failed": []}
    assert set(response["trace"]) == {"encode", "rank", "log"}
    shown = read(steady.service.settings.log, stream=EXPOSURES).records[-1]
    assert isinstance(shown, Exposure)
    assert (shown.request_id, shown.placement, list(shown.items)) == (response["request_id"], "search", ["i0", "i1"])
    assert (shown.user_id, shown.item_id, shown.fingerprint, shown.source) == ("", None, "toy-1", "model")


def test_images_and_combinations(steady: ServiceHarness) -> None:
    assert steady.found(image=b64(GREEN_PNG), limit=2) == ["i11", "i10"]
    assert steady.found(text="red", image=b64(GREEN_PNG), limit=3) == ["i6", "i5", "i7"]
    assert steady.post(text="red", image=b64(GREEN_PNG)).json()["query"]["read"] == ["text", "image"]


def test_forms(steady: ServiceHarness) -> None:
    files = {"image": ("g.png", GREEN_PNG, "image/png")}
    response = steady.client.post("/v1/search", files=files, data={"text": "red", "limit": "3"}).json()
    assert [item["item_id"] for item in response["items"]] == ["i6", "i5", "i7"]
    two = files | {"video": ("f.mp4", b"not a video")}
    response = steady.client.post("/v1/search", files=two).json()
    assert response["items"][0]["item_id"] == "i11"
    assert response["query"]["read"] == ["image"]
    assert [f["part"] for f in response["query"]["failed"]] == ["video"]
    empty = {"image": ("", b""), "audio": ("", b"")}  # browsers send empty file fields this way
    response = steady.client.post("/v1/search", files=empty, data={"text": "grün green"}).json()
    assert (response["items"][0]["item_id"], response["query"]) == ("i11", {"read": ["text"], "failed": []})
    as_text = steady.client.post("/v1/search", files={"image": (None, b64(GREEN_PNG))}).json()
    assert as_text["items"][0]["item_id"] == "i11"


def test_nothing_is_written_to_disk(steady: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile._get_default_tempdir", lambda: pytest.fail("a temporary file"))
    big = picture(np.full((700, 700, 3), (0, 255, 0), np.uint8), "PNG", compress_level=0)
    assert len(big) > 1 << 20  # larger than common form parsers keep in memory
    response = steady.client.post("/v1/search", files={"image": ("g.png", big)})
    assert response.json()["items"][0]["item_id"] == "i11"


def test_a_broken_image_with_a_valid_text(steady: ServiceHarness) -> None:
    response = steady.post(text="red", image=b64(GREEN_PNG[:40])).json()
    assert response["items"][0]["item_id"] == "i0"
    assert response["query"]["read"] == ["text"]
    (failed,) = response["query"]["failed"]
    assert failed["part"] == "image"
    assert "cannot be decoded" in failed["reason"]


def test_a_query_without_a_readable_part(steady: ServiceHarness) -> None:
    response = steady.post(image=b64(b"GIF89a?"), audio=b64(b"RIFF")).json()
    assert steady.post(image=b64(b"GIF89a?")).status_code == 422
    assert response["code"] == "nothing_read"
    assert "audio: the items cannot be searched by audio" in response["detail"]
    assert [f["part"] for f in response["query"]["failed"]] == ["image", "audio"]
    assert steady.post(text="nothing that has a colour").json()["code"] == "nothing_read"


@pytest.mark.parametrize("url", ["https://example.org/x.png", "https://127.0.0.1/x.png", "https://u:p@localhost/"])
def test_urls_of_hosts_that_are_not_allowed_are_not_fetched(steady: ServiceHarness, url: str) -> None:
    response = steady.post(image=url)
    assert response.status_code == 422
    assert "URLs are not fetched here" in response.json()["query"]["failed"][0]["reason"]
    assert "u:p" not in response.text


def test_hosts_come_from_the_bundle(tmp_path: Path) -> None:
    bundle = with_contents(toy_bundle(tmp_path), hosts=("localhost",))
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        reason = harness.post(image="https://localhost/x.png").json()["query"]["failed"][0]["reason"]
        assert "not a public address" in reason
        assert (
            "not in limits.hosts"
            in harness.post(image="https://example.org/x").json()["query"]["failed"][0]["reason"]
        )


HEAD = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
INVALID_FORMS: list[tuple[bytes, int, str]] = [
    (b"", 400, "bad_form"),
    (b"--b--\r\n", 422, "nothing_asked"),
    (b"nonsense", 400, "bad_form"),
    (HEAD % (b"text", b"") + b"red", 400, "bad_form"),  # truncated
    (HEAD % (b"text", b"") + b"red\r\n" + HEAD % (b"text", b"") + b"red\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"image", b'; filename="/etc/passwd"') + b"\r\n--b--\r\n", 422, "nothing_asked"),
    (HEAD % (b"image", b"") + b"/etc/passwd\r\n--b--\r\n", 422, "bad_media"),
    (HEAD % (b"text", b"") + b"\xff\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"text", b'; filename="x"') + b"red\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"limit", b"") + b"3x\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"path", b"") + b"x\r\n--b--\r\n", 422, "bad_query"),
    (b"".join(HEAD % (b"f%d" % n, b"") + b"x\r\n" for n in range(1000)) + b"--b--\r\n", 422, "bad_query"),
    (b"--b\r\nContent-Disposition: " + b"x" * 100_000 + b"\r\n\r\n\r\n--b--\r\n", 400, "bad_form"),
    (b"--b\r\n\r\nred\r\n--b--\r\n", 422, "bad_query"),
]


@pytest.mark.parametrize(("body", "status", "code"), INVALID_FORMS, ids=lambda x: repr(x)[:50])
def test_invalid_forms(steady: ServiceHarness, body: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "Multipart/form-data; boundary=b"}
    response = steady.client.post("/v1/search", content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text[:300]


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "b" * 300])
def test_invalid_boundaries(steady: ServiceHarness, boundary: str) -> None:
    response = steady.client.post(
        "/v1/search", content=b"x", headers={"Content-Type": f"multipart/form-data{boundary}"}
    )
    assert (response.status_code, response.json()["code"]) == (400, "bad_form")


INVALID_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "bad_json"),
    (b"{", 400, "bad_json"),
    (b"[]", 422, "bad_query"),
    (b"{}", 422, "nothing_asked"),
    (b'{"text": ""}', 422, "nothing_asked"),
    (b'{"text": " ", "image": ""}', 422, "nothing_asked"),
    (b'{"text": 5}', 422, "bad_query"),
    (b'{"text": ["red"]}', 422, "bad_query"),
    (b'{"text": "\\ud800"}', 400, "bad_json"),
    (b'{"text": "red", "limit": 0}', 422, "bad_query"),
    (b'{"text": "red", "limit": 101}', 422, "bad_query"),
    (b'{"text": "red", "limit": true}', 422, "bad_query"),
    (b'{"text": "red", "limit": "5"}', 422, "bad_query"),
    (b'{"text": "red", "limit": 123456789012345678901234567}', 422, "bad_query"),
    (b'{"text": "red", "placement": "home"}', 422, "bad_query"),
    (orjson.dumps({"x" * 100_000: 1}), 422, "bad_query"),
    (b'{"x": [' + b"[]," * 200_000 + b"[]]}", 422, "bad_query"),
    *[
        (orjson.dumps({name: value}), 422, "bad_media")
        for name in ("image", "audio", "video")
        for value in (
            "/etc/passwd",
            "../../secret.png",
            "C:\\x.png",
            "x.png",
            "file:///etc/passwd",
            "http://example.org/x.png",
            "data:image/png;base64,AAAA",
            "concat:/etc/passwd|x",
            "AAA",
            "AAAA AAAA",
            "ÄÄÄÄ",
            " https://example.org/x.png",
        )
    ],
    (orjson.dumps({"image": "/etc/passwd0"}), 422, "nothing_read"),  # valid base64 of 9 bytes that are not an image
    (b" " * (2 << 20) + b"{}", 413, "body_too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), INVALID_BODIES, ids=lambda x: repr(x)[:50])
def test_invalid_bodies(steady: ServiceHarness, body: bytes, status: int, code: str) -> None:
    response = steady.client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (status, code), response.text[:300]
    assert len(response.content) < 4000


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=20)
)
MEDIA = st.one_of(
    ANYTHING,
    st.binary(max_size=60).map(b64),
    st.sampled_from([b64(GREEN_PNG), b64(GREEN_PNG[:50]), "https://[", "https://\x00", "https://a:b:c"]),
)
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "text": ANYTHING | st.sampled_from(["red", "green\x00", "blue " * 50_000]),
        "image": MEDIA,
        "audio": MEDIA,
        "video": MEDIA,
        "limit": ANYTHING,
        "other": ANYTHING,
    },
)


@settings(max_examples=150, deadline=None)
@given(query=QUERIES, form=st.booleans(), cut=st.integers(0, 40))
def test_any_query_gets_results_or_an_error_message(steady: ServiceHarness, query: Any, form: bool, cut: int) -> None:
    if form:
        files = {name: (None if cut % 2 else name, str(value)) for name, value in query.items()}
        response = steady.client.post("/v1/search", files=files or None)
    else:
        sent = orjson.dumps(query)
        response = steady.client.post("/v1/search", content=sent[: len(sent) - cut // 20])
    assert response.status_code in (200, 400, 422), response.text[:300]
    if response.status_code != 200:
        assert response.json()["detail"]
        return
    body = response.json()
    assert 1 <= len(body["items"]) <= 100
    assert not {"i3", "i9"} & {item["item_id"] for item in body["items"]}
    assert body["query"]["read"]


def test_a_body_without_a_length_is_cut_off(steady: ServiceHarness) -> None:
    assert steady.client.post("/v1/search", content=endless()).status_code == 413
