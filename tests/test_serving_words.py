"""Errors of the API and of configurations speak of texts, numbers and lists, in no words of Python or pydantic."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from service_harness import HOME, ServiceHarness, service_harness
from toy_data import toy_config

from experiments.config import RunConfig, load_config
from features.errors import ConfigError, describe_invalid
from features.schema import DataConfig, EventRules
from recsys.retrieval.filters import Filter
from serving.routes.items.fields import ItemIn
from serving.routes.search_query import SearchIn
from serving.schemas.events import EventIn

FOREIGN = re.compile(
    r"\b(Input|Field|Extra|Value error|dict|dictionary|tuple|NoneType|None|True|False|instance|str|int|bool|"
    r"integer|string|Unable|pydantic|function|attribute|JSON input|discriminator)\b"
)

VALUES: list[Any] = [None, True, "", "x", "1", 0, -1, 1.5, 1e300, 2**70, [], [1], {}, {"a": 1}, [[1]], "\ud800"]


def wrong(schema: type[BaseModel]) -> Iterator[str]:
    """The reason of every field of a schema with every value that it refuses."""
    for name in (*schema.model_fields, "unknown"):
        for value in VALUES:
            try:
                schema.model_validate({name: value})
            except ValidationError as error:
                yield from (invalid.reason for invalid in describe_invalid(error.errors()))


@pytest.mark.parametrize("schema", [EventIn, ItemIn, SearchIn, Filter])
def test_no_reason_of_the_api_has_a_foreign_word(schema: type[BaseModel]) -> None:
    reasons = set(wrong(schema))
    assert len(reasons) > 3
    assert {reason for reason in reasons if FOREIGN.search(reason)} == set()
    assert "must be another value" not in reasons


def test_no_error_of_a_configuration_has_a_foreign_word(tmp_path: Path) -> None:
    raw = json.loads(RunConfig.model_validate_json(json.dumps(sample(tmp_path))).model_dump_json())
    raw["encoder"] = {"kind": "openai-compatible", "base_url": "http://a/v1", "model": "m"}
    found = set()
    for place in places(raw):
        for value in VALUES[:-1]:
            (tmp_path / "c.yaml").write_text(json.dumps(changed(raw, place, value)))
            try:
                load_config(tmp_path / "c.yaml", {})
            except ConfigError as error:
                text = re.sub(r"'[^']*'|\(got [^)]*\)", "", str(error).partition("c.yaml: ")[2])
                found.add(text)
    assert len(found) > 100
    assert {text for text in found if FOREIGN.search(text) or "another value" in text} == set()


def sample(folder: Path) -> Any:
    return yaml.safe_load(toy_config(folder).read_text())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*at, key))


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    return {**value, place[0]: changed(value[place[0]], place[1:], new)}


@pytest.mark.parametrize(
    ("kind", "value", "place", "reason"),
    [
        (int, "x", (), "must be a whole number"),
        (int, 1.5, (), "must be a whole number"),
        (float | None, [], (), "must be a number"),
        (int | float, "x", (), "must be a number"),
        (str | int | bool, [], (), "must be a text or a whole number or true or false"),
        (dict[str, list[int]], {"a": [1, "b"]}, ("a", 1), "must be a whole number"),
        (dict[str, int], 3, (), "must be named values"),
        (Annotated[int, Field(le=1_048_576)], 1 << 21, (), "must be 1,048,576 or less"),
        (
            EventRules,
            {"positive": {"a": 0}, "weights": {"a": 1e308}},
            ("weights", "a"),
            "must be 1,000,000 or less",
        ),
        (EventRules, {"positive": {"a": None}, "weights": {"a": 1e-308}}, ("weights", "a"), "must be 1e-09 or more"),
        (Annotated[float, Field(gt=0.5)], 0.25, (), "must be more than 0.5"),
        (Annotated[list[int], Field(max_length=2)], [1, 2, 3], (), "must be a list of at most 2"),
        (Annotated[str, Field(max_length=2)], "abc", (), "must be a text of at most 2 characters"),
    ],
)
def test_reasons(kind: Any, value: Any, place: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    (invalid,) = describe_invalid(caught.value.errors())
    assert (invalid.place, invalid.reason) == (place, reason)


@pytest.mark.parametrize(
    ("sections", "hint"),
    [
        (
            {"encoder": {"kind": "builtin", "multilingal": True}},
            "'encoder.multilingal'; did you mean 'multilingual'?",
        ),
        ({"encoder": {"kind": "clip", "model": "a", "revison": "b"}}, "'encoder.revison'; did you mean 'revision'?"),
        (
            {"encoder": {"kind": "openai-compatible", "model": "a", "base_ur": "b"}},
            "'encoder.base_ur'; did you mean 'base_url'?",
        ),
        ({"encoder": {"kind": "gemini", "dimensions": 128}}, "'encoder.dimensions'; did you mean 'dimension'?"),
        ({"towers": {"dimensoin": 8}}, "'towers.dimensoin'; did you mean 'dimension'?"),
    ],
)
def test_a_misspelled_key_of_an_encoder_gets_the_key_that_is_meant(
    sections: dict[str, Any], hint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(toy_config(tmp_path, **sections), {})
    assert f"unknown key {hint}" in str(caught.value)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("words")) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PUT", "/v1/items", 405, "method_not_allowed"),
        ("POST", "/v1/items/", 405, "method_not_allowed"),
        ("GET", "/v1/events", 405, "method_not_allowed"),
        ("POST", "/v1/events/", 404, "not_found"),
        ("GET", "/v1/users/", 422, "bad_id"),
        ("GET", "/v1/users/u/recommendations/", 404, "not_found"),
        ("POST", "/v1/items/a", 405, "method_not_allowed"),
        ("GET", "/docs/", 404, "not_found"),
        ("GET", "/v1/items/", 422, "bad_id"),
        ("DELETE", "/healthz/", 404, "not_found"),
    ],
)
def test_a_wrong_path_or_method_is_an_error_and_no_redirect(
    harness: ServiceHarness, method: str, path: str, status: int, code: str
) -> None:
    response = harness.client.request(method, path, follow_redirects=False)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "location" not in response.headers


def test_parameters_of_the_url(harness: ServiceHarness) -> None:
    error = harness.client.get(HOME.format("u", "x", "home")).json()
    assert error["detail"] == "limit: must be a whole number"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x00b", "\u2028", "x" * 101])
def test_odd_names_of_placements_are_refused(name: str) -> None:
    data = {"source": "folder", "path": "x", "events": {"positive": {"a": None}}}
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(data | {"placements": {name: {}}})
    (invalid,) = describe_invalid(caught.value.errors())
    assert invalid.reason.startswith("the name of a placement has 1 to 100 characters, none of them a control")
    assert len(invalid.reason) < 300
    assert invalid.reason.isprintable()
    assert DataConfig.model_validate(data | {"placements": {"Startseite é 1": {}}})
