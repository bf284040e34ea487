"""What the log says of files that the operating system does not give, and what it does with damaged ones."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import orjson
import polars as pl
import pytest
from log_files import event, exposure, legacy_segment, put

from features.erasure.erase import Scope, upkeep_lock
from features.erasure.known import known_of
from features.erasure.places import ParquetPlace
from features.errors import FileError, LogError
from features.log.erasure.erased_users import ErasedUsers
from features.log.erasure.person import Person
from features.log.event_log import EventLog
from features.log.export import export
from features.log.item_changes import delete_unused_media
from features.log.item_feed import ItemFeed
from features.log.reader import read
from features.log.readers import advance, reader_of, registered
from features.log.records import EVENTS, EXPOSURES, ITEMS, line_of
from features.log.segments import cut_torn_end, has_settled, is_marked, segment_paths
from features.log.snapshot import newest_snapshot
from features.log.status import log_status
from features.log.upkeep.takeover import take_over

SEGMENT = "00000000000000000001-7.log"


def loop(path: Path) -> Path:
    """A link to itself, which cannot be opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)
    return path


def segment(folder: Path, data: bytes, stream: str = EVENTS) -> Path:
    path = folder / stream / SEGMENT
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


UNREADABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("erased.json", ErasedUsers.of, "the list of erased users cannot be read: "),
    ("readers/mirror.json", registered, "the readers of the event log cannot be read: "),
    (f"events/{SEGMENT}", log_status, "the event log in {} cannot be read: "),
    (f"items/{'1' * 20}.snapshot", newest_snapshot, "the event log in {} cannot be read: "),
    ("x.log", lambda folder: ItemFeed(folder)._written("x.log"), "the event log in {} cannot be read: "),
    (f"events/{SEGMENT}", lambda folder: known_of(Scope(folder), "u"), "what is known of the user cannot be read: "),
]


@pytest.mark.parametrize(("name", "read", "message"), UNREADABLE, ids=[case[0] for case in UNREADABLE])
def test_a_file_that_cannot_be_opened(
    tmp_path: Path, name: str, read: Callable[[Path], object], message: str
) -> None:
    path = loop(tmp_path / name)
    with pytest.raises(LogError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(message.format(tmp_path) + f"{path}: Too many levels of symbolic links")


def test_the_time_of_a_segment_that_was_deleted_is_later_than_all(tmp_path: Path) -> None:
    feed = ItemFeed(tmp_path)
    assert feed._written(SEGMENT) == 1 << 62
    path = segment(tmp_path, b"", ITEMS)
    os.utime(path, ns=(5, 7_000_000_000))
    assert feed._written(SEGMENT) == 7_020_000_000


def test_a_reader_is_registered_and_found_by_name(tmp_path: Path) -> None:
    advance(tmp_path, "a", EVENTS, {"events/x.log": 3}, exports="/out")
    advance(tmp_path, "b", EXPOSURES, {})
    found = reader_of(tmp_path, "a")
    assert found is not None
    assert (found.name, found.stream, found.position, found.exports) == ("a", EVENTS, {"events/x.log": 3}, "/out")
    assert reader_of(tmp_path, "c") is None
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LogError, match=r"^reader 'a' of the log cannot be registered: .*file"):
        advance(tmp_path / "file", "a", EVENTS, {})


def test_an_export_waits_for_another_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".export.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LogError) as caught:
            export(tmp_path, EVENTS, out)
    assert str(caught.value) == f"another export writes to {out}: wait until it has ended"


def test_a_snapshot_of_a_later_version_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "items" / f"{'1' * 20}.snapshot"
    path.parent.mkdir()
    for version, fits in ((1, True), (2, False)):
        path.write_bytes(line_of(orjson.dumps({"v": version, "kind": "snapshot", "folded": [], "ended": [[3, 4]]})))
        if fits:
            found = newest_snapshot(tmp_path)
            assert found is not None
            assert (found.path, found.folded, found.ended, found.start) == (path, frozenset(), ((3, 4),), 63)
        else:
            with pytest.raises(LogError, match=r"is of version 2: install the version that wrote it$"):
                newest_snapshot(tmp_path)


def test_media_that_cannot_be_listed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "media"
    folder.mkdir()

    def refuse(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(LogError) as caught:
        delete_unused_media(tmp_path, (), 0)
    assert str(caught.value).startswith(f"{folder}: media cannot be listed: {folder}: Permission denied")
    assert str(caught.value).endswith("; unused media stay")


def test_media_that_another_service_has_deleted_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    deleted, old = folder / ("a" * 64), folder / ("b" * 64)
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([deleted, old]))
    assert delete_unused_media(tmp_path, (), 86_400_000_001) == 1
    assert not old.exists()


def test_a_link_is_no_media_and_new_media_are_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    new, link, target = folder / ("a" * 64), folder / ("b" * 64), tmp_path / "target"
    for path, at in ((new, 10**6), (target, 0)):
        path.write_bytes(b"")
        os.utime(path, (at, at))
    link.symlink_to(target)
    os.utime(link, (0, 0), follow_symlinks=False)
    locks: list[int] = []
    monkeypatch.setattr("features.log.item_changes.fcntl.flock", lambda file, kind: locks.append(kind))
    assert delete_unused_media(tmp_path, (), 86_400_000_000 + 10**12) == 0
    assert locks == []  # a request may hold the lock of new media
    assert delete_unused_media(tmp_path, (), 86_400_000_000 + 10**12 + 1) == 1
    assert (new.exists(), link.is_symlink(), target.exists()) == (False, True, True)
    assert locks == [fcntl.LOCK_EX]


@pytest.mark.parametrize("free", [True, False])
def test_a_segment_settles_when_its_writer_has_ended(tmp_path: Path, free: bool) -> None:
    line = line_of(orjson.dumps(event(1)))
    path = segment(tmp_path, line + b"half a li")
    with path.open("rb") as writer:
        if not free:
            fcntl.flock(writer, fcntl.LOCK_EX)
        assert has_settled(tmp_path, path) is free
    assert path.read_bytes() == line + (b"" if free else b"half a li")
    assert path.with_suffix(".torn").exists() is free
    assert is_marked(path) is free
    if free:
        assert path.with_suffix(".torn").read_bytes() == b"half a li"
        assert has_settled(tmp_path, path)  # known by its mark


@pytest.mark.parametrize("length", [60_000, 70_000, 200_000])
def test_a_torn_end_that_is_longer_than_what_is_looked_at(tmp_path: Path, length: int) -> None:
    line = line_of(orjson.dumps(event(1)))
    path = segment(tmp_path, line * 2 + b"x" * length)
    [torn] = cut_torn_end(tmp_path, path)
    assert (torn.segment, torn.offset, torn.length) == (f"events/{SEGMENT}", 2 * len(line), length)
    assert path.read_bytes() == line * 2
    assert not is_marked(path)
    assert cut_torn_end(tmp_path, path, mark=True) == []
    assert is_marked(path)


def test_a_torn_end_of_one_byte_after_a_long_segment(tmp_path: Path) -> None:
    line = line_of(orjson.dumps(event(1)))
    path = segment(tmp_path, line * 2000 + b"x")
    [torn] = cut_torn_end(tmp_path, path)
    assert (torn.offset, torn.length) == (2000 * len(line), 1)
    assert path.with_suffix(".torn").read_bytes() == b"x"


def test_an_empty_segment_may_just_have_begun(tmp_path: Path) -> None:
    path = segment(tmp_path, b"")
    assert cut_torn_end(tmp_path, path, mark=True) == []
    assert not is_marked(path)


def test_what_a_take_over_does_not_know_goes_to_the_events_as_it_is(tmp_path: Path) -> None:
    later = line_of(b'{"kind":"wish","user_id":"u"}')
    first, last = (line_of(orjson.dumps(event(n))) for n in (1, 2))
    path = legacy_segment(tmp_path, [])
    path.write_bytes(first + b"damaged\n" + later + b"broken\n" + last)
    assert take_over(tmp_path) == 1
    assert not path.exists()
    data = (tmp_path / "events" / path.name).read_bytes()
    at = len(first + later) + len(b"damaged\nbroken\n")
    copies = [orjson.dumps(event(1))[:-1] + b',"at":0}', orjson.dumps(event(2))[:-1] + b',"at":%d}' % at]
    assert data == line_of(copies[0]) + b"damaged\n" + later + b"broken\n" + line_of(copies[1])


def test_damaged_bytes_after_the_last_event_are_kept_beside_a_taken_over_segment(tmp_path: Path) -> None:
    lines = [line_of(orjson.dumps(record)) for record in (event(1), exposure(1), put("i", 1))]
    path = legacy_segment(tmp_path, [])
    path.write_bytes(lines[0] + b"damaged\n" + lines[1] + b"broken\n" + lines[2])
    for _ in range(2):  # the second time as after an interruption
        content = path.read_bytes()
        assert take_over(tmp_path) == 1
        assert path.with_suffix(".torn").read_bytes() == b"damaged\nbroken\n"
        path.write_bytes(content)


def test_a_line_that_is_no_json_may_be_of_the_person() -> None:
    person = Person("ann")
    assert person.is_named_by(b'{"user_id":"ann"')
    assert not person.is_named_by(b'{"user_id":"bob"')
    assert not person.is_named_by(b'{"user_id":"bob","item_id":"ann"}')
    assert not person.is_named_by(b'["ann"]')


def test_times_of_users_of_whom_none_was_erased() -> None:
    erased = ErasedUsers(b"k" * 32, {}).with_user("ann", 7)
    users = pl.Series(["bob", None, "eve"])
    assert erased.times(users).to_list() == [None, None, None]
    assert erased.times(users).dtype == pl.Int64
    assert erased.times(pl.Series(["ann", None, "bob"])).to_list() == [7, None, None]
    assert ErasedUsers(b"", {}).times(users).to_list() == [None, None, None]


def test_an_erasure_that_the_disk_ends_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(LogError) as caught, upkeep_lock(tmp_path):
        raise OSError(28, "No space left on device", str(tmp_path))
    assert str(caught.value).startswith(f"the erasure is not complete: {tmp_path}: No space left on device")
    assert str(caught.value).endswith("; then run it again")


def test_what_interrupted_exports_have_left_is_erased(tmp_path: Path) -> None:
    log, out = EventLog(tmp_path / "log"), tmp_path / "out"
    log.append_now([event(1, "ann"), event(2, "bob")])
    log.close()
    export(tmp_path / "log", EVENTS, out)
    (out / ".collecting-1" / "day").mkdir(parents=True)
    (out / "x.part").write_bytes(b"ann")
    assert ParquetPlace("exports", out, "*.part").erase(Person("ann")) == 1
    assert not (out / ".collecting-1").exists()
    assert not (out / "x.part").exists()
    assert [pl.read_parquet(path).get_column("user_id").to_list() for path in out.glob("*.parquet")] == [["bob"]]
    with (out / ".export.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FileError, match=r"an export writes to .*: wait until it has ended, and erase again"):
            ParquetPlace("exports", out).erase(Person("ann"))


@pytest.mark.parametrize(("extra", "records"), [(-1, 2), (0, 2), (1, 3)])
def test_a_read_ends_once_it_has_read_as_many_bytes_as_it_may(tmp_path: Path, extra: int, records: int) -> None:
    log = EventLog(tmp_path, segment_bytes=1)  # a segment for each
    for number in range(1, 5):
        log.append_now([event(number)])
    log.close()
    size = sum(path.stat().st_size for path in segment_paths(tmp_path / EVENTS)[:2])
    first = read(tmp_path, limit=size + extra)
    assert [record.timestamp for record in first.records] == list(range(1, records + 1))
    rest = read(tmp_path, first.position)
    assert [record.timestamp for record in rest.records] == list(range(records + 1, 5))


def test_what_a_read_leaves_unread_does_not_count_as_read(tmp_path: Path) -> None:
    long = EventLog(tmp_path)
    for number in range(1, 5):
        long.append_now([event(number)])
    long.close()
    [path] = segment_paths(tmp_path / EVENTS)
    size = path.stat().st_size // 4
    log = EventLog(tmp_path)
    log.append_now([event(5)])
    log.close()
    part = read(tmp_path, {f"events/{path.name}": 3 * size}, limit=2 * size)
    assert [record.timestamp for record in part.records] == [4, 5]
