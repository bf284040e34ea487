"""Snapshots of the item changes: their place in the order of changes, and readers while one is written."""

from pathlib import Path
from typing import Any

import pytest
from log_files import event, gone, ids, legacy_segment, put, read_all, state

from features.log import item_feed, segments
from features.log.event_log import EventLog
from features.log.item_feed import ItemFeed, item_changes
from features.log.reader import read
from features.log.readers import advance
from features.log.records import EVENTS, ITEMS
from features.log.segments import segment_paths
from features.log.upkeep.compaction import _needed
from features.log.upkeep.prune import prune


def append(folder: Path, *batches: Any) -> None:
    log = EventLog(folder, segment_bytes=1)
    for batch in batches:
        log.append_now([batch])
    log.close()


def test_a_segment_after_a_compaction_comes_after_it_when_the_clock_has_stepped_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path, put("x", 100))
    assert prune(tmp_path, {}) is not None
    (snapshot,) = segment_paths(tmp_path / ITEMS, segments.SNAPSHOT_SUFFIX)
    monkeypatch.setattr(segments.time, "time_ns", lambda: 1_600_000_000 * 10**9)
    append(tmp_path, gone("x", 50))
    (segment,) = segment_paths(tmp_path / ITEMS)
    assert segments.segment_number(segment) > segments.segment_number(snapshot)
    assert state(tmp_path)[2] == {"x"}


def test_the_times_that_a_snapshot_keeps() -> None:
    pairs = [(10, 5), (20, 3), (30, 9), (40, 12)]  # (time after the last write, latest time of a change)
    assert _needed(pairs, None) == [(40, 12)]
    assert _needed(pairs, 35) == [(30, 9), (40, 12)]  # a segment that began at 35 comes after the first three
    assert _needed(pairs, 5) == [(10, 5), (30, 9), (40, 12)]  # (20, 3) decides nothing
    assert _needed([], None) == []


def test_a_segment_that_a_killed_compaction_has_left_is_not_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path, put("a", 1), put("b", 2))
    with monkeypatch.context() as patch:
        patch.setattr("features.log.upkeep.compaction._delete_replaced", interrupted_after(1))
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, {})
    assert len(segment_paths(tmp_path / ITEMS)) == 2
    assert ids(read_all(tmp_path, ITEMS)) == [1, 2]
    assert prune(tmp_path, {}) is not None
    assert segment_paths(tmp_path / ITEMS) == []
    assert ids(read_all(tmp_path, ITEMS)) == [1, 2]


def interrupted_after(calls: int) -> Any:
    """A function that is interrupted at the call after these."""
    left = [calls]

    def call(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return call


def test_changes_are_complete_when_the_log_is_compacted_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path, put("a", 1), put("b", 2))
    read_lines, changes, busy = item_feed.read_lines, [put("c", 3), put("d", 4)], [False]

    def reading(*arguments: Any, **more: Any) -> Any:
        if changes and not busy[0]:  # a round reads the changes too
            busy[0] = True
            assert prune(tmp_path, {}) is not None  # after the feed has looked for a snapshot
            append(tmp_path, changes.pop(0))
            busy[0] = False
        return read_lines(*arguments, **more)

    monkeypatch.setattr(item_feed, "read_lines", reading)
    feed = ItemFeed(tmp_path)
    assert [placed.change.item_id for placed in feed.read()] == ["a", "b", "c", "d"]
    assert feed.read() == []


def test_a_feed_returns_what_is_new_and_after_a_compaction_all_once_more(tmp_path: Path) -> None:
    append(tmp_path, put("a", 1))
    feed = ItemFeed(tmp_path)
    first = feed.read()
    append(tmp_path, put("b", 2))
    second = feed.read()
    assert [[placed.change.item_id for placed in part] for part in (first, second)] == [["a"], ["b"]]
    assert prune(tmp_path, {}) is not None
    again = feed.read()
    assert again == [*first, *second]  # in the same places
    assert feed.read() == []


def test_a_snapshot_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tmp_path, *(put(str(n), n) for n in range(5)))
    assert prune(tmp_path, {}) is not None
    append(tmp_path, put("5", 5))
    assert ids(read_all(tmp_path, ITEMS, limit=1)) == list(range(6))
    read_lines = item_feed.read_lines
    monkeypatch.setattr(item_feed, "read_lines", lambda *a, **more: read_lines(*a, limit=1, **more))
    assert [change.timestamp for change in item_changes(tmp_path)] == list(range(6))


def test_a_reader_inside_a_snapshot_keeps_it(tmp_path: Path) -> None:
    append(tmp_path, put("a", 1), put("b", 2))
    assert prune(tmp_path, {}) is not None
    position = dict(read(tmp_path, stream=ITEMS, limit=1).position)
    advance(tmp_path, "mirror", ITEMS, position)
    append(tmp_path, put("a", 3))
    report = prune(tmp_path, {})
    assert report is not None
    assert (report.compacted, [h.segments for h in report.held]) == (0, [1])
    assert ids(read_all(tmp_path, ITEMS, position)) == [2, 3]
    advance(tmp_path, "mirror", ITEMS, position)
    report = prune(tmp_path, {})
    assert report is not None
    assert report.compacted == 1
    assert read_all(tmp_path, ITEMS, position) == []


def test_a_position_holds_only_segments_that_are_there(tmp_path: Path) -> None:
    legacy = legacy_segment(tmp_path, [event(1), put("a", 1), event(2)])
    append(tmp_path, event(3))
    position = dict(read(tmp_path).position)
    assert set(position) == {legacy.name, f"events/{segment_paths(tmp_path / EVENTS)[0].name}"}
    assert prune(tmp_path, {}) is not None
    assert read_all(tmp_path, EVENTS, position) == []
    assert set(position) == {f"events/{path.name}" for path in segment_paths(tmp_path / EVENTS)}
    assert len(position) == 2


def test_an_empty_segment_that_may_just_have_begun_is_not_marked_as_ended(tmp_path: Path) -> None:
    (tmp_path / EVENTS).mkdir()
    path = tmp_path / EVENTS / "01700000000000000000-7.log"
    path.touch(0o600)
    assert segments.recover(tmp_path) == ()
    assert not segments.is_marked(path)
    assert item_changes(tmp_path) == []
