"""Unknown parameters of a URL are refused on every route; HEAD, OPTIONS and `Allow`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from service_harness import ServiceHarness, service_harness
from test_serving_openapi import ROUTES

from features.log.reader import read
from features.log.records import EXPOSURES

CHECKED = [(method, path) for method, path in ROUTES if path.startswith("/v1/")]
ALLOW = {
    "/v1/users/ann/recommendations": "GET, HEAD, OPTIONS",
    "/v1/users/ann/events/e1": "DELETE, OPTIONS",
    "/v1/items/i1": "DELETE, GET, HEAD, OPTIONS, PATCH, PUT",
    "/v1/events": "OPTIONS, POST",
    "/healthz": "GET, HEAD, OPTIONS",
    "/": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
}
"""Path -> the methods that it takes."""


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("strict")) as harness:
        yield harness


def url(path: str) -> str:
    return path.replace("{user_id}", "ann").replace("{item_id}", "i1").replace("{event_id}", "e1")


@pytest.mark.parametrize(("method", "path"), CHECKED)
def test_an_unknown_parameter_is_refused_on_every_route(steady: ServiceHarness, method: str, path: str) -> None:
    for query in ("?nothing=1", "?nothing", "?%6Eothing=%20"):
        kind = {"Content-Type": "application/x-ndjson"} if (method, path) == ("post", "/v1/items") else None
        body = None if method == "get" else b"{}"
        response = steady.client.request(method, url(path) + query, content=body, headers=kind)
        error = response.json()
        assert (response.status_code, error["code"], error["place"]) == (422, "unknown_parameter", "nothing")
    assert "i1" in steady.items("nobody", 20)  # it was not deleted


def test_all_routes_of_the_application_are_in_the_table(steady: ServiceHarness) -> None:
    app = steady.client.app
    found = {
        (method.lower(), route.path.replace(":id}", "}"))
        for route in app.routes  # type: ignore[attr-defined]
        if isinstance(route, APIRoute) and route.path.startswith("/v1/")
        for method in route.methods or ()
    }
    assert {call for call in found if call[0] != "head"} == set(CHECKED)
    assert {path for method, path in found if method == "head"} == {p for m, p in CHECKED if m == "get"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("lmit=3", "'lmit' is no parameter of this path: did you mean limit? this path has limit"),
        ("k=3", "'k' is no parameter of this path: did you mean limit? this path has limit"),
        ("zzz=3", "'zzz' is no parameter of this path: this path has limit"),
        ("=3", "'' is no parameter of this path: this path has limit"),
        ("z" * 70 + "=3", "'" + "z" * 64 + "' is no parameter of this path: this path has limit"),
    ],
)
def test_what_the_error_says(steady: ServiceHarness, query: str, message: str) -> None:
    assert steady.client.get(f"/v1/users?{query}").json()["detail"] == message


def test_a_path_without_parameters_says_so_and_pages_take_any(steady: ServiceHarness) -> None:
    error = steady.client.get("/v1/about?limit=3").json()
    assert error["detail"] == "'limit' is no parameter of this path: this path has no parameters"
    for path in ("/", "/docs", "/healthz", "/readyz"):
        assert steady.client.get(f"{path}?utm_source=mail").status_code == 200


@pytest.mark.parametrize("path", ALLOW)
def test_what_a_path_takes(steady: ServiceHarness, path: str) -> None:
    options = steady.client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, ALLOW[path], b"")
    wrong = steady.client.request("TRACE", path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, ALLOW[path])
    assert wrong.json()["detail"] == f"this path does not take TRACE; it takes {ALLOW[path]}"


def test_options_of_an_unknown_path(steady: ServiceHarness) -> None:
    assert steady.client.options("/v1/nothing").status_code == 404


def test_head_answers_as_get_does_and_shows_nothing(tmp_path: Path) -> None:
    paths = ("/v1/users/nobody/recommendations", "/v1/items/i1", "/v1/items/i1/similar", "/docs", "/healthz")
    with service_harness(tmp_path) as harness:
        for path in paths:
            head, get = harness.client.head(path), harness.client.get(path)
            assert (head.status_code, get.status_code) == (200, 200)
            assert head.headers["content-type"] == get.headers["content-type"]
            assert int(head.headers["content-length"]) == pytest.approx(len(get.content), abs=40)  # times differ
        assert harness.client.head("/v1/items/nothing").status_code == 404
    exposures = read(tmp_path / "log", stream=EXPOSURES).records
    assert [exposure.placement for exposure in exposures] == ["home", "similar"]  # type: ignore[union-attr]
