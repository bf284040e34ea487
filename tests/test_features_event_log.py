"""The event log: every acknowledged record is read exactly once, after crashes too."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import polars as pl
import pytest
from log_files import event, exposure
from toy_service import toy_events, toy_tables

from features.errors import LogError
from features.log import event_log
from features.log.event_log import EventLog
from features.log.item_feed import item_changes
from features.log.reader import events_frame, read
from features.log.records import EXPOSURES, ITEMS, STREAMS, Event, Exposure, ItemDeleted, ItemPut, Record
from features.log.segments import DamagedBytes, recover
from features.schema import EventRules
from features.store.jobs.refresh import refresh
from features.store.memory import MemoryStore


def test_read_gives_back_every_kind_of_record_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append_now([event(1), exposure(2)])
    first = read(tmp_path)
    assert first.records == [event(1)]
    (shown,) = read(tmp_path, stream=EXPOSURES).records
    assert isinstance(shown, Exposure)
    assert list(shown.items) == ["i0", "i1"]
    assert shown.request_id == "r2"
    log.append_now([event(3)])
    second = read(tmp_path, first.position)
    log.close()
    assert second.records == [event(3)]
    again = read(tmp_path, second.position)
    assert (again.records, again.position) == ([], second.position)


PUT = ItemPut(item_id="x", timestamp=1, fields={"title": "é", "categories": ["a"], "price": 1.5, "image": "media/00"})
GONE = ItemDeleted(item_id="x", timestamp=2)


def test_item_changes_are_read_apart_from_events(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=300)
    again = replace(PUT, timestamp=3)
    batches: list[list[Record]] = [[event(1)], [PUT, exposure(2)], [GONE], [event(3), again]]
    for records in batches:
        log.append_now(records)
    log.close()
    results = [read(tmp_path, stream=stream) for stream in STREAMS]
    assert [(result.damaged, len(result.records)) for result in results] == [((), 2), ((), 1), ((), 3), ((), 0)]
    assert results[0].records == [event(1), event(3)]
    assert results[2].records == [PUT, GONE, again]
    assert item_changes(tmp_path) == [PUT, GONE, again]

    assert events_frame(tmp_path)["event_id"].to_list() == ["e1", "e3"]
    store = MemoryStore(EventRules(positive={"click": None}))
    report = refresh(store, toy_tables(tmp_path / "tables", toy_events([])), tmp_path)
    assert (report.log_events, report.damaged) == (2, 0)
    assert item_changes(tmp_path / "none") == []


def test_item_changes_of_two_services_are_ordered_by_time(tmp_path: Path) -> None:
    first, second = EventLog(tmp_path), EventLog(tmp_path)
    again = replace(PUT, timestamp=3)
    first.append_now([PUT])
    second.append_now([GONE])
    first.append_now([again])
    first.close()
    second.close()
    assert item_changes(tmp_path) == [PUT, GONE, again]


def test_a_torn_change_is_cut_off_and_an_unknown_kind_is_skipped(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append_now([PUT])
    log.close()
    segment = next(tmp_path.glob("items/*.log"))
    segment.chmod(0o600)
    later = b'{"kind":"item_moved","item_id":"x","timestamp":3}'
    intact = segment.read_bytes() + b"%08x %s\n" % (crc32(later), later)
    segment.write_bytes(intact + intact[:40])
    assert item_changes(tmp_path) == [PUT]
    assert [damaged.length for damaged in read(tmp_path, stream=ITEMS).damaged] == [len(later)]
    assert [torn.length for torn in recover(tmp_path)] == [40]
    assert item_changes(tmp_path) == [PUT]


def test_small_reads_over_rotated_segments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=1000)
    for number in range(100):
        log.append_now([event(number)])
    log.close()
    assert len(list(tmp_path.glob("events/*.log"))) > 5
    records: list[object] = []
    position: dict[str, int] = {}
    while True:
        part = read(tmp_path, position, limit=50)  # less than a line: the reader must read larger chunks
        if part.position == position:
            break
        position = part.position
        records += part.records
    assert records == [event(n) for n in range(100)]


def test_waiting_tasks_share_writes(tmp_path: Path) -> None:
    async def run() -> None:
        log = EventLog(tmp_path)
        await asyncio.gather(*(log.append([event(n)]) for n in range(500)))
        log.close()

    asyncio.run(run())
    assert sorted(r.timestamp for r in read(tmp_path).records) == list(range(500))


def test_a_torn_end_is_cut_off_and_reported(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append_now([event(1)])
    log.close()
    segment = next(tmp_path.glob("events/*.log"))
    segment.chmod(0o600)  # as a crash leaves it
    intact = segment.read_bytes()
    segment.write_bytes(intact + intact[:-7])
    assert read(tmp_path).records == [event(1)]  # a reader stops before a torn end
    again = EventLog(tmp_path)
    again.append_now([event(2)])
    again.close()
    assert again.torn == (DamagedBytes(f"events/{segment.name}", len(intact), len(intact) - 7),)
    assert segment.read_bytes() == intact
    assert segment.with_suffix(".torn").read_bytes() == intact[:-7]
    assert read(tmp_path).records == [event(1), event(2)]


def test_recovery_skips_a_segment_that_is_being_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append_now([event(1)])
    segment = next(tmp_path.glob("events/*.log"))
    with segment.open("ab") as file:
        file.write(b"half a li")
    assert recover(tmp_path) == ()
    log.close()
    segment.chmod(0o600)
    assert [t.length for t in recover(tmp_path)] == [9]
    assert not segment.stat().st_mode & 0o200


def test_damaged_lines_in_the_middle_are_counted_and_skipped(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append_now([event(n) for n in range(5)])
    log.close()
    segment = next(tmp_path.glob("events/*.log"))
    segment.chmod(0o600)
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"i2"', b'"iX"')
    segment.write_bytes(b"".join(lines))
    result = read(tmp_path)
    assert result.records == [event(n) for n in (0, 1, 3, 4)]
    assert [(d.offset, d.length) for d in result.damaged] == [(len(lines[0] + lines[1]), len(lines[2]))]
    assert recover(tmp_path) == ()
    assert events_frame(tmp_path)["item_id"].to_list() == ["i0", "i1", "i3", "i4"]


def test_events_frame_has_the_canonical_columns_and_the_order_in_the_request(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    rating = Event(
        user_id="ü",
        item_id="i",
        event="rating",
        timestamp=1_000_000,
        value=4.5,
        event_id="e",
        request_id="r",
        position=3,
    )
    log.append_now([exposure(1), rating, rating, event(2_000_000)])
    log.close()
    frame = events_frame(tmp_path)
    assert frame.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert frame.drop("timestamp").rows() == [
        ("ü", "i", "rating", 4.5, "e", "r", 3, None, 0),
        ("u", "i2000000", "click", None, "e2000000", None, None, None, 0),
    ]
    assert frame["timestamp"].dt.epoch("us").to_list() == [1_000_000, 2_000_000]
    assert events_frame(tmp_path / "absent").is_empty()


def test_an_event_id_counts_once_for_each_user(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    without_id = [replace(event(n), event_id="") for n in (3, 3)]
    log.append_now([event(1, "ann"), event(1, "bob"), *without_id, replace(event(2, "ann"), event_id="e1")])
    log.close()
    frame = events_frame(tmp_path)
    assert frame.select("user_id", "item_id").rows() == [("ann", "i1"), ("bob", "i1"), ("u", "i3"), ("u", "i3")]


def test_an_unexpected_failure_fails_the_append_but_not_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    log.append_now([event(1)])
    with monkeypatch.context() as broken:
        broken.setattr("features.log.event_log.os.fdatasync", lambda _: 1 / 0)
        waiting = log.submit([event(2)])
        with pytest.raises(LogError, match=r"the writer failed.*division by zero\); nothing was accepted"):
            waiting.result(timeout=10)
        assert log.fault == "the writer failed; restart the service (ZeroDivisionError: division by zero)"
    log.submit([event(3)]).result(timeout=10)
    assert log.fault == ""
    log.close()
    assert read(tmp_path).records == [event(1), event(3)]


def test_closed_and_overfull_logs_refuse(tmp_path: Path) -> None:
    log = EventLog(tmp_path, pending_bytes=10)
    with pytest.raises(LogError, match="waiting: try again"):
        log.append_now([event(1)])
    log.close()
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.append_now([event(1)])
    (tmp_path / "file").write_text("")
    for place in ("file", "file/log"):
        for opening in (EventLog, read, events_frame, item_changes, recover):
            with pytest.raises(LogError, match="a file stands where a folder is needed"):
                opening(tmp_path / place)


FULL = """
    import resource, sys
    from pathlib import Path
    from features.errors import LogError
    from features.log.event_log import EventLog
    from features.log.reader import read
    from features.log.records import Event
    def event(n): return Event(user_id="u", item_id="x" * 200, event="click", timestamp=n, event_id=str(n))
    log = EventLog(Path(sys.argv[1]))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
    accepted = []
    for n in range(30):
        try:
            log.append_now([event(n), event(1000 + n)])
            accepted += [n, 1000 + n]
        except LogError as error:
            assert "cannot be written" in str(error) and log.fault
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    log.append_now([event(99)])
    assert not log.fault
    log.close()
    print(*accepted, 99)
"""


def test_a_full_disk_refuses_and_leaves_no_partial_record(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    accepted = [int(n) for n in done.stdout.split()]
    assert 2 < len(accepted) < 61
    result = read(tmp_path)
    assert [r.timestamp for r in result.records] == accepted
    assert result.damaged == ()
    assert recover(tmp_path) == ()


WRITER = """
    import sys, threading
    from pathlib import Path
    from features.log.event_log import EventLog
    from features.log.records import Event
    log = EventLog(Path(sys.argv[1]), segment_bytes=20_000)
    output = threading.Lock()
    def work(name):
        n = 0
        while True:
            ids = [f"{sys.argv[2]}-{name}-{n}-{i}" for i in range(1 + n % 5)]
            log.append_now([Event(user_id="u", item_id="y" * (n * 37 % 900), event="click", timestamp=n, event_id=i)
                            for i in ids])
            with output:
                sys.stdout.write("".join(i + chr(10) for i in ids)); sys.stdout.flush()
            n += 1
    for name in range(3):
        threading.Thread(target=work, args=(name,)).start()
"""


def test_kill_9_at_any_moment_loses_no_acknowledged_record(tmp_path: Path) -> None:
    dice = random.Random(0)
    acknowledged: list[str] = []
    for run in range(10):
        with (tmp_path / f"{run}.out").open("wb") as out:
            writer = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "log"), str(run)], stdout=out
            )
            while (tmp_path / f"{run}.out").stat().st_size == 0:
                assert writer.poll() is None
                os.sched_yield()
            try:
                writer.wait(dice.uniform(0.0, 0.12))
            except subprocess.TimeoutExpired:
                writer.send_signal(signal.SIGKILL)
            writer.wait()
        output = (tmp_path / f"{run}.out").read_text()
        acknowledged += output[: output.rfind("\n") + 1].split()  # the kill may have cut the last line
    EventLog(tmp_path / "log").close()
    everything = read(tmp_path / "log", limit=1 << 30)  # a fast machine writes more than one default read returns
    stored = [r.event_id for r in everything.records if isinstance(r, Event)]
    assert len(acknowledged) > 100
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert events_frame(tmp_path / "log")["event_id"].to_list() == stored


def test_records_come_from_one_place() -> None:
    assert not {"Event", "Exposure"} & vars(event_log).keys()
