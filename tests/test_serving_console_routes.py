"""Routes of the console: previews of lists, and the state of the service."""

import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, facts_of, service_harness
from test_serving_experiments import BY_VARIANT, shown, write
from toy_service import NOW, ToyShelf, toy_bundle, with_contents

from recsys.bundle.formats import MANIFEST, checksum_of, fingerprint_of
from recsys.bundle.registry import publish_bundle

PIN = {"rules": [{"name": "the campaign", "pin": {"item": "i7", "position": 1}}]}


def preview(harness: ServiceHarness, status: int = 200, **body: Any) -> Any:
    response = harness.client.post("/v1/preview", content=orjson.dumps({"user_id": "u7", "limit": 4, **body}))
    assert response.status_code == status, response.text
    return response.json()


def items(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_preview_is_by_the_variant_or_the_rules_that_are_asked_for(tmp_path: Path) -> None:
    with service_harness(tmp_path, **write(tmp_path)) as harness:
        assert harness.items("u7") == BY_VARIANT["first"]
        for variant, named in ((None, "default"), ("even:control", "even:control"), ("even:second", "even:second")):
            answer = preview(harness, variant=variant)
            assert items(answer) == BY_VARIANT[named.rpartition(":")[2].replace("default", "control")]
            assert (answer["variant"], answer["user_id"], answer["cursor"]) == (named, "u7", None)
        answer = preview(harness, rules=PIN, explain=True)
        assert items(answer) == ["i7", "i0", "i1", "i2"]  # the shop shows no odd items
        assert (answer["items"][0]["reason"], answer["items"][0]["why"]["source"]) == ("pinned", "pinned")
        assert items(preview(harness, rules=PIN, variant="even:second"))[0] == "i7"
        assert harness.client.get("/v1/rules").json()["rules"] == [
            {"name": "no odd items", "exclude": {"categories": ["odd"]}}
        ]


def test_nothing_of_a_preview_is_logged_counted_or_explored(tmp_path: Path) -> None:
    def counted() -> list[str]:
        text: str = harness.client.get("/metrics").text
        return [
            line for line in text.splitlines() if line.startswith(("recsys_answers", "recsys_shown", "recsys_stage"))
        ]

    explore = {"rules": [{"name": "try", "explore": {"positions": [1, 2], "rate": 1.0, "among": 8}}]}
    with service_harness(tmp_path, exposure_sample=1.0) as harness:
        harness.items("ann")
        before, exposures = counted(), len(shown(tmp_path))
        assert {tuple(items(preview(harness, rules=explore))) for _ in range(8)} == {("i0", "i1", "i2", "i4")}
        assert (counted(), len(shown(tmp_path))) == (before, exposures)


@pytest.mark.parametrize(
    ("body", "code", "detail", "place"),
    [
        ({"limit": 0}, "bad_preview", "limit: must be 1 or more", "limit"),
        ({"placement": "nowhere"}, "unknown_placement", "unknown placement; available: home, again", "placement"),
        (
            {"variant": "even:third"},
            "unknown_variant",
            "experiment 'even' has no such variant; there are: even:control, even:first, even:second",
            "variant",
        ),
        ({"variant": "second"}, "unknown_variant", "'second' is no `experiment:variant`", "variant"),
        (
            {"rules": {"rules": [{"name": "a", "pin": {"item": "none", "position": 1}}]}},
            "bad_rules",
            "rules.0: rule 'a' is not applied: it pins item none, which is not in the catalogue or not available",
            "rules.rules.0",
        ),
    ],
)
def test_a_preview_that_cannot_be_made(tmp_path: Path, body: Any, code: str, detail: str, place: str) -> None:
    with service_harness(tmp_path, **write(tmp_path)) as harness:
        problem = facts_of(preview(harness, 422, **body))
        assert problem == {"code": code, "detail": detail, "place": place}


def table(ndcg: float) -> dict[str, Any]:
    """The evaluation of a bundle, as its manifest has it."""
    interval = {"mean": ndcg, "low": ndcg - 0.01, "high": ndcg + 0.01}
    own = {"name": "ours", "ndcg_at_10": interval, "mrr_at_10": 0.25, "diversity": None, "fit_seconds": 3.0}
    return {
        "title": "home",
        "placement": "home",
        "note": "time cut",
        "users": 7,
        "events": 9,
        "ours": "ours",
        "split_hashes": ["s1"],
        "rows": [{"name": "popular", "ndcg_at_10": {"mean": 0.1}}, own],
    }


def manifest(ndcg: float) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "format": 11,
        "config": {"name": "shop", "encoder": None},
        "code_version": "0.2.0",
        "metrics": [table(ndcg)],
        "candidates": 0,
        "statistics_until": 0,
        "fitted_until": NOW,
        "content": None,
        "content_dimension": 0,
        "category_names": [],
        "towers": {},
        "sources": {},
        "files": {"towers.safetensors": {"sha256": str(ndcg), "bytes": 1}},
    }
    parts["fingerprint"] = fingerprint_of(parts)
    return parts | {"checksum": checksum_of(parts)}


def publish(root: Path, written: dict[str, Any], at: float) -> str:
    """Write the manifest of a bundle at a time (s), and publish it; returns its fingerprint."""
    folder = root / str(written["fingerprint"])
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(written))
    os.utime(folder / MANIFEST, (at, at))
    publish_bundle(folder, "accepted")
    return folder.name


def test_the_state_says_how_bundle_store_and_log_are(tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    old, new = manifest(0.2), manifest(0.3)
    first, second = publish(root, old, 1_000_000), publish(root, new, 2_000_000)
    night = dict.fromkeys(("status", "reason", "kind", "started", "ended", "served", "current", "steps"), "x")
    (root / "nightly.json").write_text(json.dumps(night))
    bundle = with_contents(toy_bundle(tmp_path, fingerprint=second))
    bundle.manifest.update(
        {name: new[name] for name in ("metrics", "code_version", "fitted_until")}, config=new["config"]
    )
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        harness.click("ann", "i5")
        harness.service.step()
        state = harness.client.get("/v1/state").json()
        ndcg = {"name": "ndcg_at_10", "mean": 0.3, "low": 0.29, "high": 0.31}
        served, before = state["bundles"]["served"], state["bundles"]["before"]
        assert (served["bundle"], before["bundle"]) == (second, first)
        (home,) = served["tables"]
        assert home["figures"] == [ndcg, {"name": "mrr_at_10", "mean": 0.25, "low": None, "high": None}]
        assert {name: home[name] for name in home if name != "figures"} == {
            "placement": "home",
            "note": "time cut",
            "users": 7,
            "events": 9,
            "splits": ["s1"],
        }
        assert (served["written_at"], served["trained_until"]) == (
            "1970-01-24T03:33:20+00:00",
            "2027-01-15T08:00:00+00:00",
        )
        assert (served["published"]["why"], served["configuration"]) == ("accepted", "shop")
        assert before["tables"][0]["figures"][0]["mean"] == 0.2
        trained = {"bundle": second, "at": "1970-01-24T03:33:20+00:00", "current": True}
        assert state["bundles"]["training"] == trained
        assert state["bundles"]["nightly"] == {name: "x" for name in night if name != "steps"}
        (events,) = (stream for stream in state["log"]["streams"] if stream["stream"] == "events")
        assert (events["records"], events["newest"]) == (1, state["now"])
        assert (state["store"]["status"], state["store"]["refresh"]["table_events"]) == ("filled", 3)
        harness.store.away = True
        store = harness.client.get("/v1/state").json()["store"]
        assert (store["status"], store["warning"], store["refresh"]) == ("away", "away", None)


def test_the_state_of_a_service_without_files(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=ToyShelf(None)) as harness:
        (tmp_path / "bundles").mkdir()
        (tmp_path / "bundles" / "nightly.json").write_text("{")
        state = harness.client.get("/v1/state").json()
        assert state["store"] is None
        assert state["bundles"] == {"served": None, "before": None, "training": None, "nightly": None}
        assert "bundle" in state["problems"]


def test_figures_of_another_version_are_left_out(tmp_path: Path) -> None:
    bundle = with_contents(toy_bundle(tmp_path))
    bundle.manifest["metrics"] = [{"rows": "none"}]
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        served = harness.client.get("/v1/state").json()["bundles"]["served"]
        assert (served["bundle"], served["tables"], served["published"]) == ("toy-1", [], None)
