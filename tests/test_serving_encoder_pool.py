"""Where queries are encoded: encoders that are kept, turns that are taken, and bounds that hold."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import GREEN_PNG, b64, service_harness
from starlette.requests import Request
from toy_service import ToyBundle, ToyShelf, ToyWords, toy_bundle, toy_settings, with_contents

from features.content.parts import Limits
from features.errors import ConfigError, DependencyError, SpaceError
from serving.errors import ApiError
from serving.state.encoder_pool import FILE_SECONDS, EncoderPool


def test_without_contents_there_is_no_search(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=ToyShelf(toy_bundle(tmp_path))) as harness:
        said = harness.post(text="red")
        assert (said.status_code, said.json()["error"]["code"]) == (503, "no_content")
        assert "train with an encoder" in said.json()["error"]["message"]
        assert harness.client.get("/v1/about").json()["search"] is False
        assert harness.client.get("/v1/items/i4/similar?k=1").json()["items"][0]["near"] == {
            "behaviour": pytest.approx(10 / 12)
        }
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        harness.service.step()
        assert harness.client.get("/v1/about").json()["search"] is True
        assert harness.found(text="red", k=1) == ["i0"]


@pytest.mark.parametrize("error", [DependencyError("pip install x"), SpaceError("two spaces"), ConfigError("no key")])
def test_encoders_that_cannot_be_had(tmp_path: Path, error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with service_harness(tmp_path, encoders=fail) as harness:
        said = harness.post(text="red")
        assert (said.status_code, said.json()["error"]["message"]) == (503, str(error))
        assert harness.client.get("/v1/users/ann/recommendations?k=1").status_code == 200
    with service_harness(tmp_path, encoders=fail, preload=True) as harness:
        assert harness.client.get("/readyz").status_code == 200


def test_encoders_are_kept_while_bundles_are_encoded_alike(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert harness.opened == []
        harness.found(text="red")
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        harness.service.step()
        assert harness.post(text="red").json()["bundle"] == "toy-2"
        assert len(harness.opened) == 1
        harness.shelf.put("third", with_contents(toy_bundle(tmp_path, fingerprint="toy-3"), text_bytes=4))
        harness.service.step()
        assert harness.post(text="green").json()["query"]["failed"][0]["part"] == "text"  # of five bytes
        assert len(harness.opened) == 2
        harness.found(image=b64(GREEN_PNG))
        decoders = harness.opened[0][1]
        assert decoders.seconds == FILE_SECONDS
        assert harness.opened[1][1] is decoders
        workers = [worker.process for worker in decoders._running]
        assert [process.is_alive() for process in workers] == [True]
    assert [process.is_alive() for process in workers] == [False]


def test_words_are_loaded_beforehand(tmp_path: Path) -> None:
    words = ToyWords(Limits())
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}, preload=True) as harness:
        until = time.monotonic() + 10
        while not words.read:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert len(words.read) == 1
        harness.found(text="red")
        assert len(harness.opened) == 1


def test_words_are_loaded_for_each_bundle_that_comes(tmp_path: Path) -> None:
    words = ToyWords(Limits())
    shelf = ToyShelf(toy_bundle(tmp_path))
    with service_harness(
        tmp_path, shelf=shelf, encoders=lambda *_: {"text": words}, preload=True, follow_seconds=0.02
    ) as harness:
        harness.get("ann")
        assert harness.opened == []  # there is nothing to search
        shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        until = time.monotonic() + 10
        while not words.read:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert harness.found(text="red", k=1) == ["i0"]
    assert (words.read, len(harness.opened)) == (["ready", "red"], 1)


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
        service_harness(tmp_path, encoders=lambda *_: {"text": words}, search_wait=0.1, threads=1) as harness,
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(harness.post, text="slow red", k=1)
        assert words.began.wait(10)
        for _ in range(3):
            assert harness.client.get("/v1/users/ann/recommendations?k=1").json()["items"][0]["item_id"] == "i7"
        said = harness.post(text="red")
        assert (said.status_code, said.json()["error"]["code"]) == (503, "busy")
        words.go.set()
        assert slow.result().json()["items"][0]["item_id"] == "i0"
        assert harness.found(text="green", k=1) == ["i11"]


def test_queries_are_encoded_one_at_a_time(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}) as harness, ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda _: harness.found(text="red", k=1), range(5))) == [["i0"]] * 5
    assert words.most == 1


def afar(bundle: ToyBundle) -> ToyBundle:
    """The same, encoded by another machine."""
    encoder = {"kind": "openai-compatible", "base_url": "http://127.0.0.1:9", "model": "m"}
    return replace(bundle, manifest={"config": bundle.manifest["config"] | {"encoder": encoder}})


def code(said: Any) -> tuple[int, str]:
    return said.status_code, said.json()["error"]["code"]


def test_a_bundle_that_comes_while_a_query_is_encoded_answers_the_next(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}) as harness, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(harness.post, text="slow green", k=1)
        assert words.began.wait(10)
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, 30, fingerprint="toy-2")))
        harness.service.step()
        words.go.set()
        first, second = asked.result().json(), harness.post(text="green", k=1).json()
    assert [(said["bundle"], said["items"][0]["item_id"]) for said in (first, second)] == [
        ("toy-1", "i11"),
        ("toy-2", "i29"),
    ]


def test_a_query_that_takes_too_long_is_given_up_and_its_encoder_left_to_end(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(
        tmp_path, encoders=lambda *_: {"text": words}, search_wait=0.1, search_seconds=0.1
    ) as harness:
        assert code(harness.post(text="slow red")) == (504, "slow")
        assert code(harness.post(text="red")) == (503, "busy")  # it is still inside
        assert harness.items("ann", 1) == ["i7"]
        words.go.set()
        until = time.monotonic() + 10
        while (said := harness.post(text="red", k=1)).status_code != 200:
            assert time.monotonic() < until
        assert said.json()["items"][0]["item_id"] == "i0"
    assert words.most == 1


def test_a_slow_machine_elsewhere_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.encoder_pool.MAX_REMOTE", 2)
    words = Slow()
    shelf = ToyShelf(afar(with_contents(toy_bundle(tmp_path))))
    with service_harness(
        tmp_path, shelf=shelf, encoders=lambda *_: {"text": words}, search_wait=0.1, search_seconds=0.1
    ) as harness:
        assert code(harness.post(text="slow red")) == (504, "slow")
        assert harness.found(text="green", k=1) == ["i11"]
        assert code(harness.post(text="slow red")) == (504, "slow")
        assert code(harness.post(text="green")) == (503, "busy")  # no more than two
        assert harness.items("ann", 1) == ["i7"]
        assert len(harness.opened) == 1
    assert words.inside == 2  # the service has ended without them
    words.go.set()


def test_the_service_ends_after_what_it_encodes_itself(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}, search_seconds=0.1) as harness:
        assert code(harness.post(text="slow red")) == (504, "slow")
        threading.Timer(0.2, words.go.set).start()
    assert (words.inside, words.read) == (0, ["slow red"])


def test_a_thread_that_cannot_be_had_keeps_no_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with service_harness(tmp_path, search_wait=0.1) as harness:
        with monkeypatch.context() as patched:
            patched.setattr("serving.routes.search.Thread.start", full)
            assert harness.post(text="red").status_code == 500
        assert harness.found(text="red", k=1) == ["i0"]


def test_few_large_bodies_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.encoder_pool.MAX_LARGE_BODIES", 0)
    with service_harness(tmp_path, search_wait=0.05) as harness:
        small, large = (orjson.dumps({"text": "red"}) + b" " * size for size in (900_000, 1_100_000))
        assert harness.client.post("/v1/search", content=small).status_code == 200
        said = harness.client.post("/v1/search", content=large)
        assert (said.status_code, said.json()["error"]["code"]) == (503, "busy")


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.encoder_pool.BODY_SECONDS", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(20)

    async def ask() -> None:
        async with EncoderPool(toy_settings(tmp_path)).body(Request({"type": "http", "headers": []}, receive)):
            pytest.fail("a body")

    with pytest.raises(ApiError, match="did not arrive") as error:
        asyncio.run(ask())
    assert error.value.status == 408
