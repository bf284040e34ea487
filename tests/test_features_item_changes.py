"""Put and deleted items, as the next training reads them together with the items table."""

import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from toy_data import toy_config, write_tables

from experiments.config import load_config
from experiments.dataset import load_dataset
from features.errors import LogError
from features.instants import DAY
from features.log.event_log import EventLog
from features.log.item_changes import MEDIA_FOLDER, ItemChanges, delete_unused_media, media_in_use, store_media
from features.log.records import Event, ItemDeleted, ItemPut
from features.schema import DataConfig, EventRules
from features.tables.read import Tables, read_items, read_tables


def put(item: str, **fields: Any) -> ItemPut:
    return ItemPut(item_id=item, timestamp=1, fields=fields)


def gone(item: str) -> ItemDeleted:
    return ItemDeleted(item_id=item, timestamp=1)


def tables(folder: Path, *changes: Any, extra: tuple[str, ...] = ()) -> Tables:
    """Tables with items a, b (which has all fields) and c, and one event on each of a and new."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "items.csv").write_text(
        "item_id,title,price,available,size\na,A,,,1\nb,B,2.0,false,2\nc,C,,,\n"
    )
    (folder / "data" / "events.csv").write_text(
        "user_id,item_id,event,timestamp\nu,a,buy,2024-05-01T12:00:00Z\nu,new,buy,2024-05-01T12:00:01Z\n"
    )
    log = EventLog(folder / "log")
    log.append_now(changes)
    log.close()
    config = DataConfig(
        source="folder",
        path=str(folder / "data"),
        events=EventRules(positive={"buy": None}),
        extra_columns=extra,
        log=str(folder / "log"),
    )
    items, report = read_items(config)
    result = read_tables(config)
    assert items.equals(result.items)
    assert report.counts[0] == result.report.counts[0]
    return result


def test_the_newest_change_of_each_item_counts() -> None:
    changes = ItemChanges.of_changes(
        [put("a", title="1"), put("b"), gone("a"), gone("t"), put("b", title="2"), gone("b")]
    )
    assert changes.deleted == {"a", "b", "t"}
    assert changes.puts == {"a": put("a", title="1"), "b": put("b", title="2")}
    assert list(ItemChanges.of_changes([put("a"), put("b"), put("a", title="2")]).puts) == ["b", "a"]
    assert ItemChanges.of_changes([gone("a"), put("a")]).deleted == frozenset()


def test_put_items_replace_or_join_the_table_and_deleted_ones_are_not_available(tmp_path: Path) -> None:
    result = tables(
        tmp_path,
        put("new", title="New", categories=["x"], published_at="2026-01-31T11:00:00+00:00", price=3),
        put("b", title="BB"),
        gone("a"),
        put("late", title="Late"),
        gone("late"),
        gone("never"),
    )
    rows = {row["item_id"]: row for row in result.items.to_dicts()}
    assert list(rows) == ["a", "c", "new", "b", "late"]
    # a put replaces all fields
    assert (rows["b"]["title"], rows["b"]["price"], rows["b"]["available"]) == ("BB", None, True)
    assert (rows["new"]["categories"], rows["new"]["price"]) == (["x"], 3.0)
    assert rows["new"]["published_at"] == datetime(2026, 1, 31, 11, tzinfo=UTC)
    assert [rows[item]["available"] for item in ("a", "c", "late")] == [False, True, False]
    assert result.events["item_id"].to_list() == ["a", "new"]  # a put item is a known item
    logged = result.report.counts[-1]
    assert (logged.table, logged.file, logged.read, logged.kept) == ("items", "event log", 3, 3)
    assert "event log: 2 new items, 1 put in place of the table's, 2 deleted" in result.report.notes


def test_without_changes_the_table_is_as_it_was(tmp_path: Path) -> None:
    result = tables(tmp_path, Event(user_id="u", item_id="a", event="buy", timestamp=1))
    assert result.items["item_id"].to_list() == ["a", "b", "c"]
    assert [count.table for count in result.report.counts] == ["items", "events"]
    assert not [note for note in result.report.notes if "event log" in note]
    deleted = tables(tmp_path, gone("c"))
    assert deleted.items["available"].to_list() == [True, False, False]


def test_declared_columns_take_the_type_of_the_table_and_other_values_are_reported(tmp_path: Path) -> None:
    result = tables(tmp_path, put("x", size="7"), put("y"), extra=("size",))
    assert dict(zip(result.items["item_id"], result.items["size"], strict=True))["x"] == "7"
    parquet = pl.DataFrame({"item_id": ["a"], "size": [1]})
    (tmp_path / "data" / "items.csv").unlink()
    parquet.write_parquet(tmp_path / "data" / "items.parquet")
    config = DataConfig(
        source="folder",
        path=str(tmp_path / "data"),
        events=EventRules(positive={"buy": None}),
        extra_columns=("size",),
        log=str(tmp_path / "log"),
    )
    log = EventLog(tmp_path / "log")
    log.append_now([put("y", size="many")])
    log.close()
    items, report = read_items(config)
    assert items["size"].to_list() == [1, 7, None]
    assert "event log: 1 values of size are not a whole number: null" in report.notes


def test_media_are_found_where_the_log_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = store_media(tmp_path / "log", b"a picture")
    assert store_media(tmp_path / "log", b"a picture") == name
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)  # a relative log folder is relative to the working folder, not to the tables
    result = tables(
        Path(), put("x", image=name, audio="https://h/a.wav"), put("y", image="media/lost", title="no picture")
    )
    rows = {row["item_id"]: row for row in result.items.to_dicts()}
    assert Path(rows["x"]["image"]).read_bytes() == b"a picture"
    assert Path(rows["x"]["image"]).is_absolute()
    assert rows["x"]["audio"] == "https://h/a.wav"
    assert rows["y"]["image"] is None
    assert [(p.reason, p.count) for p in result.report.problems if "file" in p.reason] == [
        ("missing file in image", 1)
    ]


def test_media_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(LogError, match="no space left; nothing was accepted"):
        store_media(tmp_path, b"a picture")
    assert list((tmp_path / "media").iterdir()) == []


def test_media_of_a_deleted_item_are_not_checked(tmp_path: Path) -> None:
    result = tables(tmp_path, put("x", image="media/swept", audio="https://h/a.wav", title="X"), gone("x"))
    row = next(row for row in result.items.to_dicts() if row["item_id"] == "x")
    assert (row["title"], row["image"], row["audio"], row["available"]) == ("X", None, "https://h/a.wav", False)
    assert not [problem for problem in result.report.problems if problem.table == "items"]


NOW = 100 * DAY


def test_media_are_in_use_until_no_item_has_had_them_for_a_day() -> None:
    def at(day: float, change: ItemPut | ItemDeleted) -> ItemPut | ItemDeleted:
        return replace(change, timestamp=int(day * DAY))

    changes = [
        at(0, put("replaced", image="media/1", audio="media/2")),
        at(0, put("deleted", video="media/3")),
        at(0, put("stays", image="media/4", video="https://h/media/x")),
        at(0, put("back", image="media/5")),
        at(1, gone("back")),
        at(5, put("replaced", image="media/1", audio="media/6")),
        at(5, gone("deleted")),
        at(5, put("back", image="media/5")),
        at(5, gone("never")),
    ]
    everything = {f"media/{number}" for number in range(1, 7)}
    assert media_in_use(changes, int(5.9 * DAY)) == everything
    assert media_in_use(changes, int(6.1 * DAY)) == everything - {"media/2", "media/3"}


def aged(log: Path, data: bytes, days: float) -> str:
    """The name of media that were written `days` before NOW."""
    name = store_media(log, data)
    os.utime(log / name, ns=(0, int(NOW - days * DAY) * 1000))
    return name


def test_a_sweep_deletes_old_unused_media_and_nothing_else(tmp_path: Path) -> None:
    used, old, young = aged(tmp_path, b"used", 9), aged(tmp_path, b"old", 1.1), aged(tmp_path, b"young", 0.9)
    folder, digest = tmp_path / MEDIA_FOLDER, Path(old).name
    foreign = {"notes.txt", digest[:-1], f"{digest}.png", f".{digest}", digest.upper()}
    for name in (*foreign, f".writing-7-8-{digest}"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    (folder / ("a" * 64)).mkdir()
    (folder / ("b" * 64)).symlink_to(tmp_path / used)
    for link in ("a" * 64, "b" * 64):
        os.utime(folder / link, (0, 0))
    (tmp_path / digest).touch()
    assert delete_unused_media(tmp_path, {used}, NOW) == 2
    names = {path.name for path in folder.iterdir()}
    assert names == foreign | {Path(used).name, Path(young).name, "a" * 64, "b" * 64}
    assert (tmp_path / digest).exists()
    assert delete_unused_media(tmp_path, {used}, NOW) == 0
    assert delete_unused_media(tmp_path / "none", set(), NOW) == 0


def before_first_lock(lock: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `action` just before the first lock of kind `lock` is taken."""
    real, waiting = fcntl.flock, [action]

    def flock(file: Any, kind: int) -> None:
        if kind == lock and waiting:
            waiting.pop()()
        real(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_media_put_again_during_a_sweep_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = aged(tmp_path, b"old", 3)
    before_first_lock(fcntl.LOCK_EX, lambda: store_media(tmp_path, b"old"), monkeypatch)
    assert delete_unused_media(tmp_path, set(), NOW) == 0
    assert (tmp_path / name).read_bytes() == b"old"
    assert aged(tmp_path, b"old", 3) == name
    before_first_lock(fcntl.LOCK_SH, lambda: delete_unused_media(tmp_path, set(), NOW), monkeypatch)
    assert store_media(tmp_path, b"old") == name
    assert (tmp_path / name).read_bytes() == b"old"


def test_a_sweep_deletes_only_the_file_that_it_has_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = aged(tmp_path, b"old", 3)

    def sweep_and_put() -> None:
        assert delete_unused_media(tmp_path, set(), NOW) == 1
        aged(tmp_path, b"old", 2)  # put again, with an older time of another clock

    before_first_lock(fcntl.LOCK_EX, sweep_and_put, monkeypatch)
    assert delete_unused_media(tmp_path, set(), NOW) == 0
    assert (tmp_path / name).exists()


def test_media_that_cannot_be_deleted_do_not_stop_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {aged(tmp_path, data, 3) for data in (b"1", b"2", b"3")}
    undeletable, unlink = tmp_path / min(names), Path.unlink

    def fails(path: Path, **more: Any) -> None:
        if path == undeletable:
            raise OSError("read-only")
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", fails)
    with pytest.raises(LogError, match="media: 1 media of no item cannot be deleted: read-only"):
        delete_unused_media(tmp_path, set(), NOW)
    assert list((tmp_path / MEDIA_FOLDER).iterdir()) == [undeletable]


def test_a_run_reads_item_changes_and_its_hash_depends_on_them(tmp_path: Path) -> None:
    write_tables(tmp_path / "data")
    config = load_config(toy_config(tmp_path), {})
    before = load_dataset(config)
    log = EventLog(tmp_path / "log")
    log.append_now(
        [put("sky", title="blue"), Event(user_id="u0", item_id="sky", event="take", timestamp=1, event_id="e")]
    )
    with_sky = load_dataset(config)
    log.append_now([gone("sky"), gone("i3")])
    log.close()
    without = load_dataset(config)
    assert len({before.hash, with_sky.hash, without.hash}) == 3
    assert (len(before.catalog), len(with_sky.catalog), len(without.catalog)) == (12, 13, 13)
    assert (with_sky.unknown_items, len(with_sky.events) - len(before.events)) == (0, 1)
    available = dict(zip(without.catalog.ids.ids, without.catalog.available.tolist(), strict=True))
    assert [item for item, is_available in available.items() if not is_available] in (["sky", "i3"], ["i3", "sky"])
