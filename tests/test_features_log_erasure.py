"""Erasure from the log: the person's lines become fillers, and nothing else changes."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from zlib import crc32

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import event, exposure, ids, legacy_segment, put, read_all

from features.errors import LogError
from features.log.erasure import overwrite
from features.log.erasure.erased_users import ERASED_FILE, ErasedUsers
from features.log.erasure.log_lines import erase_lines, find_lines, line_files, log_ends
from features.log.erasure.overwrite import JOURNAL, finish
from features.log.erasure.person import Person, lines_with
from features.log.event_log import EventLog
from features.log.export import export
from features.log.reader import read, read_lines
from features.log.records import EVENTS, EXPOSURES, FILLER_BYTES, STREAMS, Event, filler, line, line_of
from features.log.segments import has_ended, is_marked, recover, scan, segment_paths
from features.log.status import log_status
from features.log.upkeep.prune import prune

ANN = Person("ann")


def erase(folder: Path, user: str = "ann") -> int:
    """Erase as the command does; number of lines."""
    finish(folder)
    recover(folder)
    return sum(len(found.pieces) for found in erase_lines(folder, Person(user), log_ends(folder)))


def left(folder: Path, user: str = "ann") -> int:
    return sum(len(found.pieces) for found in find_lines(folder, Person(user), log_ends(folder)))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in line_files(folder)}


def written(folder: Path, users: list[str], segment_bytes: int = 700) -> None:
    """An event of each user, and an exposure of "u" for every third one."""
    log = EventLog(folder, segment_bytes=segment_bytes)
    for number in range(0, len(users), 3):
        log.append_now([exposure(number), *(event(number + i, user) for i, user in enumerate(users[number:][:3]))])
    log.close()


def test_a_filler_has_any_length_from_that_of_the_shortest_one_on() -> None:
    for length in (*range(FILLER_BYTES, FILLER_BYTES + 300), 70_000):
        data = filler(length)
        lines, end, damaged = scan(data)
        assert (len(data), end, damaged) == (length, length, [])
        assert set(orjson.loads(lines[0][1])) == {"v", "kind", "pad"}
    shortest = Event(user_id="a", item_id="b", event="c", timestamp=0)
    assert len(line(shortest)) > FILLER_BYTES
    assert len(line_of(orjson.dumps(shortest))) > FILLER_BYTES  # of version 0


def test_the_lines_of_one_user_become_fillers_and_others_stay_where_they_are(tmp_path: Path) -> None:
    written(tmp_path, ["ann", "bob", "ann", "annie", "an", "Ann", "bob"])
    before, position = contents(tmp_path), read(tmp_path, read(tmp_path, limit=1).position, limit=1).position
    times = {path: path.stat().st_mtime_ns for path in before}
    assert erase(tmp_path) == 2
    assert left(tmp_path) == 0
    records = [r for r in read_all(tmp_path, EVENTS) if isinstance(r, Event)]
    assert [(r.user_id, r.timestamp) for r in records] == [
        ("bob", 1),
        ("annie", 3),
        ("an", 4),
        ("Ann", 5),
        ("bob", 6),
    ]
    assert ids(read_all(tmp_path, EXPOSURES)) == [0, 3, 6]
    for path, data in contents(tmp_path).items():
        assert len(data) == len(before[path])
        assert is_marked(path)
        changed = data != before[path]
        # a copy by rsync compares size and time: it must see the change
        assert path.stat().st_mtime_ns - times[path] == changed * 10**9
    status = {s.stream: s for s in log_status(tmp_path, check=True).streams}
    assert (status[EVENTS].records, status[EVENTS].damaged) == (5, 0)
    assert ids(read_all(tmp_path, EVENTS, dict(position))) == [3, 4, 5, 6]  # two had been read
    assert erase(tmp_path) == 0
    assert not (tmp_path / JOURNAL).exists()


def test_an_export_goes_on_after_an_erasure(tmp_path: Path) -> None:
    written(tmp_path / "log", ["ann", "bob"])
    assert export(tmp_path / "log", EVENTS, tmp_path / "out").records == 2
    erase(tmp_path / "log")
    assert export(tmp_path / "log", EVENTS, tmp_path / "out").records == 0
    written(tmp_path / "log", ["cyd", "ann"])
    assert export(tmp_path / "log", EVENTS, tmp_path / "out").records == 2


def test_merged_users_undone_events_and_exposures_are_erased_by_their_keys(tmp_path: Path) -> None:
    (tmp_path / EVENTS).mkdir()
    payloads = [
        b'{"v":1,"kind":"users_merged","user_id":"bob","from_id":"ann","timestamp":5}',
        b'{"v":1,"kind":"event_undone","user_id":"ann","event_id":"e5","timestamp":6}',
        b'{"v":9,"kind":"event","user_id":"ann","note":"of a later version"}',
        orjson.dumps({"v": 1, "kind": "event", "user_id": "bob", "item_id": "ann", "event": "e", "timestamp": 7}),
    ]
    path = tmp_path / EVENTS / f"{1:020d}-7.log"
    path.write_bytes(b"".join(map(line_of, payloads)))
    assert erase(tmp_path) == 3
    assert [payload for _, payload in scan(path.read_bytes())[0]][3] == payloads[3]  # an item may have the same id


@pytest.mark.parametrize("user", ["é", 'a"b', "a\\b", "a b/c%", "日本", "7"])
def test_ids_of_all_kinds(tmp_path: Path, user: str) -> None:
    log = EventLog(tmp_path)
    log.append_now([event(1, user), event(2, user + "x"), event(3, "x" + user)])
    log.append_now([replace(exposure(1), user_id=user), exposure(2)])
    log.close()
    (path,) = segment_paths(tmp_path / EVENTS)
    path.chmod(0o600)
    with path.open("ab") as file:  # JSON may have escapes where our writer has none
        file.write(line_of(json.dumps({"v": 1, **asdict(event(4, user))}, separators=(",", ":")).encode()))
    assert erase(tmp_path, user) == 3
    assert ids(read_all(tmp_path, EVENTS)) == [2, 3]
    assert ids(read_all(tmp_path, EXPOSURES)) == [2]


def test_damaged_and_torn_bytes_with_the_id_are_erased(tmp_path: Path) -> None:
    written(tmp_path, ["ann", "bob", "cyd"], segment_bytes=1 << 20)
    (path,) = segment_paths(tmp_path / EVENTS)
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # in the line of ann
    half = line(event(9, "ann"))[:60]
    path.chmod(0o600)
    path.write_bytes(bytes(data) + half)  # a crash
    (tmp_path / EVENTS / f"{5:020d}-5.torn").write_bytes(half + b"\n" + line(event(9, "bob"))[:60])
    assert erase(tmp_path) == 3
    assert ids(read_all(tmp_path, EVENTS)) == [1, 2]
    assert not [p for p, found in contents(tmp_path).items() if b"ann" in found]
    (torn,) = [p for p in segment_paths(tmp_path / EVENTS, ".torn") if "bob" in p.read_text()]
    assert torn.read_bytes() == filler(61) + line(event(9, "bob"))[:60]
    assert path.with_suffix(".torn").read_bytes() == b" " * 60
    assert left(tmp_path) == 0


def test_short_damaged_lines_are_blanked(tmp_path: Path) -> None:
    (tmp_path / EVENTS).mkdir()
    path = tmp_path / EVENTS / f"{1:020d}-7.log"
    path.write_bytes(b'"user_id":"ann","i\n' + line(event(1, "bob")))
    assert erase(tmp_path) == 1
    assert path.read_bytes() == b" " * 18 + b"\n" + line(event(1, "bob"))


def test_a_segment_that_a_service_writes_is_erased_and_goes_on(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append_now([event(1, "ann"), event(2, "bob")])
    until = log_ends(tmp_path)
    log.append_now([event(3, "ann")])  # after the erasure has begun
    (path,) = segment_paths(tmp_path / EVENTS)
    with path.open("ab") as file:
        file.write(line(event(4, "ann"))[:50])  # a write that is under way
    assert [len(found.pieces) for found in erase_lines(tmp_path, ANN, until)] == [1]
    assert not has_ended(path)
    path.write_bytes(path.read_bytes()[:-50])
    log.append_now([event(5, "bob")])
    log.close()
    assert ids(read_all(tmp_path, EVENTS)) == [2, 3, 5]
    assert sum(len(f.records) for f in find_lines(tmp_path, ANN, log_ends(tmp_path), until)) == 1


def test_segments_of_earlier_versions_and_their_takeover(tmp_path: Path) -> None:
    path = legacy_segment(tmp_path, [event(1, "ann"), put("a", 2), exposure(3), event(4, "bob")])
    since, at = read(tmp_path).position, path.stat().st_mtime_ns
    assert erase(tmp_path) == 1
    assert path.stat().st_mtime_ns == at  # the order of item changes depends on it
    assert ids(read_all(tmp_path, EVENTS)) == [4]
    assert prune(tmp_path, {}).taken_over == 1  # type: ignore[union-attr]
    assert ids(read_all(tmp_path, EVENTS)) == [4]
    assert read_all(tmp_path, EVENTS, dict(since)) == []
    assert sum(data.count(b"erased") for data in contents(tmp_path).values()) == 0
    assert left(tmp_path) == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_an_interrupted_overwriting_is_completed_by_the_next_upkeep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    written(tmp_path, ["bob", "ann"], segment_bytes=1)
    (path,) = segment_paths(tmp_path / EVENTS)
    before = path.read_bytes()

    def half(descriptor: int, data: bytes, offset: int) -> None:
        os.pwrite(descriptor, data[: len(data) // 2], offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(overwrite, "_write_all", half)
        with pytest.raises(KeyboardInterrupt):
            erase(tmp_path)
    if restarted:  # a start takes the half overwritten line for one that a crash has left
        assert [torn.offset for torn in recover(tmp_path)] == [len(line(event(0, "bob")))]
        assert b'stamp":1,' in path.with_suffix(".torn").read_bytes()
    prune(tmp_path, {})
    own = line(event(0, "bob"))
    assert path.read_bytes() == own + (b"" if restarted else filler(len(before) - len(own)))
    assert not restarted or not path.with_suffix(".torn").read_bytes().strip()
    assert is_marked(path)
    assert not (tmp_path / JOURNAL).exists()
    (tmp_path / JOURNAL).write_text("{")
    with pytest.raises(LogError, match=r"\.erasing: is damaged: delete it, and erase the user again"):
        finish(tmp_path)


USERS = st.sampled_from(["ann", "bob", "a", "n", "an\u00e9"])


@settings(max_examples=40, deadline=None)
@given(st.lists(USERS, min_size=1, max_size=25), st.integers(200, 2000), USERS, st.integers(0, 40), st.data())
def test_every_other_record_stays_at_its_offset_whatever_interrupts(
    users: list[str], segment_bytes: int, user: str, crash: int, data: st.DataObject
) -> None:
    """The erasure is killed at one of its writes, after a part of the bytes, and run again."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        written(folder, users, segment_bytes)
        before = contents(folder)
        expected = {stream: _lines(folder, stream, user) for stream in STREAMS}
        share, count = data.draw(st.floats(0, 1)), [0]

        def stops(descriptor: int, part: bytes, offset: int) -> None:
            count[0] += 1
            os.pwrite(descriptor, part[: int(share * len(part))] if count[0] == crash else part, offset)
            if count[0] == crash:
                raise KeyboardInterrupt

        patch.setattr(overwrite, "_write_all", stops)
        try:
            erase(folder, user)
        except KeyboardInterrupt:
            erase(folder, user)
        after = contents(folder)
        assert {path: len(found) for path, found in after.items()} == {p: len(d) for p, d in before.items()}
        assert left(folder, user) == 0
        assert all(b'"%s"' % form not in found for form in Person(user).forms for found in after.values())
        for stream in STREAMS:
            assert _lines(folder, stream, user) == expected[stream]
            whole = list(expected[stream])
            for start in range(0, len(whole), 5):  # reading from any position gives the same other records
                segment, offset = whole[start]
                part = read_lines(folder, _up_to(folder, stream, segment, offset), stream=stream)
                assert [(at.segment, at.offset) for at in part.lines] == whole[start:]
            assert read_lines(folder, stream=stream).damaged == ()


def _lines(folder: Path, stream: str, user: str) -> dict[tuple[str, int], bytes]:
    """(segment, offset) -> JSON of each record of other users."""
    part = read_lines(folder, stream=stream)  # type: ignore[arg-type]
    return {(at.segment, at.offset): at.payload for at in part.lines if not Person(user).is_named_by(at.payload)}


def _up_to(folder: Path, stream: str, segment: str, offset: int) -> dict[str, int]:
    """The position just before a record."""
    position = {}
    for path in segment_paths(folder / stream):
        key = f"{stream}/{path.name}"
        position[key] = offset if key == segment else path.stat().st_size
        if key == segment:
            break
    return position


ERASE = """
import sys, time
from pathlib import Path
from features.log.erasure.log_lines import erase_lines, log_ends
from features.log.erasure.overwrite import finish
from features.log.erasure.person import Person
folder = Path(sys.argv[1])
print("ready", flush=True)
finish(folder)
erase_lines(folder, Person("ann"), log_ends(folder))
"""


def test_an_erasure_that_is_killed_is_run_again(tmp_path: Path) -> None:
    """SIGKILL at several moments of the work on 40 segments."""
    users = ["ann", "bob", "ann", "cyd"] * 500
    log = EventLog(tmp_path, segment_bytes=8_000)
    log.append_now([])
    for start in range(0, len(users), 50):
        log.append_now([event(start + i, user) for i, user in enumerate(users[start : start + 50])])
    log.close()
    expected = [number for number, user in enumerate(users) if user != "ann"]
    for delay in (0.0, 0.004, 0.01, 0.02):
        child = subprocess.Popen([sys.executable, "-c", ERASE, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert set(expected) <= set(ids(read_all(tmp_path, EVENTS)))
    erase(tmp_path)
    assert ids(read_all(tmp_path, EVENTS)) == expected
    assert (left(tmp_path), read(tmp_path).damaged) == (0, ())
    assert all(is_marked(path) for path in segment_paths(tmp_path / EVENTS))


def test_a_lock_that_a_running_service_holds_does_not_stop_the_erasure(tmp_path: Path) -> None:
    path = legacy_segment(tmp_path, [event(1, "ann")])
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert erase(tmp_path) == 1
        file.write(line(event(2, "bob")))
    assert ids(read_all(tmp_path, EVENTS)) == [2]


def test_the_lines_that_hold_a_text() -> None:
    data = b"one ab\ntwo\nab ab\nlast ab"
    assert list(lines_with(data, [b"ab"])) == [(0, 7), (11, 6), (17, 7)]
    assert list(lines_with(data, [b"ab", b"two", b"none"], start=8)) == [(7, 4), (11, 6), (17, 7)]
    assert list(lines_with(data, [b"none"])) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'"ann"', True),
        (b"/users/ann/history", True),
        (b"ann", True),
        (b"annie", False),
        (b"joann", False),
        (b"ann\xc3\xa9", False),
        (b"joann ann", True),
    ],
)
def test_an_id_stands_in_bytes_as_a_word(data: bytes, expected: bool) -> None:
    assert ANN.stands_in(data) is expected


def test_the_forms_of_an_id() -> None:
    assert Person("ann").forms == (b"ann",)
    assert Person("é").forms == ("é".encode(), b"\\u00e9", b"%C3%A9", b"%c3%a9")
    assert Person('a"b').forms == (b'a"b', b'a\\"b', b"a%22b")


def test_the_list_of_erased_users_names_nobody(tmp_path: Path) -> None:
    assert ErasedUsers.of(None).times(pl.Series(["ann"])).to_list() == [None]
    erased = ErasedUsers.of(tmp_path).with_user("ann", 5).with_user("bob", 6).with_user("ann", 7)
    erased.write(tmp_path)
    path = tmp_path / ERASED_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ann" not in path.read_bytes()
    again = ErasedUsers.of(tmp_path)
    assert again == erased
    assert again.times(pl.Series(["bob", None, "ann", "cyd", "ann"])).to_list() == [6, None, 7, None, 7]
    other = ErasedUsers.of(tmp_path / "none").with_user("ann", 5)
    assert set(other.users) != set(again.users)  # each log has its own key
    for text in ("{", '{"v": 1}', '{"v": 1, "key": "x", "users": {}}', "[]"):
        path.write_text(text)
        with pytest.raises(LogError, match=r"erased\.json: is no list of erased users: restore it"):
            ErasedUsers.of(tmp_path)
    path.write_text('{"v": 2, "key": "", "users": {}}')
    with pytest.raises(LogError, match=r"is of version 2: install the version that wrote it"):
        ErasedUsers.of(tmp_path)


def test_the_checksum_of_a_filler_is_that_of_every_line() -> None:
    data = filler(100)
    assert data[:9] == b"%08x " % crc32(data[9:-1])


def test_positions_do_not_move(tmp_path: Path) -> None:
    written(tmp_path, ["ann"] * 5, segment_bytes=1 << 20)
    position: Mapping[str, int] = read(tmp_path).position
    erase(tmp_path)
    assert read(tmp_path).position == position
    assert read(tmp_path).records == []
