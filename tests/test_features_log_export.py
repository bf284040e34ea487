"""Export of the log by day, its status, and what a start reads of it."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from log_files import event, exposure, gone, legacy_segment, put
from test_experiments_train import toy_config, write_tables
from toy_service import toy_tables

from experiments.config import load_config
from experiments.dataset import load_dataset
from features.errors import LogError
from features.log import export as export_module
from features.log import segments
from features.log.event_log import EventLog
from features.log.export import METADATA, export
from features.log.item_feed import item_changes
from features.log.readers import registered
from features.log.records import EVENTS, EXPOSURES, ITEMS, Event, Exploration, Record, Sample
from features.log.status import log_status
from features.log.upkeep.prune import prune
from features.log.upkeep.retention import Limit
from features.schema import EventRules
from features.store.jobs.refresh import refresh
from features.store.memory import MemoryStore

DAY = 86_400_000_000
START = 20_000 * DAY  # 2024-10-04


def at(day: float, name: str, user: str = "ann") -> Event:
    return Event(user_id=user, item_id="i1", event="click", timestamp=START + int(day * DAY), event_id=name)


def append(folder: Path, *records: Record) -> None:
    log = EventLog(folder)
    log.append_now(records)
    log.close()


def names(out: Path) -> dict[str, list[str | None]]:
    """File -> event ids."""
    return {path.stem: pl.read_parquet(path)["event_id"].to_list() for path in sorted(out.glob("*.parquet"))}


def test_events_are_exported_by_day_and_only_what_is_new(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    append(log, at(0, "a"), at(1.5, "b"), exposure(1), at(0.9, "c"))
    report = export(log, EVENTS, out)
    assert (report.records, report.days) == (3, ["2024-10-04", "2024-10-05"])
    assert names(out) == {"2024-10-04": ["a", "c"], "2024-10-05": ["b"]}
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert export(log, EVENTS, out).records == 0
    append(log, at(1.6, "d"))
    assert export(log, EVENTS, out).days == ["2024-10-05"]
    assert names(out) == {"2024-10-04": ["a", "c"], "2024-10-05": ["b", "d"]}
    assert (out / "2024-10-04.parquet").stat().st_mtime_ns == before[out / "2024-10-04.parquet"]
    frame = pl.read_parquet(out / "2024-10-05.parquet")
    assert frame.columns == [
        *("user_id", "item_id", "event", "timestamp", "value", "event_id", "request_id", "position", "propensity")
    ]
    assert frame.schema["timestamp"] == pl.Datetime("us", "UTC")


def test_an_event_without_an_id_has_a_null(tmp_path: Path) -> None:
    append(tmp_path / "log", at(0, ""))
    export(tmp_path / "log", EVENTS, tmp_path / "out")
    assert names(tmp_path / "out") == {"2024-10-04": [None]}


def test_exposures_and_item_changes_are_exported(tmp_path: Path) -> None:
    append(tmp_path / "log", exposure(5), put("a", START, title="é"), gone("a", START + 1))
    assert export(tmp_path / "log", EXPOSURES, tmp_path / "shown").days == ["1970-01-01"]
    frame = pl.read_parquet(tmp_path / "shown" / "1970-01-01.parquet")
    (row,) = frame.to_dicts()
    assert [row[name] for name in ("first_position", "reasons", "exploration", "sample")] == [1, [], None, None]
    assert (row["request_id"], row["items"], row["scores"], row["item_id"]) == ("r5", ["i0", "i1"], [1.0, 1.0], None)
    assert export(tmp_path / "log", ITEMS, tmp_path / "items").records == 2
    rows = pl.read_parquet(tmp_path / "items" / "2024-10-04.parquet").rows()
    assert [(item, kind, fields) for item, kind, _, fields in rows] == [
        ("a", "item_put", '{"title":"é"}'),
        ("a", "item_gone", None),
    ]
    with pytest.raises(LogError, match=r"holds items, not events: choose another folder"):
        export(tmp_path / "log", EVENTS, tmp_path / "items")


def test_a_day_that_an_earlier_version_began_gets_the_new_columns(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    append(log, exposure(5))
    export(log, EXPOSURES, out)
    day = out / "1970-01-01.parquet"
    metadata = {name: text for name, text in pl.read_parquet_metadata(day).items() if name == METADATA}
    pl.read_parquet(day).drop("first_position", "reasons", "exploration", "sample").write_parquet(
        day, metadata=metadata
    )
    explored = Exploration("try", "law", 0.5, 9, (2,), ("i1",), (("i7", "i8"),), (2,))
    sample = Sample(("i0", "i1"), (2.0, 1.0), ("x", "y"), ((0.5, None), (1.0, 2.0)))
    append(log, replace(exposure(6), reasons=("own", "recent"), exploration=explored, sample=sample))
    assert export(log, EXPOSURES, out).records == 1
    old, new = pl.read_parquet(day).to_dicts()
    assert [old[name] for name in ("first_position", "reasons", "exploration", "sample")] == [None] * 4
    assert (old["request_id"], new["reasons"]) == ("r5", ["own", "recent"])
    assert new["exploration"] == {
        "policy": "try",
        "law": "law",
        "rate": 0.5,
        "seed": 9,
        "positions": [2],
        "own": ["i1"],
        "pools": [["i7", "i8"]],
        "drawn": [2],
    }
    assert new["sample"]["features"] == [[0.5, None], [1.0, 2.0]]
    assert (new["sample"]["candidates"], new["sample"]["candidate_scores"]) == (["i0", "i1"], [2.0, 1.0])


@pytest.mark.parametrize("failing", range(1, 5))
def test_an_interrupted_export_is_run_again_and_writes_nothing_twice(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out, calls, put_file = tmp_path / "log", tmp_path / "out", [0], export_module.put_file
    append(log, at(0, "a"), at(1, "b"), at(2, "c"))

    def stops(path: Path, write: Any) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(28, "No space left on device", str(path))
        put_file(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "put_file", stops)
        with pytest.raises(LogError, match=r"the export to .*out failed: .*free space on its disk"):
            export(log, EVENTS, out)
    append(log, at(1, "d"))
    export(log, EVENTS, out)
    assert names(out) == {"2024-10-04": ["a"], "2024-10-05": ["b", "d"], "2024-10-06": ["c"]}
    assert {path.name for path in out.iterdir() if path.is_dir()} == set()
    (out / ".position.json").unlink()
    assert export(log, EVENTS, out).records == 0


def test_a_registered_export_keeps_what_it_lacks_and_frees_what_it_has(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    append(log, at(0, "a"))
    export(log, EVENTS, out, reader="nightly")
    append(log, at(1, "b"))
    report = prune(log, {EVENTS: Limit(bytes=1)})
    assert report is not None
    assert [d.segments for d in report.deleted] == [1]
    assert [h.segments for h in report.held] == [1]
    export(log, EVENTS, out, reader="nightly")
    report = prune(log, {EVENTS: Limit(bytes=1)})
    assert report is not None
    assert [d.segments for d in report.deleted] == [1]
    export(log, EVENTS, out, reader="nightly")
    assert names(out) == {"2024-10-04": ["a"], "2024-10-05": ["b"]}
    (reader,) = registered(log)
    assert (reader.exports, reader.position) == (str(out.resolve()), {})


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    append(tmp_path / "log", at(0, "a"))
    (tmp_path / "out").mkdir()
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "out" / "2024-10-04.parquet")
    with pytest.raises(LogError, match=r"2024-10-04\.parquet: is no export of the log: choose another folder"):
        export(tmp_path / "log", EVENTS, tmp_path / "out")


def damaged(path: Path) -> None:
    """Wrong values in the pages; the footer stays as it is."""
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no parquet"), " is no parquet file: move it away"),
        (lambda path: path.write_bytes(b""), " is no parquet file: move it away"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), " is no parquet file: move it away"),
        (damaged, " is damaged: move it away"),
        (lambda path: (path.unlink(), path.mkdir()), ": a folder; move it away"),
        (pipe, ": a pipe (FIFO); move it away"),
        (
            lambda path: (path.unlink(), path.symlink_to("gone")),
            ": a link to gone, which does not exist; move it away",
        ),
    ],
)
def test_a_file_that_is_not_what_an_export_wrote_is_named(tmp_path: Path, spoil: Any, message: str) -> None:
    log, day = tmp_path / "log", tmp_path / "out" / "2024-10-04.parquet"
    append(log, at(0, "a"))
    export(log, EVENTS, tmp_path / "out")
    spoil(day)
    append(log, at(0.5, "b"))
    with pytest.raises(LogError) as caught:
        export(log, EVENTS, tmp_path / "out")
    assert str(caught.value) == f"{day}{message}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(".export.lock", ".position.json", "2024-10-04.parquet")
    }


@pytest.mark.parametrize(
    "error",
    [
        pl.exceptions.ComputeError("File out of specification: underlying IO error: No space left (os error 28)"),
        OSError("No space left (os error 28)"),
        OSError(28, "No space left on device", "a-temporary-file"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_full_disk_is_named_in_the_words_of_the_system(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pl.LazyFrame.sink_parquet
    fails = ".writing-"  # what the name of the file begins with whose writing fails

    def full(frame: pl.LazyFrame, path: Any, **options: Any) -> Any:
        if Path(path).name.startswith(fails):
            raise error
        return write(frame, path, **options)

    out = tmp_path / "out"
    append(tmp_path / "log", at(0, "a"))
    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with pytest.raises(LogError) as caught:
        export(tmp_path / "log", EVENTS, out)
    reason = "No space left on device; free space on its disk"
    assert str(caught.value) == f"the export to {out} failed: {out}/2024-10-04.parquet: {reason}"
    fails = "0"  # a part
    with pytest.raises(LogError) as caught:
        export(tmp_path / "log", EVENTS, out)
    assert str(caught.value).startswith(f"the export to {out} failed: {out}")
    assert str(caught.value).endswith(f": {reason}")


def test_exported_events_count_once_in_training_and_in_the_store(tmp_path: Path) -> None:
    write_tables(tmp_path / "data")
    config = load_config(toy_config(tmp_path), {})
    append(
        tmp_path / "log",
        *(Event(user_id="u0", item_id="i3", event="take", timestamp=START, event_id=f"e{n}") for n in range(3)),
    )
    before = load_dataset(config)
    export(tmp_path / "log", EVENTS, tmp_path / "out")
    exported = pl.read_parquet(tmp_path / "out" / "*.parquet")
    (table,) = (tmp_path / "data").glob("events.*")
    tables = pl.read_csv(table) if table.suffix == ".csv" else pl.read_parquet(table)
    together = pl.concat([tables, exported.select(pl.col(exported.columns))], how="diagonal_relaxed")
    table.unlink()
    together.write_parquet(tmp_path / "data" / "events.parquet")
    after = load_dataset(config)
    assert len(after.events) == len(before.events)
    assert after.duplicates == 3

    rules = EventRules(positive={"take": None})
    alone, both = MemoryStore(rules), MemoryStore(rules)
    refresh(alone, toy_tables(tmp_path / "none", exported.clear()), tmp_path / "log")
    refresh(both, toy_tables(tmp_path / "both", exported), tmp_path / "log")
    states = [store.read_users(["u0"])[0] for store in (alone, both)]
    assert [(s.items, s.events, s.times.tolist()) for s in states] == [(("i3",) * 3, ("take",) * 3, [START] * 3)] * 2


def test_the_status_counts_streams_and_readers(tmp_path: Path) -> None:
    legacy_segment(tmp_path, [event(1), exposure(2)])
    append(tmp_path, at(0, "a"), at(1, "b"), put("a", 7))
    export(tmp_path, EVENTS, tmp_path / "out", reader="nightly")
    append(tmp_path, at(2, "c"))
    status = log_status(tmp_path)
    streams = {s.stream: s for s in status.streams}
    events = streams["events"]
    assert (events.segments, events.records, events.exact, events.damaged) == (2, 4, True, 0)
    assert (events.oldest, events.newest) == (START, START + 2 * DAY)
    assert (streams["exposures"].segments, streams["exposures"].oldest) == (0, None)
    assert (streams["items"].records, streams["items"].newest) == (1, 7)
    assert (streams["of earlier versions"].segments, streams["of earlier versions"].newest) == (1, 2)
    (reader,) = status.readers
    assert (reader.name, reader.stream, reader.exports) == ("nightly", "events", str((tmp_path / "out").resolve()))
    newest = segments.segment_paths(tmp_path / "events")[-1]
    assert reader.behind == newest.stat().st_size


def test_the_status_of_a_large_log_is_an_estimate_until_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path, *(event(n) for n in range(1000)))
    segment = segments.segment_paths(tmp_path / "events")[0]
    segment.chmod(0o600)
    segment.write_bytes(segment.read_bytes().replace(b'"i500"', b'"iXXX"'))
    monkeypatch.setattr("features.log.status.READ_BYTES", 1000)
    events = log_status(tmp_path).streams[0]
    assert (events.exact, events.damaged) == (False, None)
    assert 950 < events.records < 1050
    events = log_status(tmp_path, check=True).streams[0]
    assert (events.exact, events.records, events.damaged) == (True, 999, 1)


def test_a_damaged_end_of_a_segment_counts_in_each_run(tmp_path: Path) -> None:
    append(tmp_path, at(0, "a"), at(1, "b"))
    segment = segments.segment_paths(tmp_path / "events")[0]
    segment.chmod(0o600)
    segment.write_bytes(segment.read_bytes().replace(b'"b"', b'"X"'))  # of the last line
    report = export(tmp_path, EVENTS, tmp_path / "out")
    assert (report.records, report.damaged) == (1, 1)
    report = export(tmp_path, EVENTS, tmp_path / "out")
    assert (report.records, report.damaged) == (0, 1)


def bytes_read() -> int:
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/io is Linux's")
def test_a_start_reads_no_more_when_more_exposures_and_superseded_changes_lie_behind_it(tmp_path: Path) -> None:
    read: list[int] = []
    for number in (100, 10_000):
        folder = tmp_path / str(number)
        log = EventLog(folder, segment_bytes=200_000)
        for start in range(0, number, 100):
            log.append_now([exposure(n) for n in range(start, start + 100)])
            log.append_now([put(str(n % 50), 1 + n) for n in range(start, start + 100)])
        log.close()
        assert prune(folder, {}) is not None
        before = bytes_read()
        EventLog(folder).close()
        assert len(item_changes(folder)) == 50
        read.append(bytes_read() - before)
    assert read[1] <= 1.2 * read[0]


def test_a_start_looks_only_into_segments_that_did_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, segment_bytes=1)
    for n in range(5):
        log.append_now([event(n), exposure(n)])
    log.close()
    looked: list[str] = []
    cut = segments.cut_torn_end

    def looking(log: Path, path: Path, **more: Any) -> Any:
        looked.append(path.name)
        return cut(log, path, **more)

    monkeypatch.setattr(segments, "cut_torn_end", looking)
    EventLog(tmp_path).close()
    assert looked == []
    crashed = segments.segment_paths(tmp_path / "events")[2]
    crashed.chmod(0o600)
    EventLog(tmp_path).close()
    EventLog(tmp_path).close()  # it was marked
    assert looked == [crashed.name]


def test_a_batch_costs_one_sync_for_each_stream_that_it_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fdatasync = [0], os.fdatasync
    log = EventLog(tmp_path)
    log.append_now([event(0), exposure(0)])

    def counting(descriptor: int) -> None:
        calls[0] += 1
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counting)
    log.append_now([event(n) for n in range(1, 100)])
    assert calls == [1]
    log.append_now([event(100), exposure(100), event(101)])
    assert calls == [3]
    log.close()
    line = segments.segment_paths(tmp_path / "events")[0].read_bytes().splitlines()[0]
    assert orjson.loads(line[9:])["v"] == 1


def test_a_segment_ends_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_700_000_000 * 10**9]
    monkeypatch.setattr(segments.time, "time_ns", lambda: clock[0])
    log = EventLog(tmp_path)
    log.append_now([event(1)])
    clock[0] += 86_399 * 10**9
    log.append_now([event(2)])
    log.probe()
    (path,) = segments.segment_paths(tmp_path / "events")
    assert not segments.has_ended(path)
    clock[0] += 10**9
    log.probe()
    assert segments.has_ended(path)  # also when nothing more comes
    log.append_now([event(3)])
    log.close()
    assert len(segments.segment_paths(tmp_path / "events")) == 2


@pytest.mark.parametrize(
    "text",
    [b"", b"garbage", b"\xff\xfe", b"[]", b"3", b'{"stream":"events"}', b'{"stream":"events","position":5}']
    + [b'{"stream":"events","position":{"a.log":%s}}' % value for value in (b"-1", b"1.5", b'"9"', b"true", b"null")],
)
def test_a_damaged_position_of_an_export_is_named(tmp_path: Path, text: bytes) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    append(log, at(0, "a"))
    export(log, EVENTS, out)
    position = out / ".position.json"
    position.write_bytes(text)
    with pytest.raises(
        LogError, match=r"position\.json: is not the position of an export: delete it and run the export"
    ):
        export(log, EVENTS, out)
    position.unlink()
    assert export(log, EVENTS, out).records == 0
    assert names(out) == {"2024-10-04": ["a"]}


def test_a_reader_exports_to_one_folder(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    append(log, at(0, "a"))
    export(log, EVENTS, out, reader="nightly")
    with pytest.raises(LogError) as caught:
        export(log, EVENTS, tmp_path / "other", reader="nightly")
    assert str(caught.value) == (
        f"reader 'nightly' exports to {out}: choose another name, or delete {log}/readers/nightly.json where that is "
        "over"
    )
    assert not (tmp_path / "other").exists()
    assert export(log, EVENTS, tmp_path / "other").records == 1
    out.rename(tmp_path / "moved")
    assert export(log, EVENTS, tmp_path / "moved", reader="nightly").records == 0
