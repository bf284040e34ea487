"""The event log whose folder is removed, moved, full or read-only while it is open, and the order of item changes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import LogError
from features.log import event_log, segments
from features.log.event_log import EventLog
from features.log.item_changes import ItemChanges
from features.log.item_feed import item_changes
from features.log.reader import read
from features.log.records import ITEMS, Event, ItemDeleted, ItemPut


def event(number: int) -> Event:
    return Event(user_id="u", item_id=f"i{number}", event="click", timestamp=number, event_id=f"e{number}")


def test_records_after_the_folder_is_removed_are_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "log"
    log = EventLog(folder)
    log.append_now([event(1)])
    shutil.rmtree(tmp_path / "state")
    log.append_now([event(2)])
    log.append_now([event(3)])
    assert read(folder).records == [event(2), event(3)]
    assert ".log was removed or moved while the service ran: put its files back" in log.loss
    assert log.fault == ""
    log.close()
    assert read(folder).records == [event(2), event(3)]


def test_a_folder_that_is_removed_before_the_first_record_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    for then in (EventLog.probe, lambda log: log.append_now([event(1)])):
        log = EventLog(folder)
        shutil.rmtree(folder)
        then(log)
        assert f"{folder} was removed or moved" in log.loss
        assert folder.is_dir()
        log.close()
    assert read(folder).records == [event(1)]


def test_a_file_in_place_of_the_folder_is_found_without_a_writer(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = EventLog(folder)
    log.append_now([event(1)])
    shutil.rmtree(folder)
    folder.touch()
    log.probe()
    assert "a file stands where a folder is needed" in log.fault
    with pytest.raises(LogError, match="a file stands where a folder is needed"):
        log.append_now([event(2)])
    folder.unlink()
    log.probe()
    assert log.fault == ""
    log.append_now([event(3)])
    log.close()
    assert read(folder).records == [event(3)]


def test_a_folder_that_is_moved_and_replaced_keeps_what_it_had(tmp_path: Path) -> None:
    folder, moved = tmp_path / "log", tmp_path / "moved"
    log = EventLog(folder)
    log.append_now([event(1)])
    folder.rename(moved)
    folder.mkdir()
    log.append_now([event(2)])
    log.close()
    assert (read(moved).records, read(folder).records) == ([event(1)], [event(2)])


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_that_is_removed_during_a_write_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    folder = tmp_path / "log"
    log = EventLog(folder)
    if not first:
        log.append_now([event(1)])
    fdatasync = os.fdatasync
    times = [1, 3]

    def removing(descriptor: int) -> None:
        fdatasync(descriptor)
        if times[0]:
            times[0] -= 1
            shutil.rmtree(folder)

    monkeypatch.setattr("features.log.event_log.os.fdatasync", removing)
    log.append_now([event(2)])
    assert read(folder).records == [event(2)]
    times[0] = event_log.WRITE_TRIES
    with pytest.raises(LogError, match="is removed again and again; check the path; nothing was accepted"):
        log.append_now([event(3)])
    log.append_now([event(4)])
    log.close()
    assert read(folder).records == [event(4)]


def test_a_probe_finds_that_the_log_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)

    def full(descriptor: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(LogError, match="No space left on device; free space on its disk; nothing was accepted"):
            log.append_now([event(1)])
        log.probe()
        assert "No space left on device" in log.fault
    log.probe()
    assert (log.fault, log.loss) == ("", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    log.append_now([event(2)])
    log.close()
    log.probe()  # of a closed log: nothing
    assert read(tmp_path).records == [event(2)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; the test is skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting needs rights")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_found_without_a_writer_and_its_room_too(small_disk: Path) -> None:
    log = EventLog(small_disk / "log")
    log.append_now([event(1)])
    (small_disk / "ballast").write_bytes(bytes(48 << 10))
    with suppress(OSError), (small_disk / "more").open("wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass
    log.probe()
    assert "No space left on device; free space on its disk" in log.fault
    with pytest.raises(LogError, match=r"cannot be written: .*free space"):
        EventLog(small_disk / "log")
    (small_disk / "ballast").unlink()
    log.probe()
    assert log.fault == ""
    log.append_now([event(2)])
    log.close()
    assert read(small_disk / "log").records == [event(1), event(2)]


def test_a_read_only_disk_is_found_without_a_writer_and_at_the_start(small_disk: Path) -> None:
    log = EventLog(small_disk)
    log.append_now([event(1)])
    log.close()
    log = EventLog(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    log.probe()
    assert "choose another folder" in log.fault
    with pytest.raises(LogError, match="read-only: choose another folder"):
        EventLog(small_disk)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    log.probe()
    assert log.fault == ""
    log.close()


PUT, GONE = ItemPut(item_id="x", timestamp=100, fields={}), ItemDeleted(item_id="x", timestamp=90)


@pytest.mark.parametrize("restart", [False, True])
def test_the_order_of_the_log_decides_when_the_clock_steps_back(tmp_path: Path, restart: bool) -> None:
    log = EventLog(tmp_path)
    for change in (PUT, GONE):
        log.append_now([change])
        if restart:
            log.close()
            log = EventLog(tmp_path)
    assert item_changes(tmp_path) == [PUT, GONE]
    assert ItemChanges.of(tmp_path).deleted == {"x"}
    log.append_now([again := replace(PUT, timestamp=80)])
    log.close()
    assert item_changes(tmp_path) == [PUT, GONE, again]
    assert ItemChanges.of(tmp_path).deleted == set()


STEPS = st.lists(st.tuples(st.booleans(), st.integers(-(10**9), 10**9)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_one_service_at_a_time_is_read_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]]
) -> None:
    """steps: whether the service restarts, and by how much (ns) its clock has moved then."""
    folder = tmp_path_factory.mktemp("log")
    clock, changes = [1_700_000_000 * 10**9], list[Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments.time, "time_ns", lambda: clock[0])
        log = EventLog(folder, segment_bytes=150)
        for number, (restart, step) in enumerate(steps):
            clock[0] += step
            if restart:
                log.close()
                log = EventLog(folder, segment_bytes=150)
            kind = ItemDeleted if number % 2 else lambda **more: ItemPut(fields={}, **more)
            changes.append(kind(item_id=str(number % 3), timestamp=clock[0] // 1000))
            log.append_now([changes[-1]])
            os.utime(log._writers[ITEMS]._path, ns=(clock[0], clock[0]))  # the disk has the clock of the service
        log.close()
    assert item_changes(folder) == changes


def test_a_stream_without_a_folder_is_a_fault_until_it_is_mended_also_while_others_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path / "log")
    (tmp_path / "log" / "events").touch()
    log.probe()
    fault = f"{tmp_path}/log/events: Not a directory; a file stands where a folder is needed: move it, or choose"
    assert log.fault.startswith(fault)
    with pytest.raises(LogError, match="nothing was accepted"):
        log.append_now([event(1)])
    log.append_now([ItemPut(item_id="a", timestamp=1, fields={})])
    assert log.fault.startswith(fault)
    log.probe()
    assert log.fault.startswith(fault)
    (tmp_path / "log" / "events").unlink()
    log.append_now([event(1)])
    assert log.fault == ""
    log.close()
    said = [record.levelname for record in caplog.records if "was removed or moved" not in record.message]
    assert said == ["ERROR", "WARNING"]  # once each
