"""Erasure of a person from all places, the search that proves it, and what is known of a person."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from log_files import event, exposure, read_all
from toy_service import RULES

from features.erasure import search
from features.erasure.erase import ErasureReport, Scope, erase_user
from features.erasure.known import known_of
from features.erasure.parquet import count_rows, erase_rows
from features.erasure.search import files_below, holds
from features.errors import ConfigError, DataError, FileError, LogError
from features.instants import now_micros
from features.log.erasure.person import Person
from features.log.event_log import EventLog
from features.log.export import export
from features.log.records import EVENTS, EXPOSURES, Event
from features.log.segments import exclusive, segment_paths
from features.log.upkeep.prune import LOCK
from features.schema import DataConfig
from features.store.base import FeatureStore
from features.store.jobs.refresh import refresh
from features.store.redis import RedisStore
from features.store.redis_keys import RedisKeys
from features.store.redis_server import RedisServer
from features.store.redis_users import RedisUsers
from features.tables.event_files import EventFiles
from features.tables.read import read_tables

ANN = "ann-4711"
OLD = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.stop()


def append(folder: Path, *records: Event) -> None:
    log = EventLog(folder)
    log.append_now([*records, replace(exposure(5), user_id=ANN), exposure(6)])
    log.close()


def click(user: str, item: str, number: int) -> Event:
    return replace(event(number, user), item_id=item)


def tables(folder: Path) -> DataConfig:
    """Events of ann and bob, as JSON lines; one row of each, and a half line of ann, are rejected."""
    folder.mkdir()
    pl.DataFrame({"item_id": ["i1", "i2"]}).write_csv(folder / "items.csv")
    pl.DataFrame({"user_id": [ANN, "bob"], "city": ["Graz", "Linz"]}).write_csv(folder / "users.csv")
    rows = [
        {
            "user_id": user,
            "item_id": item,
            "event": "click",
            "timestamp": OLD.isoformat(),
            "event_id": f"{user}{item}",
        }
        for user in (ANN, "bob")
        for item in ("i1", "i2", "no such item")
    ]
    lines = [*map(json.dumps, rows), f'{{"user_id": "{ANN}", "item_id": "i1", "ti']
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    return DataConfig(source="folder", path=str(folder), events=RULES, log=str(folder.parent / "log"))


def store_of(url: str, rules: object = RULES) -> FeatureStore:
    return RedisStore(url, rules, timeout=1.0)  # type: ignore[arg-type]


@pytest.fixture
def scope(tmp_path: Path, server: RedisServer) -> Scope:
    """ann and bob in every place."""
    data, log = tables(tmp_path / "data"), tmp_path / "log"
    append(log, click(ANN, "i1", 1), click("bob", "i1", 2), click("bob", ANN, 3))
    export(log, EVENTS, tmp_path / "exports", reader="nightly")
    export(log, EXPOSURES, tmp_path / "shown")
    slates = tmp_path / "slates"
    slates.mkdir()
    pl.DataFrame({"user_id": [ANN, "bob"]}).write_parquet(slates / "users.parquet", metadata={"manifest.json": "{}"})
    pl.DataFrame({"user_id": [ANN, "bob"], "item_id": ["i1", "i2"]}).write_parquet(slates / "part-00000.parquet")
    (slates / ".writing-999999999-1-part-00001.parquet").write_bytes(b"half a file of " + ANN.encode())
    pl.DataFrame({"user": ["bob", ANN], "rank": [1.0, 2.0]}).write_parquet(tmp_path / "outcomes.parquet")
    RedisServerKeys(server).clear()
    read_tables(data)  # writes the rejected rows
    for rules in (RULES, RULES.model_copy(update={"history": 4})):
        refresh(store_of(server.url, rules), EventFiles(data), log)
    return Scope(
        log, data, (tmp_path / "shown",), (slates,), (tmp_path / "outcomes.parquet",), (), redis_url=server.url
    )


class RedisServerKeys:
    """The keys of a server."""

    def __init__(self, server: RedisServer) -> None:
        import redis

        self.client = redis.Redis.from_url(server.url)

    def clear(self) -> None:
        self.client.flushall()

    def names(self) -> list[str]:
        return sorted(key.decode() for key in self.client.scan_iter())


def found(report: ErasureReport) -> dict[str, int]:
    return {f"{place.name} {Path(place.path).name}": place.found for place in report.places}


def test_a_person_is_erased_everywhere_and_nobody_else_is(
    scope: Scope, tmp_path: Path, server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = RedisServerKeys(server)
    before = keys.names()
    bob = store_of(server.url).read_users(["bob"])[0].to_bytes()
    report = erase_user(scope, ANN)
    expected = {
        "event log log": 2,
        "exports shown": 1,
        "exports exports": 1,
        "slates slates": 3,
        "other files outcomes.parquet": 1,
        "rejected rows rejected": 2,
        "feature store redis.sock": 4,
    }
    assert found(report) == expected
    assert (report.n_left, report.arrived, report.notes) == (0, 0, ())
    assert report.tables == {"events": 3, "users": 1}
    assert ANN not in repr(report)
    # nobody else
    events = [r for r in read_all(scope.log, EVENTS) if isinstance(r, Event)]
    assert [(r.user_id, r.item_id) for r in events] == [("bob", "i1"), ("bob", ANN)]
    assert pl.read_parquet(tmp_path / "exports" / "*.parquet")["user_id"].to_list() == ["bob", "bob"]
    assert pl.read_parquet(tmp_path / "shown" / "*.parquet")["request_id"].to_list() == ["r6"]
    assert pl.read_parquet(tmp_path / "slates" / "part-*.parquet")["user_id"].to_list() == ["bob"]
    users = tmp_path / "slates" / "users.parquet"
    assert pl.read_parquet(users)["user_id"].to_list() == [None, "bob"]  # shards count its rows
    assert pl.read_parquet_metadata(users)["manifest.json"] == "{}"
    assert pl.read_parquet(tmp_path / "outcomes.parquet").rows() == [("bob", 1.0)]
    assert pl.read_parquet(tmp_path / "data" / "rejected" / "events.parquet")["user_id"].to_list() == ["bob"]
    assert [key for key in before if key not in keys.names()] == [key for key in before if key.endswith(f":{ANN}")]
    assert store_of(server.url).read_users(["bob"])[0].to_bytes() == bob
    assert store_of(server.url).recent_users(9) == ["bob"]
    # files go on
    assert export(scope.log, EVENTS, tmp_path / "exports", reader="nightly").records == 0
    # by hand: the bytes of no file but the customer's tables, and of bob's event with an item of this id
    hits = {path for path in files_below(tmp_path) if ANN.encode() in path.read_bytes()}
    yours = {tmp_path / "data" / "events.jsonl", tmp_path / "data" / "users.csv"}
    assert hits == {*yours, *segment_paths(scope.log / EVENTS), tmp_path / "exports" / "1970-01-01.parquet"}
    again = erase_user(scope, ANN)
    assert (set(found(again).values()), again.n_left) == ({0}, 0)


def test_a_dry_run_changes_nothing_and_counts_the_same(scope: Scope, tmp_path: Path, server: RedisServer) -> None:
    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in files_below(tmp_path) if path.name != LOCK}

    before, keys = everything(), RedisServerKeys(server).names()
    report = erase_user(scope, ANN, dry_run=True)
    assert (everything(), RedisServerKeys(server).names()) == (before, keys)
    assert report.dry_run
    assert found(report)["slates slates"] == 3  # with the unfinished file, which the erasure deletes
    assert found(report) == found(erase_user(scope, ANN))


def test_the_next_reading_of_the_tables_leaves_the_rows_out(scope: Scope, tmp_path: Path) -> None:
    data = scope.data
    assert data is not None
    erase_user(scope, ANN)
    read = read_tables(data)
    assert read.events["user_id"].to_list() == ["bob", "bob"]
    assert read.users is not None
    assert read.users["user_id"].to_list() == ["bob"]
    assert "2 events of erased users are left out" in read.report.notes
    assert "2 rejected rows of events are of erased users: they are not written" in read.report.notes
    assert "1 rows of users of erased users are left out" in read.report.notes
    assert pl.read_parquet(tmp_path / "data" / "rejected" / "events.parquet")["user_id"].to_list() == ["bob"]
    assert all(c.read == c.kept + c.rejected for c in read.report.counts)


def test_a_person_who_comes_back_counts_from_then_on(scope: Scope, tmp_path: Path) -> None:
    data = scope.data
    assert data is not None
    erase_user(scope, ANN)
    later = now_micros() + 1000
    append(scope.log, replace(click(ANN, "i2", later), event_id="new"))
    new = {"user_id": ANN, "item_id": "i2", "event": "click", "timestamp": later, "event_id": "exported"}
    with (tmp_path / "data" / "events.jsonl").open("a") as file:
        file.write(json.dumps(new | {"timestamp": datetime.fromtimestamp(later / 1e6, UTC).isoformat()}) + "\n")
    assert read_tables(data).events.filter(pl.col("user_id") == ANN)["event_id"].to_list() == ["exported"]
    assert [r.event_id for r in read_all(scope.log, EVENTS) if isinstance(r, Event) and r.user_id == ANN] == ["new"]
    assert found(erase_user(scope, ANN))["event log log"] == 2
    assert ANN not in read_tables(data).events["user_id"].to_list()


def test_tables_of_erased_users_alone_leave_no_event(tmp_path: Path) -> None:
    data = tables(tmp_path / "data")
    append(tmp_path / "log", click("bob", "i1", 1))
    for user in (ANN, "bob"):
        erase_user(Scope(tmp_path / "log", data), user)
    read = read_tables(data)
    assert (len(read.events), len(read.items)) == (0, 2)


def test_events_that_arrive_meanwhile_are_a_new_persons(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    from features.erasure import erase as module

    places_of = module.places_of

    def arriving(scope: Scope, until: dict[str, int]) -> object:
        append(scope.log, click(ANN, "i2", 50))
        return places_of(scope, until)

    monkeypatch.setattr(module, "places_of", arriving)
    report = erase_user(scope, ANN)
    assert (report.n_left, report.arrived) == (0, 2)


def test_what_is_left_is_named(scope: Scope, tmp_path: Path) -> None:
    folder = tmp_path / "bundles" / "b1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"note": f"for {ANN}"}))
    (folder / "other.json").write_text(json.dumps({"note": f"for {ANN}2"}))
    pl.DataFrame({"item_id": [ANN]}).write_parquet(folder / "items.parquet")  # an item has this id
    report = erase_user(replace(scope, searched=(tmp_path / "bundles",)), ANN)
    assert report.n_left == 1
    (place,) = [place for place in report.places if place.n_left]
    assert place.left == (str(folder / "manifest.json"),)


def test_a_short_id_is_not_searched_for_in_any_file(scope: Scope, tmp_path: Path) -> None:
    (tmp_path / "seed.json").write_text('{"seed": "bob"}')
    report = erase_user(replace(scope, searched=(tmp_path / "seed.json",)), "bob")
    assert report.n_left == 0
    assert "were not searched: the id has fewer than 8 bytes" in report.notes[0]


def test_what_cannot_be_searched_is_said(tmp_path: Path) -> None:
    append(tmp_path / "log")
    export(tmp_path / "log", EVENTS, tmp_path / "gone", reader="x")
    os.rename(tmp_path / "gone", tmp_path / "moved")
    report = erase_user(Scope(tmp_path / "log"), ANN)
    assert len(report.notes) == 3
    assert f"exports of the reader 'x' were not searched: {tmp_path / 'gone'} is not here" in report.notes[0]
    assert "give --config" in report.notes[1]
    assert "keeps the state of the user until it restarts" in report.notes[2]
    data = tables(tmp_path / "data")
    report = erase_user(Scope(tmp_path / "log", data.model_copy(update={"log": None})), ANN)
    assert "data.log of the configuration is not set: set it to " in report.notes[1]


def test_mistakes(scope: Scope, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the user id: empty: give it a text$"):
        erase_user(scope, "")
    with pytest.raises(ConfigError, match=r"^slates .*slatez: no such file; check the path$"):
        erase_user(replace(scope, slates=(tmp_path / "slatez",)), ANN)
    with exclusive(scope.log / LOCK), pytest.raises(LogError, match=r"another process prunes .*log, or erases"):
        erase_user(scope, ANN)
    with exclusive(tmp_path / "exports" / ".export.lock"), pytest.raises(FileError, match="an export writes"):
        erase_user(scope, ANN)
    (tmp_path / "slates" / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileError, match=r"broken\.parquet is no parquet file that can be read, and what it"):
        erase_user(scope, ANN)
    (tmp_path / "data" / "events.jsonl").write_text("[]")
    with pytest.raises(DataError):
        known_of(replace(scope, slates=()), ANN)


def test_a_file_without_users_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": [ANN], "n": [1]}).write_parquet(path)
    before = path.stat().st_mtime_ns
    assert (count_rows(path, Person(ANN)), erase_rows(path, Person(ANN)), path.stat().st_mtime_ns) == (0, 0, before)
    numbers = tmp_path / "numbers.parquet"
    pl.DataFrame({"user_id": [7, 8, None]}).write_parquet(numbers)
    assert erase_rows(numbers, Person("7")) == 1
    assert pl.read_parquet(numbers)["user_id"].to_list() == [8, None]


def test_a_file_is_searched_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CHUNK_BYTES", 32)
    path = tmp_path / "large"
    for start in range(70):
        path.write_bytes(b" " * start + ANN.encode() + b" " * 40)
        assert holds(path, Person(ANN))
        path.write_bytes(b" " * start + b"x" + ANN.encode() + b" " * 40)
        assert not holds(path, Person(ANN))


def test_what_is_known_of_a_person(scope: Scope, tmp_path: Path) -> None:
    known = known_of(scope, ANN)
    assert known["user_id"] == ANN
    assert [row["item_id"] for row in known["tables"]["events"]] == ["i1", "i2", "no such item"]
    assert [row["city"] for row in known["tables"]["users"]] == ["Graz"]
    assert [record["item_id"] for record in known["log"]["events"]] == ["i1"]
    assert [record["request_id"] for record in known["log"]["exposures"]] == ["r5"]
    assert [len(rows) for rows in known["rejected rows"].values()] == [2]
    assert sorted(len(rows) for rows in known["slates"].values()) == [1, 1]
    assert sorted(known["exports"].values()) == [1, 1]
    states = list(known["store"].values())
    assert [[e["item_id"] for e in state["events"]] for state in states] == [["i1", "i1", "i2", "no such item"]] * 2
    assert [(state["recent"], state["seen_items"]) for state in states] == [(True, 3)] * 2
    erase_user(scope, ANN)
    after = known_of(scope, ANN)
    assert len(after["tables"]["events"]) == 3  # the customer's file
    empty = {name: after[name] for name in ("log", "damaged_lines", "rejected rows", "slates", "exports", "store")}
    assert not any(empty.values())


@pytest.mark.parametrize("user", ["a*b", "a?b", "a[b]c", "a\\b", "a:b", "b", "u:b", "watermark", "recent", "é"])
def test_only_the_keys_of_the_user_are_deleted(server: RedisServer, user: str) -> None:
    keys = RedisServerKeys(server)
    keys.clear()
    others = ["axb", "ab", "b:c", "c:b", "x:u:b", "ae", "a*b*", "watermarks"]
    store = store_of(server.url)
    assert isinstance(store, RedisStore)
    fill = store.start_fill().fill
    store.push([click(name, "i1", 5) for name in [*others, user]])
    keys.client.set(f"recsys:zz:u:{user}", "of another product")
    before = keys.names()
    users = RedisUsers(server.url)
    (held,) = users.find(user)
    assert (held.recent, len(held.keys)) == (True, 2)
    users.erase(user)
    assert users.find(user) == []
    assert sorted({*before} - {*keys.names()}) == [RedisKeys.of(RULES).user(fill, user)]
    assert sorted(store.recent_users(99)) == sorted({*others} - {user})
    users.close()


def test_a_state_of_another_layout_is_erased_too(server: RedisServer) -> None:
    keys = RedisServerKeys(server)
    keys.clear()
    keys.client.set("recsys:0123456789ab:u:ann", b"old")
    keys.client.zadd("recsys:ba9876543210:recent", {"ann": 5, "bob": 6})
    users = RedisUsers(server.url)
    assert [(f.prefix[7:11], f.state, f.recent) for f in users.find("ann")] == [
        ("0123", None, False),
        ("ba98", None, True),
    ]
    users.erase("ann")
    assert (users.find("ann"), keys.names()) == ([], ["recsys:ba9876543210:recent"])
    users.close()


@pytest.mark.parametrize("stop", [2, 4, 6, 9, 11, 13, 16])
def test_an_interrupted_erasure_is_run_again(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops at one of its writes to the disk."""
    log, slates = tmp_path / "log", tmp_path / "slates"
    append(log, click(ANN, "i1", 1), click("bob", "i1", 2), click(ANN, "i2", 3))
    export(log, EVENTS, tmp_path / "exports", reader="nightly")
    slates.mkdir()
    for part in range(2):
        pl.DataFrame({"user_id": [ANN, "bob"], "n": [part, 2]}).write_parquet(slates / f"part-{part}.parquet")
    scope, calls, fsync = Scope(log, slates=(slates,)), [0], os.fsync

    def stops(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stops)
        with pytest.raises(KeyboardInterrupt):
            erase_user(scope, ANN)
    assert erase_user(scope, ANN).n_left == 0
    assert [r.user_id for r in read_all(log, EVENTS) if isinstance(r, Event)] == ["bob"]
    assert pl.read_parquet(tmp_path / "exports" / "*.parquet")["user_id"].to_list() == ["bob"]
    assert pl.read_parquet(slates / "*.parquet")["user_id"].to_list() == ["bob", "bob"]
    assert {path.name for path in slates.iterdir()} == {"part-0.parquet", "part-1.parquet"}
    assert not [path for path in files_below(tmp_path) if ANN.encode() in path.read_bytes()]
