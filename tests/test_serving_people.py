"""One person: what the store knows in numbers, and erasure by the API while another process serves."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import JsonClient, service_harness
from toy_service import (
    NOW,
    ToyFiller,
    ToyShelf,
    toy_bundle,
    toy_encoders,
    toy_events,
    toy_settings,
    toy_upsert,
    with_contents,
)

from features.erasure.erase import upkeep_lock
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.redis_users import RedisUsers
from serving.app import create_app

ANN = "ann-4711"


def test_what_the_store_knows_of_a_user(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:

        def user(name: str) -> Any:
            response = harness.client.get(f"/v1/users/{name}")
            assert response.status_code == 200
            return response.json()

        # in the tables: ann rated i1 and i8 with 5 and 4, bob i2 with 1; a rating is positive from 3.5 on
        ann = {
            "user_id": "ann",
            "status": "present",
            "events": 2,
            "positives": 2,
            "seen": 2,
            "likes": [],
            "degraded": [],
        }
        assert user("ann") == ann | {"last_event": "2020-01-01T00:00:01+00:00"}
        assert (user("bob")["events"], user("bob")["positives"], user("bob")["seen"]) == (1, 0, 1)
        nobody = {"status": "missing", "events": 0, "positives": 0, "seen": 0, "last_event": None} | {
            "likes": [],
            "degraded": [],
        }
        assert user("nobody") == {"user_id": "nobody"} | nobody
        harness.click("bob", "i2", timestamp="2027-01-01T00:00:00.5Z")
        assert user("bob") == ann | {
            "user_id": "bob",
            "positives": 1,
            "seen": 1,
            "last_event": "2027-01-01T00:00:00.500000+00:00",
        }
        harness.store.away = True
        away = dict.fromkeys(("status", "events", "positives", "seen", "likes", "last_event"))
        assert user("never") == {"user_id": "never", **away, "degraded": ["store"]}
        assert user("ann") == ann | {
            "last_event": "2020-01-01T00:00:01+00:00",
            "degraded": ["store", "last_known"],
        }
        for path in ("/v1/users/a%0Ab", "/v1/users/"):
            response = harness.client.get(path)
            assert (response.status_code, response.json()["code"]) == (422, "bad_id")


class Server:
    """Services on one log and one store."""

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        self.folder, self.url, self._stack = folder, url, stack

    def start(self) -> JsonClient:
        shelf = ToyShelf(with_contents(toy_bundle(self.folder)))
        app = create_app(
            toy_settings(self.folder, follow_seconds=3600),
            load=shelf.load,
            upsert=toy_upsert,
            merge=lambda bundle: None,
            current=shelf.current,
            filler=ToyFiller(self.folder, lambda _: toy_events([("bob", "i2", 5.0)])),
            connect=lambda rules: RedisStore(self.url, rules, timeout=5.0),
            now=lambda: NOW,
            encoders=toy_encoders,
        )
        return self._stack.enter_context(JsonClient(app, raise_server_exceptions=False))

    def traces(self, text: bytes) -> list[str]:
        """Files of the log that hold a text."""
        files = (path for path in (self.folder / "log").rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in files if text in path.read_bytes())


@contextmanager
def services(folder: Path) -> Iterator[Server]:
    server = RedisServer()
    try:
        with ExitStack() as stack:
            yield Server(folder, server.url, stack)
    finally:
        server.stop()


def click(client: JsonClient, user: str, item: str, **more: Any) -> None:
    event = {"user_id": user, "item_id": item, "event": "click", **more}
    response = client.post("/v1/events", content=orjson.dumps(event))
    assert (response.status_code, response.json()["degraded"]) == (202, [])


def history(client: JsonClient, user: str) -> list[str]:
    return sorted(event["item_id"] for event in client.get(f"/v1/users/{user}/history").json()["events"])


def step(client: JsonClient) -> Any:
    service = client.app.state.service  # type: ignore[attr-defined]
    service.step()
    return service


def test_a_person_is_erased_while_another_process_serves(tmp_path: Path) -> None:
    with services(tmp_path) as servers:
        first, second = servers.start(), servers.start()
        step(first)
        click(first, ANN, "i1")
        click(second, ANN, "i4")
        click(second, "eve", "i5")
        merged = first.post(f"/v1/users/{ANN}/merge", content=orjson.dumps({"from": "anon-0815"}))
        assert merged.status_code == 202
        assert second.get(f"/v1/users/{ANN}/recommendations?limit=2&placement=home").status_code == 200
        feed = step(second).corrections
        feed.read()
        assert history(first, ANN) == history(second, ANN) == ["i1", "i4"]
        assert feed.corrections.path("anon-0815", NOW) == ["anon-0815", ANN]
        assert servers.traces(ANN.encode()) != []
        assert len(RedisUsers(servers.url).find(ANN)) == 1

        response = first.delete(f"/v1/users/{ANN}")
        assert response.status_code == 200
        answer = response.json()
        assert (answer["user_id"], answer["status"]) == (ANN, "erased")
        # two events, a merge and an exposure; the state and the entry among the recent users
        assert answer["places"] == [
            {"name": "event log", "erased": 4, "left": 0},
            {"name": "feature store", "erased": 2, "left": 0},
        ]
        assert "run `recsys users erase` with --config, --slates and --also" in answer["notes"][-1]
        assert servers.traces(ANN.encode()) == []
        assert RedisUsers(servers.url).find(ANN) == []
        assert history(first, ANN) == history(second, ANN) == []
        assert history(second, "eve") == ["i5"]
        for client in (first, second):  # neither what is read again nor what was read before brings it back
            service = step(client)
            assert history(client, ANN) == []
            assert service.corrections.corrections.path("anon-0815", NOW) == ["anon-0815"]
            assert first.get(f"/v1/users/{ANN}").json()["status"] == "missing"
        third = servers.start()
        step(third)
        assert history(third, ANN) == []
        click(third, ANN, "i2")  # a new person
        assert history(first, ANN) == ["i2"]
        again = first.delete("/v1/users/nobody-0815").json()
        assert [place["erased"] for place in again["places"]] == [0, 0]
        lines = [orjson.loads(line) for line in (tmp_path / "log" / "audit.jsonl").read_bytes().splitlines()]
        assert [(line["method"], line["status"]) for line in lines] == [("DELETE", 200), ("DELETE", 200)]
        assert ANN not in lines[0]["path"]


def test_one_erasure_at_a_time(tmp_path: Path) -> None:
    with services(tmp_path) as servers:
        first = servers.start()
        step(first)
        click(first, ANN, "i1")
        with upkeep_lock(tmp_path / "log"):
            busy = first.delete(f"/v1/users/{ANN}")
        assert (busy.status_code, busy.json()["code"], busy.json()["place"]) == (503, "busy", "log")
        assert busy.headers["retry-after"] == "10"
        assert history(first, ANN) == ["i1"]
        for path in ("/v1/users/a%0Ab", "/v1/users/"):
            assert first.delete(path).status_code == 422


def test_requests_are_answered_during_an_erasure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.routes.people import erase

    begun, may_end, original = threading.Event(), threading.Event(), erase.erase_user

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert may_end.wait(60)
        return original(*arguments)

    monkeypatch.setattr(erase, "erase_user", slow)
    with services(tmp_path) as servers:
        client, answers = servers.start(), list[Any]()
        step(client)
        click(client, ANN, "i1")
        erasing = threading.Thread(target=lambda: answers.append(client.delete(f"/v1/users/{ANN}")))
        erasing.start()
        assert begun.wait(60)
        assert history(client, ANN) == ["i1"]
        click(client, "eve", "i2")
        may_end.set()
        erasing.join(60)
        assert answers[0].json()["status"] == "erased"
        assert (history(client, ANN), history(client, "eve")) == ([], ["i2"])


def test_what_is_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with services(tmp_path) as servers:
        client = servers.start()
        step(client)
        click(client, ANN, "i1")
        monkeypatch.setattr(RedisUsers, "erase", lambda self, user: None)
        answer = client.delete(f"/v1/users/{ANN}").json()
    assert (answer["status"], answer["places"][1]) == (
        "incomplete",
        {"name": "feature store", "erased": 2, "left": 2},
    )
