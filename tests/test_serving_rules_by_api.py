"""The rules of a shop by the API: read, checked, written, and followed by all processes on the file."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from service_harness import ServiceHarness, facts_of, service_harness
from test_serving_keys import as_key

from features.files import replace_file
from recsys.ranking.rules import load_rules
from recsys.yaml_text import parse_yaml, yaml_text
from serving.access.key_file import create_key

FIRST = """
rules:
- name: the new one first  # a comment
  pin: {item: i9, position: 1}
- name: no odd items
  exclude: {categories: [odd], published: ["2020-01-01T00:00:00Z", null]}
"""
SECOND = {"rules": [{"name": "another first", "pin": {"item": "i8", "position": 1}}]}


def write(folder: Path, text: str = FIRST) -> Path:
    file = folder / "rules.yaml"
    file.write_text(text)
    return file


def get(harness: ServiceHarness) -> tuple[Any, str | None]:
    """The answer, and its tag."""
    response = harness.client.get("/v1/rules")
    assert response.status_code == 200, response.text
    return response.json(), response.headers.get("etag")


def send(harness: ServiceHarness, rules: Any, tag: str | None = None, **query: Any) -> Any:
    headers = {} if tag is None else {"If-Match": tag}
    return harness.client.put("/v1/rules", content=orjson.dumps(rules), headers=headers, params=query)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path, rules=write(tmp_path)) as running:
        yield running


def test_rules_are_read_changed_and_written(tmp_path: Path, harness: ServiceHarness) -> None:
    rules, tag = get(harness)
    assert rules == {
        "rules": [
            {"name": "the new one first", "pin": {"item": "i9", "position": 1}},
            {
                "name": "no odd items",
                "exclude": {"categories": ["odd"], "published": ["2020-01-01T00:00:00Z", None]},
            },
        ],
        "fault": None,
    }
    assert tag is not None
    assert len(tag) == 66
    assert harness.items("nobody", 2) == ["i9", "i0"]
    rules["rules"][0]["pin"]["item"] = "i8"
    written = send(harness, {"rules": rules["rules"]}, tag)
    assert (written.status_code, written.json()) == (200, rules)
    assert written.headers["etag"] != tag
    assert get(harness) == (rules, written.headers["etag"])
    assert harness.items("nobody", 2) == ["i8", "i0"]
    text = (tmp_path / "rules.yaml").read_text()
    assert text.startswith("rules:\n- name: the new one first\n  pin:\n    item: i8\n")
    assert "comment" not in text
    assert load_rules(tmp_path / "rules.yaml").rules[1].name == "no odd items"
    assert send(harness, {"rules": []}).json() == {"rules": [], "fault": None}
    assert harness.items("nobody", 2) == ["i0", "i1"]


def test_a_dry_run_changes_nothing(tmp_path: Path, harness: ServiceHarness) -> None:
    before = get(harness)
    checked = send(harness, SECOND, '"another"', dry_run="true")
    assert (checked.status_code, checked.json()) == (200, SECOND | {"fault": None})
    assert "etag" not in checked.headers
    assert send(harness, {"rules": [{"name": "a"}]}, dry_run="true").status_code == 422
    assert get(harness) == before
    assert (tmp_path / "rules.yaml").read_text() == FIRST
    assert harness.items("nobody", 1) == ["i9"]


def test_an_update_is_not_lost(tmp_path: Path) -> None:
    file = write(tmp_path)
    with ExitStack() as stack:
        first, second = (stack.enter_context(service_harness(tmp_path, rules=file)) for _ in range(2))
        tag = get(first)[1]
        assert send(second, SECOND, tag).status_code == 200
        late = send(first, {"rules": []}, tag)
        assert late.status_code == 412
        assert facts_of(late.json()) == {
            "code": "rules_changed",
            "detail": "the file is not the one that If-Match names: read the rules again, and change those",
            "place": "header",
        }
        rules, tag = get(first)  # it looks at the file, whoever wrote it
        assert rules["rules"] == SECOND["rules"]
        assert send(first, {"rules": []}, f'"x", {tag}').status_code == 200
        assert send(second, SECOND, f"W/{get(second)[1]}").status_code == 412  # a weak tag never matches
        file.write_text("rules: [")
        assert send(second, SECOND, '"x"').status_code == 412
        assert send(second, SECOND, "*").status_code == 200
        assert send(second, {"rules": []}).status_code == 200  # without the header, nothing is compared


def test_rules_that_one_process_writes_reach_another(tmp_path: Path) -> None:
    file = write(tmp_path)
    with ExitStack() as stack:
        first, second = (stack.enter_context(service_harness(tmp_path, rules=file)) for _ in range(2))
        assert send(first, SECOND).status_code == 200
        assert first.items("nobody", 1) == ["i8"]
        assert second.items("nobody", 1) == ["i9"]
        second.service.step()
        assert second.items("nobody", 1) == ["i8"]


@pytest.mark.parametrize(
    ("sent", "place", "reason"),
    [
        ([], "body", "must be"),
        ({"rule": []}, "rule", "unknown"),
        ({"rules": [{"name": "a"}]}, "rules.0", "one of only, exclude, pin"),
        (
            {"rules": [{"name": "a", "pin": {"item": "i1", "position": 0}}]},
            "rules.0.pin.position",
            "must be 1 or more",
        ),
        ({"rules": [{"name": "a", "minimum": True}]}, "rules.0.minimum", "must be a number or null"),
        (
            {"rules": [{"name": "a", "minimum": 1}, {"name": "a", "exclude": {}}]},
            "rules.1",
            "the name 'a' stands twice",
        ),
        ({"rules": [{"name": "a", "minimum": 1}, {"name": "b", "minimum": 2}]}, "rules.1", "contradicts 'a'"),
        ({"rules": [{"name": "a", "pin": {"item": "gone", "position": 1}}]}, "rules.0", "it pins item gone"),
        (
            {"rules": [{"name": "a", "minimum": 1}, {"name": "b", "cap": {"column": "colour", "at_most": 1}}]},
            "rules.1",
            "the items have no column 'colour'",
        ),
    ],
)
def test_rules_that_cannot_be_used_are_refused(
    tmp_path: Path, harness: ServiceHarness, sent: Any, place: str, reason: str
) -> None:
    for query in ({}, {"dry_run": "true"}):
        response = send(harness, sent, **query)
        problem = response.json()
        assert (response.status_code, problem["code"], problem["place"]) == (422, "bad_rules", place), problem
        assert reason in problem["detail"]
    assert (tmp_path / "rules.yaml").read_text() == FIRST
    # the file is refused for the same reason
    write(tmp_path, json.dumps(sent))
    harness.service.step()
    answer, _ = get(harness)
    assert reason in answer["fault"]
    assert answer["fault"].endswith("the rules of before stay in use")
    assert answer["rules"][0]["pin"]["item"] == "i9"


def test_a_file_that_cannot_be_used_is_replaced(tmp_path: Path, harness: ServiceHarness) -> None:
    tag = get(harness)[1]
    write(tmp_path, "rules: [{name: a}]")
    broken, other = get(harness)
    assert "line 1: one of only" in broken["fault"]
    assert other != tag
    assert send(harness, SECOND, tag).status_code == 412
    assert send(harness, SECOND, other).json()["fault"] is None
    (tmp_path / "rules.yaml").unlink()
    gone, none = get(harness)
    assert "no such file" in gone["fault"]
    assert none is None
    assert gone["rules"] == SECOND["rules"]
    refused = send(harness, SECOND)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert "rules.yaml: No such file or directory; check the path" in refused.json()["detail"]


def test_a_service_without_a_file(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert get(harness) == ({"rules": [], "fault": None}, None)
        assert send(harness, SECOND, dry_run="true").json()["rules"] == SECOND["rules"]
        response = send(harness, SECOND)
        assert response.status_code == 409
        assert facts_of(response.json()) == {
            "code": "no_rules_file",
            "detail": "the service has no file of rules: start it with --rules FILE (setting RULES)",
            "place": "",
        }


def test_the_rules_are_for_administrators(tmp_path: Path) -> None:
    file, roles = tmp_path / "keys.jsonl", (("read", 403), ("write", 403), ("admin", 200))
    secrets = {role: create_key(file, role, role) for role, _ in roles}  # type: ignore[arg-type]
    with service_harness(tmp_path, rules=write(tmp_path), keys=file) as harness:
        for role, status in roles:
            named = as_key(secrets[role])
            assert harness.client.get("/v1/rules", headers=named).status_code == status
            assert harness.client.head("/v1/rules", headers=named).status_code == status
            put = harness.client.put("/v1/rules", content=orjson.dumps(SECOND), headers=named)
            assert put.status_code == status
        audit = (tmp_path / "log" / "audit.jsonl").read_bytes().splitlines()
    lines = [orjson.loads(line) for line in audit]
    assert [(line["key"], line["method"], line["status"]) for line in lines if line["status"] == 200] == [
        ("admin", "GET", 200),
        ("admin", "HEAD", 200),
        ("admin", "PUT", 200),
    ]


def test_a_file_that_is_replaced_keeps_its_rights_and_its_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "rules.yaml", tmp_path / "rules.yaml"
    real.write_text("a")
    real.chmod(0o640)
    link.symlink_to(real)
    replace_file(link, b"b")
    assert (link.is_symlink(), real.read_text(), stat.S_IMODE(real.stat().st_mode)) == (True, "b", 0o640)
    assert os.listdir(tmp_path / "real") == ["rules.yaml"]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@example("\x85")
@example({"\u2028": "\ufeff\x00", "yes": "2024-01-01", "😀": "no: 'x' # y", "~": [0.1, 1e300, "1e3", " a ", ""]})
@settings(max_examples=500)
@given(values)
def test_yaml_of_json_is_read_as_the_same_values(value: Any) -> None:
    assert parse_yaml(yaml_text({"rules": value}), "x") == {"rules": value}
