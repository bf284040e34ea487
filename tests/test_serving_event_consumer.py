"""Events from a Redis Stream: each counts once, whoever dies; what is no event is moved away with the reason."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis as client
from log_files import read_all
from test_features_store import SERVERS
from typer.testing import CliRunner

from features.errors import ConfigError, LogError, StoreError
from features.log.event_log import EventLog
from features.log.reader import events_frame
from features.log.records import EVENTS, Event
from features.schema import EventRules
from features.store.redis_server import RedisServer
from features.store.stream import Entry, StreamGroup
from recsys.cli.main import app
from serving import event_consumer
from serving.event_consumer import ConsumerReport, EventConsumer, event_of

NOW = 1_800_000_000_000_000
CLICK: dict[Any, Any] = {"user_id": "u", "item_id": "i1", "event": "click"}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    if (binary := SERVERS[getattr(request, "param", "redis")]()) is None:
        pytest.skip(f"{request.param} is not installed: pip install -e .[dev]")
    running = RedisServer(binary=binary)
    yield running
    running.stop()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Any]:
    connection = client.Redis.from_url(server.url)
    connection.flushall()
    yield connection
    connection.close()


def member(server: RedisServer, consumer: str = "c1") -> StreamGroup:
    return StreamGroup(server.url, "clicks", "recsys", consumer)


def drain(server: RedisServer, folder: Path, consumer: str = "c1", **options: Any) -> ConsumerReport:
    """One run that takes what is there."""
    group, log = member(server, consumer), EventLog(folder)
    taking = EventConsumer(group, log, **options)
    taking.drain()
    group.leave()
    log.close()
    return taking.report


def event_ids(folder: Path) -> list[str]:
    return [record.event_id for record in read_all(folder, EVENTS) if isinstance(record, Event)]


def pending(redis: Any) -> int:
    return int(redis.xpending("clicks", "recsys")["pending"])


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.01)


def entry(name: str = "1800000000000-3", **fields: Any) -> Entry:
    return Entry(name, {key.encode(): str(value).encode() for key, value in fields.items()})


def test_flat_fields_and_json_are_the_same_event() -> None:
    sent = {
        **CLICK,
        "value": 4.5,
        "position": 3,
        "request_id": "r",
        "event_id": "e",
        "timestamp": "2026-01-31T12:00Z",
    }
    expected = Event(
        user_id="u",
        item_id="i1",
        event="click",
        timestamp=1_769_860_800_000_000,
        value=4.5,
        event_id="e",
        request_id="r",
        position=3,
        order=3,
    )
    assert event_of(entry(**sent), NOW) == expected
    assert event_of(entry(json=orjson.dumps(sent).decode()), NOW) == expected


def test_without_id_and_time_an_event_has_those_of_its_entry() -> None:
    for fields in (CLICK, {"json": orjson.dumps({**CLICK, "event_id": None}).decode()}):
        event = event_of(entry(**fields), NOW + 999)
        assert isinstance(event, Event)
        assert (event.event_id, event.timestamp, event.order) == ("1800000000000-3", NOW, 3)
    for chosen in ("5-1", "99999999999999-1"):  # ids that are no times
        event = event_of(entry(chosen, **CLICK), NOW)
        assert isinstance(event, Event)
        assert (event.event_id, event.timestamp, event.order) == (chosen, NOW, 1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**CLICK, "user_id": ""}, "user_id: empty: give it a text"),
        ({"user_id": "u", "event": "click"}, "item_id: missing; add it"),
        ({**CLICK, "value": "many"}, "value: must be a number"),
        ({**CLICK, "value": "true"}, "value: must be a number"),
        ({**CLICK, "position": "0"}, "position: "),
        ({**CLICK, "timestamp": "yesterday"}, "timestamp: is not an ISO 8601 time such as 2026-01-31T12:00:00Z"),
        ({**CLICK, "timestamp": "2099-01-01T00:00:00Z"}, "timestamp: is more than a day ahead"),
        ({**CLICK, "colour": "red"}, "colour: "),
        ({**CLICK, "event": "clcik"}, "event: is a type that data.events does not name: send 'click'"),
        ({"json": "{"}, "json: the body is not JSON at line 1"),
        ({"json": "[]"}, "json: must be one object"),
        ({"json": "{}", "user_id": "u"}, "json: has other fields beside it: send all of an event in it, or none"),
    ],
)
def test_what_is_no_event_has_a_reason(fields: dict[str, str], reason: str) -> None:
    found = event_of(entry(**fields), NOW, EventRules(positive={"click": None}))
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert event_of(Entry("1800000000000-0", {b"user_id": b"\xff"}), NOW) == "is not UTF-8: send text in UTF-8"


def test_events_are_logged_in_order_and_the_rest_is_moved_with_the_reason(
    tmp_path: Path, server: RedisServer, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_consumer, "BATCH", 4)
    names = [f"e{n}" for n in range(10)]
    for name in names[:5]:
        redis.xadd("clicks", {**CLICK, "event_id": name})
    poison = redis.xadd("clicks", {"user_id": "u", "raw": b"\xff\x00"})
    for name in names[5:]:
        redis.xadd("clicks", {**CLICK, "event_id": name})
    assert drain(server, tmp_path) == ConsumerReport(accepted=10, dead=1)
    assert event_ids(tmp_path) == names
    ((_, fields),) = redis.xrange("clicks:dead")
    assert fields == {
        b"user_id": b"u",
        b"raw": b"\xff\x00",
        b"dead_entry": poison,
        b"dead_reason": b"is not UTF-8: send text in UTF-8",
    }
    assert pending(redis) == 0
    assert redis.xinfo_consumers("clicks", "recsys") == []  # the consumer has left
    assert drain(server, tmp_path) == ConsumerReport()
    redis.xadd("clicks", {**CLICK, "event_id": "e10"})
    assert drain(server, tmp_path).accepted == 1


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from features.log.event_log import EventLog
    from features.store.stream import StreamGroup
    from serving.event_consumer import EventConsumer
    StreamGroup.finish = lambda self, ids: os.kill(os.getpid(), signal.SIGKILL)
    EventConsumer(StreamGroup(sys.argv[1], "clicks", "recsys", "killed"), EventLog(Path(sys.argv[2]))).drain()
"""


def test_a_consumer_killed_between_log_and_acknowledgement_counts_nothing_twice(
    tmp_path: Path, server: RedisServer, redis: Any
) -> None:
    ids = [redis.xadd("clicks", CLICK).decode() for _ in range(3)]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), server.url, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert pending(redis) == 3
    assert event_ids(tmp_path) == ids
    assert drain(server, tmp_path).accepted == 0  # the other one may still be alive
    report = drain(server, tmp_path, idle=0.0)
    assert (report.accepted, report.claimed, pending(redis)) == (3, 3, 0)
    assert event_ids(tmp_path) == ids + ids
    assert events_frame(tmp_path).get_column("event_id").to_list() == ids


def test_a_consumer_that_keeps_its_name_takes_up_what_it_has_not_finished(
    tmp_path: Path, server: RedisServer, redis: Any
) -> None:
    ids = [redis.xadd("clicks", CLICK).decode() for _ in range(3)]
    before = member(server, "pod-1")
    before.open()
    assert [e.id for e in before.read(2, 0.0)] == ids[:2]
    report = drain(server, tmp_path, "pod-1")
    assert (report.accepted, report.claimed, event_ids(tmp_path)) == (3, 0, ids)
    before.read(1, 0.0)
    redis.xadd("clicks", CLICK)
    before.read(1, 0.0)
    before.leave()  # has an unfinished entry: it stays in the group, and the entry too
    assert pending(redis) == 1


@pytest.mark.parametrize("server", ["redis", "redis-6.2", "valkey-9"], indirect=True)
def test_entries_that_were_deleted_before_they_were_read_are_counted(
    tmp_path: Path, server: RedisServer, redis: Any
) -> None:
    ids = [redis.xadd("clicks", CLICK) for _ in range(3)]
    for name, lost in (("other", 0), ("c1", 1)):
        reading = member(server, name)
        reading.open()
        reading.read(1, 0.0)
        redis.xdel("clicks", ids[lost])
    report = drain(server, tmp_path, idle=0.0)
    assert (report.accepted, report.lost, pending(redis)) == (1, 2, 0)


def test_two_consumers_share_the_entries_of_a_group(
    tmp_path: Path, server: RedisServer, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_consumer, "BATCH", 20)
    monkeypatch.setattr(event_consumer, "WAIT_SECONDS", 0.02)
    stop, logs = threading.Event(), [EventLog(tmp_path), EventLog(tmp_path)]
    taking = [EventConsumer(member(server, f"c{n}"), logs[n]) for n in range(2)]
    threads = [threading.Thread(target=consumer.run, args=(stop,)) for consumer in taking]
    for thread in threads:
        thread.start()
    for n in range(600):
        redis.xadd("clicks", {**CLICK, "event_id": f"{n:03d}"})
    wait_for(lambda: sum(consumer.report.accepted for consumer in taking) == 600)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(event_ids(tmp_path)) == [f"{n:03d}" for n in range(600)]
    assert pending(redis) == 0
    for log in logs:
        log.close()


def test_the_consumer_waits_for_a_log_and_a_server_that_are_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_consumer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(event_consumer, "WAIT_SECONDS", 0.02)
    server, log, stop = RedisServer(), EventLog(tmp_path), threading.Event()
    append, failures = log.append_now, [LogError("the disk is full")] * 2

    def fail(events: Any) -> None:
        if failures:
            raise failures.pop()
        append(events)

    monkeypatch.setattr(log, "append_now", fail)
    taking = EventConsumer(member(server), log)
    thread = threading.Thread(target=taking.run, args=(stop,))
    thread.start()
    redis = client.Redis.from_url(server.url)
    redis.xadd("clicks", {**CLICK, "event_id": "1"})
    wait_for(lambda: taking.report.accepted == 1)
    wait_for(lambda: pending(redis) == 0)
    assert failures == []
    os.kill(server.pid, signal.SIGKILL)  # it comes back empty, without stream and group
    redis.connection_pool.disconnect()

    def added() -> bool:
        try:
            return bool(redis.xadd("clicks", {**CLICK, "event_id": "2"}))
        except client.ConnectionError:
            return False

    wait_for(added)
    wait_for(lambda: taking.report.accepted == 2)
    stop.set()
    thread.join()
    assert event_ids(tmp_path) == ["1", "2"]
    redis.close()
    log.close()
    server.stop()
    with pytest.raises(StoreError, match=r"the server of the stream at unix://.* does not answer"):
        EventConsumer(member(server), log).drain()


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["events", "consume", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_takes_what_is_there(
    tmp_path: Path,
    server: RedisServer,
    redis: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)
    redis.xadd("clicks", CLICK)
    redis.xadd("clicks", {"user_id": "u"})
    log = str(tmp_path / "log")
    assert orjson.loads(run("clicks", "--log", log, "--once", "--json")) == {
        "accepted": 1,
        "dead": 1,
        "claimed": 0,
        "lost": 0,
    }
    assert run("clicks", "--log", log, "--once", "--group", "other") == (
        "1 events accepted, 1 entries moved to clicks:dead\n"
    )
    redis.set("name", "x")
    with pytest.raises(ConfigError, match=r"'name' at unix://.* is a string, no stream: name a stream"):
        run("name", "--log", log, "--once")
    caplog.clear()
    assert run("clikcs", "--log", log, "--once") == "0 events accepted, 0 entries moved to clikcs:dead\n"
    assert [record.message for record in caplog.records] == [
        f"there is no stream 'clikcs' at {server.url} yet: it is made, empty"
    ]
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(ConfigError, match="REDIS_URL is not set: it names the server of the stream"):
        run("clicks", "--once")


def test_a_signal_ends_the_command_in_order(tmp_path: Path, server: RedisServer, redis: Any) -> None:
    command = [sys.executable, "-c", "from recsys.cli.main import main; main()", "events", "consume", "clicks"]
    redis.xadd("clicks", {**CLICK, "event_id": "1"})
    running = subprocess.Popen(
        [*command, "--log", str(tmp_path), "--json"],
        env={**os.environ, "REDIS_URL": server.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: event_ids(tmp_path) == ["1"] and pending(redis) == 0, 60)
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=30)
    assert (running.returncode, orjson.loads(output)["accepted"]) == (0, 1)
    assert redis.xinfo_consumers("clicks", "recsys") == []
