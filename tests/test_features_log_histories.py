"""Random histories of the log: writers, crashes, readers and upkeep, compared with a log without deletions."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import event, exposure, gone, legacy_segment, put, read_all, state

from features.log import item_feed, segments
from features.log.event_log import EventLog
from features.log.item_changes import ItemChanges
from features.log.item_feed import ItemFeed
from features.log.reader import read
from features.log.readers import advance
from features.log.records import EVENTS, EXPOSURES, ITEMS, STREAMS, Record, Stream, record_of, stream_of
from features.log.segments import segment_paths
from features.log.upkeep.prune import prune
from features.log.upkeep.retention import Limit


class Killed(BaseException):
    """Stands for kill -9 in the middle of a round."""


class History:
    """A log with two writers and one reader of each stream, and what they should have seen."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.log, self.whole = folder / "log", folder / "whole"
        self.clock = 1_700_000_000 * 10**9
        patch.setattr(segments.time, "time_ns", lambda: self.clock)
        patch.setattr(item_feed, "read_lines", partial(item_feed.read_lines, limit=300))  # a snapshot is larger
        self.patch = patch
        self.writers: list[EventLog | None] = [None, None]
        self.number = 0
        self.accepted: dict[Stream, list[Record]] = {stream: [] for stream in STREAMS}
        self.seen: dict[Stream, list[Record]] = {stream: [] for stream in STREAMS}
        self.positions: dict[Stream, dict[str, int]] = {stream: {} for stream in STREAMS}
        self.fed: dict[tuple[int, str, int], Any] = {}
        self.feed = ItemFeed(self.log)
        earlier: list[Record] = [event(1), put("0", 1), exposure(1), gone("1", 1), event(2), put("2", 1)]
        legacy_segment(self.log, earlier, self.clock - 5 * 10**9)
        for record in earlier:
            self.accepted[stream_of(record)].append(record)
        for stream in STREAMS:
            advance(self.log, f"reader-of-{stream}", stream, {}, exports="elsewhere")

    def append(self, who: int, kinds: list[int]) -> None:
        """Append one record of each kind; the disk has the clock of the writers."""
        writer = self.writers[who] = self.writers[who] or EventLog(self.log, segment_bytes=400)
        records = []
        for kind in kinds:
            self.number += 1
            item, time = str(self.number % 4), self.clock // 1000
            make: list[Callable[[], Record]] = [
                lambda: event(self.number + 10),
                lambda: exposure(self.number + 10),
                lambda item=item, time=time: put(item, time, title=str(self.number)),  # type: ignore[misc]
                lambda item=item, time=time: gone(item, time),  # type: ignore[misc]
            ]
            records.append(make[kind]())
        writer.append_now(records)
        for record in records:
            self.accepted[stream_of(record)].append(record)
        for stream in {stream_of(record) for record in records}:
            os.utime(writer._writers[stream]._path, ns=(self.clock, self.clock))

    def end(self, who: int, torn: bytes) -> None:
        """End a writer: in order without `torn`, else by a crash in the middle of writing these bytes."""
        writer, self.writers[who] = self.writers[who], None
        if writer is None:
            return
        paths = [w._path for w in writer._writers.values() if w._fd >= 0]
        writer.close()
        for path in paths if torn else []:
            status = path.stat()
            path.chmod(0o600)
            with path.open("ab") as file:
                file.write(torn)
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def read(self, stream: Stream, limit: int) -> None:
        """Let the registered reader of a stream read on."""
        part = read(self.log, self.positions[stream], stream=stream, limit=limit)
        self.seen[stream] += part.records
        self.positions[stream] = part.position
        advance(self.log, f"reader-of-{stream}", stream, part.position, exports="elsewhere")

    def follow(self) -> None:
        """Let a process follow the item changes; it is not registered."""
        for placed in self.feed.read():
            self.fed[placed.latest, placed.segment, placed.offset] = placed.change

    def prune(self, kill_at: int) -> None:
        """Prune; kill_at: the call that changes a file, from 1 on, at which the process is killed; 0: none."""
        self._copy()
        calls = [0]

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                calls[0] += 1
                if calls[0] == kill_at:
                    raise Killed
                return function(*arguments, **more)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ("unlink", "replace"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            for name in ("fsync", "link", "truncate"):
                patch.setattr(os, name, counted(getattr(os, name)))
            with suppress(Killed):
                prune(self.log, {EVENTS: Limit(bytes=800), EXPOSURES: Limit(bytes=800)})

    def _copy(self) -> None:
        """Copy the segments with item changes to the log from which nothing is deleted."""
        for path in (*segment_paths(self.log), *segment_paths(self.log / ITEMS)):
            target = self.whole / path.relative_to(self.log)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.parent == self.log or not (self.whole / path.name).exists():  # else it is a copy of that one
                target.unlink(missing_ok=True)
                shutil.copy2(path, target)

    def check(self) -> None:
        """Compare what was read with what was accepted, and the item changes with those of the whole log."""
        for who in range(2):
            self.end(who, b"")
        self._copy()
        for stream in STREAMS:
            self.seen[stream] += read_all(self.log, stream, self.positions[stream])
            assert sorted(map(repr, self.seen[stream])) == sorted(map(repr, map(plain, self.accepted[stream])))
        assert state(self.log) == state(self.whole)
        self.follow()
        followed = ItemChanges.of_changes(change for _, change in sorted(self.fed.items()))
        assert (list(followed.puts), followed.puts, followed.deleted) == state(self.whole)


def plain(record: Record) -> Record:
    """The record as it is read back: JSON has lists only."""
    back = record_of(orjson.loads(orjson.dumps(record)))
    assert back is not None
    return back


WRITER = st.integers(0, 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), WRITER, st.lists(st.integers(0, 3), min_size=1, max_size=4)),
        st.tuples(st.just("end"), WRITER, st.sampled_from([b"", b"half a li", b"0000 {}\nx"])),
        st.tuples(st.just("read"), st.sampled_from(STREAMS), st.sampled_from([1, 300, 10_000])),
        st.tuples(st.just("prune"), st.integers(0, 12)),
        st.tuples(st.just("clock"), st.integers(-(10**9), 3 * 10**9)),
        st.tuples(st.just("follow")),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_no_record_is_lost_or_read_twice_and_no_item_changes_its_state(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        history = History(tmp_path_factory.mktemp("history"), patch)
        for name, *arguments in steps:
            if name == "clock":
                history.clock += arguments[0]
            else:
                getattr(history, name)(*arguments)
        history.check()


KEEPER = """
    import sys
    from pathlib import Path
    from features.log.event_log import EventLog
    from features.log.records import EVENTS, EXPOSURES, Event, ItemDeleted, ItemPut
    from features.log.upkeep.prune import prune
    from features.log.upkeep.retention import Limit
    log, run = EventLog(Path(sys.argv[1]), segment_bytes=500), sys.argv[2]
    for n in range(1_000_000):
        item = str(n % 7)
        log.append_now([Event(user_id="u", item_id=item, event="click", timestamp=n, event_id=f"{run}-{n}"),
            ItemPut(item_id=item, timestamp=n, fields={"title": f"{run}-{n}"}) if n % 3
            else ItemDeleted(item_id=item, timestamp=n)])
        sys.stdout.write(f"{n}\\n"); sys.stdout.flush()
        if n % 5 == 4:
            prune(Path(sys.argv[1]), {EVENTS: Limit(bytes=1), EXPOSURES: Limit()})
"""


def test_a_round_that_is_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    dice, log = random.Random(0), tmp_path / "log"
    legacy_segment(log, [event(1), put("0", 1), exposure(1)])
    for run in range(8):
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(KEEPER), str(log), str(run)], stdout=out
            )
            while (tmp_path / "out").stat().st_size == 0:
                assert process.poll() is None
                os.sched_yield()
            try:
                process.wait(dice.uniform(0.0, 0.15))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.wait()
        text = (tmp_path / "out").read_text()
        numbers = [int(n) for n in text[: text.rfind("\n") + 1].split()]
        events = [f"{run}-{n}" for n in numbers]
        found = {getattr(record, "event_id", "") for record in read_all(log, EVENTS)}
        assert set(events) <= found  # nothing has exported them, so none may be deleted
        _, puts, deleted = state(log)
        last = numbers[-1]
        for item in range(7):
            newest = last - (last - item) % 7  # the record after `last` may be there too
            if newest >= 0 and newest + 7 > last + 1:
                assert (str(item) in deleted) == (newest % 3 == 0)
                if newest % 3:
                    assert puts[str(item)].fields["title"] == f"{run}-{newest}"
    assert prune(log, {}) is not None
    assert len(list((log / ITEMS).glob("*.snapshot"))) == 1
    assert not list(log.rglob(".writing-*"))
