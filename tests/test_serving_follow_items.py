"""Item changes that another process has accepted on the same log reach this one."""

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import event, gone, legacy_segment, put, state
from service_harness import ServiceHarness, service_harness
from test_serving_catalog_updater import delete, everywhere, settled
from test_serving_catalog_updater import put as put_item
from toy_service import NOW

from features.errors import LogError
from features.log.event_log import EventLog
from features.log.item_changes import ItemChanges
from features.log.upkeep.prune import prune
from serving.state.catalog_updater import CatalogUpdater


@contextmanager
def two(folder: Path) -> Iterator[tuple[ServiceHarness, ServiceHarness]]:
    """Two services on one log."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(service_harness(folder)),
            stack.enter_context(service_harness(folder)),
        )


def test_a_put_and_a_deletion_reach_the_other_service_at_its_next_step(tmp_path: Path) -> None:
    with two(tmp_path) as (first, second):
        put_item(first, "sky", title="blue")
        delete(first, "i0")
        assert "i0" in everywhere(second)
        second.service.step()
        assert "i0" not in everywhere(second)
        assert settled(second, "sky")["status"] == "live"
        assert second.found(text="blue", limit=1) == ["sky"]
        delete(second, "sky")
        first.service.step()
        assert first.client.get("/v1/items/sky").status_code == 404
        put_item(first, "i0", title="blue")
        second.service.step()
        assert settled(second, "i0")["title"] == "blue"
        assert second.client.get("/readyz").json()["notes"] == {}


def test_a_service_does_not_apply_its_own_changes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path) as harness:
        put_item(harness, "sky", title="blue")
        assert settled(harness, "sky")["status"] == "live"
        applied: list[object] = []
        monkeypatch.setattr(harness.service.catalog_updater, "_apply", lambda *arguments: applied.append(arguments))
        harness.service.step()
        assert prune(tmp_path / "log", {}) is not None
        harness.service.step()
        assert applied == []


def test_changes_are_followed_over_a_compaction_and_after_a_new_bundle(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        other = EventLog(tmp_path / "log")
        other.append_now([put("sky", NOW + 1, title="blue"), gone("i0", NOW + 2)])
        other.close()
        assert prune(tmp_path / "log", {}) is not None
        harness.service.step()
        assert "i0" not in everywhere(harness)
        assert settled(harness, "sky")["status"] == "live"
        legacy_segment(tmp_path / "log", [event(1), gone("i1", NOW + 3)])  # a service of an earlier version
        harness.service.step()
        assert not {"i0", "i1"} & everywhere(harness)


def test_a_change_after_one_of_a_clock_that_is_ahead_wins(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        other = EventLog(tmp_path / "log")
        other.append_now([gone("i0", NOW + 60_000_000)])
        harness.service.step()
        assert "i0" not in everywhere(harness)
        put_item(harness, "i0", title="blue")
        other.close()
        assert settled(harness, "i0")["status"] == "live"
        harness.service.step()
        assert "i0" in everywhere(harness)
    assert ItemChanges.of(tmp_path / "log").deleted == frozenset()


def test_a_log_that_cannot_be_followed_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path) as harness:

        def fails(log: EventLog) -> None:
            raise LogError("the event log cannot be read")

        with monkeypatch.context() as patch:
            patch.setattr(harness.service.catalog_updater, "follow", fails)
            harness.service.step()
            assert harness.client.get("/readyz").json()["notes"] == {"log": "the event log cannot be read"}
        harness.service.step()
        assert harness.client.get("/readyz").json()["notes"] == {}


ANOTHER = """
    import sys, time
    from pathlib import Path
    from features.log.event_log import EventLog
    from features.log.records import ItemDeleted, ItemPut
    log = EventLog(Path(sys.argv[1]))
    log.append_now([ItemDeleted(item_id="i0", timestamp=time.time_ns() // 1000),
                    ItemPut(item_id="sky", timestamp=time.time_ns() // 1000, fields={"title": "blue"})])
    print("accepted", flush=True)
    sys.stdin.read()
"""


def test_the_running_loop_follows_another_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(ANOTHER), str(tmp_path / "log")]
    with service_harness(tmp_path, follow_seconds=0.02) as harness:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "accepted\n"
            until = time.monotonic() + 20
            while harness.client.get("/v1/items/sky").status_code == 404 or "i0" in everywhere(harness):
                assert time.monotonic() < until
                time.sleep(0.01)
            other.communicate("")
        assert settled(harness, "sky")["status"] == "live"


STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(["put", "delete", "follow", "prune"]), st.integers(0, 2)),
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(-5, 5))
def test_processes_come_to_the_state_that_a_restart_has(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]], skew: int
) -> None:
    """skew: by how much (µs) the clock of the second process is ahead."""
    folder = tmp_path_factory.mktemp("log")
    logs = [EventLog(folder, segment_bytes=300) for _ in range(2)]
    updaters = [CatalogUpdater(folder, {}, lambda *_: None, lambda bundle: None) for _ in range(2)]  # type: ignore[arg-type]
    for updater in updaters:
        updater.replay(NOW)
    clock = time.time_ns() // 1000
    for number, (who, what, item) in enumerate(steps):
        at = clock + number + skew * who
        if what == "follow":
            updaters[who].follow(logs[who])
        elif what == "prune":
            prune(folder, {})
        else:
            change = put(str(item), at, title=str(number)) if what == "put" else gone(str(item), at)
            asyncio.run(updaters[who].accept(logs[who], change))
    for who in range(2):
        updaters[who].follow(logs[who])
        logs[who].close()
    _, puts, deleted = state(folder)
    for updater in updaters:
        assert {name for name, status in updater._statuses.items() if status.put is None} == deleted
        assert {n: s.put.fields for n, s in updater._statuses.items() if s.put is not None} == {
            name: change.fields for name, change in puts.items() if name not in deleted
        }
