"""Experiments through the API: users get the rules of their variant, and answers and exposures name it."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_harness import ServiceHarness, service_harness

from features.errors import ConfigError
from features.ids import id_keys
from features.log.outcomes.table import write_outcomes
from features.log.reader import read
from features.log.records import EXPOSURES, Exposure
from recsys.assignment import load_experiments
from serving.cursor import PLAIN, WITH_VARIANTS, Page
from serving.errors import ApiError
from serving.products import KEY_BITS
from serving.shop.experiments import ShopExperiments
from serving.shop.rules import ShopRules

MAIN = "rules: [{name: no odd items, exclude: {categories: [odd]}}]"
FIRST = "rules: [{name: the campaign, pin: {item: i9, position: 1}}]"
SECOND = "rules: [{name: the other campaign, pin: {item: i11, position: 1}}]"

# b2sum of "variant", "even" and the user: u6 is at .278, u7 at .247, u8 at .405, u2 at .571, u5 at .661, u1 at .738
TWO = """
experiments:
- name: even
  variants:
    first: {share: 0.3, rules: first.yaml}
    second: {share: 0.1, rules: second.yaml}
  overrides: {tester: second, u6: control}
"""

POPULAR = ["i0", "i1", "i2", "i4"]  # i3 is not available, i5 is a variant of i4
BY_VARIANT = {
    "control": ["i0", "i2", "i4", "i6"],
    "first": ["i9", "i0", "i1", "i2"],
    "second": ["i11", "i0", "i1", "i2"],
}
AT = {"u6": "control", "u7": "first", "u8": "control", "u2": "second", "u5": "control", "u1": "control"}


def write(folder: Path, text: str = TWO, **rules: str) -> dict[str, Any]:
    """The files, of which each writing is a change; the settings that name them."""
    named = {"rules": MAIN, "first": FIRST, "second": SECOND, **rules, "experiments": text}
    for name, content in named.items():
        (folder / f".{name}.yaml").write_text(content)
        os.replace(folder / f".{name}.yaml", folder / f"{name}.yaml")
    return {"rules": folder / "rules.yaml", "experiments": folder / "experiments.yaml"}


def shown(folder: Path) -> list[Exposure]:
    return [record for record in read(folder / "log", stream=EXPOSURES).records if isinstance(record, Exposure)]


def test_users_see_the_rules_of_their_variant_and_answers_and_exposures_name_it(tmp_path: Path) -> None:
    with service_harness(tmp_path, **write(tmp_path)) as harness:
        for user, variant in (AT | {"tester": "second"}).items():
            answer = harness.get(user)
            assert [item["item_id"] for item in answer["items"]] == BY_VARIANT[variant], user
            assert (answer["variant"], answer["degraded"]) == (f"even:{variant}", [])
        why = harness.client.get("/v1/users/u8/why-not?item_id=i9&placement=home").json()
        assert why["stage"] == "rule"
        why = harness.client.get("/v1/users/u7/why-not?item_id=i9&placement=home").json()
        assert why["detail"] == "shown at position 1"
    assert [(record.user_id, record.variant) for record in shown(tmp_path)] == [
        *((user, f"even:{variant}") for user, variant in AT.items()),
        ("tester", "even:second"),
    ]
    write_outcomes(tmp_path / "log", tmp_path / "outcomes.parquet", 1)
    rows = pl.read_parquet(tmp_path / "outcomes.parquet")
    found = dict(rows.select("user_id", "variant").unique().iter_rows())
    assert found == {user: f"even:{variant}" for user, variant in AT.items()} | {"tester": "even:second"}


def test_a_changed_file_moves_users_as_the_function_says(tmp_path: Path) -> None:
    users = [f"u{n}" for n in range(40)]

    def served(harness: ServiceHarness) -> list[str]:
        answers = [harness.get(user) for user in users]
        variants = [answer["variant"].removeprefix("even:") for answer in answers]
        for answer, variant in zip(answers, variants, strict=True):
            assert [item["item_id"] for item in answer["items"]] == BY_VARIANT[variant]
        return variants

    with service_harness(tmp_path, **write(tmp_path)) as harness:
        before = served(harness)
        assert set(before) == {"control", "first", "second"}
        write(tmp_path, TWO.replace("share: 0.1", "share: 0.4"))
        harness.service.step()
        after = served(harness)
        said = load_experiments(tmp_path / "experiments.yaml").table(pl.Series(users)).get_column("even").to_list()
        assert after == said
        moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
        assert moved == {("control", "second")}

        write(tmp_path, TWO, second=SECOND.replace("i11", "i10"))  # the rules of a variant change
        harness.service.step()
        assert harness.items("u2") == ["i10", "i0", "i1", "i2"]
        write(tmp_path, "experiments: []")
        harness.service.step()
        assert {harness.get(user)["variant"] for user in users} == {"default"}
        assert harness.items("u2") == BY_VARIANT["control"]


def test_a_file_that_is_wrong_leaves_the_experiments_of_before(tmp_path: Path) -> None:
    def note(harness: ServiceHarness) -> str:
        harness.service.step()
        ready = harness.client.get("/readyz").json()
        assert ready["status"] == ("degraded" if ready["notes"] else "ready")
        assert harness.get("u7")["variant"] == "even:first"
        assert harness.items("u7") == BY_VARIANT["first"]
        return str(ready["notes"].get("experiments", ""))

    with service_harness(tmp_path, **write(tmp_path)) as harness:
        assert note(harness) == ""
        write(tmp_path, TWO.replace("share: 0.3", "share: 1.3"))
        assert "experiments.yaml line 5: variants.first.share: must be 1 or less; the experiments of" in note(harness)
        write(tmp_path, TWO.replace("first.yaml", "none.yaml"))
        assert "line 5: variants.first: " in note(harness)
        assert "none.yaml: no such file" in note(harness)
        gone = FIRST.replace("i9", "gone")
        (tmp_path / "gone.yaml").write_text(gone)
        write(tmp_path, TWO.replace("first.yaml", "gone.yaml"))
        assert "it pins item gone, which is not in the catalogue" in note(harness)
        write(tmp_path, first=gone)  # the file is as at first, but not the rules
        assert "first.yaml line 1: rule 'the campaign' is not applied" in note(harness)
        write(tmp_path)
        assert note(harness) == ""
    for wrong in (TWO.replace("first.yaml", "none.yaml"), "experiments: [{name: a}]"):
        paths = write(tmp_path, wrong)
        with pytest.raises(ConfigError, match=r"experiments\.yaml line "):
            ShopExperiments(paths["experiments"], ShopRules(None))


def test_placements_shares_and_requests_without_a_user(tmp_path: Path) -> None:
    text = """
experiments:
- {name: even, placements: [again], variants: {first: {share: 1, rules: first.yaml}}}
- {name: found, placements: [search], variants: {hide: {share: 1, rules: hide.yaml}}}
- {name: aa, layer: a, share: 0, variants: {same: {share: 1}}, overrides: {ann: same, bob: control}}
"""
    paths = write(tmp_path, text, hide="rules: [{name: a, exclude: {items: [i0]}}]", rules="")
    with service_harness(tmp_path, **paths) as harness:
        assert [harness.get(user)["variant"] for user in ("ann", "bob", "u1")] == ["aa:same", "aa:control", "default"]
        assert harness.get("ann", place="again")["variant"] == "even:first,aa:same"
        assert harness.get("u1", place="again")["variant"] == "even:first"
        assert harness.items("u1", place="again") == BY_VARIANT["first"]
        assert harness.items("u1") == POPULAR
        searches = [harness.post(text="red", limit=2, **more).json() for more in ({}, {"user_id": "u1"})]
        similar = harness.client.get("/v1/items/i5/similar?limit=1").json()
    assert [(answer["variant"], answer["items"][0]["item_id"]) for answer in searches] == [
        ("default", "i0"),
        ("found:hide", "i1"),
    ]
    assert similar["variant"] == "default"
    assert [record.variant for record in shown(tmp_path)[-3:]] == ["default", "found:hide", "default"]


def test_pages_keep_to_the_variants_of_the_first_page(tmp_path: Path) -> None:
    def page(harness: ServiceHarness, user: str, cursor: str | None = None) -> Any:
        more = {"cursor": cursor} if cursor else {}
        answer = harness.client.get(
            f"/v1/users/{user}/recommendations", params={"limit": 3, "placement": "home", **more}
        ).json()
        return answer["variant"], [item["item_id"] for item in answer["items"]], answer["cursor"]

    even, odd = "exclude: {categories: [even]}}]", "exclude: {categories: [odd]}}]"
    rules = {"first": f"rules: [{{name: a, {even}", "second": f"rules: [{{name: a, {odd}"}
    with service_harness(tmp_path, **write(tmp_path, **rules)) as harness:
        variant, items, cursor = page(harness, "u7")
        assert (variant, items) == ("even:first", ["i1", "i5", "i7"])
        by_control = page(harness, "u8")
        # the file moves u7 to control and u8 to the first variant: lists that have begun go on as they were
        write(tmp_path, TWO.replace("u6: control", "u7: control, u8: first"), **rules)
        harness.service.step()
        assert page(harness, "u7")[0] == "even:control"
        assert page(harness, "u8")[0] == "even:first"
        assert page(harness, "u7", cursor)[:2] == ("even:first", ["i9", "i11"])
        assert page(harness, "u8", by_control[2])[:2] == ("even:control", ["i6", "i8", "i10"])
        # a variant that is there no more
        write(tmp_path, TWO.replace("    first: {share: 0.3, rules: first.yaml}\n", ""), **rules)
        harness.service.step()
        assert page(harness, "u7", cursor)[:2] == ("default", ["i0", "i2", "i6"])  # i4 is a variant of i5
        write(tmp_path, "experiments: []", **rules)
        harness.service.step()
        variant, _, without = page(harness, "u7")
        assert variant == "default"
        # an experiment that began after the first page
        write(tmp_path, **rules)
        harness.service.step()
        assert page(harness, "u7", without)[:2] == ("default", ["i6", "i8", "i10"])
        assert page(harness, "u7")[0] == "even:first"


NAMES = st.text("abcxyz019._-", min_size=1, max_size=64)


@given(st.dictionaries(NAMES, NAMES, max_size=5), st.integers(1, 30))
def test_a_cursor_holds_the_variants(variants: Mapping[str, str], n: int) -> None:
    keys = np.unique(id_keys(map(str, range(n))) >> np.uint64(64 - KEY_BITS))
    first = Page.of(None, {"path": "p"}, 5)
    assert first.variants is None
    given_ = Page(5, n, keys, first.digests, variants=variants)
    cursor = given_.next(Nothing(), Nothing())  # type: ignore[arg-type]
    assert cursor is not None
    again = Page.of(cursor, {"path": "p"}, 5)
    assert (again.begun, again.shown, again.keys.tolist(), again.variants) == (5, n, keys.tolist(), variants)
    version = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[0]
    assert version == (WITH_VARIANTS if variants else PLAIN)


class Nothing:
    """An empty slate, and the products of a catalogue that has none."""

    rows = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return 0

    def keys_of(self, rows: Any) -> Any:
        return np.zeros(0, dtype=np.uint64)


def test_a_cursor_whose_variants_end_early_is_refused() -> None:
    digests = Page.of(None, {"path": "p"}, 5).digests
    head = bytes([2]) + (5).to_bytes(8, "big") + (1).to_bytes(2, "big") + (1).to_bytes(2, "big") + bytes([8])
    for rest, whole in ((b"\0\3a:b\xe0", True), (b"\0\4a:b\xe0", False), (b"\xff\xffa:b\xe0", False), (b"\0", False)):
        data = head + digests + rest
        cursor = base64.urlsafe_b64encode(data + crc32(data).to_bytes(4, "big")).rstrip(b"=").decode()
        if whole:
            page = Page.of(cursor, {"path": "p"}, 5)
            assert (page.variants, page.keys.tolist()) == ({"a": "b"}, [7])
            continue
        with pytest.raises(ApiError, match="no whole cursor"):
            Page.of(cursor, {"path": "p"}, 5)


def test_about_lists_the_experiments(tmp_path: Path) -> None:
    with service_harness(tmp_path, **write(tmp_path)) as harness:
        (experiment,) = harness.client.get("/v1/about").json()["experiments"]
    assert experiment == {
        "name": "even",
        "layer": None,
        "placements": [],
        "share": 1.0,
        "variants": {
            "control": {"share": 0.6, "rules": None, "bundle": None, "served": True},
            "first": {"share": 0.3, "rules": "first.yaml", "bundle": None, "served": True},
            "second": {"share": 0.1, "rules": "second.yaml", "bundle": None, "served": True},
        },
    }


def test_rotation_by_a_variant_alone(tmp_path: Path) -> None:
    text = "experiments: [{name: r, variants: {r: {share: 0, rules: r.yaml}}, overrides: {u1: r, u2: control}}]"
    paths = write(tmp_path, text, rules="", r="rules: [{name: a, rotation: {by: 100, days: 7}}]")
    with service_harness(tmp_path, **paths) as harness:
        for user, again in (("u2", ["i0", "i1"]), ("u1", ["i2", "i4"])):
            assert harness.items(user, 2) == ["i0", "i1"]
            # the clock of the harness stands still: what was shown at this moment does not count yet
            harness.service.now = lambda: 1_800_000_000_000_000 + 1_000_000
            assert harness.items(user, 2) == again
            harness.service.now = lambda: 1_800_000_000_000_000
        assert harness.service.experiments.shown_days == 7
