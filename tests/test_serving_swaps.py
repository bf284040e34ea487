"""A change of the bundle under load, with workers; and services that share a store and bundles, and no log."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from test_serving_workers import Connection, Service, constant_requests, service, wait_until
from toy_workers import BROKEN, publish

from features.log.reader import read
from features.log.records import EVENTS, Event
from features.store.redis_server import RedisServer

PATH = "/v1/users/ann/recommendations"


def bundle_of(connection: Connection) -> str:
    return str(orjson.loads(connection.call("GET", "/v1/about")[2])["bundle"])


def notes_of(connection: Connection) -> str:
    return str(orjson.loads(connection.call("GET", "/readyz")[2])["notes"].get("bundle", ""))


def all_serve(started: Service, workers: int, name: str) -> None:
    """Wait until so many workers serve a bundle."""
    wait_until(lambda: {bundle_of(c) for c in started.connections(workers).values()} == {name})


def asks(connection: Connection, bundles: Counter[str]) -> Callable[[], int]:
    """A call that counts the bundles in the answers."""

    def ask() -> int:
        _, status, body = connection.call("GET", PATH)
        bundles[orjson.loads(body).get("bundle", "")] += 1
        return status

    return ask


def test_bundles_change_under_load_without_a_failed_request(tmp_path: Path) -> None:
    bundles, answered = tmp_path / "bundles", Counter[str]()
    publish(bundles, "toy-1")
    with service(tmp_path) as started:
        kept = started.connections(2).values()
        with constant_requests([asks(connection, answered) for connection in kept]) as statuses:
            for name in ("toy-2", "toy-1", "toy-2", "toy-1"):
                publish(bundles, name)
                all_serve(started, 2, name)
        assert set(statuses) == {200}
        assert set(answered) == {"toy-1", "toy-2"}


def test_a_bundle_that_fails_its_first_request_is_refused_and_tried_again(tmp_path: Path) -> None:
    bundles, answered = tmp_path / "bundles", Counter[str]()
    publish(bundles, "toy-1")
    with service(tmp_path) as started:
        workers = started.connections(2).values()
        with constant_requests([asks(connection, answered) for connection in workers]) as statuses:
            (bundles / "toy-2").mkdir()
            (bundles / "toy-2" / BROKEN).touch()
            publish(bundles, "toy-2")
            refused = "failed its first request: its models do not work; train again"
            wait_until(lambda: all(refused in notes_of(c) for c in started.connections(2).values()))
            # the pauses grow: 1 s, 2 s
            wait_until(lambda: all("tried again after 2 s" in notes_of(c) for c in started.connections(2).values()))
            assert set(answered) == {"toy-1"}
            (bundles / "toy-2" / BROKEN).unlink()
            all_serve(started, 2, "toy-2")
        assert set(statuses) == {200}


@contextmanager
def two_services(folder: Path) -> Iterator[tuple[Service, Service, RedisServer]]:
    """Two services with logs of their own, `a` and `b`, that share a store and bundles, of which toy-1 is served."""
    server = RedisServer()
    shared = {"redis_url": server.url, "bundles": folder / "bundles"}
    publish(folder / "bundles", "toy-1")
    try:
        with (
            service(folder, 1, log=folder / "a", **shared) as one,
            service(folder, 1, log=folder / "b", **shared) as other,
        ):
            yield one, other, server
    finally:
        server.stop()


def test_services_with_logs_of_their_own_share_a_store_and_bundles(tmp_path: Path) -> None:
    with two_services(tmp_path) as (one, other, _):
        wait_until(lambda: not any(asked(started, "nobody")["degraded"] for started in (one, other)))
        for number, (sender, reader) in enumerate(((one, other), (other, one))):
            user, item = f"user-{number}", ("i7", "i9")[number]
            event = {"user_id": user, "item_id": item, "event": "click"}
            status, body = sender.connect().call("POST", "/v1/events", event)[1:]
            assert (status, orjson.loads(body)["degraded"]) == (202, [])
            answer = asked(reader, user)
            assert (answer["degraded"], [found["item_id"] for found in answer["items"]]) == (
                [],
                [["i6", "i8"], ["i8", "i10"]][number],  # the nearest to the item
            )
        publish(tmp_path / "bundles", "toy-2")
        all_serve(one, 1, "toy-2")
        all_serve(other, 1, "toy-2")
        assert asked(one, "user-1")["items"][0]["item_id"] == "i8"
    logged = [read(tmp_path / log, stream=EVENTS).records for log in ("a", "b")]
    assert [[event.item_id for event in part if isinstance(event, Event)] for part in logged] == [["i7"], ["i9"]]


def test_a_store_that_lost_its_data_gets_the_events_of_both_logs(tmp_path: Path) -> None:
    with two_services(tmp_path) as (one, other, server):
        for started, item in ((one, "i7"), (other, "i9")):
            event = {"user_id": "eve", "item_id": item, "event": "click"}
            assert started.connect().call("POST", "/v1/events", event)[1] == 202
        wait_until(lambda: [history(started) for started in (one, other)] == [["i7", "i9"]] * 2)
        os.kill(server.pid, signal.SIGKILL)  # it restarts, empty
        wait_until(lambda: all(asked(started, "nobody")["degraded"] for started in (one, other)))
        wait_until(lambda: not any(asked(started, "nobody")["degraded"] for started in (one, other)))
        wait_until(lambda: [history(started) for started in (one, other)] == [["i7", "i9"]] * 2)


def history(started: Service) -> list[str]:
    events = orjson.loads(started.connect().call("GET", "/v1/users/eve/history")[2])["events"]
    return sorted(event["item_id"] for event in events)


def asked(started: Service, user: str) -> dict[str, list[dict[str, str]]]:
    answer: dict[str, list[dict[str, str]]] = orjson.loads(
        started.connect().call("POST", "/v1/recommendations", {"user_id": user, "limit": 2})[2]
    )
    return answer
