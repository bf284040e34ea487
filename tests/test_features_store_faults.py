"""Whatever happens to a refresh or to its server: run again, it leaves the state of an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from test_features_refresh_incremental import Row, frame, row
from toy_service import RULES, toy_tables

from features.errors import StoreError
from features.log.event_log import EventLog
from features.log.records import Event
from features.store.connection import Channel
from features.store.jobs.refresh import refresh
from features.store.memory import MemoryStore
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer

BEFORE: list[Row] = [row(f"u{n % 17}", f"i{n % 5}", n) for n in range(60)]
AFTER: dict[str, list[Row]] = {
    "filled": BEFORE,
    "appended": [*BEFORE, *(row(f"u{n % 23}", "new", n) for n in range(60, 80))],
    "corrected": [*BEFORE[:30], row("u1", "other", 3), *BEFORE[31:]],
}
"""The table at the refresh that is disturbed; `filled`: it is the first refresh."""


class World:
    """A server, a log, and a table that is changed in one way."""

    def __init__(self, folder: Path, server: RedisServer, change: str) -> None:
        self.log = folder / "log"
        self.folder = folder
        self.store = RedisStore(server.url, RULES, timeout=0.5, pause=0.0)
        self.store._bulk.run(lambda client: client.flushall())
        log = EventLog(self.log)
        log.append_now([self.event(n) for n in range(20)])
        self.files = toy_tables(folder, frame(BEFORE), row_group_size=16)
        if change != "filled":
            refresh(self.store, self.files, self.log)
            log.append_now([self.event(n) for n in range(20, 25)])
            self.files = toy_tables(folder, frame(AFTER[change]), row_group_size=16)
        log.close()

    @staticmethod
    def event(n: int) -> Event:
        return Event(user_id=f"u{n % 19}", item_id="logged", event="click", timestamp=n * 10**10, event_id=f"e{n}")

    def check(self) -> None:
        """The store holds what an undisturbed refresh leaves, and nothing else."""
        refresh(self.store, self.files, self.log)
        expected = MemoryStore(RULES)
        refresh(expected, self.files, self.log)
        users = sorted(expected.users())
        assert sorted(set(self.store.users())) == users
        ours, theirs = self.store.read_users(users), expected.read_users(users)
        assert [s.to_bytes() for s in ours] == [s.to_bytes() for s in theirs]
        assert self.store.recent_users(99) == expected.recent_users(99)
        keys: Any = self.store._bulk.run(lambda client: client.keys("*:u:*"))
        assert len(keys) == len(users)  # nothing is left of another generation


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, so that there are many points to fail at, and a lock that a killed process leaves shortly."""
    monkeypatch.setattr("features.store.redis.BATCH_BYTES", 1500)
    monkeypatch.setattr("features.store.redis.LOCK_SECONDS", 0.3)


def calls_of(world: World, at: int, then: Callable[[], object]) -> Callable[[], int]:
    """Makes `then` happen before the call to the server with this number; returns how to stop it and count calls."""
    run, count = Channel.run, [0]

    def counted(self: Channel, work: Callable[[Any], Any]) -> Any:
        count[0] += 1
        if count[0] == at:
            then()
        return run(self, work)

    Channel.run = counted  # type: ignore[method-assign]

    def stop() -> int:
        Channel.run = run  # type: ignore[method-assign]
        return count[0]

    return stop


def number_of_calls(folder: Path, server: RedisServer, change: str) -> int:
    world = World(folder, server, change)
    stop = calls_of(world, 0, lambda: None)
    refresh(world.store, world.files, world.log)
    return stop()


def hash_of(*names: str) -> int:
    """A number that differs from case to case, so that the cases fail at different points."""
    return sum(map(ord, "".join(names)))


FAULTS = ("emptied", "full", "cut", "stalled", "evicting", "killed")


@pytest.mark.parametrize("change", AFTER)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("points", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_a_server_that_fails(tmp_path: Path, server: RedisServer, change: str, fault: str, points: int) -> None:
    n_calls = number_of_calls(tmp_path / "count", server, change)
    first = 1 + hash_of(change, fault) % max(1, n_calls // points)
    for at in range(first, n_calls + 1, max(1, n_calls // points)):
        world, killed_pids = World(tmp_path / str(at), server, change), list[int]()
        admin, pid = RedisStore(server.url, RULES, timeout=5)._bulk._client, server.pid  # not counted

        def fail(admin: Any = admin, pid: int = pid, killed_pids: list[int] = killed_pids) -> None:
            if fault == "killed":
                assert pid, "no server runs"  # 0 would be this process
                os.kill(pid, signal.SIGKILL)  # it comes back empty
                killed_pids.append(pid)
            elif fault == "evicting":
                admin.config_set("maxmemory-policy", "allkeys-random")
                admin.config_set("maxmemory", admin.info("memory")["used_memory"])
            elif fault == "emptied":
                admin.flushall()
            elif fault == "full":
                admin.config_set("maxmemory", 1)
            elif fault == "cut":
                admin.client_kill_filter(_type="normal", skipme=True)
            else:
                admin.execute_command("CLIENT", "PAUSE", 700, "ALL")

        stop = calls_of(world, at, fail)
        world.store._bulk._client.connection_pool.connection_kwargs["socket_timeout"] = 0.1
        world.store._bulk._client.connection_pool.disconnect()
        with suppress(StoreError):
            refresh(world.store, world.files, world.log)
        stop()
        until = time.monotonic() + 20
        while killed_pids and time.monotonic() < until and (server.pid in (0, pid) or not server.answers()):
            time.sleep(0.01)
        admin.execute_command("CLIENT", "UNPAUSE")
        admin.config_set("maxmemory", 0)
        admin.config_set("maxmemory-policy", "noeviction")
        admin.close()
        world.store._bulk._client.connection_pool.connection_kwargs["socket_timeout"] = 5
        world.store._bulk._client.connection_pool.disconnect()
        world.check()
        world.store.close()


KILLED = """
import os, signal, sys
import features.store.redis as redis
from features.store.connection import Channel
from features.store.jobs import fill

redis.LOCK_SECONDS, redis.BATCH_BYTES, left, run = 0.3, 1500, int(sys.argv[1]), Channel.run

def counted(self, work):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, work)

Channel.run = counted
fill.main()
"""


def killed(world: World, server: RedisServer, at: int) -> None:
    """Run a refresh in a process that is killed before the call to the server with this number."""
    data = world.files._config.model_dump(mode="json")
    given = orjson.dumps({"url": server.url, "data": data, "log": str(world.log)})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(at)]
    done = subprocess.run(command, input=given, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("change", "share"),
    [("filled", 0.6), ("appended", 0.5), ("corrected", 0.9)]
    + [
        pytest.param(change, n / 7, marks=pytest.mark.soak)
        for change in AFTER
        for n in range(7)
        if (change, n) != ("filled", 0)
    ],
)
def test_a_refresh_that_is_killed(tmp_path: Path, server: RedisServer, change: str, share: float) -> None:
    n_calls = number_of_calls(tmp_path / "count", server, change)
    world = World(tmp_path / "killed", server, change)
    killed(world, server, int(share * n_calls))
    world.check()
    world.store.close()


def test_requests_answer_while_a_generation_is_built(tmp_path: Path, server: RedisServer) -> None:
    world, answers = World(tmp_path, server, "corrected"), list[tuple[str, ...]]()
    reader = RedisStore(server.url, RULES, timeout=5)
    write = world.store.write_users

    def read_between(states: Any, fill: str = "") -> None:
        write(states, fill)
        reader.push([Event(user_id="u1", item_id="meanwhile", event="click", timestamp=9 * 10**15, event_id="m")])
        answers.append(reader.read_users(["u1"])[0].items)

    log = EventLog(world.log)
    log.append_now([Event(user_id="u1", item_id="meanwhile", event="click", timestamp=9 * 10**15, event_id="m")])
    log.close()
    world.store.write_users = read_between  # type: ignore[method-assign]
    refresh(world.store, world.files, world.log)
    assert all(items[-1] == "meanwhile" and "other" not in items for items in answers[:-2])  # what was served before
    after = reader.read_users(["u1"])[0].items
    assert after.count("meanwhile") == 1
    assert "other" in after
    world.store.write_users = write  # type: ignore[method-assign]
    world.check()
    reader.close()
    world.store.close()
