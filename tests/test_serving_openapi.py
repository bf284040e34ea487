"""The description of the API at /openapi.json: paths, parameters with their bounds, responses and bodies."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from service_harness import service_harness

from serving.openapi.examples import REQUESTS, RESPONSES
from serving.settings import ServeSettings
from serving.state.encoder_pool import EncoderPool

ERRORS = {"400", "401", "403", "408", "414", "421", "422", "429", "431", "503"}
"""Statuses that every path may answer with, besides those of its table."""

ROUTES: dict[tuple[str, str], tuple[str, str, str | None, set[str]]] = {
    ("get", "/v1/users/{user_id}/recommendations"): ("users", "200", "RecommendationsResponse", {"410"}),
    ("get", "/v1/users/{user_id}/why-not"): ("users", "200", "WhyNotResponse", {"404"}),
    ("post", "/v1/recommendations"): ("users", "200", "RecommendationsResponse", {"410", "413", "415"}),
    ("post", "/v1/recommendations/lists"): ("users", "200", "ListsResponse", {"413", "415"}),
    ("post", "/v1/rank"): ("users", "200", "RankResponse", {"413", "415"}),
    ("get", "/v1/users/{user_id}/history"): ("users", "200", "HistoryResponse", set()),
    ("post", "/v1/users/{user_id}/merge"): ("users", "202", "MergeResponse", {"413", "415", "409"}),
    ("delete", "/v1/users/{user_id}/events/{event_id}"): ("users", "202", "UndoResponse", set()),
    ("get", "/v1/users"): ("users", "200", "UsersResponse", set()),
    ("get", "/v1/items/{item_id}/similar"): ("items", "200", "SimilarResponse", {"404", "410"}),
    ("get", "/v1/items/{item_id}/users"): ("items", "200", "AudienceResponse", {"404"}),
    ("get", "/v1/users/{user_id}"): ("users", "200", "UserResponse", set()),
    ("delete", "/v1/users/{user_id}"): ("users", "200", "ErasureResponse", set()),
    ("get", "/v1/items"): ("items", "200", "ItemsResponse", set()),
    ("post", "/v1/items"): ("items", "202", "ImportResponse", {"413", "415"}),
    ("get", "/v1/items.ndjson"): ("items", "200", None, set()),
    ("get", "/v1/rules"): ("rules", "200", "RulesResponse", set()),
    ("put", "/v1/rules"): ("rules", "200", "RulesResponse", {"409", "412", "413", "415"}),
    ("post", "/v1/preview"): ("rules", "200", "RecommendationsResponse", {"413", "415"}),
    ("get", "/v1/state"): ("state", "200", "StateResponse", set()),
    ("get", "/v1/items/{item_id}"): ("items", "200", "ItemResponse", {"404"}),
    ("put", "/v1/items/{item_id}"): ("items", "202", "ItemAcceptedResponse", {"408", "413", "415"}),
    ("patch", "/v1/items/{item_id}"): ("items", "202", "ItemAcceptedResponse", {"404", "408", "413", "415"}),
    ("delete", "/v1/items/{item_id}"): ("items", "200", "ItemDeletedResponse", {"404"}),
    ("get", "/media/{item_id}"): ("items", "200", None, {"404"}),
    ("get", "/media/{item_id}/{name}"): ("items", "200", None, {"404", "206", "416"}),
    ("get", "/v1/map"): ("state", "200", "MapResponse", {"404"}),
    ("post", "/v1/search"): ("search", "200", "SearchResponse", {"408", "410", "413", "415", "504"}),
    ("post", "/v1/events"): ("events", "202", "EventsResponse", {"413", "415"}),
    ("get", "/healthz"): ("state", "200", "LivenessResponse", set()),
    ("get", "/readyz"): ("state", "200", "ReadinessResponse", set()),
    ("get", "/metrics"): ("state", "200", None, set()),
    ("get", "/v1/about"): ("state", "200", "AboutResponse", set()),
}
"""Method and path -> tag, status of success, its schema, further errors."""

NUMBERS = {
    "/v1/users/{user_id}/recommendations": ("limit", 1, 100, 20),
    "/v1/users/{user_id}/why-not": ("limit", 1, 100, 20),
    "/v1/items/{item_id}/similar": ("limit", 1, 100, 20),
    "/v1/items/{item_id}/users": ("limit", 1, 1000, 20),
    "/v1/users/{user_id}/history": ("limit", 1, 100_000, 50),
    "/v1/users": ("limit", 1, 1000, 20),
    "/v1/items": ("limit", 1, 1000, 100),
}
"""Path -> its number, from, to, default."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with service_harness(tmp_path_factory.mktemp("api")) as harness:
        yield harness.client.get("/openapi.json").json()
        assert harness.client.get("/redoc").status_code == 404


def test_the_title(api: dict[str, Any]) -> None:
    assert (api["info"]["title"], api["info"]["version"]) == ("recsys", "1")


def test_the_paths(api: dict[str, Any]) -> None:
    assert {(method, path) for path, methods in api["paths"].items() for method in methods} == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_responses(api: dict[str, Any], method: str, path: str) -> None:
    tag, success, schema, errors = ROUTES[method, path]
    route = api["paths"][path][method]
    assert route["tags"] == [tag]
    assert set(route["responses"]) == {success} | ERRORS | errors
    for status, response in route["responses"].items():
        name, media = ("Problem", "application/problem+json") if status != success else (schema, "application/json")
        expected: dict[str, str] = {"$ref": f"#/components/schemas/{name}"}
        if (path, status) == ("/metrics", "200"):
            media, expected = "text/plain", {"type": "string"}
        if (path, status) == ("/v1/items.ndjson", "200"):
            media, expected = "application/x-ndjson", {"type": "string"}
        if (path, status) == ("/media/{item_id}", "200"):
            assert sorted(response["content"]) == ["image/gif", "image/jpeg", "image/png", "image/webp"]
            continue
        if path == "/media/{item_id}/{name}" and status in ("200", "206"):
            assert [*response["content"]][:2] == ["audio/wav", "audio/flac"]
            continue
        if (path, status) == ("/media/{item_id}/{name}", "416"):
            assert "content" not in response
            continue
        if (path, status) == ("/readyz", "503"):  # as at 200
            media, expected = "application/json", {"$ref": "#/components/schemas/ReadinessResponse"}
        assert [*response["content"]] == [media], status
        assert response["content"][media]["schema"] == expected, status


@pytest.mark.parametrize("path", NUMBERS)
def test_bounds_of_parameters(api: dict[str, Any], path: str) -> None:
    name, least, most, default = NUMBERS[path]
    given = {parameter["name"]: parameter for parameter in api["paths"][path]["get"]["parameters"]}
    assert not given[name]["required"]
    schema = given[name]["schema"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (least, most, default)
    if "filter" in given:
        assert given["filter"]["description"].startswith(
            "filter as JSON: which items may be returned. The whole URL has at most 65535 bytes: room for some "
        )


def test_bodies(api: dict[str, Any]) -> None:
    bodies = {
        (method, path): (route["requestBody"]["required"], sorted(route["requestBody"]["content"]))
        for path, methods in api["paths"].items()
        for method, route in methods.items()
        if "requestBody" in route
    }
    assert bodies == {
        ("put", "/v1/items/{item_id}"): (True, ["application/json"]),
        ("patch", "/v1/items/{item_id}"): (True, ["application/json"]),
        ("post", "/v1/items"): (True, ["application/x-ndjson"]),
        ("put", "/v1/rules"): (True, ["application/json"]),
        ("post", "/v1/search"): (True, ["application/json", "multipart/form-data"]),
        ("post", "/v1/events"): (True, ["application/json"]),
        ("post", "/v1/recommendations"): (True, ["application/json"]),
        ("post", "/v1/recommendations/lists"): (True, ["application/json"]),
        ("post", "/v1/rank"): (True, ["application/json"]),
        ("post", "/v1/preview"): (True, ["application/json"]),
        ("post", "/v1/users/{user_id}/merge"): (True, ["application/json"]),
    }
    schemas = api["components"]["schemas"]

    def body(method: str, path: str) -> Any:
        return next(iter(api["paths"][path][method]["requestBody"]["content"].values()))["schema"]

    search, form = (
        content["schema"] for content in api["paths"]["/v1/search"]["post"]["requestBody"]["content"].values()
    )
    assert search == form == {"$ref": "#/components/schemas/SearchIn"}
    assert sorted(schemas["SearchIn"]["properties"]) == [
        *("audio", "cursor", "filter", "image", "limit", "text", "user_id", "video", "weight"),
    ]
    assert schemas["SearchIn"]["properties"]["filter"]["anyOf"][0] == {"$ref": "#/components/schemas/Filter"}
    assert "categories" in schemas["Filter"]["properties"]
    one, several = body("post", "/v1/events")["anyOf"]
    assert one == {"$ref": "#/components/schemas/EventIn"}
    assert several == {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}
    assert schemas["EventIn"]["required"] == ["user_id", "item_id", "event"]
    assert body("post", "/v1/users/{user_id}/merge") == {"$ref": "#/components/schemas/MergeIn"}
    assert schemas["MergeIn"]["required"] == ["from"]
    assert body("put", "/v1/items/{item_id}") == body("patch", "/v1/items/{item_id}")
    assert sorted(schemas["ItemIn"]["properties"]) == [
        *("audio", "available", "categories", "description", "group_id"),
        *("image", "price", "published_at", "title", "video"),
    ]
    assert schemas["ItemIn"]["properties"]["available"]["default"] is True
    assert "required" not in schemas["ItemIn"]
    errors = api["paths"]["/healthz"]["get"]["responses"]
    assert {code: errors[code]["description"] for code in ERRORS} == {
        "400": "the URL or the body cannot be read",
        "401": "the call needs a key, or its key is unknown or expired",
        "403": "the role of the key is too small, or the page's origin not allowed",
        "408": "the request arrives too slowly",
        "414": "the URL exceeds 65535 bytes",
        "421": "the service does not answer to the name in the header Host",
        "429": "the limit of the key is reached; Retry-After says for how long",
        "431": "more than 100 headers, or 65536 bytes of them",
        "422": "the request is invalid",
        "503": "overload, no bundle is served, or the event log cannot be written",
    }


def test_every_reference_leads_to_a_schema(api: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(api)))
    assert names == set(api["components"]["schemas"]) - {"HTTPValidationError", "ValidationError"}
    assert "$defs" not in json.dumps(api)


def test_operation_ids_are_names_and_unique(api: dict[str, Any]) -> None:
    ids = [route["operationId"] for methods in api["paths"].values() for route in methods.values()]
    assert len(set(ids)) == len(ids) == len(ROUTES)
    assert all(re.fullmatch("[a-z_]+", name) for name in ids)
    assert {"recommend", "get_recommendations", "post_events", "put_item"} <= set(ids)


def test_examples_keep_their_schemas(api: dict[str, Any]) -> None:
    seen = 0
    for methods in api["paths"].values():
        for route in methods.values():
            parts = [route.get("requestBody", {}), *route["responses"].values()]
            for content in (content for part in parts for content in part.get("content", {}).values()):
                if "example" in content:
                    schema = content["schema"] | {"components": api["components"]}
                    jsonschema.validate(content["example"], schema, jsonschema.Draft202012Validator)
                    seen += 1
    assert seen == len(REQUESTS) + len(RESPONSES)


def test_keys(api: dict[str, Any]) -> None:
    schemes = api["components"]["securitySchemes"]
    assert {name: (scheme["type"], scheme.get("scheme"), scheme.get("name")) for name, scheme in schemes.items()} == {
        "bearer": ("http", "bearer", None),
        "header": ("apiKey", None, "X-API-Key"),
    }
    either: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]
    roles = {}
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            found = re.search(
                r"\n\nWhere the service has keys, the call needs the role `(\w+)`\.$", route["description"]
            )
            roles[method, path] = found and found[1]
            assert route["security"] == ([] if found is None else either)
    assert {call for call, role in roles.items() if role is None} == {("get", "/healthz"), ("get", "/readyz")}
    assert {call for call, role in roles.items() if role == "admin"} == {
        ("delete", "/v1/items/{item_id}"),
        ("delete", "/v1/users/{user_id}"),
        ("get", "/v1/rules"),
        ("put", "/v1/rules"),
        ("post", "/v1/preview"),
        ("get", "/v1/state"),
    }
    assert {call for call, role in roles.items() if role == "write"} == {
        ("post", "/v1/events"),
        ("post", "/v1/items"),
        ("put", "/v1/items/{item_id}"),
        ("patch", "/v1/items/{item_id}"),
        ("post", "/v1/users/{user_id}/merge"),
        ("delete", "/v1/users/{user_id}/events/{event_id}"),
    }


def test_an_entry_of_the_list_is_typed(api: dict[str, Any]) -> None:
    entry = api["components"]["schemas"]["ItemLine"]
    assert (entry["required"], entry["additionalProperties"]) == (["item_id"], True)
    assert {"title", "price", "image", "item_id"} < set(entry["properties"])


def test_limits_of_what_is_encoded_at_once() -> None:
    pool = EncoderPool(ServeSettings())
    assert (pool._local._value, pool._remote._value, pool._large_bodies._value) == (1, 8, 4)
    assert pool._decoders.seconds == 10.0
    pool._decoders.close()
