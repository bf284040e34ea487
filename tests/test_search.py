"""Search by words, pictures and mixtures: the vector, the service's route, the command."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from fake_embeddings import POISON, FakeEmbeddings, unit
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from media import picture
from starlette.requests import Request
from toy_data import noise, toy_catalog, toy_stage
from toy_service import (
    COLOURS,
    NOW,
    RED,
    RULES,
    ToyShelf,
    ToyWords,
    toy_bundle,
    toy_encoders,
    toy_events,
    toy_settings,
    with_contents,
)
from typer.testing import CliRunner

from features.content import Content, Image, Limits, Text
from features.encoding import Builtin, Gemini
from features.errors import BundleError, ConfigError, ContentError, DependencyError, SpaceError
from features.event_log import Exposure, read
from features.spaces import Embedded, SpaceKey
from features.store import MemoryStore
from recsys import cli
from recsys.alignment import Alignment, Map
from recsys.bundle import publish, save_bundle
from recsys.content_space import ContentSpace
from recsys.search import Encoding, Searcher, near_query, searchable
from serving.app import create_app
from serving.live import Live
from serving.search import Desk
from serving.wire import ApiError

GREEN_PNG = picture(np.full((8, 8, 3), (0, 255, 0), np.uint8), "PNG")
RED_PNG = picture(np.full((8, 8, 3), (255, 0, 0), np.uint8), "PNG")


# The vector


class Fixed:
    """Says the same of every content; failures as told."""

    def __init__(self, space: SpaceKey, kinds: set[str], vector: Any, why: dict[int, str] | None = None) -> None:
        self.key, self.modalities, self.vector, self.why = space, frozenset(kinds), vector, why or {}
        self.asked = 0

    def space(self, task: str = "document") -> SpaceKey:
        return self.key

    def encode(self, contents: Any, *, task: str = "document", progress: Any = None) -> Embedded:
        from features.spaces import Failure

        self.asked += 1
        vectors = np.asarray([self.vector], np.float32)
        return Embedded(self.key, vectors, vectors.any(1), tuple(Failure(0, at, w) for at, w in self.why.items()))


WORDY, SEEN, HEARD = SpaceKey("words", "1", 2), SpaceKey("eyes", "1", 3), SpaceKey("ears", "1", 4)


def aligned() -> ContentSpace:
    """Words are turned by 90 degrees, of pictures the last coordinate is dropped."""
    turn = Map(np.zeros(2, np.float32), np.array([[0, 1], [1, 0]], np.float32))
    drop = Map(np.zeros(3, np.float32), np.eye(3, 2, dtype=np.float32))
    alignment = Alignment({WORDY: turn, SEEN: drop}, (2,))
    items = Embedded(alignment.space, np.eye(2, dtype=np.float32), np.array([True, True]))
    return ContentSpace(alignment.space, alignment, {"text": items, "image": items})


def test_a_mixture_is_the_sum_of_its_channels_in_the_space_of_the_items() -> None:
    space = aligned()
    searcher = Searcher(space, {"text": Fixed(WORDY, {"text"}, [1, 0]), "image": Fixed(SEEN, {"image"}, [1, 0, 0])})
    both = searcher.embed(Content.of(Text("x"), Image(b"y")))
    np.testing.assert_allclose(both.vectors, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    assert (both.space, both.failures, both.present.tolist()) == (space.space, (), [True])
    np.testing.assert_allclose(searcher.embed(Content.of(Text("x"))).vectors, [[0, 1]])


def test_only_encoders_of_the_parts_kinds_are_asked() -> None:
    words, eyes = Fixed(WORDY, {"text"}, [1, 0]), Fixed(SEEN, {"image", "video"}, [1, 0, 0])
    Searcher(aligned(), {"text": words, "image": eyes}).embed(Content.of(Text("x")))
    assert (words.asked, eyes.asked) == (1, 0)


def test_a_channel_that_no_item_has_is_told_and_not_asked() -> None:
    ears, speech = Fixed(HEARD, {"audio"}, [1, 0, 0, 0]), Fixed(WORDY, {"audio"}, [1, 0])
    content = Content.of(Text("x"), Image(b"a"))
    told = Searcher(aligned(), {"text": Fixed(WORDY, {"text"}, [1, 0]), "sound": ears}).embed(content)
    assert [(f.part, f.reason.partition(":")[0]) for f in told.failures] == [
        (1, "the items cannot be searched by image")
    ]
    alone = Searcher(aligned(), {"sound": ears}).embed(Content.of(content.parts[1]))
    assert (alone.present.tolist(), len(alone.failures), ears.asked) == ([False], 1, 0)
    from features.content import Audio

    spoken = Searcher(aligned(), {"sound": ears, "speech": speech}).embed(Content.of(Audio(b"a")))
    np.testing.assert_allclose(spoken.vectors, [[0, 1]])  # as its words, though no item is spoken
    assert (spoken.failures, ears.asked) == ((), 0)


def test_parts_that_fail_or_say_nothing_are_told_once() -> None:
    eyes = {"image": Fixed(SEEN, {"image"}, [0, 0, 0], {0: "broken"}), "text": Fixed(WORDY, {"text"}, [0, 0])}
    told = Searcher(aligned(), eyes).embed(Content.of(Image(b"a"), Text("x")))
    assert [(f.part, f.reason) for f in told.failures] == [(0, "broken"), (1, "there is nothing in it to search by")]
    assert told.present.tolist() == [False]


@pytest.mark.parametrize("space", [aligned(), ContentSpace(WORDY, None, {"text": aligned().channels["text"]})])
def test_an_encoder_that_became_another_is_refused(space: ContentSpace) -> None:
    newer = replace(WORDY, revision="2")
    with pytest.raises(SpaceError, match="words@2"):
        Searcher(space, {"text": Fixed(newer, {"text"}, [1, 0])}).embed(Content.of(Text("x")))


def test_near_query_is_the_cosine_by_channel(tmp_path: Path) -> None:
    bundle = with_contents(toy_bundle(tmp_path))
    assert bundle.content is not None
    query = Embedded(COLOURS, RED[None], np.array([True]))
    near = near_query(bundle.content, query, np.array([0, 11, 2, 9]))
    assert near["text"] == [1.0, pytest.approx(np.cos(np.radians(88))), pytest.approx(np.cos(np.radians(16))), None]
    assert near["image"] == [0.0, None, 1.0, None]


def test_the_encoding_is_what_the_manifest_says() -> None:
    run = {"encoder": {"kind": "builtin", "multilingual": True}, "limits": {"pixels": 9}, "cache": "c"}
    assert Encoding.of({"config": run}) == Encoding(Builtin(multilingual=True), Limits(pixels=9), Path("c/models"))
    assert Encoding.of({"config": run | {"encoder": {"kind": "gemini"}}}) == Encoding(
        Gemini(kind="gemini"), Limits(pixels=9), Path("c/models")
    )
    assert Encoding.of({"config": run | {"encoder": None}}) is None
    assert Encoding.of({"config": {}}) is None
    for wrong in ({"encoder": {"kind": "crystal ball"}}, {"limits": {"pixels": 0}}):
        with pytest.raises(BundleError, match="train again"):
            Encoding.of({"config": run | wrong})


# The route


class House:
    """A running service with contents."""

    def __init__(self, client: TestClient, shelf: ToyShelf, opened: list[Any]) -> None:
        self.client, self.shelf, self.opened = client, shelf, opened
        self.service = client.app.state.service  # type: ignore[attr-defined]

    def post(self, **query: Any) -> Any:
        return self.client.post("/v1/search", content=orjson.dumps(query))

    def found(self, **query: Any) -> list[str]:
        said = self.post(**query)
        assert said.status_code == 200, said.text
        return [item["item_id"] for item in said.json()["items"]]


@contextmanager
def house(
    folder: Path, *, shelf: ToyShelf | None = None, encoders: Callable[..., Any] = toy_encoders, **options: object
) -> Iterator[House]:
    shelf, opened = shelf or ToyShelf(with_contents(toy_bundle(folder))), []

    def open_(config: Any, decoders: Any, limits: Any, models: Any) -> Any:
        opened.append((config, decoders, limits, models))
        return encoders(config, decoders, limits, models)

    app = create_app(
        toy_settings(folder, follow_seconds=3600, **options),
        load=shelf.load,
        current=shelf.current,
        events=lambda _: toy_events(),
        connect=lambda _: MemoryStore(RULES),
        now=lambda: NOW,
        encoders=open_,
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield House(client, shelf, opened)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("steady"), search_bytes=2 << 20) as h:
        yield h


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_words_find_the_items_they_are_near_to(steady: House) -> None:
    # item r is at 8 r degrees from red to green; i3 is hidden, i5 a variant of i4, i9 has no contents
    assert steady.found(text="red", k=4) == ["i0", "i1", "i2", "i4"]
    assert steady.found(text="green", k=4) == ["i11", "i10", "i8", "i7"]
    assert steady.found(text="red green", k=5) == ["i6", "i5", "i7", "i8", "i2"]  # |8 r - 45|
    assert steady.found(text="green", k=100) == ["i11", "i10", "i8", "i7", "i6", "i5", "i2", "i1", "i0"]


def test_an_answer_is_a_slate_that_was_logged(steady: House) -> None:
    said = steady.post(text="red", k=2).json()
    assert said["items"][1] == {
        "item_id": "i1",
        "title": "Item <b>1</b>",
        "categories": ["odd"],
        "image": None,
        "score": pytest.approx(np.cos(np.radians(8))),
        "position": 2,
        "propensity": 1.0,
        "reason": "search",
        "near": {"text": pytest.approx(np.cos(np.radians(8))), "image": None},
    }
    assert said["items"][0]["near"] == {"text": 1.0, "image": 0.0}
    assert said["query"] == {"read": ["text"], "failed": []}
    assert set(said["trace"]) == {"encode", "rank", "log"}
    shown = read(steady.service.settings.log).records[-1]
    assert isinstance(shown, Exposure)
    assert (shown.request_id, shown.placement, list(shown.items)) == (said["request_id"], "search", ["i0", "i1"])
    assert (shown.user_id, shown.item_id, shown.fingerprint, shown.source) == ("", None, "toy-1", "model")


def test_pictures_and_mixtures(steady: House) -> None:
    assert steady.found(image=b64(GREEN_PNG), k=2) == ["i11", "i10"]
    assert steady.found(text="red", image=b64(GREEN_PNG), k=3) == ["i6", "i5", "i7"]
    assert steady.post(text="red", image=b64(GREEN_PNG)).json()["query"]["read"] == ["text", "image"]


def test_forms(steady: House) -> None:
    files = {"image": ("g.png", GREEN_PNG, "image/png")}
    said = steady.client.post("/v1/search", files=files, data={"text": "red", "k": "3"}).json()
    assert [item["item_id"] for item in said["items"]] == ["i6", "i5", "i7"]
    two = files | {"video": ("f.mp4", b"not a video")}
    said = steady.client.post("/v1/search", files=two).json()
    assert said["items"][0]["item_id"] == "i11"
    assert said["query"]["read"] == ["image"]
    assert [f["part"] for f in said["query"]["failed"]] == ["video"]
    empty = {"image": ("", b""), "audio": ("", b"")}  # as a browser sends fields left empty
    said = steady.client.post("/v1/search", files=empty, data={"text": "grün green"}).json()
    assert (said["items"][0]["item_id"], said["query"]) == ("i11", {"read": ["text"], "failed": []})
    as_text = steady.client.post("/v1/search", files={"image": (None, b64(GREEN_PNG))}).json()
    assert as_text["items"][0]["item_id"] == "i11"


def test_nothing_is_written_to_disk(steady: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile._get_default_tempdir", lambda: pytest.fail("a temporary file"))
    big = picture(np.full((700, 700, 3), (0, 255, 0), np.uint8), "PNG", compress_level=0)
    assert len(big) > 1 << 20  # beyond what parsers of forms keep in memory
    said = steady.client.post("/v1/search", files={"image": ("g.png", big)})
    assert said.json()["items"][0]["item_id"] == "i11"


def test_a_broken_picture_beside_good_words(steady: House) -> None:
    said = steady.post(text="red", image=b64(GREEN_PNG[:40])).json()
    assert said["items"][0]["item_id"] == "i0"
    assert said["query"]["read"] == ["text"]
    (failed,) = said["query"]["failed"]
    assert failed["part"] == "image"
    assert "cannot be decoded" in failed["reason"]


def test_nothing_that_can_be_read(steady: House) -> None:
    said = steady.post(image=b64(b"GIF89a?"), audio=b64(b"RIFF")).json()
    assert steady.post(image=b64(b"GIF89a?")).status_code == 422
    assert said["error"]["code"] == "nothing_read"
    assert "audio: the items cannot be searched by audio" in said["error"]["message"]
    assert [f["part"] for f in said["query"]["failed"]] == ["image", "audio"]
    assert steady.post(text="nothing that has a colour").json()["error"]["code"] == "nothing_read"


@pytest.mark.parametrize("url", ["https://example.org/x.png", "https://127.0.0.1/x.png", "https://u:p@localhost/"])
def test_urls_of_hosts_that_are_not_named_are_not_fetched(steady: House, url: str) -> None:
    said = steady.post(image=url)
    assert said.status_code == 422
    assert "URLs are not fetched here" in said.json()["query"]["failed"][0]["reason"]
    assert "u:p" not in said.text


def test_hosts_come_from_the_bundle(tmp_path: Path) -> None:
    bundle = with_contents(toy_bundle(tmp_path), hosts=("localhost",))
    with house(tmp_path, shelf=ToyShelf(bundle)) as h:
        why = h.post(image="https://localhost/x.png").json()["query"]["failed"][0]["reason"]
        assert "not a public address" in why
        assert "not in limits.hosts" in h.post(image="https://example.org/x").json()["query"]["failed"][0]["reason"]


HEAD = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
ODD_FORMS: list[tuple[bytes, int, str]] = [
    (b"", 400, "bad_form"),
    (b"--b--\r\n", 422, "nothing_asked"),
    (b"nonsense", 400, "bad_form"),
    (HEAD % (b"text", b"") + b"red", 400, "bad_form"),  # cut off
    (HEAD % (b"text", b"") + b"red\r\n" + HEAD % (b"text", b"") + b"red\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"image", b'; filename="/etc/passwd"') + b"\r\n--b--\r\n", 422, "nothing_asked"),
    (HEAD % (b"image", b"") + b"/etc/passwd\r\n--b--\r\n", 422, "bad_media"),
    (HEAD % (b"text", b"") + b"\xff\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"text", b'; filename="x"') + b"red\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"k", b"") + b"3x\r\n--b--\r\n", 422, "bad_query"),
    (HEAD % (b"path", b"") + b"x\r\n--b--\r\n", 422, "bad_query"),
    (b"".join(HEAD % (b"f%d" % n, b"") + b"x\r\n" for n in range(1000)) + b"--b--\r\n", 422, "bad_query"),
    (b"--b\r\nContent-Disposition: " + b"x" * 100_000 + b"\r\n\r\n\r\n--b--\r\n", 400, "bad_form"),
    (b"--b\r\n\r\nred\r\n--b--\r\n", 422, "bad_query"),
]


@pytest.mark.parametrize(("body", "status", "code"), ODD_FORMS, ids=lambda x: repr(x)[:50])
def test_odd_forms(steady: House, body: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "Multipart/form-data; boundary=b"}
    said = steady.client.post("/v1/search", content=body, headers=headers)
    assert (said.status_code, said.json()["error"]["code"]) == (status, code), said.text[:300]


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "b" * 300])
def test_odd_boundaries(steady: House, boundary: str) -> None:
    said = steady.client.post("/v1/search", content=b"x", headers={"Content-Type": f"multipart/form-data{boundary}"})
    assert (said.status_code, said.json()["error"]["code"]) == (400, "bad_form")


ODD_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "bad_json"),
    (b"{", 400, "bad_json"),
    (b"[]", 422, "bad_query"),
    (b"{}", 422, "nothing_asked"),
    (b'{"text": ""}', 422, "nothing_asked"),
    (b'{"text": " ", "image": ""}', 422, "nothing_asked"),
    (b'{"text": 5}', 422, "bad_query"),
    (b'{"text": ["red"]}', 422, "bad_query"),
    (b'{"text": "\\ud800"}', 400, "bad_json"),
    (b'{"text": "red", "k": 0}', 422, "bad_query"),
    (b'{"text": "red", "k": 101}', 422, "bad_query"),
    (b'{"text": "red", "k": true}', 422, "bad_query"),
    (b'{"text": "red", "k": "5"}', 422, "bad_query"),
    (b'{"text": "red", "k": 123456789012345678901234567}', 422, "bad_query"),
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
    (orjson.dumps({"image": "/etc/passwd0"}), 422, "nothing_read"),  # is base64, of 9 bytes that are no picture
    (b" " * (2 << 20) + b"{}", 413, "body_too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), ODD_BODIES, ids=lambda x: repr(x)[:50])
def test_odd_bodies(steady: House, body: bytes, status: int, code: str) -> None:
    said = steady.client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert (said.status_code, said.json()["error"]["code"]) == (status, code), said.text[:300]
    assert len(said.content) < 4000


def test_a_body_without_a_length_is_cut_off(steady: House) -> None:
    taken = []

    def endless() -> Iterator[bytes]:
        for n in range(500):
            taken.append(n)
            yield b" " * 100_000

    assert steady.client.post("/v1/search", content=endless()).status_code == 413


def test_without_contents_there_is_no_search(tmp_path: Path) -> None:
    with house(tmp_path, shelf=ToyShelf(toy_bundle(tmp_path))) as h:
        said = h.post(text="red")
        assert (said.status_code, said.json()["error"]["code"]) == (503, "no_content")
        assert "train with an encoder" in said.json()["error"]["message"]
        assert h.client.get("/v1/about").json()["search"] is False
        assert h.client.get("/v1/items/i4/similar?k=1").json()["items"][0]["near"] == {
            "behaviour": pytest.approx(10 / 12)
        }
        h.shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        h.service.step()
        assert h.client.get("/v1/about").json()["search"] is True
        assert h.found(text="red", k=1) == ["i0"]


@pytest.mark.parametrize("error", [DependencyError("pip install x"), SpaceError("two spaces"), ConfigError("no key")])
def test_encoders_that_cannot_be_had(tmp_path: Path, error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with house(tmp_path, encoders=fail) as h:
        said = h.post(text="red")
        assert (said.status_code, said.json()["error"]["message"]) == (503, str(error))
        assert h.client.get("/v1/users/ann/recommendations?k=1").status_code == 200
    with house(tmp_path, encoders=fail, preload=True) as h:
        assert h.client.get("/readyz").status_code == 200


def test_encoders_are_kept_while_bundles_are_encoded_alike(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        assert h.opened == []
        h.found(text="red")
        h.shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        h.service.step()
        assert h.post(text="red").json()["bundle"] == "toy-2"
        assert len(h.opened) == 1
        h.shelf.put("third", with_contents(toy_bundle(tmp_path, fingerprint="toy-3"), text_bytes=4))
        h.service.step()
        assert h.post(text="green").json()["query"]["failed"][0]["part"] == "text"  # of five bytes
        assert len(h.opened) == 2
        h.found(image=b64(GREEN_PNG))
        decoders = h.opened[0][1]
        assert h.opened[1][1] is decoders
        workers = [worker.process for worker in decoders._running]
        assert [process.is_alive() for process in workers] == [True]
    assert [process.is_alive() for process in workers] == [False]


def test_words_are_loaded_beforehand(tmp_path: Path) -> None:
    words = ToyWords(Limits())
    with house(tmp_path, encoders=lambda *_: {"text": words}, preload=True) as h:
        until = time.monotonic() + 10
        while not words.read:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert len(words.read) == 1
        h.found(text="red")
        assert len(h.opened) == 1


class Slow(ToyWords):
    """Does not come back before it may; counts how many are inside at once."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.began, self.go, self.inside, self.most = threading.Event(), threading.Event(), 0, 0

    def words(self, texts: Any) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.began.set()
        if "slow" in texts[0]:
            assert self.go.wait(20)
        time.sleep(0.02)
        self.inside -= 1
        return super().words(texts)


def test_recommendations_go_on_while_a_query_is_encoded(tmp_path: Path) -> None:
    words = Slow()
    with (
        house(tmp_path, encoders=lambda *_: {"text": words}, search_wait=0.1, threads=1) as h,
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(h.post, text="slow red", k=1)
        assert words.began.wait(10)
        for _ in range(3):
            assert h.client.get("/v1/users/ann/recommendations?k=1").json()["items"][0]["item_id"] == "i7"
        said = h.post(text="red")
        assert (said.status_code, said.json()["error"]["code"]) == (503, "busy")
        words.go.set()
        assert slow.result().json()["items"][0]["item_id"] == "i0"
        assert h.found(text="green", k=1) == ["i11"]


def test_queries_are_encoded_one_at_a_time(tmp_path: Path) -> None:
    words = Slow()
    with house(tmp_path, encoders=lambda *_: {"text": words}) as h, ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda _: h.found(text="red", k=1), range(5))) == [["i0"]] * 5
    assert words.most == 1


def test_few_large_bodies_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.search.LARGE", 0)
    with house(tmp_path, search_wait=0.05) as h:
        small, large = (orjson.dumps({"text": "red"}) + b" " * size for size in (900_000, 1_100_000))
        assert h.client.post("/v1/search", content=small).status_code == 200
        said = h.client.post("/v1/search", content=large)
        assert (said.status_code, said.json()["error"]["code"]) == (503, "busy")


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.search.BODY_SECONDS", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(20)

    async def ask() -> None:
        async with Desk(toy_settings(tmp_path)).body(Request({"type": "http", "headers": []}, receive)):
            pytest.fail("a body")

    with pytest.raises(ApiError, match="did not arrive") as error:
        asyncio.run(ask())
    assert error.value.status == 408


@settings(max_examples=60, deadline=None)
@given(
    available=st.lists(st.booleans(), min_size=12, max_size=12),
    angle=st.floats(0, 360),
    k=st.integers(1, 14),
)
def test_hidden_items_are_never_found(available: list[bool], angle: float, k: int) -> None:
    bundle = with_contents(toy_bundle(Path()))
    bundle = replace(bundle, catalog=replace(bundle.catalog, available=np.array(available)))
    vector = np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0]], np.float32)
    found = Live.of(bundle, MemoryStore(RULES)).search(vector, k, {})
    rows = found.rows.tolist()
    may = {row for row in range(12) if available[row] and row != 9}
    assert set(rows) <= may
    assert len(rows) == len(set(rows)) == min(k, len(may) - ({4, 5} <= may))
    scores = bundle.catalog.content @ vector[0]
    assert (np.diff(scores[rows]) <= 1e-6).all()
    left = may - set(rows) - ({4, 5} if {4, 5} & set(rows) else set())
    assert not left or max(scores[list(left)]) <= scores[rows[-1]] + 1e-6
    assert searchable(bundle.catalog).tolist() == [a and row != 9 for row, a in enumerate(available)]


# Similar items


def test_similar_items_say_in_what_they_are_near(steady: House) -> None:
    said = steady.client.get("/v1/items/i0/similar?k=4").json()
    assert [item["item_id"] for item in said["items"]] == ["i1", "i2", "i4", "i6"]
    near = [item["near"] for item in said["items"]]
    assert [each["behaviour"] for each in near] == [item["score"] for item in said["items"]]
    cosines = [np.cos(np.radians(8 * row)) for row in (1, 2, 4, 6)]
    assert [each["text"] for each in near] == [pytest.approx(c, abs=1e-6) for c in cosines]
    assert [each["image"] for each in near] == [None, 0.0, 1.0, 0.0]  # i0 and i4 have green pictures
    of_nothing = steady.client.get("/v1/items/i9/similar?k=1").json()["items"][0]["near"]
    assert (of_nothing["text"], of_nothing["image"]) == (None, None)


def test_the_api_is_described(steady: House) -> None:
    api = steady.client.get("/openapi.json").json()
    body = api["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert set(body["application/json"]["schema"]["properties"]) == {"text", "image", "audio", "video", "k"}


# The command


D = 8


@pytest.fixture(scope="module")
def service() -> Iterator[FakeEmbeddings]:
    with FakeEmbeddings(D) as fake:
        yield fake


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, service: FakeEmbeddings) -> Path:
    """A real bundle of 30 items, whose texts were embedded by the service; i7 is hidden, i5 has none."""
    folder = tmp_path_factory.mktemp("bundles")
    text = np.stack([unit(f"Title {row}", D) for row in range(30)])
    text[5] = 0
    catalog = toy_catalog(30, text=text)
    catalog.available[7] = False
    stage, catalog, statistics = toy_stage(noise(), catalog, reranked=False)
    key = SpaceKey("toy-embed", service.url.partition("://")[2] + "/v1", D, preprocessing=JOINED)
    space = ContentSpace(key, None, {"content": Embedded(key, text, catalog.has_content)})
    encoder = {"kind": "openai-compatible", "base_url": f"{service.url}/v1", "model": "toy-embed"}
    facts = {"config": {"encoder": encoder, "limits": {}, "cache": str(folder / "cache")}}
    publish(save_bundle(folder, catalog, stage, statistics, facts, space))
    return folder


JOINED = "texts of a content joined by line breaks"


def search(bundles: Path, *arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["search", "--bundles", str(bundles), *arguments])


def test_the_command_finds(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(RED_PNG)
    done = search(bundles, "--text", "Title 4", "--image", str(tmp_path / "x.png"), "--k", "40", "--json")
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    cosines = {
        f"i{row}": float(unit(f"Title {row}", D) @ unit("Title 4", D)) for row in range(30) if row not in (5, 7)
    }
    assert [i["item_id"] for i in said["items"]] == sorted(cosines, key=lambda item: -cosines[item])
    assert said["items"][0] == {
        "item_id": "i4",
        "title": "Title 4",
        "score": pytest.approx(1, abs=1e-5),
        "near": {"content": pytest.approx(1, abs=1e-3)},  # kept in half precision
    }
    assert [part for part, _ in said["failed"]] == ["image"]
    assert done.stderr.startswith("image not read: the items cannot be searched by image")


def test_the_command_prints_a_table(bundles: Path) -> None:
    told = search(bundles, "--text", "Title 4", "--k", "2").stdout
    assert "Title 4" in told
    assert "1.000" in told
    assert "content" in told


def test_the_command_refuses(bundles: Path, tmp_path: Path) -> None:
    assert isinstance(search(bundles).exception, ConfigError)
    done = search(bundles, "--text", POISON, "--image", str(tmp_path / "absent.png"))
    assert isinstance(done.exception, ContentError)
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["text", "image"]
    assert isinstance(search(tmp_path, "--text", "x").exception, BundleError)
    without = tmp_path / "without"
    stage, catalog, statistics = toy_stage(noise(), toy_catalog(30), reranked=False)
    publish(save_bundle(without, catalog, stage, statistics, {"config": {"encoder": None}}))
    assert "train with an encoder" in str(search(without, "--text", "x").exception)
