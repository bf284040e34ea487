"""A refresh that reads only what is new leaves the store that a filling from the beginning leaves."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_service import RULES, toy_tables

from features.errors import DataError
from features.instants import DAY
from features.log.event_log import EventLog
from features.log.records import Event
from features.schema import DataConfig
from features.store import user_state
from features.store.jobs import table_states
from features.store.jobs.refresh import RefreshReport, refresh
from features.store.memory import MemoryStore
from features.tables.event_files import EventFiles

Row = tuple[str, str, str, int, float | None, str | None]
USERS = ("u", "v", "w")
SCHEMA: dict[str, Any] = {
    "user_id": pl.String,
    "item_id": pl.String,
    "event": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "value": pl.Float64,
    "event_id": pl.String,
}


def frame(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def row(user: str, item: str, at: int, event_id: str | None = None) -> Row:
    return (user, item, "click", at * DAY, None, event_id)


def states(store: MemoryStore) -> dict[str, bytes]:
    """The bytes of every user's state."""
    users = sorted(store.users())
    return {user: state.to_bytes() for user, state in zip(users, store.read_users(users), strict=True)}


def full(files: EventFiles, log: Path | None) -> dict[str, bytes]:
    store = MemoryStore(RULES)
    refresh(store, files, log)
    return states(store)


ROWS = st.tuples(
    st.sampled_from(USERS),
    st.sampled_from([f"i{n}" for n in range(5)]),
    st.sampled_from(["click", "rating", "look"]),
    st.integers(0, 6).map(lambda day: day * DAY),
    st.sampled_from([None, 2.0, 4.0]),
    st.sampled_from([None, None, "e1", "e2"]),
)
STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 2), st.lists(ROWS, min_size=1, max_size=5)),
    st.tuples(st.just("remove"), st.integers(0, 2), st.integers(0, 9)),
    st.tuples(st.just("correct"), st.integers(0, 2), ROWS),
    st.tuples(st.just("delete"), st.integers(0, 2), st.none()),
    st.tuples(st.just("log"), st.integers(0, 2), st.lists(ROWS, min_size=1, max_size=3)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=12), st.lists(STEPS, max_size=6), st.integers(1, 4), st.booleans())
def test_the_state_is_that_of_a_full_refresh(
    tmp_path_factory: pytest.TempPathFactory, first: list[Row], steps: list[Any], group: int, single: bool
) -> None:
    folder = tmp_path_factory.mktemp("data")
    parts: dict[int, list[Row]] = {0: first}
    log, store = EventLog(folder / "log"), MemoryStore(RULES)

    def written() -> EventFiles:
        for n, rows in parts.items():
            name = "events.parquet" if single else f"events/{n}.parquet"
            files = toy_tables(folder, frame(rows), name, row_group_size=group)
        return files

    refresh(store, written(), folder / "log")
    for what, n, given_ in steps:
        n = 0 if single else n
        rows = parts.get(n, [])
        if what == "append":
            parts[n] = [*rows, *given_]
        elif what == "remove" and len(rows) > 1:
            parts[n] = [r for i, r in enumerate(rows) if i != given_ % len(rows)]
        elif what == "correct" and rows:
            parts[n] = [*rows[:-1], given_]
        elif what == "delete" and len(parts) > 1 and n in parts:
            del parts[n]
            (folder / f"events/{n}.parquet").unlink()
        elif what == "log":
            log.append_now(
                [
                    Event(user_id=user, item_id=item, event=kind, timestamp=at, value=value, event_id=event_id or "")
                    for user, item, kind, at, value, event_id in given_
                ]
            )
        files = written()
        refresh(store, files, folder / "log")
        assert states(store) == full(files, folder / "log")
        again = refresh(store, files, folder / "log")
        assert (again.rebuilt, again.users, again.log_events) == (False, 0, 0)
    log.close()


@pytest.fixture
def filled(tmp_path: Path) -> tuple[MemoryStore, Callable[..., RefreshReport]]:
    """A store that has u's event of i0 and v's of i1, and a function that writes rows and refreshes."""
    store = MemoryStore(RULES)

    def write(rows: list[Row], **options: Any) -> RefreshReport:
        return refresh(store, toy_tables(tmp_path, frame(rows), **options), None)

    write([row("u", "i0", 1), row("v", "i1", 2)])
    return store, write


def test_a_row_that_was_appended_is_the_only_one_written(filled: Any) -> None:
    store, write = filled
    report = write([row("u", "i0", 1), row("v", "i1", 2), row("v", "i2", 3)])
    assert (report.rebuilt, report.users, report.table_events, report.grown) == (False, 1, 1, ["events.parquet"])
    assert store.read_users(["v"])[0].items == ("i1", "i2")


@pytest.mark.parametrize("rows", [[row("u", "i0", 1)], [row("u", "i0", 1), row("v", "i9", 2)]])
def test_a_row_that_was_removed_or_corrected_leaves_history_and_seen(filled: Any, rows: list[Row]) -> None:
    store, write = filled
    generation = store.watermark().fill
    report = write(rows)
    assert (report.rebuilt, report.changed) == (True, ["events.parquet"])
    assert "rows of events.parquet were changed or removed" in report.why
    assert store.watermark().fill != generation
    assert store.read_users(["v"])[0].items == tuple(r[1] for r in rows[1:])
    assert len(store.read_users(["v"])[0].seen) == len(rows) - 1


def test_late_events_and_invalid_rows_are_counted(filled: Any) -> None:
    _, write = filled
    report = write([row("u", "i0", 1), row("v", "i1", 2), row("w", "i1", 1), row("", "i1", 3)])
    assert (report.late, report.rejected, report.table_events) == (1, 1, 1)


def test_a_refresh_that_was_interrupted_before_the_table_changed_again_begins_anew(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = filled
    first = [row("u", "i0", 1), row("v", "i1", 2)]
    move, calls = store.advance, [0]

    def killed(*arguments: Any) -> bool:
        calls[0] += 1
        if calls[0] == 2:  # the first notes what is being added
            raise KeyboardInterrupt
        return bool(move(*arguments))

    store.advance = killed
    with pytest.raises(KeyboardInterrupt):
        write([*first, row("v", "wrong", 3)])
    store.advance = move
    report = write([*first, row("u", "i3", 3)])
    assert (report.rebuilt, report.why) == (True, "the tables have changed since a refresh that was interrupted")
    assert [s.items for s in store.read_users(["u", "v"])] == [("i0", "i3"), ("i1",)]


def test_a_file_that_is_written_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, files = MemoryStore(RULES), toy_tables(tmp_path, frame([row("u", "i0", 1)]))
    write = store.write_users

    def written_meanwhile(given: Any, fill: str = "") -> None:
        write(given, fill)
        toy_tables(tmp_path, frame([row("u", "i0", 1), row("u", "i1", 1)]))

    monkeypatch.setattr(store, "write_users", written_meanwhile)
    with pytest.raises(DataError, match=r"events\.parquet was written while it was read: run the refresh again"):
        refresh(store, files, None)
    monkeypatch.undo()
    refresh(store, files, None)
    assert store.read_users(["u"])[0].items == ("i0", "i1")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_lines_that_were_appended_to_a_text_are_the_only_ones_read(tmp_path: Path, suffix: str) -> None:
    def write(rows: list[Row]) -> EventFiles:
        events = frame(rows).with_columns(pl.col("timestamp").dt.to_string("iso:strict"))
        path = tmp_path / f"events.{suffix}"
        events.write_csv(path) if suffix == "csv" else events.write_ndjson(path)
        return EventFiles(DataConfig(source="folder", path=str(tmp_path), events=RULES))

    store = MemoryStore(RULES)
    rows = [row("u", "i0", 1), row("v", "i1", 2)]
    refresh(store, write(rows), None)
    files = write([*rows, row("u", "i2", 3)])
    report = refresh(store, files, None)
    assert (report.rebuilt, report.table_events, report.users) == (False, 1, 1)
    assert states(store) == full(files, None)
    assert refresh(store, write(rows), None).rebuilt


def test_users_and_times_of_a_table_may_be_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_state, "ROWS", 3)
    rows = [row("v", "i1", 5), row("u", "i2", 2), row("v", "i3", 1), row("w", "i4", 3), row("u", "i5", 1)]
    found = list(user_state.states_of_table(frame(rows).with_row_index("row"), RULES))
    items = {user: user_state.UserState.from_bytes(data).items for user, data in found}
    assert items == {"u": ("i5", "i2"), "v": ("i3", "i1"), "w": ("i4",)}
    assert len(found) == 3
    assert not list(user_state.states_of_table(frame([]).with_row_index("row"), RULES))


def test_events_that_do_not_fit_are_distributed_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("heavy" if n % 2 else f"u{n % 41}", f"i{n % 7}", n, None) for n in range(500)]
    files = toy_tables(tmp_path, frame(rows))
    expected = full(files, None)
    monkeypatch.setattr(table_states, "ROWS", 10)
    monkeypatch.setattr("features.tables.event_files.BATCH_ROWS", 60)
    store, spills = MemoryStore(RULES), list[int]()
    spill = table_states._spill

    def spilling(events: pl.DataFrame, folder: Path, number: int) -> None:
        spills.append(len(events))
        spill(events, folder, number)

    monkeypatch.setattr(table_states, "_spill", spilling)
    assert refresh(store, files, None, memory=100 * table_states.ROW_BYTES).users == 42
    assert sum(spills) == 500
    assert max(spills) <= 120
    assert states(store) == expected


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_an_event_that_was_too_far_in_the_future_counts_when_its_time_has_come(tmp_path: Path, suffix: str) -> None:
    def files(day: int, table: pl.DataFrame | None = None) -> EventFiles:
        file = tmp_path / f"events{suffix}"
        if table is not None and suffix == ".parquet":
            table.write_parquet(file)
        elif table is not None:
            table.write_csv(file)
        config = DataConfig(source="folder", path=str(tmp_path), events=RULES)
        return EventFiles(config, datetime.fromtimestamp(86_400 * day, UTC))

    store = MemoryStore(RULES)
    early = [row("u", "i0", 1), row("u", "i1", 30), row("u", "i2", 40), row("v", "i3", 1)]
    report = refresh(store, files(5, frame(early)), None)
    assert (report.rejected, report.table_events, refresh(store, files(6), None).table_events) == (2, 2, 0)
    report = refresh(store, files(30, frame([*early, row("v", "i4", 50)])), None)
    assert (report.rejected, report.table_events, report.rebuilt) == (2, 3, False)
    assert store.read_users(["u"])[0].items == ("i0", "i1")
    assert refresh(store, files(38), None).table_events == 0
    assert refresh(store, files(39), None).table_events == 4  # a day ahead is accepted
    assert refresh(store, files(48), None).table_events == 0
    report = refresh(store, files(60), None)
    assert (report.rejected, refresh(store, files(70), None).table_events) == (0, 0)
    assert states(store) == full(files(60), None)


def test_a_table_may_be_a_folder(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    refresh(store, toy_tables(tmp_path, frame([row("u", "i0", 1)]), "events/1.parquet"), None)
    files = toy_tables(tmp_path, frame([row("u", "i1", 2)]).drop("value"), "events/2.parquet")
    report = refresh(store, files, None)
    assert (report.rebuilt, report.added, report.users) == (False, ["events/2.parquet"], 1)
    assert store.read_users(["u"])[0].items == ("i0", "i1")
    (tmp_path / "events" / "1.parquet").unlink()
    report = refresh(store, files, None)
    assert (report.rebuilt, report.removed) == (True, ["events/1.parquet"])
    assert store.read_users(["u"])[0].items == ("i1",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: None, "no events table"),
        (lambda f: (f / "events").mkdir(), "has no parquet file"),
        (lambda f: ((f / "events").mkdir(), (f / "events" / "a.csv").touch()), "parquet files only; move a.csv away"),
        (lambda f: (f / "events").touch(), "a table is a file with one of the suffixes"),
        (lambda f: ((f / "events").mkdir(), (f / "events.csv").touch()), "both exist"),
    ],
)
def test_a_table_that_is_no_table_is_an_error(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        refresh(MemoryStore(RULES), EventFiles(DataConfig(source="folder", path=str(tmp_path), events=RULES)), None)
