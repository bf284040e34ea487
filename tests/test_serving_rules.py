"""Rules of a shop through the API: applied, read again when their file changes, and kept when it is wrong."""

from pathlib import Path
from typing import Any

import pytest
from service_harness import ServiceHarness, service_harness
from toy_service import ToyShelf, toy_bundle, with_contents

from features.errors import ConfigError
from serving.shop.rules import ShopRules

RULES = """
rules:
- name: no odd items
  exclude: {categories: [odd]}
  placements: [home]
- name: the new one first
  pin: {item: i10, position: 1}
  users: cold
- name: two of each
  cap: {column: categories, at_most: 2}
  users: known
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "rules.yaml"
    file.write_text(text)
    return file


def test_rules_by_placement_and_user(tmp_path: Path) -> None:
    with service_harness(tmp_path, rules=write(tmp_path, RULES)) as harness:
        # ann's last positive item is i8: nearest are 7, 9, 6, 10, 5, 4, …; bob has no positive item and has seen i2
        assert harness.items("ann") == ["i6", "i10"]
        assert harness.items("ann", 5, "again") == ["i8", "i7", "i9", "i6"]
        bob, nobody = harness.get("bob"), harness.items("nobody", 3, "again")
    assert [item["item_id"] for item in bob["items"]] == ["i10", "i0", "i4", "i6"]
    assert [item["reason"] for item in bob["items"]] == ["pinned", *["popular"] * 3]
    assert bob["degraded"] == []
    assert nobody == ["i10", "i0", "i1"]


def test_a_pin_of_an_item_that_may_not_be_shown_is_left_out(tmp_path: Path) -> None:
    text = "rules: [{name: a, pin: {item: i2, position: 1}}]"
    with service_harness(tmp_path, rules=write(tmp_path, text)) as harness:
        assert harness.items("bob") == ["i0", "i1", "i4", "i6"]  # bob has seen i2
        assert harness.items("nobody") == ["i2", "i0", "i1", "i4"]
        hidden = '?limit=2&filter={"exclude": ["i2"]}'
        items = harness.client.get(f"/v1/users/nobody/recommendations{hidden}").json()["items"]
        assert [item["item_id"] for item in items] == ["i0", "i1"]
        assert harness.client.delete("/v1/items/i2").status_code == 200
        response = harness.get("nobody")
    assert [item["item_id"] for item in response["items"]] == ["i0", "i1", "i4", "i6"]
    assert response["degraded"] == ["rules"]  # the shop wants to know of a pin that shows nothing


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = write(tmp_path, "rules: [{name: a, pin: {item: i9, position: 1}}]")
    with service_harness(tmp_path, rules=file) as harness:
        assert harness.items("nobody", 2) == ["i9", "i0"]
        write(tmp_path, "rules: [{name: a, pin: {item: i8, position: 2}}]")
        harness.service.step()
        assert harness.items("nobody", 2) == ["i0", "i8"]
        gone = "rules:\n- {name: b, minimum: 1}\n- {name: a, pin: {item: gone, position: 1}}"
        column = "rules:\n- name: a\n  cap: {column: colour, at_most: 1}"
        for wrong, reason in (
            ("rules: [{name: a, pin: {item: i8, position: 0}}]", "line 1: pin.position: must be 1 or more"),
            (gone, "line 3: rule 'a' is not applied: it pins item gone"),
            (column, "line 2: rule 'a' is not applied: the items have no column 'colour'"),
        ):
            write(tmp_path, wrong)
            harness.service.step()
            assert harness.items("nobody", 2) == ["i0", "i8"], "the rules of before stay in use"
            ready = harness.client.get("/readyz")
            assert ready.status_code == 200
            assert (ready.json()["status"], reason in ready.json()["notes"]["rules"]) == ("degraded", True)
        file.unlink()
        harness.service.step()
        assert harness.items("nobody", 2) == ["i0", "i8"]
        write(tmp_path, "rules: []")
        harness.service.step()
        assert harness.items("nobody", 2) == ["i0", "i1"]
        assert "rules" not in harness.client.get("/readyz").json()["notes"]


def test_a_rule_that_does_not_fit_the_bundle_costs_that_rule_only_and_the_answer_says_so(tmp_path: Path) -> None:
    text = "rules:\n- {name: a, cap: {column: colour, at_most: 1}}\n- {name: b, pin: {item: i9, position: 1}}"
    with service_harness(tmp_path, rules=write(tmp_path, text)) as harness:
        response = harness.get("nobody", 2)
    assert [item["item_id"] for item in response["items"]] == ["i9", "i0"]
    assert response["degraded"] == ["rules"]


def test_rules_follow_items_that_are_put_and_deleted(tmp_path: Path) -> None:
    text = "rules: [{name: a, only: {columns: {item_id: [i1, i2, new]}}}]"
    with service_harness(tmp_path, rules=write(tmp_path, text)) as harness:
        assert harness.items("nobody") == ["i1", "i2"]
        assert harness.client.delete("/v1/items/i1").status_code == 200
        assert harness.items("nobody") == ["i2"]


def test_a_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    file = write(tmp_path, "rules: [{name: a}]")
    with pytest.raises(ConfigError, match=r"rules\.yaml line 1: one of only, exclude"):
        ShopRules(file)
    with (
        pytest.raises(ConfigError, match="no such file"),
        service_harness(tmp_path, shelf=ToyShelf(with_contents(toy_bundle(tmp_path))), rules=tmp_path / "none.yaml"),
    ):
        pass


def test_why_and_why_not_know_the_rules(tmp_path: Path) -> None:
    with service_harness(tmp_path, rules=write(tmp_path, RULES)) as harness:
        for user in ("ann", "bob", "nobody"):
            shown = harness.items(user)
            for row in range(12):
                item = f"i{row}"
                url = f"/v1/users/{user}/why-not?item_id={item}&limit=4&placement=home"
                answer = harness.client.get(url).json()
                assert (answer["stage"] == "shown") == (item in shown), answer
                if row % 2 and row != 3 and answer["stage"] != "seen":
                    assert answer["stage"] == "rule"
                    assert answer["detail"] == "a rule of the shop does not allow the item"
        capped = harness.client.get("/v1/users/ann/why-not?item_id=i2&limit=4&placement=home").json()
        assert (capped["stage"], capped["detail"].split("; ")[1]) == ("rule", "the rules of the shop chose others")
        pinned = harness.client.get("/v1/users/bob/recommendations?limit=2&placement=home&explain=true").json()[
            "items"
        ][0]
    assert (pinned["item_id"], pinned["why"]["sentence"]) == ("i10", "Chosen by the shop")
    assert (pinned["why"]["nearest"], pinned["why"]["features"]) == (None, [])


def listed(harness: ServiceHarness, what: str, k: int = 20, **query: Any) -> tuple[list[str], list[str]]:
    """Items of all pages, of k items, of what is similar to i8 or of a search for red; and `degraded` of the last."""
    items, cursor, degraded = list[str](), None, list[str]()
    while cursor is not None or not items:
        more = {"limit": k, **query} | ({"cursor": cursor} if cursor else {})
        if what == "similar":
            answer = harness.client.get("/v1/items/i8/similar", params=more)
        else:
            answer = harness.post(text="red", **more)
        assert answer.status_code == 200, answer.text
        page = [item["item_id"] for item in answer.json()["items"]]
        assert not {*page} & {*items}
        items, cursor, degraded = items + page, answer.json()["cursor"], answer.json()["degraded"]
        if not page:
            assert cursor is None
            break
    return items, degraded


SIMILAR = ["i7", "i9", "i6", "i10", "i5", "i11", "i2", "i1", "i0"]  # to i8; i4 is a variant of i5, i3 not available
FOUND = ["i0", "i1", "i2", "i4", "i6", "i7", "i8", "i10", "i11"]  # from red to green; i9 has no content


def test_what_may_not_be_shown_is_neither_similar_nor_found(tmp_path: Path) -> None:
    even = "rules: [{name: a, exclude: {categories: [odd]}}]"
    for text, similar, found in (
        (even, [0, 2, 4, 6, 10], [0, 2, 4, 6, 8, 10]),
        (even.replace("}}]", "}, placements: [home]}]"), None, None),
        (even.replace("}}]", "}, placements: [search]}]"), None, [0, 2, 4, 6, 8, 10]),
        (even.replace("}}]", "}, placements: [similar, home]}]"), [0, 2, 4, 6, 10], None),
        ("rules: [{name: a, only: {items: [i1, i2, i3, i8, i9]}}]", [1, 2, 9], [1, 2, 8]),
        ("rules: [{name: a, only: {items: [i1, i2]}, users: cold}]", [1, 2], [1, 2]),
        ("rules: [{name: a, only: {items: [i1, i2]}, users: known}]", None, None),
        ("rules: [{name: a, only: {items: [none]}}]", [], []),
    ):
        with service_harness(tmp_path, rules=write(tmp_path, text)) as harness:
            for what, rows, all_items in (("similar", similar, SIMILAR), ("search", found, FOUND)):
                expected = all_items if rows is None else [f"i{row}" for row in rows]
                for k in (20, 2):
                    items, degraded = listed(harness, what, k)
                    assert (sorted(items), degraded) == (sorted(expected), []), (text, what, k)


def test_a_search_of_a_user_has_the_rules_of_this_user(tmp_path: Path) -> None:
    text = "rules: [{name: a, only: {items: [i1, i2]}, users: known}]"
    with service_harness(tmp_path, rules=write(tmp_path, text)) as harness:
        assert sorted(listed(harness, "search", user_id="ann")[0]) == ["i1", "i2"]
        assert listed(harness, "search", user_id="nobody")[0] == FOUND


def test_only_caps_that_name_a_list_apply_to_it_and_pages_go_on(tmp_path: Path) -> None:
    everywhere = "rules:\n- {name: a, cap: {column: categories, at_most: 1}}\n- {name: b, minimum: 5}\n"
    everywhere += "- {name: c, pin: {item: i0, position: 1}}\n- {name: d, boost: {items: {items: [i11]}, by: 9}}\n"
    with service_harness(tmp_path, rules=write(tmp_path, everywhere)) as harness:
        assert (listed(harness, "similar")[0], listed(harness, "search")[0]) == (SIMILAR, FOUND)
    named = "rules: [{name: a, cap: {column: categories, at_most: 1}, placements: [similar, search]}]"
    with service_harness(tmp_path, rules=write(tmp_path, named)) as harness:
        answer = harness.client.get("/v1/items/i8/similar?limit=3").json()
        assert [item["item_id"] for item in answer["items"]] == ["i7", "i6"]  # one odd, one even
        assert harness.found(text="red", limit=3) == ["i0", "i1"]
        assert sorted(listed(harness, "similar", 3)[0]) == sorted(SIMILAR)
        # i4 is above the cap on the page of i2, and its variant i5 is not
        assert listed(harness, "search", 3)[0] == ["i0", "i1", "i2", "i5", "i6", "i7", "i8", "i11", "i10"]
        assert harness.items("nobody") == ["i0", "i1", "i2", "i4"]


def test_a_rule_that_does_not_fit_is_said_in_similar_items_and_search(tmp_path: Path) -> None:
    text = "rules:\n- {name: a, exclude: {columns: {colour: [x]}}}\n- {name: b, exclude: {items: [i7]}}"
    with service_harness(tmp_path, rules=write(tmp_path, text)) as harness:
        for what, expected in (("similar", SIMILAR), ("search", FOUND)):
            items, degraded = listed(harness, what)
            assert (items, degraded) == ([item for item in expected if item != "i7"], ["rules"])
