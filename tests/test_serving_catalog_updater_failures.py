"""Items whose embedding fails: which are tried again alone, which wait, and which do not."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from toy_service import NOW, RULES, toy_bundle, toy_upsert

from features.content.spaces import Embedded
from features.log.records import ItemDeleted, ItemPut
from features.store.memory import MemoryStore
from recsys.content.item_encoding import ItemVectors
from serving.state.catalog_updater import BATCH, CatalogUpdater
from serving.state.snapshot import ServingSnapshot

FAILED = "it cannot be added to the bundle; the log of the service says more (RuntimeError: no)"


class Log:
    """A log that accepts everything."""

    def ends(self, stream: str) -> dict[str, int]:
        return {"a": 1}

    async def append(self, records: Any, within: Any = None) -> None:
        pass


class Updates:
    """A running updater of a toy bundle. batches: ids of the items of each embedding; poison: titles that fail it."""

    def __init__(self, folder: Path) -> None:
        self.notes: dict[str, str] = {}
        self.updater = CatalogUpdater(folder, self.notes, toy_upsert, lambda bundle: None)
        self.updater.swap_bundle(ServingSnapshot.of(toy_bundle(folder), MemoryStore(RULES), lambda: NOW))
        self.batches: list[list[str]] = []
        self.poison = {"poison"}
        self.during: Callable[[], Any] | None = None  # awaited once, within the next embedding

    async def embed(self, bundle: Any, items: Any, puts: Any) -> ItemVectors:
        self.batches.append(items["item_id"].to_list())
        if (during := self.during) is not None:
            self.during = None
            await during()
        if self.poison & set(items["title"]):
            raise RuntimeError("no")
        return ItemVectors(dict[str, Embedded](), [[] for _ in range(len(items))])

    async def put(self, item: str, title: str = "blue", **fields: Any) -> bool:
        log: Any = Log()
        change = ItemPut(item_id=item, timestamp=NOW, fields={"title": title, **fields})
        return await self.updater.accept(log, change)

    async def delete(self, item: str) -> bool:
        log: Any = Log()
        return await self.updater.accept(log, ItemDeleted(item_id=item, timestamp=NOW))

    def status(self, item: str) -> str:
        return self.updater.state(item)[1]

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, (self.batches, self.notes)
            await asyncio.sleep(0.005)


def run(folder: Path, scenario: Callable[[Updates], Any]) -> Updates:
    """Run a scenario while the updater runs. What is put before its first await is in the first batch."""

    async def both() -> Updates:
        updates = Updates(folder)
        await scenario(updates)
        return updates

    return asyncio.run(both())


async def start(updates: Updates) -> asyncio.Task[None]:
    return asyncio.create_task(updates.updater.run(updates.embed))


def test_of_two_items_the_newer_is_live_at_once_although_the_older_fails(tmp_path: Path) -> None:
    async def scenario(updates: Updates) -> None:
        await updates.put("old", "poison")
        await updates.put("new")
        task = await start(updates)
        await updates.until(lambda: updates.status("old") == "failed")
        assert updates.status("new") == "live"
        task.cancel()

    updates = run(tmp_path, scenario)
    # both at once; then each alone, the newest first
    assert updates.batches == [["new", "old"], ["new"], ["old"]]
    assert updates.notes["items"] == f"old: {FAILED}; retried every 30 s"


def test_an_item_that_is_put_again_while_its_embedding_fails_does_not_wait(tmp_path: Path) -> None:
    async def scenario(updates: Updates) -> None:
        await updates.put("sky", "poison")
        updates.during = lambda: updates.put("sky", "blue")
        task = await start(updates)
        await updates.until(lambda: updates.status("sky") == "live")
        task.cancel()

    updates = run(tmp_path, scenario)
    assert updates.batches == [["sky"], ["sky"]]
    assert updates.notes == {}


def test_a_failing_item_waits_and_others_are_added_meanwhile(tmp_path: Path) -> None:
    async def scenario(updates: Updates) -> None:
        await updates.put("bad", "poison")
        task = await start(updates)
        await updates.until(lambda: updates.status("bad") == "failed")
        await updates.put("sky")
        await updates.until(lambda: updates.status("sky") == "live")
        assert updates.batches == [["bad"], ["sky"]]  # the failing item is not tried with it
        assert "bad" in updates.notes["items"]
        updates.poison.clear()
        updates.updater._resume_paused()
        await updates.until(lambda: updates.status("bad") == "live")
        assert updates.batches[2:] == [["bad"]]
        assert updates.notes == {}
        task.cancel()

    run(tmp_path, scenario)


def test_a_failing_item_that_is_deleted_is_no_problem_any_more(tmp_path: Path) -> None:
    async def scenario(updates: Updates) -> None:
        await updates.put("bad", "poison")
        task = await start(updates)
        await updates.until(lambda: "items" in updates.notes)
        assert updates.updater.state("bad")[2] == [("item", FAILED)]
        await updates.delete("bad")
        assert updates.notes == {}
        assert not updates.updater.has_item("bad")
        task.cancel()

    run(tmp_path, scenario)


def test_a_batch_holds_the_newest_items(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(BATCH + 3)]

    async def scenario(updates: Updates) -> None:
        for name in names:
            await updates.put(name)
        task = await start(updates)
        await updates.until(lambda: updates.status("n0") == "live")
        task.cancel()

    newest = names[::-1]
    assert run(tmp_path, scenario).batches == [newest[:BATCH], newest[BATCH:]]


def test_an_item_that_is_deleted_while_it_is_embedded_stays_hidden(tmp_path: Path) -> None:
    async def scenario(updates: Updates) -> None:
        await updates.put("sky")
        await updates.put("i0", "blue")
        await updates.put("i1", "blue", available=False)
        updates.during = lambda: asyncio.gather(updates.delete("sky"), updates.delete("i0"), updates.put("i1", "red"))
        task = await start(updates)
        await updates.until(lambda: len(updates.batches) == 2 and updates.status("i1") == "live")
        snapshot = updates.updater.snapshot
        assert snapshot is not None
        ids = snapshot.bundle.catalog.ids
        hidden = np.flatnonzero(~snapshot.allowed()).tolist()
        assert hidden == [0, 3, ids.row("sky")]
        assert snapshot.cards[1]["title"] == "red"
        task.cancel()

    run(tmp_path, scenario)


def test_snapshots_that_no_request_uses_are_forgotten(tmp_path: Path) -> None:
    async def scenario(updates: Updates) -> None:
        task = await start(updates)
        for number in range(8):
            await updates.put(f"n{number}")
            await updates.until(lambda number=number: updates.status(f"n{number}") == "live")  # type: ignore[misc]
        assert len(updates.updater._in_use) < 8
        task.cancel()

    run(tmp_path, scenario)


def test_an_item_is_shown_from_the_microsecond_of_its_publication_on(tmp_path: Path) -> None:
    async def scenario(updates: Updates) -> None:
        await updates.put("i0", published_at="2027-01-15T08:00:00+00:00")  # NOW
        await updates.put("i1", published_at="2027-01-15T08:00:00.000001+00:00")
        snapshot = updates.updater.snapshot
        assert snapshot is not None
        assert np.flatnonzero(~snapshot.allowed()).tolist() == [1, 3]  # before they are embedded

    run(tmp_path, scenario)
