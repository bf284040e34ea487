"""Promotion: what the decision, the bundle and a test in front of users must say before a bundle becomes current."""

import copy
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from test_experiments_evaluation_online import write as write_exposed
from toy_data import FACTS, Lines, noise, toy_config, toy_stage, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.evaluation.online import analyse
from experiments.pipelines.experiment.definition import load_experiment
from experiments.pipelines.experiment.result import variant_facts
from experiments.pipelines.release.promote import differences, offline_reason, promote
from experiments.pipelines.train import train
from experiments.tracking.mlflow import NullTracker
from features.errors import ConfigError, DataError
from recsys.bundle.formats import read_manifest
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import current_bundle, publications
from recsys.cli.main import app

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "small": {"set": {"towers.dimension": 16}},
    "towers": {"model": "two towers"},
    "knn": {"model": "item-knn"},
    "ruled": {"rules": "rules.yaml"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A folder with bundles, the result of an experiment on them that ships all variants, and the manifest of the
    unpublished bundle of `small`."""
    folder = tmp_path_factory.mktemp("promote")
    write_tables(folder / "data")
    (folder / "rules.yaml").write_text("rules: []")
    settings = {"training": {"epochs": 1, "batch_events": 256}, "baselines": {"popular": {}}}
    base = load_config(toy_config(folder, **settings), {})
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "config": "toy.yaml", "seeds": [0, 1], "variants": VARIANTS}))
    experiment = load_experiment(file, {})
    train(base, NullTracker(), Lines())
    small = experiment.configs["small"].model_copy(update={"seed": 1, "name": "of the variant"})
    path, _ = train(small, NullTracker(), Lines(), publish=False)
    manifest = read_manifest(path)
    result: dict[str, Any] = {
        "control": "base",
        "rows": [],
        "decisions": [
            {"variant": name, "decision": "ship", "reason": f"{name} is better"}
            for name in VARIANTS
            if name != "base"
        ],
        "facts": {"seeds": [0, 1]} | {key: manifest[key] for key in ("data_hash", "code_version")},
        "variants": variant_facts(experiment),
    }
    return folder, result, manifest


@pytest.fixture
def written(done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path) -> Path:
    """The folder of the result."""
    (tmp_path / "result.json").write_text(json.dumps(done[1]))
    return tmp_path


def test_the_bundle_of_a_variant_becomes_current(
    done: tuple[Path, dict[str, Any], dict[str, Any]], written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, manifest = done
    monkeypatch.chdir(written)  # without MLflow
    before = current_bundle(folder / "bundles")
    command = ["experiment", "promote", str(written), "small", "--bundle", manifest["fingerprint"][:9]]
    found = CliRunner().invoke(app, [*command, "--bundles", str(folder / "bundles")], catch_exceptions=False)
    path = folder / "bundles" / manifest["fingerprint"]
    assert found.stdout == f"bundle {path} is current: small of {written}: small is better\n"
    assert current_bundle(folder / "bundles") == path
    last = publications(folder / "bundles")[-1]
    assert (last.previous, last.why) == (before.name, f"small of {written}: small is better")


def changed(manifest: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A copy of a manifest; a key a__b is of config."""
    out = copy.deepcopy(manifest)
    for key, value in values.items():
        place = out
        *sections, last = key.split("__")
        for section in sections:
            place = place[section]
        place[last] = value
    return out


@pytest.mark.parametrize(
    ("variant", "values", "expected"),
    [
        ("small", {}, []),
        ("small", {"config__bundles": "x", "config__cache": "y", "config__seed": 9}, []),
        ("small", {"config__towers__dimension": 8}, ["towers.dimension is 8, that of the variant 16"]),
        ("small", {"seed": 2}, ["seed is 2, those of the experiment [0, 1]"]),
        ("small", {"data_hash": "other"}, ["data: other, of the variant DATA"]),
        ("small", {"code_version": "other"}, ["version of the code: other, of the variant CODE"]),
        (
            "small",
            {"from": "abc"},
            ["its training continued that of abc, and the variant is trained from scratch"],
        ),
        ("small", {"decision": {}}, ["a night trained it, and chose its settings without the newest events"]),
        ("base", {}, ["towers.dimension is 16, that of the variant 8"]),
        ("towers", {"config__towers__dimension": 8, "config__reranker": None}, []),
        ("knn", {}, ["the variant is the baseline item-knn, which no bundle holds"]),
    ],
)
def test_a_bundle_must_be_what_was_judged(
    done: tuple[Path, dict[str, Any], dict[str, Any]], variant: str, values: dict[str, Any], expected: list[str]
) -> None:
    _, result, manifest = done
    found = differences(result, variant, changed(manifest, **values))
    known = [
        line.replace(result["facts"]["data_hash"], "DATA").replace(result["facts"]["code_version"], "CODE")
        for line in found
    ]
    assert known == expected


def test_the_section_that_a_variant_lacks_is_named(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, result, manifest = done
    found = differences(result, "towers", changed(manifest, config__towers__dimension=8))
    assert "reranker.trees is 3, that of the variant None" in found


def test_a_variant_that_is_a_bundle_is_promoted_itself(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result, manifest = done
    monkeypatch.chdir(tmp_path)
    own = result["variants"]["small"] | {"bundle": manifest["fingerprint"]}
    of_bundle = result | {"variants": result["variants"] | {"small": own}}
    assert differences(of_bundle, "small", manifest) == []
    assert differences(of_bundle, "small", manifest | {"fingerprint": "abc"}) == [
        f"the variant is the bundle {manifest['fingerprint']}"
    ]
    (tmp_path / "result.json").write_text(json.dumps(of_bundle))
    bundles = folder / "bundles"
    assert manifest["fingerprint"] in promote(tmp_path, "small", bundles)
    assert current_bundle(bundles).name == manifest["fingerprint"]


def test_rules_are_not_in_a_bundle(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, result, manifest = done
    (found,) = differences(result, "ruled", changed(manifest, config__towers__dimension=8))
    assert found.startswith("the variant differs from the control in rules, which no bundle holds")
    same = result | {"control": "ruled"}
    assert differences(same, "ruled", changed(manifest, config__towers__dimension=8)) == []


@pytest.mark.parametrize("decision", ["do not ship", "inconclusive"])
def test_only_a_decision_to_ship_publishes(decision: str) -> None:
    facts = {"decisions": [{"variant": "a", "decision": decision, "reason": "why"}]}
    with pytest.raises(DataError, match=rf"^a: {decision}: why; nothing was published$"):
        offline_reason(facts, "a")
    with pytest.raises(DataError, match="no decision about 'b': there is one about a"):
        offline_reason(facts, "b")


def test_what_is_missing_is_said(done: tuple[Path, dict[str, Any], dict[str, Any]], written: Path) -> None:
    root, before = done[0] / "bundles", current_bundle(done[0] / "bundles")
    with pytest.raises(ConfigError, match=r"--bundle is missing: train the variant"):
        promote(written, "small", root)
    with pytest.raises(ConfigError, match="the rule of an offline experiment is in its file"):
        promote(written, "small", root, metric="ndcg", name="x")
    with pytest.raises(DataError, match=r"is not 'knn' of .*: the variant is the baseline"):
        promote(written, "knn", root, name="current")
    for text in ("{}", "[]", "no json", '{"decisions": []}'):
        (written / "x.json").write_text(text)
        with pytest.raises(DataError, match=r"x\.json is no result: give the folder"):
            promote(written / "x.json", "small", root)
    with pytest.raises(DataError, match=r"none/result\.json|none: cannot be read"):
        promote(written / "none", "small", root)
    assert current_bundle(root) == before


# --- after a test in front of users


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, str, str]:
    """A folder with two bundles, and their fingerprints."""
    stage, catalog, statistics = toy_stage(noise(20, 10))
    root = tmp_path / "bundles"
    names = [
        save_bundle(root, catalog, stage, statistics, FACTS | {"config": FACTS["config"] | {"limits": n}}).name
        for n in (1, 2)
    ]
    return root, names[0], names[1]


def analysis(tmp_path: Path, bundles: dict[str, str], clicks: dict[str, int]) -> Path:
    """An analysis of arms a and b; clicks: of each third user of an arm."""
    rows = [(f"{arm}{u}", f"{arm}{u}", arm, clicks[arm] if u % 3 == 0 else 1) for arm in bundles for u in range(300)]
    path = write_exposed(tmp_path / "o.parquet", rows)
    frame = pl.read_parquet(path).with_columns(pl.col("variant").replace(bundles).alias("fingerprint"))
    frame.write_parquet(path)
    (tmp_path / "a.json").write_text(json.dumps(analyse(path, ["click"], planned=600).to_dict()))
    return tmp_path / "a.json"


def test_a_test_without_a_planned_number_of_users_decides_nothing(
    bundles: tuple[Path, str, str], tmp_path: Path
) -> None:
    root, old, new = bundles
    file = analysis(tmp_path, {"a": old, "b": new}, {"a": 1, "b": 9})
    facts = json.loads(file.read_text()) | {"planned": None}
    file.write_text(json.dumps(facts))
    with pytest.raises(DataError, match="the intervals hold for one number of users only: analyse with --planned"):
        promote(file, "b", root, metric="click per user")
    file.write_text(json.dumps({name: value for name, value in facts.items() if name != "bundles"}))  # of 0.2
    with pytest.raises(DataError, match="is no result"):
        promote(file, "b", root, metric="click per user")


def test_the_bundle_of_an_arm_becomes_current(
    bundles: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root, old, new = bundles
    file = analysis(tmp_path, {"a": old, "b": new}, {"a": 1, "b": 9})
    found = promote(file, "b", root, metric="click per user")
    assert found.startswith(f"bundle {root / new} is current: b of {file}: click per user +2.667 [")
    assert current_bundle(root).name == new


@pytest.mark.parametrize(
    ("clicks", "arms", "arm", "options", "message"),
    [
        ((1, 1), (0, 1), "b", {}, r"b is not shown to be better: click per user \+0 \["),
        ((9, 1), (0, 1), "b", {}, r"b is not shown to be better: click per user -2\.667 \["),
        ((1, 9), (0, 0), "b", {}, r"b: its bundle \w+ answered for a, too: what differs is not the bundle"),
        ((1, 9), (0, 1), "c", {}, "'c' was not compared: arms are b, against a"),
        ((1, 9), (0, 1), "b", {"metric": None}, "--metric: by which metric is it decided"),
        ((1, 9), (0, 1), "b", {"metric": "buy"}, "One of 'click per user', 'users with click', .* is needed"),
        ((1, 9), (0, 1), "b", {"name": "zz"}, r"b: bundles that answered in it: \w+; name one of them"),
    ],
)
def test_a_test_that_does_not_say_so_publishes_nothing(
    bundles: tuple[Path, str, str],
    tmp_path: Path,
    clicks: tuple[int, int],
    arms: tuple[int, int],
    arm: str,
    options: dict[str, Any],
    message: str,
) -> None:
    root, *names = bundles
    of = dict(zip("ab", (names[i] for i in arms), strict=True))
    file = analysis(tmp_path, of, dict(zip("ab", clicks, strict=True)))
    with pytest.raises((DataError, ConfigError), match=message):
        promote(file, arm, root, **{"metric": "click per user", **options})
    assert not (root / "current").exists()


def test_another_metric_that_is_worse_and_a_broken_assignment_publish_nothing(
    bundles: tuple[Path, str, str], tmp_path: Path
) -> None:
    root, old, new = bundles
    file = analysis(tmp_path, {"a": old, "b": new}, {"a": 1, "b": 9})
    facts = json.loads(file.read_text())
    facts["changes"].append(
        facts["changes"][0] | {"metric": "buy per user", "always": {"mean": -2, "low": -3, "high": -1}}
    )
    file.write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"^b is worse: buy per user -2 \[-3, -1\]; nothing was published$"):
        promote(file, "b", root, metric="click per user")
    file.write_text(json.dumps(facts | {"warning": "the numbers of users do not agree"}))
    with pytest.raises(DataError, match="the numbers of users do not agree; nothing was published"):
        promote(file, "b", root, metric="click per user")
    assert not (root / "current").exists()
