"""Tables, vectors and the store: what is said of files and answers that cannot be used."""

import io
import urllib.response
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
import redis as client
from log_files import event
from media import picture

from features.content.embed import _write_failed
from features.content.encoders.hub_models import image_pixels
from features.content.parts import Limits
from features.content.shards import _bytes
from features.erasure import parquet
from features.erasure.parquet import count_rows
from features.errors import ContentError, DataError, FileError, StoreError
from features.log.erasure.person import Person
from features.log.event_log import EventLog
from features.schema import DataConfig, EventRules
from features.store.connection import bare_pipeline, make_group
from features.store.jobs import fill
from features.store.jobs.table_states import _spill
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import UserState
from features.tables.read import read_items
from features.tables.scan import scan_table
from features.tables.sources import download, movielens
from features.tables.validate import Count, Validated, write_rejected


def part(folder: Path, name: str, **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")


def test_the_files_of_a_folder_follow_one_another_and_a_missing_column_is_null(tmp_path: Path) -> None:
    part(tmp_path / "items", "b", item_id=["3"], title=["z"])
    part(tmp_path / "items", "a", item_id=["1", "2"])
    frame = scan_table(tmp_path / "items").collect()
    assert frame.select("item_id", "title").rows() == [("1", None), ("2", None), ("3", "z")]


def test_files_of_a_folder_with_two_types_of_a_column(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    part(folder, "a", item_id=["1"], price=[1.0])
    part(folder, "b", item_id=["2"])
    part(folder, "c", item_id=["3"], price=[1])
    with pytest.raises(DataError) as caught:
        scan_table(folder)
    assert str(caught.value) == (
        f"{folder}/c.parquet: price has type Int64, and Float64 in a.parquet: write it with one type"
    )
    (folder / "d.parquet").mkdir()
    with pytest.raises(DataError, match=r"d\.parquet: a folder; give a file"):
        scan_table(folder)


def validated(n: int) -> Validated:
    rows = pl.DataFrame({"reason": ["empty"] * n})
    return Validated(pl.DataFrame(), np.ones(n, np.uint8), Count("items", "items.csv", n, 0, n), [], rows, rows)


def test_an_empty_file_of_ratings_has_columns_of_text(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("")
    frame = movielens._dat(tmp_path / "ratings.dat", ["userId", "movieId"]).collect()
    assert dict(frame.schema) == {"userId": pl.String, "movieId": pl.String}
    (tmp_path / "ratings.dat").write_bytes(b"1::\xe9::2\n")
    frame = movielens._dat(tmp_path / "ratings.dat", ["userId", "movieId"]).collect()
    assert frame.rows() == [("1", "\u00e9::2")]


def test_items_that_are_rejected_lie_beside_the_tables(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n1,a\n,b\n")
    items, report = read_items(
        DataConfig(source="folder", path=str(tmp_path), events=EventRules(positive={"click": None}))
    )
    assert items.get_column("item_id").to_list() == ["1"]
    assert [(count.kept, count.rejected) for count in report.counts] == [(1, 1)]
    assert pl.read_parquet(tmp_path / "rejected" / "items.parquet").get_column("title").to_list() == ["b"]


def test_rejected_rows_that_cannot_be_written_are_a_note(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = tmp_path / "rejected"
    assert write_rejected(validated(2), folder, notes) == {"items": str(folder / "items.parquet")}
    assert pl.read_parquet(folder / "items.parquet").height == 2
    assert write_rejected(validated(0), folder, notes) == {}
    assert list(folder.iterdir()) == []
    assert notes == []
    (tmp_path / "file").write_bytes(b"")
    assert write_rejected(validated(2), tmp_path / "file", notes) == {}
    assert len(notes) == 1
    assert notes[0].startswith("rejected rows of items could not be written: ")


def test_events_that_cannot_be_distributed_to_files(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    events = pl.DataFrame({"user_id": ["a", "b", "a"], "n": [1, 2, 3]})
    with pytest.raises(StoreError) as caught:
        _spill(events, folder, 7)
    assert str(caught.value).startswith(f"the events cannot be distributed to files in {folder}: ")
    assert str(caught.value).endswith("; set TMPDIR")
    folder.mkdir()
    _spill(events, folder, 7)
    written = sorted(pl.read_parquet(path).rows() for path in folder.glob("??/000007.parquet"))
    assert written == [[("a", 1), ("a", 3)], [("b", 2)]]


def test_failures_that_cannot_be_written(tmp_path: Path) -> None:
    _write_failed([("text", 3, 0, "empty")], tmp_path / "failed.parquet")
    assert pl.read_parquet(tmp_path / "failed.parquet").rows() == [("text", 3, 0, "empty")]
    path = tmp_path / "none" / "failed.parquet"
    with pytest.raises(StoreError) as caught:
        _write_failed([], path)
    assert str(caught.value).startswith(f"{path}: the failures cannot be written: ")
    assert str(caught.value).endswith("; the vectors are stored")


def test_a_shard_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _bytes(tmp_path / "none")
    with pytest.raises(StoreError, match=f"^{tmp_path}: cannot be read: .*Is a directory"):
        _bytes(tmp_path)


def test_a_parquet_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.symlink_to(path)
    with pytest.raises(FileError, match=f"^{path}: Too many levels of symbolic links"):
        count_rows(path, Person("ann"))
    path.unlink()
    path.write_bytes(b"nothing")
    with pytest.raises(FileError, match=f"^{path} is no parquet file that can be read"):
        count_rows(path, Person("ann"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "{path}: No space left on device"),
        (OSError("a library's own"), "{path} is no parquet file that can be read"),
        (pl.exceptions.ComputeError("No space left on device (os error 28)"), "{path}: No space left on device"),
    ],
)
def test_an_erasure_that_the_disk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    part(tmp_path, "a", user_id=["ann", "bob"])
    path = tmp_path / "a.parquet"

    def put(path: Path, write: Any) -> None:
        raise error

    monkeypatch.setattr(parquet, "put_file", put)
    with pytest.raises(FileError) as caught:
        parquet.erase_rows(path, Person("ann"))
    assert str(caught.value).startswith(message.format(path=path))
    assert pl.read_parquet(path).height == 2


@pytest.mark.parametrize("upright", [False, True])
def test_a_picture_has_a_side_ratio_of_at_most_50(upright: bool) -> None:
    def image(length: int) -> bytes:
        pixels = np.zeros((1, length, 3), np.uint8)
        return picture(pixels.swapaxes(0, 1) if upright else pixels, "PNG")

    assert image_pixels(image(50), Limits()).shape == ((1, 50, 1, 3) if upright else (1, 1, 50, 3))
    size = "1 x 51" if upright else "51 x 1"
    with pytest.raises(ContentError, match=f"^a picture of {size} pixels exceeds a side ratio of 50; crop it$"):
        image_pixels(image(51), Limits())


def test_a_state_with_fewer_texts_than_events_is_damaged() -> None:
    rules = EventRules(positive={"click": None})
    data = UserState.of([event(1), event(2)], rules).to_bytes()
    assert UserState.from_bytes(data).items == ("i1", "i2")
    for damaged in (data.replace(b"\x1fi2", b"/i2"), data.replace(b"\x1fi2", b"\x1fi\x1f")):
        with pytest.raises(ValueError, match="texts"):
            UserState.from_bytes(damaged)


def test_a_user_that_other_processes_change_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisStore("redis://nowhere.invalid:1", EventRules(positive={"click": None}))
    left = [2]  # tries of a user that fail
    tries: list[list[str]] = []

    def try_change(channel: Any, fill: str, users: list[str], change: Any, since: int) -> list[str]:
        tries.append(list(users))
        return users if len(tries) <= left[0] else []

    monkeypatch.setattr(store, "_try_change", try_change)
    store.change_users(["a", "b"], lambda user, old: old)
    assert tries == [["a", "b"]] * 3
    left[0] = 100
    with pytest.raises(StoreError, match=r": other processes changed the same user 10 times in a row: try again$"):
        store.change_users(["a"], lambda user, old: old)
    assert len(tries) == 13
    left[0], tries[:] = 9, []
    store.change_users(["a"], lambda user, old: old)  # the last try succeeds
    assert len(tries) == 10


def test_a_part_of_another_range_is_not_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "file.part"
    kept.write_bytes(b"abc")

    def answer(start: str) -> Any:
        headers = Message()
        headers["Content-Range"] = f"bytes {start}-5/6"
        headers["Content-Length"] = "3"
        return lambda request, timeout: urllib.response.addinfourl(io.BytesIO(b"def"), headers, "", 206)

    monkeypatch.setattr(download.urllib.request, "urlopen", answer("2"))
    with pytest.raises(ConnectionError, match=r"^requested byte 3 on, received 'bytes 2-5/6'$"):
        download._continue("https://host/file", kept)
    assert kept.read_bytes() == b"abc"
    monkeypatch.setattr(download.urllib.request, "urlopen", answer("3"))
    download._continue("https://host/file", kept)
    assert kept.read_bytes() == b"abcdef"


def test_the_progress_of_a_download_is_no_output() -> None:
    assert download._progress().console.stderr


def test_a_group_is_made_once_and_only_on_a_stream() -> None:
    server = RedisServer()
    try:
        connection = client.Redis.from_url(server.url)
        make_group(connection, "clicks", "g")
        connection.xadd("clicks", {"a": 1})
        make_group(connection, "clicks", "g")
        entries: Any = connection.xreadgroup("g", "c", {"clicks": ">"})
        assert len(entries[0][1]) == 1
        connection.set("text", "x")
        with pytest.raises(client.ResponseError, match="WRONGTYPE"):
            make_group(connection, "text", "g")
        assert bare_pipeline(server.url, 11)() == [bytes(5), bytes(5)]
        connection.close()
    finally:
        server.stop()


class Streams:
    """Standard input and output of bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.buffer = io.BytesIO(data)


def test_a_filling_reads_its_task_and_prints_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RedisServer()
    try:
        data = DataConfig(source="folder", path=str(tmp_path), events=EventRules(positive={"click": None}))
        log = EventLog(tmp_path / "log")
        log.append_now([event(1)])
        log.close()

        def filled(url: str) -> bytes:
            given = {"url": url, "data": data.model_dump(mode="json"), "log": str(tmp_path / "log"), "anew": False}
            output = Streams()
            monkeypatch.setattr(fill.sys, "stdin", Streams(orjson.dumps(given)))
            monkeypatch.setattr(fill.sys, "stdout", output)
            fill.main()
            return output.buffer.getvalue()

        assert filled(server.url) == b"null"  # there is no table
        store = RedisStore(server.url, data.events)
        assert store.read_users(["u"])[0].items == ("i1",)
        store.close()
        (tmp_path / "events.csv").write_text("user_id,item_id,event,timestamp\nv,i2,click,2024-01-01T00:00:00Z\n")
        (tmp_path / "items.csv").write_text("item_id\ni2\n")
        report = orjson.loads(filled(server.url))
        assert (report["users"], report["table_events"]) == (1, 1)
        with pytest.raises(SystemExit, match="the feature store at unix:///none does not answer"):
            filled("unix:///none")
    finally:
        server.stop()
