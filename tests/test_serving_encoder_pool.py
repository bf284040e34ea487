"""The encoder pool: reuse of encoders, turns, and limits on time and bodies."""

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


def test_a_bundle_without_a_content_space_has_no_search(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=ToyShelf(toy_bundle(tmp_path))) as harness:
        response = harness.post(text="red")
        assert (response.status_code, response.json()["code"]) == (503, "no_content")
        assert "train with an encoder" in response.json()["detail"]
        about = harness.client.get("/v1/about").json()
        assert (about["search"], about["channels"], about["search_by"]) == (False, [], [])
        assert harness.client.get("/v1/items/i4/similar?limit=1").json()["items"][0]["near"] == {
            "behaviour": pytest.approx(10 / 12)
        }
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        harness.service.step()
        about = harness.client.get("/v1/about").json()
        assert (about["search"], about["channels"]) == (True, ["text", "image"])
        assert about["search_by"] == ["text", "image", "video"]
        assert harness.found(text="red", limit=1) == ["i0"]


@pytest.mark.parametrize("error", [DependencyError("pip install x"), SpaceError("two spaces"), ConfigError("no key")])
def test_encoders_that_cannot_be_opened(tmp_path: Path, error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with service_harness(tmp_path, encoders=fail) as harness:
        response = harness.post(text="red")
        assert (response.status_code, response.json()["detail"]) == (503, str(error))
        assert harness.client.get("/v1/users/ann/recommendations?limit=1").status_code == 200
    with service_harness(tmp_path, encoders=fail, preload=True) as harness:
        assert harness.client.get("/readyz").status_code == 200


def test_encoders_are_reused_while_bundles_have_the_same_setup(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert harness.opened == []
        harness.found(text="red")
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        harness.service.step()
        assert harness.post(text="red").json()["bundle"] == "toy-2"
        assert len(harness.opened) == 1
        harness.shelf.put("third", with_contents(toy_bundle(tmp_path, fingerprint="toy-3"), text_bytes=4))
        harness.service.step()
        assert harness.post(text="green").json()["query"]["failed"][0]["part"] == "text"  # five bytes, limit 4
        assert len(harness.opened) == 2
        harness.found(image=b64(GREEN_PNG))
        decoders = harness.opened[0][1]
        assert decoders.seconds == FILE_SECONDS
        assert harness.opened[1][1] is decoders
        workers = [worker.process for worker in decoders._running]
        assert [process.is_alive() for process in workers] == [True]
    assert [process.is_alive() for process in workers] == [False]


def test_the_text_encoder_is_loaded_before_the_first_search(tmp_path: Path) -> None:
    words = ToyWords(Limits())
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}, preload=True) as harness:
        deadline = time.monotonic() + 10
        while not words.read:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(words.read) == 1
        harness.found(text="red")
        assert len(harness.opened) == 1


def test_the_text_encoder_is_loaded_for_each_new_bundle(tmp_path: Path) -> None:
    words = ToyWords(Limits())
    shelf = ToyShelf(toy_bundle(tmp_path))
    with service_harness(
        tmp_path, shelf=shelf, encoders=lambda *_: {"text": words}, preload=True, follow_seconds=0.02
    ) as harness:
        harness.get("ann")
        assert harness.opened == []  # this bundle has no content space
        shelf.put("second", with_contents(toy_bundle(tmp_path, fingerprint="toy-2")))
        deadline = time.monotonic() + 10
        while not words.read:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert harness.found(text="red", limit=1) == ["i0"]
    assert (words.read, len(harness.opened)) == (["ready", "red"], 1)


class Slow(ToyWords):
    """Text encoder that waits for `go` when the text says slow; counts concurrent calls."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.started, self.go, self.inside, self.max_inside = threading.Event(), threading.Event(), 0, 0

    def words(self, texts: Any) -> Any:
        self.inside += 1
        self.max_inside = max(self.max_inside, self.inside)
        self.started.set()
        if "slow" in texts[0]:
            assert self.go.wait(20)
        time.sleep(0.02)
        self.inside -= 1
        return super().words(texts)


def test_recommendations_are_served_while_a_query_is_encoded(tmp_path: Path) -> None:
    words = Slow()
    with (
        service_harness(tmp_path, encoders=lambda *_: {"text": words}, search_wait=0.1, threads=1) as harness,
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(harness.post, text="slow red", limit=1)
        assert words.started.wait(10)
        for _ in range(3):
            assert harness.client.get("/v1/users/ann/recommendations?limit=1").json()["items"][0]["item_id"] == "i7"
        response = harness.post(text="red")
        assert (response.status_code, response.json()["code"]) == (503, "busy")
        words.go.set()
        assert slow.result().json()["items"][0]["item_id"] == "i0"
        assert harness.found(text="green", limit=1) == ["i11"]


def test_queries_are_encoded_one_at_a_time(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}) as harness, ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda _: harness.found(text="red", limit=1), range(5))) == [["i0"]] * 5
    assert words.max_inside == 1


def with_remote_encoder(bundle: ToyBundle) -> ToyBundle:
    """The bundle with a remote encoder."""
    encoder = {"kind": "openai-compatible", "base_url": "http://127.0.0.1:9", "model": "m"}
    return replace(bundle, manifest={"config": bundle.manifest["config"] | {"encoder": encoder}})


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_a_bundle_served_while_a_query_is_encoded_is_used_by_the_next_query(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}) as harness, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(harness.post, text="slow green", limit=1)
        assert words.started.wait(10)
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, 30, fingerprint="toy-2")))
        harness.service.step()
        words.go.set()
        first, second = pending.result().json(), harness.post(text="green", limit=1).json()
    assert [(response["bundle"], response["items"][0]["item_id"]) for response in (first, second)] == [
        ("toy-1", "i11"),
        ("toy-2", "i29"),
    ]


def test_a_slow_query_times_out_and_its_encoder_finishes_in_the_background(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(
        tmp_path, encoders=lambda *_: {"text": words}, search_wait=0.1, search_seconds=0.1
    ) as harness:
        assert code(harness.post(text="slow red")) == (504, "slow")
        assert code(harness.post(text="red")) == (503, "busy")  # the encoder is still busy
        assert harness.items("ann", 1) == ["i7"]
        words.go.set()
        deadline = time.monotonic() + 10
        while (response := harness.post(text="red", limit=1)).status_code != 200:
            assert time.monotonic() < deadline
        assert response.json()["items"][0]["item_id"] == "i0"
    assert words.max_inside == 1


def test_a_slow_remote_encoder_does_not_block_other_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.encoder_pool.MAX_REMOTE", 2)
    words = Slow()
    shelf = ToyShelf(with_remote_encoder(with_contents(toy_bundle(tmp_path))))
    with service_harness(
        tmp_path, shelf=shelf, encoders=lambda *_: {"text": words}, search_wait=0.1, search_seconds=0.1
    ) as harness:
        assert code(harness.post(text="slow red")) == (504, "slow")
        assert harness.found(text="green", limit=1) == ["i11"]
        assert code(harness.post(text="slow red")) == (504, "slow")
        assert code(harness.post(text="green")) == (503, "busy")  # MAX_REMOTE is 2
        assert harness.items("ann", 1) == ["i7"]
        assert len(harness.opened) == 1
    assert words.inside == 2  # the service has stopped without waiting for them
    words.go.set()


def test_the_service_stops_after_its_local_encoding(tmp_path: Path) -> None:
    words = Slow()
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}, search_seconds=0.1) as harness:
        assert code(harness.post(text="slow red")) == (504, "slow")
        threading.Timer(0.2, words.go.set).start()
    assert (words.inside, words.read) == (0, ["slow red"])


def test_a_thread_that_cannot_start_releases_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with service_harness(tmp_path, search_wait=0.1) as harness:
        with monkeypatch.context() as patched:
            patched.setattr("serving.state.encoder_pool.Thread.start", full)
            assert harness.post(text="red").status_code == 500
        assert harness.found(text="red", limit=1) == ["i0"]


def test_the_number_of_large_bodies_in_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.encoder_pool.MAX_LARGE_BODIES", 0)
    with service_harness(tmp_path, search_wait=0.05) as harness:
        small, large = (orjson.dumps({"text": "red"}) + b" " * size for size in (900_000, 1_100_000))
        assert harness.client.post("/v1/search", content=small).status_code == 200
        response = harness.client.post("/v1/search", content=large)
        assert (response.status_code, response.json()["code"]) == (503, "busy")


def test_a_body_that_does_not_arrive_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.encoder_pool.BODY_SECONDS", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(20)

    async def ask() -> None:
        async with EncoderPool(toy_settings(tmp_path)).body(Request({"type": "http", "headers": []}, receive)):
            pytest.fail("a body")

    with pytest.raises(ApiError, match="did not arrive") as error:
        asyncio.run(ask())
    assert error.value.status == 408


def test_the_end_does_not_wait_for_ever_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.encoder_pool.CLOSE_SECONDS", 0.05)
    words = Slow()
    with service_harness(tmp_path, encoders=lambda *_: {"text": words}, search_seconds=0.1) as harness:
        assert code(harness.post(text="slow red")) == (504, "slow")
        pool = harness.client.app.state.encoder_pool  # type: ignore[attr-defined]
        assert not pool.encodes
    assert pool.encodes
    words.go.set()
