"""Vectors of items that are put: each put is embedded by one of the services on a log."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_serving_catalog_updater import put as put_item
from test_serving_catalog_updater import settled
from test_serving_follow_items import two
from toy_service import COLOURS, ToyWords, toy_bundle, with_contents

from features.content.spaces import Embedded
from features.log.records import ItemPut
from features.schema import ITEM
from recsys.content.item_encoding import ItemVectors
from serving.state import item_vectors
from serving.state.item_vectors import FOLDER, KEPT_SECONDS, SharedVectors

RED = np.array([[1, 0, 0]], np.float32)


BUNDLE = with_contents(toy_bundle(Path("unused")))


class Encoding:
    """Embeds items as red and counts them. failing: items of which a part cannot be read."""

    def __init__(self, *failing: str) -> None:
        self.items: Counter[str] = Counter()
        self.failing = failing

    async def embed(self, bundle: Any, items: pl.DataFrame) -> ItemVectors:
        names = items.get_column(ITEM).to_list()
        await asyncio.sleep(0.01)
        self.items.update(names)
        channel = Embedded(COLOURS, np.repeat(RED, len(names), axis=0), np.ones(len(names), np.bool_))
        return ItemVectors({"text": channel}, [[("image", "gone")] if n in self.failing else [] for n in names])


def puts_of(*names: str, at: int = 5) -> list[ItemPut]:
    return [ItemPut(item_id=name, timestamp=at, fields={"title": name}) for name in names]


def embedded(vectors: SharedVectors, puts: Sequence[ItemPut]) -> ItemVectors:
    items = pl.DataFrame({ITEM: [put.item_id for put in puts]})
    return asyncio.run(vectors.embed(BUNDLE, items, puts))


def test_services_share_the_work_and_have_the_same_vectors(tmp_path: Path) -> None:
    encoding = Encoding()
    puts = puts_of(*(f"i{n}" for n in range(11)))
    items = pl.DataFrame({ITEM: [put.item_id for put in puts]})

    async def both() -> list[ItemVectors]:
        services = [SharedVectors(tmp_path, encoding.embed) for _ in range(3)]
        return await asyncio.gather(*(service.embed(BUNDLE, items, puts) for service in services))

    for vectors in asyncio.run(both()):
        assert vectors.channels["text"].vectors.tolist() == [RED[0].tolist()] * 11
        assert vectors.channels["text"].present.all()
        assert vectors.failed == [[] for _ in range(11)]
    assert encoding.items == {put.item_id: 1 for put in puts}
    again = SharedVectors(tmp_path, Encoding().embed)  # after a restart
    assert embedded(again, puts).channels["text"].space == COLOURS


def test_an_item_is_embedded_again_when_its_content_changes(tmp_path: Path) -> None:
    encoding = Encoding()
    vectors = SharedVectors(tmp_path, encoding.embed)
    embedded(vectors, puts_of("a"))
    embedded(vectors, puts_of("a", "b", at=6))
    priced = [replace(put, fields={**put.fields, "price": 7.0, "available": False}) for put in puts_of("a", "b")]
    embedded(vectors, priced)
    assert encoding.items == {"a": 1, "b": 1}
    for name, value in (("description", "d"), ("categories", ["c"]), ("image", "https://x.example.org/i.png")):
        embedded(vectors, [replace(priced[0], fields={**priced[0].fields, name: value})])
    assert encoding.items == {"a": 4, "b": 1}


def test_what_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    encoding = Encoding("b")
    vectors = SharedVectors(tmp_path, encoding.embed)
    for _ in range(2):
        assert embedded(vectors, puts_of("a", "b", "c")).failed == [[], [("image", "gone")], []]
    assert encoding.items == {"a": 1, "b": 2, "c": 1}


def test_other_encoders_and_damaged_files_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = Encoding()
    vectors = SharedVectors(tmp_path, encoding.embed)
    embedded(vectors, puts_of("a"))
    (file,) = (tmp_path / FOLDER).glob("*.npz")
    for damaged in (b"", b"no zip", file.read_bytes()[:-40]):
        file.write_bytes(damaged)
        embedded(vectors, puts_of("a"))
    assert encoding.items["a"] == 4
    monkeypatch.setattr(item_vectors, "_setup", lambda bundle: b"another")
    embedded(vectors, puts_of("a"))
    assert encoding.items["a"] == 5


def test_a_stopped_service_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_vectors, "WAIT_SECONDS", 0.1)
    encoding = Encoding()
    vectors = SharedVectors(tmp_path, encoding.embed)

    async def held() -> None:
        async with SharedVectors(tmp_path, encoding.embed)._lock():
            items = pl.DataFrame({ITEM: ["a"]})
            await vectors.embed(BUNDLE, items, puts_of("a"))

    asyncio.run(held())
    assert encoding.items == {"a": 1}


def test_without_a_folder_each_embeds_by_itself(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    encoding = Encoding()
    for _ in range(2):
        assert embedded(SharedVectors(tmp_path, encoding.embed), puts_of("a")).failed == [[]]
    assert encoding.items == {"a": 2}


def test_old_files_are_deleted(tmp_path: Path) -> None:
    embedded(SharedVectors(tmp_path, Encoding().embed), puts_of("a", "b"))
    old, kept = (tmp_path / FOLDER).glob("*.npz")
    os.utime(old, (0, time.time() - KEPT_SECONDS - 1))
    embedded(SharedVectors(tmp_path, Encoding().embed), puts_of("c"))
    assert not old.exists()
    assert kept.exists()


def test_two_services_embed_a_new_item_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    words = ToyWords.words

    def counted(self: ToyWords, texts: Sequence[str]) -> Any:
        read.update(texts)
        return words(self, texts)

    monkeypatch.setattr(ToyWords, "words", counted)
    with two(tmp_path) as (first, second):
        put_item(first, "sky", title="blue sky")
        assert settled(first, "sky")["status"] == "live"
        second.service.step()
        assert settled(second, "sky")["status"] == "live"
        assert second.found(text="blue", limit=1) == ["sky"]
    assert [n for text, n in read.items() if "blue sky" in text] == [1]
