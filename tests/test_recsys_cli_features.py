"""The commands of the feature store, run against a real server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from test_features_refresh_incremental import Row, frame, row
from toy_service import RULES, toy_tables
from typer.testing import CliRunner

from features.log.event_log import EventLog
from features.log.records import Event
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from recsys.cli import main as cli

ROWS: list[Row] = [row("u", "i0", 1), row("v", "i1", 2)]


class Shop:
    """A configuration, its tables, its log and a server."""

    def __init__(self, folder: Path, server: RedisServer) -> None:
        self.folder, self.config = folder, str(folder / "toy.yaml")
        self.store = RedisStore(server.url, RULES, timeout=5)
        self.store._bulk.run(lambda client: client.flushall())
        toy_tables(folder, frame(ROWS))
        data = {"source": "folder", "path": str(folder), "events": RULES.model_dump(), "log": str(folder / "log")}
        Path(self.config).write_bytes(orjson.dumps({"name": "toy", "data": data}))  # JSON is YAML
        log = EventLog(folder / "log")
        log.append_now([Event(user_id="w", item_id="i1", event="click", timestamp=5 * 10**12, event_id="e")])
        log.close()

    def run(self, *arguments: str, status: int = 0) -> Any:
        done = CliRunner().invoke(cli.app, ["features", arguments[0], self.config, *arguments[1:]])
        assert done.exit_code == status, (done.output, done.exception)
        return orjson.loads(done.stdout) if "--json" in arguments else done.output


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.stop()


@pytest.fixture
def shop(tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("REDIS_URL", server.url)
    made = Shop(tmp_path, server)
    yield made
    made.store.close()


def test_refresh_says_what_it_did(shop: Shop) -> None:
    assert shop.run("refresh").splitlines() == [
        "filled from the beginning: the store was empty",
        "  1 files added: events.parquet",
        "  2 users and 2 events from the tables",
        "  1 events from the log, 0 damaged lines skipped",
    ]
    toy_tables(shop.folder, frame([*ROWS, row("u", "i2", 1), row("", "i2", 1)]))
    assert shop.run("refresh").splitlines() == [
        "updated",
        "  1 files grown: events.parquet",
        "  1 users and 1 events from the tables",
        "  1 rows are not valid, or of erased users: `recsys data check` says why",
        "  0 events from the log, 0 damaged lines skipped",
        "  1 of the events are older than the newest one before",
    ]


def test_status(shop: Shop) -> None:
    empty = shop.run("status", "--json")
    assert (empty["filled"], empty["users"], empty["age"], empty["new"]) == (False, 0, None, ["events.parquet"])
    assert empty["behind"] == sum(path.stat().st_size for path in (shop.folder / "log" / "events").iterdir())
    assert "not filled: run `recsys features refresh`" in shop.run("status")
    shop.run("refresh")
    full = shop.run("status", "--json")
    assert (full["filled"], full["users"], full["behind"], full["new"], full["changed"]) == (True, 3, 0, [], [])
    assert 0 <= full["age"] < 60
    assert full["latest"] == 5 * 10**12
    assert [(run["rebuilt"], run["table_events"]) for run in full["runs"]] == [(True, 2)]
    toy_tables(shop.folder, frame(ROWS[:1]))
    assert "changed or removed rows in events.parquet" in shop.run("status")


def test_verify_finds_what_differs(shop: Shop) -> None:
    shop.run("refresh")
    assert shop.run("verify") == "3 users compared: all equal\n"
    wrong = shop.store.read_users(["v"])[0].to_bytes()
    changes = {"u": None, "w": wrong, "x": wrong}
    shop.store.change_users(list(changes), lambda user, data: changes[user])
    found = shop.run("verify", "--json", status=3)
    assert found == {
        "users": 4,
        "missing": 1,
        "extra": 1,
        "other": 1,
        "examples": {"missing": ["u"], "extra": ["x"], "other": ["w"]},
        "equal": False,
    }
    assert "the store lacks 1 users: u" in shop.run("verify", status=3)


def test_backfill_writes_a_span_of_time_again(shop: Shop) -> None:
    assert "not filled" in str(CliRunner().invoke(cli.app, span(shop, "1970-01-01", "1970-01-02")).exception)
    shop.run("refresh")
    shop.store.change_users(["u", "v", "w"], lambda user, data: None)
    done = CliRunner().invoke(cli.app, [*span(shop, "1970-01-02", "1970-01-03T00:00:00Z"), "--json"])
    assert orjson.loads(done.stdout) == {"users": 1, "events": 1}
    assert [len(s.items) for s in shop.store.read_users(["u", "v", "w"])] == [1, 0, 0]
    CliRunner().invoke(cli.app, span(shop, "1970-01-03", "2026-01-01"))
    assert [len(s.items) for s in shop.store.read_users(["u", "v", "w"])] == [1, 1, 1]
    assert shop.run("verify") == "3 users compared: all equal\n"


def span(shop: Shop, start: str, end: str) -> list[str]:
    return ["features", "backfill", shop.config, "--from", start, "--to", end]


def test_another_refresh_that_is_running_is_status_75(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.store.redis.LOCK_SECONDS", 0.2)
    with shop.store.lock():
        assert "another refresh of the feature store" in shop.run("refresh", status=75)
    shop.run("refresh")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_so_often_until_it_is_ended(shop: Shop, number: int) -> None:
    command = [sys.executable, "-c", "import recsys.cli; recsys.cli.run()", "features", "refresh", shop.config]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(
        [*command, "--every", "0.2s", "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert running.stdout is not None
        assert orjson.loads(running.stdout.readline())["rebuilt"]
        toy_tables(shop.folder, frame([*ROWS, row("x", "i2", 3)]))
        (shop.folder / "events.parquet").rename(shop.folder / "away")
        time.sleep(0.6)  # a table that is missing for a while does not end it
        (shop.folder / "away").rename(shop.folder / "events.parquet")
        deadline = time.monotonic() + 20
        while not shop.store.read_users(["x"])[0].items:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        running.send_signal(number)
        _, errors = running.communicate(timeout=20)
    assert running.returncode == 0
    assert b"no events table" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--every", "5"), "give a number and s, m, h or d"),
        (("--every", "0s"), "give a number and s, m, h or d"),
        (("--every", "400d"), "at most 365d"),
        (("--memory", "4"), "give a number and M, G or T"),
        (("--memory", "1M"), "at least 64M"),
    ],
)
def test_durations_and_sizes_that_cannot_be_read(shop: Shop, arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["features", "refresh", shop.config, *arguments], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert message in done.output


def test_times_that_cannot_be_read(shop: Shop) -> None:
    done = CliRunner().invoke(cli.app, span(shop, "yesterday", "2026-01-01"), env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert "give a date or a time, e.g. 2026-01-31" in done.output


def test_a_span_without_a_moment_is_a_wrong_option(shop: Shop) -> None:
    for end in ("2025-01-01", "2026-01-01"):
        told = shop.run("backfill", "--from", "2026-01-01", "--to", end, status=2)
        assert f"--from 2026-01-01 is not before --to {end}" in " ".join(told.replace("│", "").split())


def test_a_folder_that_is_no_log_is_not_taken_for_an_empty_one(shop: Shop) -> None:
    (shop.folder / "wrong").mkdir()
    (shop.folder / "wrong" / "items.csv").touch()
    for command in ("refresh", "status", "verify"):
        done = CliRunner().invoke(cli.app, ["features", command, shop.config, "--log", str(shop.folder / "wrong")])
        assert str(done.exception).startswith(f"{shop.folder}/wrong is no event log: it has none of events, ")
    text = Path(shop.config).read_text().replace(f"{shop.folder}/log", f"{shop.folder}/wrong")
    Path(shop.config).write_text(text)
    done = CliRunner().invoke(cli.app, ["features", "refresh", shop.config])
    assert str(done.exception).startswith(f"data.log {shop.folder}/wrong is no event log: ")
    assert str(done.exception).endswith("; set it to the folder that `recsys serve --log` writes")
