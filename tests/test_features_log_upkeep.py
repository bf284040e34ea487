"""Upkeep of the log: what retention, compaction and the take-over of earlier segments delete, and what they keep."""

import fcntl
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from log_files import event, exposure, gone, ids, legacy_segment, put, read_all, state

from features.errors import LogError
from features.instants import DAY
from features.log.event_log import EventLog
from features.log.item_changes import media_in_use
from features.log.item_feed import item_changes
from features.log.reader import events_frame, read
from features.log.readers import advance, registered
from features.log.records import CORRECTIONS, EVENTS, EXPOSURES, ITEMS, STREAMS, Record, line_of
from features.log.segments import exclusive, segment_paths
from features.log.upkeep.prune import LOCK, PruneReport, prune
from features.log.upkeep.retention import Limit

LIMITS = {EXPOSURES: Limit(days=30)}


def written(folder: Path, *batches: Sequence[Record], segment_bytes: int = 1) -> None:
    """A log of one segment for each batch and stream."""
    log = EventLog(folder, segment_bytes=segment_bytes)
    for batch in batches:
        log.append_now(batch)
    log.close()


def age(folder: Path, stream: str, days: float) -> None:
    """Let the segments of a stream be last written so many days ago."""
    at = time.time() - days * 86_400
    for path in segment_paths(folder / stream):
        os.utime(path, (at, at))


def rounds(folder: Path, **limits: Limit) -> PruneReport:
    report = prune(folder, {**LIMITS, **limits})  # type: ignore[dict-item]
    assert report is not None
    return report


def test_old_exposures_are_deleted_and_events_are_kept(tmp_path: Path) -> None:
    written(tmp_path, [event(1), exposure(1)], [event(2), exposure(2)])
    for stream in STREAMS:
        age(tmp_path, stream, 31)
    written(tmp_path, [event(3), exposure(3)])
    report = rounds(tmp_path)
    assert [(d.stream, d.segments) for d in report.deleted] == [("exposures", 2)]
    assert report.deleted[0].bytes > 200
    assert ids(read_all(tmp_path, EXPOSURES)) == [3]
    assert ids(read_all(tmp_path, EVENTS)) == [1, 2, 3]
    assert rounds(tmp_path).deleted == []


def test_a_dry_run_says_what_a_round_would_delete_and_deletes_nothing(tmp_path: Path) -> None:
    written(tmp_path, [exposure(1)], [put("a", 1)])
    age(tmp_path, EXPOSURES, 31)
    before = sorted(tmp_path.rglob("*.log"))
    report = prune(tmp_path, LIMITS, dry_run=True)
    assert report is not None
    assert [(d.stream, d.segments) for d in report.deleted] == [("exposures", 1)]
    assert (sorted(tmp_path.rglob("*.log")), report.compacted) == (before, 0)


def test_a_limit_of_bytes_deletes_the_oldest_segments(tmp_path: Path) -> None:
    written(tmp_path, *[[exposure(n)] for n in range(5)])
    size = segment_paths(tmp_path / EXPOSURES)[0].stat().st_size
    report = rounds(tmp_path, exposures=Limit(bytes=2 * size))
    assert [d.segments for d in report.deleted] == [3]
    assert ids(read_all(tmp_path, EXPOSURES)) == [3, 4]


def test_a_segment_that_is_written_stays(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append_now([exposure(1)])
    age(tmp_path, EXPOSURES, 99)
    assert rounds(tmp_path).deleted == []
    log.append_now([exposure(2)])
    log.close()
    assert ids(read_all(tmp_path, EXPOSURES)) == [1, 2]


def test_a_registered_reader_holds_segments_back_until_it_has_read_them(tmp_path: Path) -> None:
    written(tmp_path, [exposure(1)], [exposure(2)], [exposure(3)])
    age(tmp_path, EXPOSURES, 31)
    part = read(tmp_path, stream=EXPOSURES, limit=1)
    advance(tmp_path, "nightly", EXPOSURES, part.position)
    report = rounds(tmp_path)
    assert [d.segments for d in report.deleted] == [1]
    assert [(h.stream, h.segments) for h in report.held] == [("exposures", 2)]
    assert "the reader 'nightly', which last advanced at 20" in report.held[0].why
    assert "delete readers/nightly.json" not in report.held[0].why
    position = dict(part.position)
    assert ids(read_all(tmp_path, EXPOSURES, position)) == [2, 3]
    advance(tmp_path, "nightly", EXPOSURES, position)
    assert [d.segments for d in rounds(tmp_path).deleted] == [2]
    assert read(tmp_path, position, stream=EXPOSURES).position == {}  # no entries of deleted segments


def test_a_reader_that_has_not_advanced_for_a_week_is_named_with_the_remedy(tmp_path: Path) -> None:
    written(tmp_path, [exposure(1)])
    age(tmp_path, EXPOSURES, 31)
    advance(tmp_path, "lost", EXPOSURES, {})
    file = tmp_path / "readers" / "lost.json"
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | {"advanced": 1_700_000_000_000_000}))
    (held,) = rounds(tmp_path).held
    assert "last advanced at 2023-11-14 22:13 UTC" in held.why
    assert "run it, or delete readers/lost.json if it no longer exists" in held.why
    file.unlink()
    assert [d.segments for d in rounds(tmp_path).deleted] == [1]


def test_events_are_deleted_only_after_a_reader_has_exported_them(tmp_path: Path) -> None:
    written(tmp_path, [event(1)], [event(2)])
    age(tmp_path, EVENTS, 99)
    limit = Limit(days=90)
    assert [(h.segments, h.why.split(":")[0]) for h in rounds(tmp_path, events=limit).held] == [
        (2, "training needs them, and no reader has exported them")
    ]
    position = read(tmp_path).position
    advance(tmp_path, "feature-store", EVENTS, position)
    assert rounds(tmp_path, events=limit).deleted == []
    advance(tmp_path, "nightly", EVENTS, position, exports="/data/events")
    assert [d.segments for d in rounds(tmp_path, events=limit).deleted] == [2]


def test_readers_are_registered_under_names_of_files(tmp_path: Path) -> None:
    advance(tmp_path, "b", EVENTS, {"events/x.log": 3})
    advance(tmp_path, "a", ITEMS, {}, exports="/x")
    (tmp_path / "readers" / ".writing-1-2-c.json").touch()  # a crash left it
    assert [(r.name, r.stream, r.position, r.exports) for r in registered(tmp_path)] == [
        ("a", "items", {}, "/x"),
        ("b", "events", {"events/x.log": 3}, ""),
    ]
    for name in ("", "../x", "a/b", ".hidden", "x" * 65):
        with pytest.raises(LogError, match="a name has 1 to 64 letters"):
            advance(tmp_path, name, EVENTS, {})
    (tmp_path / "readers" / "a.json").write_text("{")
    with pytest.raises(LogError, match=r"a\.json: is no position of a reader"):
        prune(tmp_path, LIMITS)


def test_one_process_prunes_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path / LOCK) as mine:
        assert mine
        assert prune(tmp_path, LIMITS) is None
    assert prune(tmp_path, LIMITS) is not None


def test_item_changes_become_a_snapshot_with_the_newest_state_of_each_item(tmp_path: Path) -> None:
    changes: list[Record] = [put("a", 1, title="1"), put("b", 2), gone("a", 3), put("c", 4), gone("x", 5)]
    changes += [put("a", 6, title="2"), put("b", 7), gone("b", 8), put("c", 9)]
    written(tmp_path, *[[change] for change in changes])
    before = state(tmp_path)
    report = rounds(tmp_path)
    assert report.compacted == 9
    assert state(tmp_path) == before
    assert list(before[0]) == ["a", "b", "c"]
    assert before[2] == {"b", "x"}
    assert segment_paths(tmp_path / ITEMS) == []
    assert item_changes(tmp_path) == [gone("x", 5), put("a", 6, title="2"), put("b", 7), gone("b", 8), put("c", 9)]
    written(tmp_path, [gone("a", 10)])
    assert state(tmp_path)[2] == {"a", "b", "x"}
    assert (rounds(tmp_path).compacted, state(tmp_path)[2]) == (1, {"a", "b", "x"})
    assert len(list((tmp_path / ITEMS).iterdir())) == 1  # one snapshot
    assert rounds(tmp_path).compacted == 0


def test_a_deletion_after_a_put_wins_after_a_compaction_and_a_step_of_the_clock(tmp_path: Path) -> None:
    written(tmp_path, [put("x", 100)])
    rounds(tmp_path)
    written(tmp_path, [gone("x", 90)])
    assert state(tmp_path)[2] == {"x"}
    rounds(tmp_path)
    written(tmp_path, [put("x", 80, title="again")])
    assert state(tmp_path)[2] == frozenset()
    assert state(tmp_path)[1]["x"].fields == {"title": "again"}


def test_segments_of_two_processes_are_merged_by_time_after_a_compaction_too(tmp_path: Path) -> None:
    first, second = EventLog(tmp_path), EventLog(tmp_path)
    first.append_now([put("x", 10)])
    second.append_now([gone("x", 20), put("y", 21)])
    second.close()
    assert rounds(tmp_path).compacted == 1
    first.append_now([put("x", 15), gone("y", 30)])
    first.close()
    assert [c.timestamp for c in item_changes(tmp_path)] == [10, 15, 20, 21, 30]
    assert state(tmp_path)[2] == {"x", "y"}
    assert rounds(tmp_path).compacted == 1
    assert state(tmp_path)[2] == {"x", "y"}


def test_media_stay_in_use_for_a_day_after_a_compaction(tmp_path: Path) -> None:
    now = time.time_ns() // 1000

    def ago(days: float) -> int:
        return now - int(days * DAY)

    changes: list[Record] = [
        put("old", ago(9), image="media/1"),
        put("old", ago(8), image="media/2"),
        put("deleted", ago(3), image="media/4"),
        put("old", ago(0.5), image="media/3"),
        gone("deleted", ago(0.4)),
    ]
    written(tmp_path, *[[change] for change in changes])
    whole = item_changes(tmp_path)
    assert rounds(tmp_path).compacted == 5
    assert len(item_changes(tmp_path)) == 4  # the first picture of nine days ago no longer counts
    for days in (0.0, 0.55, 0.65, 2):
        assert media_in_use(item_changes(tmp_path), ago(-days)) == media_in_use(whole, ago(-days))
    assert media_in_use(item_changes(tmp_path), ago(-0.55)) == {"media/3", "media/4"}


def test_damaged_item_changes_are_kept(tmp_path: Path) -> None:
    written(tmp_path, [put("a", 1)], [put("b", 2), put("c", 3)], [put("d", 4)])
    segment = segment_paths(tmp_path / ITEMS)[1]
    segment.chmod(0o600)
    segment.write_bytes(segment.read_bytes().replace(b'"b"', b'"B"'))
    segment.chmod(0o400)
    report = rounds(tmp_path)
    assert (report.compacted, report.damaged) == (2, [f"items/{segment.name}"])
    assert list(state(tmp_path)[0]) == ["a", "c", "d"]
    assert segment.exists()


def test_a_damaged_snapshot_is_said_and_nothing_is_folded_into_another(tmp_path: Path) -> None:
    written(tmp_path, [put("a", 1), put("b", 2)])
    rounds(tmp_path)
    (snapshot,) = (tmp_path / ITEMS).iterdir()
    whole = snapshot.read_bytes()
    snapshot.write_bytes(whole.replace(b'"a"', b'"A"'))
    written(tmp_path, [put("c", 3)])
    report = rounds(tmp_path)
    assert (report.compacted, report.damaged) == (0, [f"items/{snapshot.name}"])
    assert list(state(tmp_path)[0]) == ["b", "c"]
    snapshot.write_bytes(whole.replace(b'"folded"', b'"f"'))
    with pytest.raises(LogError, match="the first line is damaged: restore the file from a backup"):
        item_changes(tmp_path)


def test_a_reader_of_item_changes_holds_the_compaction_back(tmp_path: Path) -> None:
    written(tmp_path, [put("a", 1)], [put("a", 2)])
    position = dict(read(tmp_path, stream=ITEMS, limit=1).position)
    advance(tmp_path, "mirror", ITEMS, position)
    report = rounds(tmp_path)
    assert report.compacted == 1
    assert [(h.stream, h.segments) for h in report.held] == [("items", 1)]
    assert ids(read_all(tmp_path, ITEMS, position)) == [2]
    assert ids(read_all(tmp_path, ITEMS)) == [1, 2]  # a new reader reads the snapshot first
    advance(tmp_path, "mirror", ITEMS, position)
    assert rounds(tmp_path).compacted == 1
    assert read_all(tmp_path, ITEMS, position) == []
    assert ids(read_all(tmp_path, ITEMS)) == [2]


def test_segments_of_an_earlier_version_are_read_first_and_then_taken_over(tmp_path: Path) -> None:
    earlier: list[Record] = [event(1), exposure(2), put("a", 3), event(4), gone("a", 5), exposure(6)]
    legacy = legacy_segment(tmp_path, earlier)
    written(tmp_path, [event(7), exposure(8), put("b", 9)])
    expected = {EVENTS: [1, 4, 7], EXPOSURES: [2, 6, 8], ITEMS: [3, 5, 9], CORRECTIONS: []}
    assert {stream: ids(read_all(tmp_path, stream)) for stream in STREAMS} == expected
    assert state(tmp_path)[2] == {"a"}
    partly = {legacy.name: legacy.read_bytes().index(b"\n") + 1}
    fully = {legacy.name: legacy.stat().st_size}
    report = rounds(tmp_path, exposures=Limit())
    assert (report.taken_over, report.waiting) == (1, 0)
    assert not legacy.exists()
    assert {stream: ids(read_all(tmp_path, stream)) for stream in (EVENTS, EXPOSURES)} == {
        EVENTS: [1, 4, 7],
        EXPOSURES: [2, 6, 8],
    }
    assert state(tmp_path)[2] == {"a"}
    assert ids(read_all(tmp_path, EVENTS, dict(fully))) == [7]  # a watermark of the earlier version
    assert ids(read_all(tmp_path, EVENTS, dict(partly), limit=1)) == [4, 7]
    assert events_frame(tmp_path)["event_id"].to_list() == ["e1", "e4", "e7"]
    assert [d.segments for d in rounds(tmp_path).deleted] == [1]  # its exposures are old
    assert ids(read_all(tmp_path, EXPOSURES)) == [8]
    assert ids(read_all(tmp_path, EVENTS)) == [1, 4, 7]


def test_nothing_is_taken_over_while_an_earlier_version_writes(tmp_path: Path) -> None:
    legacy_segment(tmp_path, [event(1)])
    written_now = legacy_segment(tmp_path, [event(2)], 1_700_000_100 * 10**9)
    with written_now.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        report = rounds(tmp_path)
        assert (report.taken_over, report.waiting) == (0, 2)
    assert ids(read_all(tmp_path, EVENTS)) == [1, 2]
    assert rounds(tmp_path).taken_over == 2
    assert ids(read_all(tmp_path, EVENTS)) == [1, 2]


def test_what_this_version_does_not_know_is_taken_over_as_it_is(tmp_path: Path) -> None:
    legacy = legacy_segment(tmp_path, [event(1), event(2), event(3)])
    data = legacy.read_bytes().replace(b'"i2"', b'"I2"')
    legacy.write_bytes(data + b"half a li")
    rounds(tmp_path)
    part = read(tmp_path)
    assert (ids(part.records), [d.length for d in part.damaged]) == ([1, 3], [len(data) // 3])
    assert legacy.with_suffix(".torn").read_bytes() == b"half a li"


def test_a_record_of_a_later_version_is_damaged_and_kept(tmp_path: Path) -> None:
    for stream, kind in ((EVENTS, b"event"), (ITEMS, b"item_put")):
        (tmp_path / stream).mkdir()
        path = tmp_path / stream / "01700000000000000000-7.log"
        payload = b'{"v":2,"kind":"%s","item_id":"a","user_id":"u","event":"click","timestamp":1,"fields":{}}' % kind
        path.write_bytes(line_of(payload))
        part = read(tmp_path, stream=stream)
        assert (part.records, [d.length for d in part.damaged]) == ([], [len(payload)])
    rounds(tmp_path)
    assert events_frame(tmp_path).is_empty()
    assert item_changes(tmp_path) == []
    assert len(list(tmp_path.rglob("*.log"))) == 2


def test_a_log_without_a_folder_is_read_as_empty_and_cannot_be_pruned(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    assert item_changes(tmp_path) == []
    with pytest.raises(LogError, match="cannot be pruned"):
        prune(tmp_path, LIMITS)


def test_files_of_other_programs_are_not_touched(tmp_path: Path) -> None:
    """A folder that was given by mistake: its logs are no segments."""
    names = ["app.log", "2024-01-01.log", "2024-01-01-app.log", "12.log", "app.torn", "1.snapshot"]
    for folder in (tmp_path, tmp_path / EVENTS):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text("no line\nof ours")
    log = EventLog(tmp_path)
    log.append_now([event(1)])
    log.close()
    rounds(tmp_path)
    assert ids(read_all(tmp_path, EVENTS)) == [1]
    assert {(tmp_path / name).read_text() for name in names} == {"no line\nof ours"}
    assert {(tmp_path / EVENTS / name).read_text() for name in names} == {"no line\nof ours"}
