"""Parameters of the routes at their bounds, and the fields and headers of responses."""

from collections.abc import Iterator
from typing import Any

import pytest
from service_harness import GREEN_PNG, ServiceHarness, service_harness
from toy_service import ToyShelf, toy_bundle, toy_events, with_contents

from features.log.reader import read
from features.log.records import EXPOSURES, Exposure


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    """A service of 130 items; u0 to u39 are users with one event each, and `much` has 60 events."""
    folder = tmp_path_factory.mktemp("steady")
    (folder / "green.png").write_bytes(GREEN_PNG)
    rows = [(f"u{n}", "i1", 5.0) for n in range(40)] + [("much", f"i{n}", 1.0) for n in range(60)]
    bundle = with_contents(toy_bundle(folder, 130, images={0: "green.png"}))
    with service_harness(folder, shelf=ToyShelf(bundle), events=lambda _: toy_events(rows)) as harness:
        yield harness


def get(steady: ServiceHarness, path: str) -> Any:
    response = steady.client.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-type"] == "application/json"
    return response.json()


@pytest.mark.parametrize(
    ("path", "field", "name", "default", "most"),
    [
        ("/v1/users/nobody/recommendations", "items", "limit", 20, 100),
        ("/v1/items/i50/similar", "items", "limit", 20, 100),
        ("/v1/users/much/history", "events", "limit", 50, 60),
        ("/v1/users", "users", "limit", 20, 41),
    ],
)
def test_numbers_of_results(
    steady: ServiceHarness, path: str, field: str, name: str, default: int, most: int
) -> None:
    assert len(get(steady, path)[field]) == default
    assert len(get(steady, f"{path}?{name}=1")[field]) == 1
    limit = {"/v1/users": 1000, "/v1/users/much/history": 100_000}.get(path, 100)
    assert len(get(steady, f"{path}?{name}={limit}")[field]) == most
    for value in (0, limit + 1):
        response = steady.client.get(f"{path}?{name}={value}")
        error = response.json()
        assert (response.status_code, error["code"], error["place"]) == (422, "bad_parameter", name)


def test_the_history_of_a_user_is_newest_first(steady: ServiceHarness) -> None:
    past = get(steady, "/v1/users/much/history?limit=2")
    assert (past["user_id"], past["total"], past["degraded"]) == ("much", 60, [])
    assert [event["item_id"] for event in past["events"]] == ["i59", "i58"]
    assert past["events"][0] == {
        "item_id": "i59",
        "title": "Item <b>59</b>",
        "categories": ["odd"],
        "image": None,
        "event": "rating",
        "timestamp": "2020-01-01T00:01:39+00:00",
        "value": 1.0,
    }
    nobody = get(steady, "/v1/users/nobody/history")
    assert (nobody["total"], nobody["events"]) == (0, [])


def test_without_a_placement_the_first_one_is_used(steady: ServiceHarness) -> None:
    assert get(steady, "/v1/users/u1/recommendations")["placement"] == "home"
    first = get(steady, "/v1/users/u1/recommendations?placement=again&limit=1")
    assert (first["placement"], first["items"][0]["item_id"]) == ("again", "i1")


def test_every_response_with_items_is_logged_as_it_was_sent(steady: ServiceHarness) -> None:
    asked = [
        get(steady, "/v1/users/u1/recommendations?limit=3"),
        get(steady, "/v1/items/i50/similar?limit=3"),
        steady.post(text="red", limit=3).json(),
    ]
    shown = read(steady.folder / "log", stream=EXPOSURES).records
    exposures = {r.request_id: r for r in shown if isinstance(r, Exposure)}
    for response, placement, user, item, source in zip(
        asked, ("home", "similar", "search"), ("u1", "", ""), (None, "i50", None), ("model",) * 3, strict=True
    ):
        logged = exposures[response["request_id"]]
        assert list(logged.items) == [shown["item_id"] for shown in response["items"]]
        assert list(logged.scores) == pytest.approx([shown["score"] for shown in response["items"]])
        assert list(logged.propensities) == [1.0] * 3
        assert (logged.placement, response["placement"]) == (placement, placement)
        assert (logged.user_id, response["user_id"]) == (user, user or None)
        assert (logged.item_id, logged.source, logged.variant) == (item, source, "default")
        assert (logged.fingerprint, response["bundle"]) == ("toy-1", "toy-1")
        assert (list(logged.degraded), response["degraded"]) == ([], [])
        assert all(milliseconds >= 0 for milliseconds in response["trace"].values())
    assert [set(response["trace"]) for response in asked] == [
        {"store", "rank", "log"},
        {"rank", "log"},
        {"encode", "rank", "log"},
    ]


def test_a_picture_has_headers_that_forbid_scripts(steady: ServiceHarness) -> None:
    response = steady.client.get("/media/i0")
    assert response.content == GREEN_PNG
    assert {name: response.headers[name] for name in ("content-type", "cache-control", "x-content-type-options")} == {
        "content-type": "image/png",
        "cache-control": "public, max-age=60",
        "x-content-type-options": "nosniff",
    }
    assert response.headers["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        ("/static/page.css", "text/css; charset=utf-8"),
        ("/console", "text/html; charset=utf-8"),
        ("/static/console/main.js", "text/javascript; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
    ],
)
def test_static_files(steady: ServiceHarness, path: str, kind: str) -> None:
    response = steady.client.get(path)
    assert response.status_code == 200
    headers = ("content-type", "x-content-type-options", "referrer-policy", "cache-control")
    assert [response.headers[name] for name in headers] == [kind, "nosniff", "no-referrer", "no-cache"]
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    own = ("script-src", "style-src", "connect-src")
    none = ("default-src", "base-uri", "form-action", "frame-ancestors")
    assert policy == {
        **dict.fromkeys(none, "'none'"),
        **dict.fromkeys(own, "'self'"),
        "img-src": f"{'data: ' if path == '/docs' else ''}'self' http: https: blob:",
        "media-src": "'self' http: https: blob:",
    }


def test_errors_of_paths_and_methods(steady: ServiceHarness) -> None:
    for method, path, status, code in (
        ("GET", "/none", 404, "not_found"),
        ("GET", "/static/none.js", 404, "not_found"),
        ("POST", "/v1/users", 405, "method_not_allowed"),
        ("GET", "/v1/items/none", 404, "unknown_item"),
        ("GET", "/v1/items/none/similar", 404, "unknown_item"),
        ("GET", "/media/none", 404, "no_picture"),
        ("PUT", "/v1/items/a/similar", 405, "method_not_allowed"),
    ):
        response = steady.client.request(method, path, content=b"{}")
        assert (response.status_code, response.json()["code"]) == (status, code), path


def test_about_and_health(steady: ServiceHarness) -> None:
    assert get(steady, "/healthz") == {"status": "up"}
    assert get(steady, "/readyz") == {"status": "ready", "bundle": "toy-1", "notes": {}}
    about = get(steady, "/v1/about")
    assert (about["bundle"], about["items"], about["search"]) == ("toy-1", 130, True)


@pytest.mark.parametrize(
    ("sent", "place"),
    [('{"price": [2, 1]}', "price"), ('{"colour": 1}', "colour"), ("{", ""), ('{"columns": {"none": ["x"]}}', "")],
)
def test_invalid_filters(steady: ServiceHarness, sent: str, place: str) -> None:
    for path in ("/v1/users/u1/recommendations", "/v1/items/i1/similar"):
        response = steady.client.get(path, params={"filter": sent})
        error = response.json()
        assert (response.status_code, error["code"], error["place"]) == (422, "bad_filter", "filter")
        assert place in error["detail"]
        assert " :" not in error["detail"]
