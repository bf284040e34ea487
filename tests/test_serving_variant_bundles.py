"""Variants by bundles: served beside the current one, with its store and the same items, or refused with a reason."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_harness import JsonClient, ServiceHarness, service_harness
from toy_data import FACTS, noise, toy_stage
from toy_service import (
    PLACES,
    RULES,
    Nearest,
    ToyBundle,
    ToyFiller,
    ToyShelf,
    toy_bundle,
    toy_settings,
    with_contents,
)

from features.log.reader import read
from features.log.records import EXPOSURES, Exposure
from features.schema import EventRules, Placement
from features.store.memory import MemoryStore
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import publish_bundle
from recsys.bundle.serving_copy import copies_folder
from serving.app import create_app

BACKWARDS = """
experiments:
- name: model
  variants: {backwards: {share: 0, bundle: second}}
  overrides: {ann: backwards, eve: backwards, bob: control}
"""


def backwards(folder: Path, n: int = 14, **changes: Any) -> ToyBundle:
    """A bundle of more items, whose most popular item is the last one."""
    bundle = with_contents(toy_bundle(folder, n, fingerprint="toy-2"))
    return replace(bundle, popular=np.arange(n, dtype=np.int64)[::-1].copy(), **changes)


def shelf_of(folder: Path, second: ToyBundle | None = None) -> ToyShelf:
    shelf = ToyShelf(with_contents(toy_bundle(folder)))
    shelf.bundles["second"] = second or backwards(folder)
    return shelf


def settings(folder: Path, text: str = BACKWARDS) -> dict[str, Any]:
    file = folder / "experiments.yaml"
    file.write_text(text)
    return {"experiments": file}


def ready(harness: ServiceHarness) -> Any:
    return harness.client.get("/readyz").json()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_users_of_a_variant_are_answered_by_its_bundle(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=shelf_of(tmp_path), **settings(tmp_path)) as harness:
        eve, bob, new = (harness.get(user) for user in ("eve", "bob", "new"))
        assert [item["item_id"] for item in eve["items"]] == ["i13", "i12", "i11", "i10"]
        assert (eve["variant"], eve["bundle"], eve["degraded"]) == ("model:backwards", "toy-2", [])
        assert (bob["variant"], bob["bundle"]) == ("model:control", "toy-1")
        assert [item["item_id"] for item in bob["items"]] == ["i0", "i1", "i4", "i6"]  # bob has seen i2
        assert (new["variant"], new["bundle"]) == ("model:control", "toy-1")
        # the store is one: ann has a history, and an event changes the next answer
        assert harness.items("ann") == ["i7", "i9", "i6", "i10"]
        harness.click("eve", "i2")
        assert harness.items("eve", 3) == ["i1", "i0", "i4"]
        why = harness.client.get("/v1/users/eve/why-not?item_id=i1&placement=home").json()
        assert why["stage"] == "shown"
        # search and similar items are made by the current bundle
        found = harness.post(text="red", user_id="ann").json()
        assert (found["variant"], found["bundle"]) == ("default", "toy-1")
        about = harness.client.get("/v1/about").json()
        assert about["bundle"] == "toy-1"
        assert about["experiments"][0]["variants"]["backwards"] == {
            "share": 0.0,
            "rules": None,
            "bundle": "second",
            "served": True,
        }
        assert ready(harness)["status"] == "ready"
    records = [record for record in read(tmp_path / "log", stream=EXPOSURES).records if isinstance(record, Exposure)]
    assert [(record.variant, record.fingerprint) for record in records[:3]] == [
        ("model:backwards", "toy-2"),
        ("model:control", "toy-1"),
        ("model:control", "toy-1"),
    ]
    assert harness.shelf.bundles["second"].closed == ["toy-2"]


def test_pages_go_from_one_bundle_to_the_other_without_showing_an_item_again(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=shelf_of(tmp_path), **settings(tmp_path)) as harness:
        first = harness.get("eve", 3)
        assert [item["item_id"] for item in first["items"]] == ["i13", "i12", "i11"]
        url = f"/v1/users/eve/recommendations?limit=3&placement=home&cursor={first['cursor']}"
        settings(tmp_path, BACKWARDS.replace("eve: backwards, ", ""))
        harness.service.step()
        assert harness.get("eve")["bundle"] == "toy-1"
        second = harness.client.get(url).json()
        assert (second["variant"], [item["item_id"] for item in second["items"]]) == (
            "model:backwards",
            ["i10", "i9", "i8"],
        )
        settings(tmp_path, "")
        harness.service.step()
        ended = harness.client.get(url).json()
        assert (ended["variant"], [item["item_id"] for item in ended["items"]]) == ("default", ["i0", "i1", "i2"])


def test_items_that_are_put_and_deleted_reach_the_bundle_of_a_variant(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=shelf_of(tmp_path), **settings(tmp_path)) as harness:
        assert harness.client.delete("/v1/items/i11").status_code == 200
        assert harness.items("eve") == ["i13", "i12", "i10", "i9"]
        assert harness.items("bob", 12)[-1] == "i10"
        body = b'{"title": "a green one", "categories": ["even"]}'
        assert harness.client.put("/v1/items/new", content=body).status_code == 202
        until(lambda: "new" in harness.items("eve", 20))
        until(lambda: "new" in harness.items("bob", 20))
        assert harness.client.delete("/v1/items/new").status_code == 200
        assert "new" not in harness.items("eve", 20)
        assert harness.client.put("/v1/items/i13", content=b'{"available": false}').status_code == 202
        assert harness.items("eve", 1) == ["i12"]
    # a bundle that is loaded later has these changes, too
    with service_harness(tmp_path, shelf=shelf_of(tmp_path), **settings(tmp_path, "")) as harness:
        settings(tmp_path)
        harness.service.step()
        assert harness.items("eve", 2) == ["i12", "i10"]
        harness.client.put("/v1/items/late", content=body)
        until(lambda: "late" in harness.items("eve", 20))


def test_a_bundle_that_cannot_be_served_leaves_its_users_to_control(tmp_path: Path) -> None:
    unfit = EventRules(positive={"click": None}, seen=RULES.seen)
    data = toy_bundle(tmp_path).data
    other = {"config": {"encoder": {"kind": "builtin", "multilingual": True}, "limits": {}, "cache": "none"}}
    cases = [
        (None, "0 bundles begin with 'second'"),
        (
            backwards(tmp_path, data=data.model_copy(update={"events": unfit})),
            "its event rules (data.events) are not",
        ),
        (
            backwards(tmp_path, data=data.model_copy(update={"placements": {"home": PLACES["home"]}})),
            "it has no placement again, which the current bundle has: train it with the same ones, or publish it",
        ),
        (backwards(tmp_path, manifest=other), "its encoders (encoder, limits, cache) are not"),
        (
            backwards(tmp_path, recommender=Nearest(14, broken=True)),
            "failed its first request: its models",
        ),
    ]
    for bundle, reason in cases:
        shelf = shelf_of(tmp_path, bundle)
        if bundle is None:
            del shelf.bundles["second"]
        with service_harness(tmp_path, shelf=shelf, **settings(tmp_path)) as harness:
            eve, bob = harness.get("eve"), harness.get("bob")
            assert [item["item_id"] for item in eve["items"]] == ["i0", "i1", "i2", "i4"], reason
            assert (eve["variant"], eve["bundle"], eve["degraded"]) == ("default", "toy-1", ["variant"])
            assert (bob["variant"], bob["degraded"]) == ("model:control", [])
            note = ready(harness)["notes"]["experiments"]
            assert note.startswith("bundle second of a variant is not served: ")
            assert reason in note
            (experiment,) = harness.client.get("/v1/about").json()["experiments"]
            assert {name: of["served"] for name, of in experiment["variants"].items()} == {
                "control": True,
                "backwards": False,
            }


def test_a_bundle_is_tried_again_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state.bundles.loader.RETRY_SECONDS", 0.0)
    shelf = shelf_of(tmp_path, backwards(tmp_path, recommender=Nearest(14, broken=True)))
    with service_harness(tmp_path, shelf=shelf, **settings(tmp_path)) as harness:
        assert harness.get("eve")["degraded"] == ["variant"]
        shelf.bundles["second"] = backwards(tmp_path)
        harness.service.step()
        assert (harness.get("eve")["variant"], ready(harness)["notes"]) == ("model:backwards", {})
        # a current bundle beside which it cannot be served
        data = toy_bundle(tmp_path).data.model_copy(update={"placements": {**PLACES, "more": Placement()}})
        shelf.put("third", replace(with_contents(toy_bundle(tmp_path, fingerprint="toy-3")), data=data))
        harness.service.step()
        answer = harness.get("eve")
        assert (answer["variant"], answer["bundle"], answer["degraded"]) == ("default", "toy-3", ["variant"])
        assert "it has no placement more" in ready(harness)["notes"]["experiments"]
        shelf.put("first", shelf.bundles["first"])
        harness.service.step()
        assert (harness.get("eve")["variant"], ready(harness)["notes"]) == ("model:backwards", {})
        # it becomes the current one: it is not held twice
        shelf.now = "second"
        harness.service.step()
        assert {harness.get(user)["bundle"] for user in ("eve", "bob")} == {"toy-2"}
        assert (harness.get("eve")["variant"], harness.get("bob")["variant"]) == ("model:backwards", "model:control")
        assert harness.service.variants.served == {"second": None}
        settings(tmp_path, "")
        harness.service.step()
        assert harness.service.variants.served == {}


def test_a_variant_by_rules_of_another_layer_applies_to_the_bundle_of_a_variant(tmp_path: Path) -> None:
    (tmp_path / "pin.yaml").write_text("rules: [{name: a, pin: {item: i12, position: 1}}]")
    rules = "- {name: pin, variants: {pin: {share: 0, rules: pin.yaml}}, overrides: {eve: pin, zoe: pin}}\n"
    with service_harness(tmp_path, shelf=shelf_of(tmp_path), **settings(tmp_path, BACKWARDS + rules)) as harness:
        eve, zoe = harness.get("eve", 3), harness.get("zoe", 3)
        # i12 is in toy-2 alone; beside a pin, popular items are in the order of their scores
        assert [item["item_id"] for item in eve["items"]] == ["i12", "i0", "i1"]
        assert (eve["variant"], eve["bundle"], eve["degraded"]) == ("model:backwards,pin:pin", "toy-2", [])
        # the current bundle lacks i12: the rule does not fit it
        assert ([item["item_id"] for item in zoe["items"]], zoe["degraded"]) == (["i0", "i1", "i2"], ["rules"])
        assert (zoe["variant"], zoe["bundle"]) == ("model:control,pin:pin", "toy-1")


def test_bundles_on_disk_by_their_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "copies"))
    paths = []
    for seed in (0, 1):
        stage, catalog, statistics = toy_stage(noise(), seed=seed)
        paths.append(save_bundle(tmp_path / "bundles", catalog, stage, statistics, {**FACTS, "seed": seed}))
    publish_bundle(paths[0])
    first, second = (path.name for path in paths)
    text = BACKWARDS.replace("bundle: second", f"bundle: '{second[:8]}'")
    rules = EventRules(**FACTS["config"]["data"]["events"])
    store = MemoryStore(rules)
    app = create_app(
        toy_settings(tmp_path, follow_seconds=3600, **settings(tmp_path, text)),
        connect=lambda _: store,
        filler=ToyFiller(tmp_path),
    )
    with JsonClient(app) as client:

        def answer(user: str) -> tuple[str, str, list[str]]:
            given = client.get(f"/v1/users/{user}/recommendations?limit=5").json()
            return given["variant"], given["bundle"], [item["item_id"] for item in given["items"]]

        event, minimum = next(iter(rules.positive.items()))
        for user in ("eve", "bob"):
            body = {"user_id": user, "item_id": answer(user)[2][0], "event": event, "value": minimum}
            assert client.post("/v1/events", json=body).status_code == 202
        assert (answer("eve")[:2], answer("bob")[:2]) == (("model:backwards", second), ("model:control", first))
        gone = answer("eve")[2][0]
        assert client.delete(f"/v1/items/{gone}").status_code == 200
        assert gone not in answer("eve")[2]
        publish_bundle(paths[1])
        app.state.service.step()
        assert (answer("eve")[:2], answer("bob")[:2]) == (("model:backwards", second), ("model:control", second))
    assert [path.name for path in copies_folder().iterdir()] == []  # the service has let both go
