"""What is on disk when a write returns: which files and folders are synced, in which order."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from log_files import event, exposure, legacy_segment, put

from features.content.shards import Shards
from features.files import check_writable, put_file, put_new_file
from features.log.erasure.overwrite import overwrite
from features.log.event_log import EventLog
from features.log.item_changes import store_media
from features.log.records import EXPOSURES, line_of
from features.log.segments import check_writable as check_log
from features.log.segments import cut_torn_end, segment_paths
from features.log.upkeep.compaction import _delete_replaced
from features.log.upkeep.retention import Limit, expire
from features.log.upkeep.takeover import take_over
from recsys.bundle.registry import publish_bundle

Written = Callable[[], list[str]]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Returns the paths that were written to disk since the last call, with N for numbers; . is the folder."""
    paths: list[str] = []

    def recording(real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)
            paths.append(re.sub("[0-9]+", "N", re.sub("[0-9a-f]{64}", "HASH", path)))
            real(descriptor)

        return call

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, recording(getattr(os, name)))

    def since() -> list[str]:
        found = list(paths)
        paths.clear()
        return found

    return since


def test_an_append(tmp_path: Path, written: Written) -> None:
    log = EventLog(tmp_path / "log")
    assert written() == [".", "log/.probe"]
    log.append_now([event(1)])
    assert written() == ["log", "log/events", "log/events/N-N.log"]
    log.append_now([event(2), exposure(1)])
    assert sorted(written()) == ["log", "log/events/N-N.log", "log/exposures", "log/exposures/N-N.log"]
    log.close()
    assert written() == []


def test_the_probe_of_a_log_fills_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    check_log(tmp_path)
    assert sizes == [4096]
    assert list(tmp_path.iterdir()) == []


def test_a_take_over(tmp_path: Path, written: Written) -> None:
    path = legacy_segment(tmp_path, [event(1), put("i", 1)])
    with path.open("ab") as file:
        file.write(b"broken\n" + line_of(orjson.dumps(exposure(1))) + b"torn")
    assert take_over(tmp_path) == 1
    streams = ["events", "exposures", "items", "corrections"]
    found = written()
    assert found[:4] == ["."] * 4  # the new folders of the streams
    assert found[4:6] == ["N-N.torn", "N-N.log"]  # the torn end is cut off
    assert found[6] == "N-N.torn"  # the damaged bytes after the last event
    assert sorted(found[7:11]) == sorted(f"{stream}/.writing-N-N.log" for stream in streams)
    assert sorted(found[11:15]) == sorted(streams)
    assert found[15:] == ["."]


def test_the_end_of_a_segment_that_is_cut_off(tmp_path: Path, written: Written) -> None:
    path = tmp_path / "events" / "00000000000000000001-7.log"
    path.parent.mkdir()
    path.write_bytes(line_of(orjson.dumps(event(1))))
    cut_torn_end(tmp_path, path)
    assert written() == []
    with path.open("ab") as file:
        file.write(b"torn")
    cut_torn_end(tmp_path, path)
    assert written() == ["events/N-N.torn", "events/N-N.log"]


def test_retention(tmp_path: Path, written: Written) -> None:
    log = EventLog(tmp_path, segment_bytes=1)
    for n in range(2):
        log.append_now([exposure(n)])
    log.close()
    written()
    old = time.time() - 2 * 86_400
    for path in segment_paths(tmp_path / EXPOSURES):
        os.utime(path, (old, old))
    assert expire(tmp_path, {EXPOSURES: Limit(3)}, [], dry_run=False) == ([], [])
    assert written() == []
    for dry_run, paths in ((True, []), (False, ["exposures"])):
        [deleted], held = expire(tmp_path, {EXPOSURES: Limit(1)}, [], dry_run=dry_run)
        assert (deleted.stream, deleted.segments, held) == (EXPOSURES, 2, [])
        assert written() == paths
    assert segment_paths(tmp_path / EXPOSURES) == []


def test_snapshots_that_are_replaced(tmp_path: Path, written: Written) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    header = {"v": 1, "kind": "snapshot", "folded": [f"{'2' * 20}-7.log"], "ended": []}
    (folder / f"{'4' * 20}.snapshot").write_bytes(line_of(orjson.dumps(header)))
    _delete_replaced(tmp_path)
    assert written() == []
    for name in (f"{'2' * 20}-7.log", f"{'3' * 20}-7.log", f"{'1' * 20}.snapshot"):
        (folder / name).write_bytes(b"")
    _delete_replaced(tmp_path)
    assert written() == ["items"]
    assert sorted(path.name[0] for path in folder.iterdir()) == ["3", "4"]


def test_lines_that_are_overwritten(tmp_path: Path, written: Written) -> None:
    line = line_of(orjson.dumps(event(1)))
    path = tmp_path / "events" / "00000000000000000001-7.log"
    path.parent.mkdir()
    path.write_bytes(line * 2)
    overwrite(tmp_path, path, [])
    assert written() == []
    overwrite(tmp_path, path, [(0, len(line))])
    assert written() == [".writing-N-N-.erasing", ".", "events/N-N.log", "events/N-N.log", "."]
    assert path.read_bytes().endswith(line)
    path.with_suffix(".torn").write_bytes(b"gone")  # a line that was cut off meanwhile
    overwrite(tmp_path, path, [(2 * len(line), 4)])
    assert written()[2:] == ["events/N-N.torn", "events/N-N.log", "events/N-N.log", "."]
    assert path.with_suffix(".torn").read_bytes() == b"    "


def test_media(tmp_path: Path, written: Written) -> None:
    name = store_media(tmp_path, b"picture")
    assert written() == ["media/.writing-N-N-HASH", "media", "media", "."]
    assert store_media(tmp_path, b"picture") == name
    assert written() == ["media", "."]


def test_files(tmp_path: Path, written: Written) -> None:
    put_file(tmp_path / "a", lambda part: part.write_bytes(b"a"))
    assert written() == [".writing-N-N-a", "."]
    put_new_file(tmp_path / "a", lambda part: part.write_bytes(b"b"))
    assert written() == [".writing-N-N-a", "."]
    assert (tmp_path / "a").read_bytes() == b"a"
    check_writable(tmp_path / "b", "x")
    assert [path.partition("-")[0] for path in written()] == ["b/.writing"]
    assert list((tmp_path / "b").iterdir()) == []


def test_a_shard(tmp_path: Path, written: Written) -> None:
    folder = Shards(tmp_path)
    written()
    folder.write("x.parquet", b"1")
    assert written() == ["x.parquet.writing", "."]


def test_the_bundle_that_is_published(tmp_path: Path, written: Written) -> None:
    publish_bundle(tmp_path / "abc")
    assert written() == ["published.jsonl", "."]
    assert os.readlink(tmp_path / "current") == "abc"
    assert {path.name for path in tmp_path.iterdir()} == {"current", "published.jsonl"}
