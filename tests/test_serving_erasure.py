"""A person is erased while the service runs, and comes back."""

from pathlib import Path

import orjson
from service_harness import HOME, JsonClient
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

from features.erasure.erase import Scope, erase_user
from features.log.reader import read
from features.log.records import EVENTS
from features.log.segments import has_ended, segment_paths
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from serving.app import create_app

ANN = "ann-4711"


def test_a_running_service_goes_on_while_a_person_is_erased(tmp_path: Path) -> None:
    server = RedisServer()
    shelf = ToyShelf(with_contents(toy_bundle(tmp_path)))
    app = create_app(
        toy_settings(tmp_path, follow_seconds=3600),
        load=shelf.load,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        filler=ToyFiller(tmp_path, lambda _: toy_events([("bob", "i2", 5.0)])),
        connect=lambda rules: RedisStore(server.url, rules, timeout=1.0),
        now=lambda: NOW,
        encoders=toy_encoders,
    )
    with JsonClient(app, raise_server_exceptions=False) as client:

        def click(item: str) -> None:
            event = {"user_id": ANN, "item_id": item, "event": "click"}
            response = client.post("/v1/events", content=orjson.dumps(event))
            assert (response.status_code, response.json()["degraded"]) == (202, [])

        def history() -> list[str]:
            events = client.get(f"/v1/users/{ANN}/history").json()["events"]
            return [event["item_id"] for event in events]

        client.app.state.service.step()  # type: ignore[attr-defined]
        click("i1")
        click("i4")
        assert client.get(HOME.format(ANN, 2, "home")).status_code == 200
        assert sorted(history()) == ["i1", "i4"]  # both are of one moment
        report = erase_user(Scope(tmp_path / "log", redis_url=server.url), ANN)
        assert (report.n_left, report.arrived) == (0, 0)
        assert [place.found for place in report.places] == [3, 2]
        assert history() == []
        (segment,) = segment_paths(tmp_path / "log" / EVENTS)
        assert not has_ended(segment)
        client.app.state.service.step()  # type: ignore[attr-defined]
        assert history() == []  # catching up with the log brings nothing back
        click("i2")
        assert history() == ["i2"]
        assert client.get("/readyz").json()["notes"].keys() <= {"tables"}
    part = read(tmp_path / "log")
    assert ([(r.user_id, r.item_id) for r in part.records], part.damaged) == ([(ANN, "i2")], ())  # type: ignore[union-attr]
    server.stop()
