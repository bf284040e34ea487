"""Backup and restore: a copy of the log that was made while services ran, and a store that is filled from it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from log_files import event, exposure, gone, ids, legacy_segment, put, read_all, state
from toy_service import RULES, toy_events, toy_tables

from features.errors import StoreError
from features.log.event_log import EventLog
from features.log.item_changes import ItemChanges
from features.log.item_feed import item_changes
from features.log.records import EVENTS, EXPOSURES, ITEMS, STREAMS, EventUndone
from features.log.segments import exclusive, segment_paths
from features.log.upkeep.prune import LOCK, prune
from features.store.jobs.refresh import refresh
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer

WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from log_files import event, exposure, gone, put
from features.log.event_log import EventLog
log = EventLog(Path(sys.argv[1]), segment_bytes=20_000)
for number in range(100_000):
    name = f"i{number % 7}"
    change = gone(name, number) if number % 5 == 0 else put(name, number, title=str(number))
    log.append_now([event(number), exposure(number), change])
    print(number, flush=True)
"""
"""Writes all three streams, and prints each number after it has been accepted."""

UPKEEP = """
import sys
from pathlib import Path
from features.log.upkeep.prune import prune
while True:
    prune(Path(sys.argv[1]), {})
"""

DOCUMENTED = "flock {log}/.prune.lock cp -a {log} {copy}"
"""The line that docs/operations.md gives."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.stop()


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_copy_of_a_running_log_holds_all_that_was_accepted_before(tmp_path: Path) -> None:
    """A service writes, and the upkeep compacts without a pause, while the log is copied several times."""
    log = tmp_path / "log"
    legacy_segment(log, [event(-2), put("old", -1)])
    here = Path(__file__).parent
    writer, upkeep = start(WRITER, log, here, here.parent), start(UPKEEP, log)
    assert writer.stdout is not None
    copies = []
    try:
        while not segment_paths(log / ITEMS, ".snapshot"):  # the upkeep compacts
            accepted = int(writer.stdout.readline())
        for number in range(3):
            for _ in range(60):
                accepted = int(writer.stdout.readline())
            copy = tmp_path / f"copy{number}"
            subprocess.run(DOCUMENTED.format(log=log, copy=copy).split(), check=True)
            copies.append((copy, accepted))
    finally:
        for process in (writer, upkeep):
            process.kill()
            process.wait()
    assert writer.stdout.read() is not None
    writer.stdout.close()
    assert upkeep.stdout is not None
    upkeep.stdout.close()
    assert all(segment_paths(copy / ITEMS, ".snapshot") for copy, _ in copies)
    for copy, accepted in copies:
        restored = EventLog(copy)  # a half-written last line is cut off
        restored.close()
        events = ids(read_all(copy, EVENTS))
        assert events == [-2, *range(len(events) - 1)]
        assert len(events) - 2 >= accepted
        assert ids(read_all(copy, EXPOSURES)) == list(range(len(ids(read_all(copy, EXPOSURES)))))
        newest = item_changes(copy)[-1].timestamp
        assert newest >= accepted
        assert state(copy) == expected(newest)
        assert prune(copy, {}) is not None
        assert state(copy) == expected(newest)


def expected(newest: int) -> tuple[list[str], dict[str, object], frozenset[str]]:
    """The items after the changes of the writer up to this time."""
    changes = [put("old", -1)]
    changes += [
        gone(f"i{n % 7}", n) if n % 5 == 0 else put(f"i{n % 7}", n, title=str(n))  # type: ignore[misc]
        for n in range(newest + 1)
    ]
    state = ItemChanges.of_changes(changes)
    return list(state.puts), dict(state.puts), state.deleted


def test_the_store_is_filled_again_from_a_restored_log(tmp_path: Path, server: RedisServer) -> None:
    log, users = tmp_path / "log", ["ann", "bob", "u"]
    tables = toy_tables(tmp_path / "tables", toy_events())
    writer = EventLog(log)
    writer.append_now([event(number, user) for number in range(30) for user in users])
    writer.close()
    store = RedisStore(server.url, RULES, timeout=1.0)
    refresh(store, tables, log)
    before = [found.to_bytes() for found in store.read_users(users)]
    subprocess.run(["cp", "-a", str(log), str(tmp_path / "copy")], check=True)
    shutil.rmtree(log)
    os.kill(server.pid, 9)  # the server loses all it has
    while not server.answers() or store_mark(store):
        pass
    subprocess.run(["cp", "-a", str(tmp_path / "copy"), str(log)], check=True)
    assert refresh(store, tables, log).rebuilt
    assert [found.to_bytes() for found in store.read_users(users)] == before
    assert sorted(store.recent_users(9)) == users


def store_mark(store: RedisStore) -> bool:
    """Whether the server still has the watermark; a server that is starting refuses."""
    try:
        return store.watermark() is not None
    except StoreError:
        return True


def test_all_streams_are_in_a_copy(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log")
    log.append_now([event(1), exposure(1), put("a", 1), EventUndone("u", "e", 1)])
    (tmp_path / "log" / LOCK).touch()
    subprocess.run(DOCUMENTED.format(log=tmp_path / "log", copy=tmp_path / "copy").split(), check=True)
    log.close()
    for stream in STREAMS:
        assert ids(read_all(tmp_path / "copy", stream)) == [1]
        times = [[path.stat().st_mtime_ns for path in segment_paths(tmp_path / f / stream)] for f in ("log", "copy")]
        assert times[0] == times[1]


def test_without_the_lock_a_copy_can_lack_items(tmp_path: Path) -> None:
    """A copy that has listed the folder before a compaction: the lock of the upkeep is needed."""
    log = EventLog(tmp_path / "log")
    log.append_now([put("a", 1)])
    log.close()
    listed = [path for path in (tmp_path / "log").rglob("*") if path.is_file()]

    def copied(to: Path) -> list[str]:
        for path in listed:
            target = to / path.relative_to(tmp_path / "log")
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                shutil.copy2(path, target)
        return list(ItemChanges.of(to).puts)

    with exclusive(tmp_path / "log" / LOCK):
        assert prune(tmp_path / "log", {}) is None
        assert copied(tmp_path / "with") == ["a"]
    assert prune(tmp_path / "log", {}) is not None
    assert copied(tmp_path / "without") == []
