"""Offline experiments: the file, the groups of cells, what is computed again, and bundles."""

import json
import os
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import yaml
from toy_data import Lines, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.evaluation.outcomes import read_outcomes
from experiments.evaluation.verdict import DO_NOT, INCONCLUSIVE, SHIP, Rule, verdict
from experiments.pipelines.experiment import cells as cells_module
from experiments.pipelines.experiment.cells import cells_of, groups_of, run_group
from experiments.pipelines.experiment.definition import load_experiment
from experiments.pipelines.experiment.run import failed, run_experiment, run_groups
from experiments.pipelines.fit import FittedOnce
from experiments.tracking.mlflow import NullTracker
from features.errors import ConfigError, DataError, RecsysError
from recsys.cli.main import app
from recsys.evaluation.bootstrap import Interval

DATA: Any = SimpleNamespace(hash="data")
OTHER_DATA: Any = SimpleNamespace(hash="other data")

VARIANTS: dict[str, Any] = {
    "base": {},
    "small ranker": {"set": {"reranker.trees": 2}},
    "retrieval": {"model": "two towers"},
    "popular": {"model": "popular"},
    "wide": {"set": {"towers.dimension": 16}},
}


def write(folder, **sections):
    """The file of an experiment on the toy data."""
    folder.mkdir(exist_ok=True)
    toy_config(folder)
    content = {"name": "toy", "config": "toy.yaml", "seeds": [0, 1], "variants": VARIANTS} | sections
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def read(path):
    return load_experiment(path, {})


def test_settings_of_a_variant_override_the_configuration(tmp_path):
    experiment = read(write(tmp_path))
    plain = load_config(tmp_path / "toy.yaml", {})
    assert experiment.control == "base"
    assert experiment.configs["base"].towers == plain.towers
    assert experiment.configs["small ranker"].reranker.trees == 2
    assert experiment.configs["wide"].towers.dimension == 16
    assert list(experiment.configs["popular"].baselines) == ["popular"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"variants": {"a": {}}}, "variants: "),
        (
            {"variants": {"a": {}, "b": {"model": "towers"}}},
            r"variants\.b\.model: one of two towers \+ reranker, .* popular",
        ),
        ({"variants": {"a": {}, "b": {"set": {"towers.dimensions": 3}}}}, r"variants\.b\.set\.towers\.dimensions"),
        ({"variants": {"a": {}, "b": {"set": {"towers.dimension": 0}}}}, r"variants\.b\.set\.towers\.dimension"),
        (
            {"variants": {"a": {}, "b": {"set": {"split.test": 0.3}}}},
            r"variants\.b: data, split and seed must be those",
        ),
        ({"variants": {"a": {}, "b": {"model": "popular", "rules": "r.yaml"}}}, "rules are applied to the model"),
        ({"control": "c"}, "'c' is none of the variants base, small ranker"),
        ({"seeds": [1, 1]}, "seeds: each seed may stand there once"),
        ({"seeds": []}, "seeds: "),
        ({"decision": {"placement": "nowhere"}}, "decision.placement: 'nowhere' is none of home, again"),
        ({"variants": {"a": {}, "b": {"set": {"towers.dimension": date(2024, 1, 1)}}}}, r"variants\.b\.set: a date"),
        ({"name": ".."}, "name: "),
        ({"decision": {"metric": "auc"}}, r"decision\.metric: "),
        ({"decision": {"guardrails": {"hr": 2}}}, r"decision\.guardrails\.hr: "),
        ({"config": "nowhere.yaml"}, "nowhere"),
        ({"name": "a/b"}, "name: "),
        ({"other": 1}, "other: "),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_key(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, **sections))


def test_other_files_are_refused(tmp_path):
    for name, text in (("list.yaml", "- a"), ("empty.yaml", ""), ("broken.yaml", "a: [")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=name):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "none.yaml")


def test_cells_of_the_same_towers_are_one_group(tmp_path):
    cells = cells_of(read(write(tmp_path)), DATA, tmp_path, Lines())
    assert len({cell.path for cell in cells}) == 10
    groups = {frozenset((cell.variant, cell.seed) for cell in group) for group in groups_of(cells)}
    shared = ("base", "small ranker", "retrieval")
    assert groups == {
        *(frozenset((name, seed) for name in shared) for seed in (0, 1)),
        *(frozenset([(name, seed)]) for name in ("wide", "popular") for seed in (0, 1)),
    }
    cells[0].path.write_text("there")
    assert sum(map(len, groups_of(cells))) == 9
    again = cells_of(read(write(tmp_path, name="renamed")), DATA, tmp_path, Lines())
    assert [cell.path for cell in again] == [cell.path for cell in cells]
    others = cells_of(read(write(tmp_path)), OTHER_DATA, tmp_path, Lines())
    assert not {cell.path for cell in others} & {cell.path for cell in cells}


def test_rules_belong_to_what_a_cell_depends_on(tmp_path):
    variants = {"base": {}, "ruled": {"rules": "rules.yaml"}}
    (tmp_path / "rules.yaml").write_text("rules: [{name: adults, exclude: {columns: {adult: [true]}}}]")
    first = cells_of(read(write(tmp_path, variants=variants)), DATA, tmp_path, Lines())
    (tmp_path / "rules.yaml").write_text("rules: [{name: adults, exclude: {columns: {adult: [false]}}}]")
    second = cells_of(read(write(tmp_path, variants=variants)), DATA, tmp_path, Lines())
    assert [a.path == b.path for a, b in zip(first, second, strict=True)] == [True, True, False, False]


def test_towers_of_a_group_are_trained_once_and_are_those_of_a_run_alone(tmp_path, monkeypatch):
    write_tables(tmp_path / "data")
    experiment = read(
        write(tmp_path, seeds=[0], variants={name: VARIANTS[name] for name in ("base", "small ranker")})
    )
    trained = []

    class Counting(FittedOnce):
        def __call__(self, *arguments, **others):
            found = super().__call__(*arguments, **others)
            trained.append(id(found))
            return found

    monkeypatch.setattr(cells_module, "FittedOnce", Counting)
    together, alone = (tmp_path / name for name in ("together", "alone"))
    dataset = load_dataset(experiment.configs["base"], Lines().steps)
    both = cells_of(experiment, dataset, together, Lines())
    run_group(both, dataset.hash, tmp_path / "cells.log")
    assert (len(trained), len(set(trained))) == (4, 2)  # selection and refit, of two cells each
    for cell in cells_of(experiment, dataset, alone, Lines()):
        run_group([cell], dataset.hash, tmp_path / "cells.log")
        assert read_outcomes(cell.path).equals(read_outcomes(together / cell.path.name))
    assert "window 1, small ranker, seed 0" in (tmp_path / "cells.log").read_text()


def test_a_run_goes_on_where_it_was(tmp_path):
    write_tables(tmp_path / "data")
    path = write(tmp_path, seeds=[0], variants={name: VARIANTS[name] for name in ("base", "popular")})
    command = ["experiment", "run", str(path), "--out", str(tmp_path / "out"), "--jobs", "1", "--no-track", "--json"]
    first = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert len(files) == 2
    assert {row["variant"] for row in first["rows"]} == {"base", "popular"}
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == first
    missing = min(files)
    missing.unlink()
    assert json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout) == first
    assert missing.exists()
    for file, at in files.items():
        assert (file.stat().st_mtime_ns == at) == (file != missing)
    shown = CliRunner().invoke(app, command[:-1], catch_exceptions=False).stdout
    assert "popular: " in shown
    assert "popular" in (tmp_path / "out" / "result.md").read_text()


class Recorder(NullTracker):
    """A tracker that keeps what it is given, with the trackers of nested runs."""

    def __init__(self, runs):
        self.runs, self.known = runs, {}

    def start(self, experiment, parameters, tags):
        self.known = {"experiment": experiment, "parameters": parameters, "tags": dict(tags), "artifacts": []}
        self.runs.append(self.known)

    def metrics(self, values, step=None):
        self.known["metrics"] = dict(values)

    def tags(self, values):
        self.known["tags"] |= values

    def artifact(self, path, folder=None):
        self.known["artifacts"].append(path.name if folder is None else folder)

    def nested(self):
        return Recorder(self.runs)


def test_a_run_is_recorded_with_a_run_for_each_variant(tmp_path):
    write_tables(tmp_path / "data")
    experiment = read(write(tmp_path, seeds=[0], variants={"base": VARIANTS["popular"], "b": {"model": "item-knn"}}))
    runs: list[dict[str, Any]] = []
    result = run_experiment(experiment, tmp_path / "out", Recorder(runs), Lines(), jobs=2)
    whole, base, other = runs
    assert {run["experiment"] for run in runs} == {"toy"}
    titles = [run["tags"]["mlflow.runName"] for run in runs]
    assert titles[0].startswith("toy 20")
    assert titles[1:] == ["base", "b"]
    assert whole["artifacts"] == ["result.json", "result.md", "result.html"]
    written = json.loads((tmp_path / "out" / "result.json").read_text())["variants"]
    assert {name: facts["model"] for name, facts in written.items()} == {"base": "popular", "b": "item-knn"}
    assert written["b"]["config"]["baselines"]["item-knn"]["k"] == 10
    assert whole["tags"]["decision.b"] == result.decisions[0]["decision"] == other["tags"]["decision"]
    assert base["tags"]["decision"] == "control"
    assert base["artifacts"] == other["artifacts"] == ["outcomes/seed-0"]
    names = {f"{at}.{metric}_at_10" for at in ("home", "again") for metric in ("hr", "ndcg")}
    of_lists = {
        f"{at}.{of}" for at in ("home", "again") for of in ("coverage", "novelty", "popularity", "cold_share")
    }
    assert set(base["metrics"]) == names | of_lists
    assert set(other["metrics"]) == names | of_lists | {
        f"{name}.change.{of}" for name in names for of in ("mean", "low", "high")
    }


def test_a_bundle_is_a_variant(tmp_path):
    """It is evaluated as it is, once for all seeds, and refused where it knows an event of the test window."""
    write_tables(tmp_path / "data")
    path = write(tmp_path, seeds=[0, 1], variants={"a": {"bundle": "current"}, "b": VARIANTS["popular"]})
    trained = ["train", str(tmp_path / "toy.yaml"), "--no-track"]
    assert CliRunner().invoke(app, trained, catch_exceptions=False).exit_code == 0
    cells = cells_of(read(path), load_dataset(load_config(tmp_path / "toy.yaml", {})), tmp_path, Lines())
    assert [(cell.variant, cell.seed) for cell in cells] == [("a", 0), ("a", 0), ("b", 0), ("b", 1)]
    assert cells[0].path == cells[1].path
    assert [len(group) for group in groups_of(cells)] == [1, 1, 1]
    command = ["experiment", "run", str(path), "--out", str(tmp_path / "out"), "--jobs", "1", "--no-track"]
    refused = CliRunner().invoke(app, command)
    assert "was trained on" in str(refused.exception)
    assert "events of the test window, up to " in str(refused.exception)
    events = pl.read_csv(tmp_path / "data" / "events.csv")
    later = events.with_columns(
        pl.concat_str(pl.lit("n"), "user_id").alias("user_id"), pl.col("timestamp").str.replace("2024", "2025")
    )
    pl.concat([events, later]).write_csv(tmp_path / "data" / "events.csv")
    judged = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert {row["variant"] for row in json.loads(judged.stdout)["rows"]} == {"a", "b"}


@pytest.mark.parametrize("other", [{"set": {"towers.dimension": 8}}, {"model": "popular"}, {"rules": "rules.yaml"}])
def test_a_bundle_is_evaluated_as_it_is(tmp_path, other):
    with pytest.raises(ConfigError, match=r"variants.a: a bundle is evaluated as it is: remove"):
        read(write(tmp_path, variants={"a": {"bundle": "current", **other}, "b": {}}))


def test_the_cells_of_a_group_are_kept_as_they_are_done(tmp_path, monkeypatch):
    write_tables(tmp_path / "data")
    experiment = read(write(tmp_path, seeds=[0], variants={n: VARIANTS[n] for n in ("base", "small ranker")}))
    dataset = load_dataset(next(iter(experiment.configs.values())))
    (group,) = groups_of(cells_of(experiment, dataset, tmp_path, Lines()))
    evaluate = cells_module._evaluate

    def killed(cell, *others):
        if cell.variant == "small ranker":
            raise KeyboardInterrupt
        return evaluate(cell, *others)

    monkeypatch.setattr(cells_module, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run_group(group, dataset.hash, tmp_path / "lines")
    assert [cell.path.exists() for cell in group] == [True, False]


@pytest.mark.parametrize(
    ("rule", "low", "high", "guardrail", "expected"),
    [
        ({}, 0.001, 0.02, None, SHIP),
        ({}, -0.001, 0.02, None, INCONCLUSIVE),
        ({}, -0.02, -0.001, None, DO_NOT),
        ({"margin": 0.02}, 0.001, 0.02, None, INCONCLUSIVE),  # .02 of .1 is .002
        ({"must_be": "not worse", "margin": 0.02}, -0.001, 0.02, None, SHIP),
        ({"must_be": "not worse", "margin": 0.02}, -0.003, 0.02, None, INCONCLUSIVE),
        ({"must_be": "not worse", "margin": 0.02}, -0.03, -0.0021, None, DO_NOT),
        ({"guardrails": {"hr": 0.1}}, 0.001, 0.02, (-0.019, 0.01), SHIP),  # .1 of .2 may be lost
        ({"guardrails": {"hr": 0.1}}, 0.001, 0.02, (-0.021, 0.01), INCONCLUSIVE),
        ({"guardrails": {"hr": 0.1}}, 0.001, 0.02, (-0.05, -0.021), DO_NOT),
    ],
)
def test_the_verdict_by_its_bounds(rule, low, high, guardrail, expected):
    guardrails = {} if guardrail is None else {"hr, home": (0.2, Interval(0.0, *guardrail))}
    decision, reason = verdict(Rule(**rule), 0.1, Interval((low + high) / 2, low, high), guardrails)
    assert decision == expected
    assert "bound" in reason


def test_a_baseline_that_cannot_be_fitted_is_an_error(tmp_path, monkeypatch):
    write_tables(tmp_path / "data")
    experiment = read(write(tmp_path, seeds=[0]))
    cell = next(cell for cell in cells_of(experiment, DATA, tmp_path, Lines()) if cell.variant == "popular")
    monkeypatch.setattr(cells_module, "chosen_baseline", lambda *_: {})
    with pytest.raises(DataError, match="popular cannot be fitted on these data: remove the variant"):
        run_group([cell], load_dataset(cell.config, Lines().steps).hash, tmp_path / "cells.log")
    assert not cell.path.exists()


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (DataError("no events"), DataError, "base, seed 0, base, seed 1: no events"),
        (
            BrokenProcessPool("x"),
            RecsysError,
            "a process was killed, perhaps for memory: run again with fewer --jobs",
        ),
        (KeyError("x"), KeyError, "x"),
    ],
)
def test_the_error_of_a_process_names_its_cells(tmp_path, error, expected, message):
    group = [cell for cell in cells_of(read(write(tmp_path)), DATA, tmp_path, Lines()) if cell.variant == "base"]
    found = failed(error, group)
    assert type(found) is expected
    assert message in str(found)


def test_after_a_failure_no_other_group_is_started(tmp_path):
    write_tables(tmp_path / "data")
    variants = {"base": VARIANTS["popular"], "b": {"model": "ease"}}
    cells = cells_of(read(write(tmp_path, seeds=[0, 1, 2, 3], variants=variants)), DATA, tmp_path / "out", Lines())
    (tmp_path / "out").mkdir()
    before = os.environ.get("POLARS_MAX_THREADS")
    with pytest.raises(DataError, match="the data have changed since the run began"):  # each group finds other data
        run_groups(groups_of(cells), "data", tmp_path / "out", Lines(), 1)
    assert len(list((tmp_path / "out").glob("*.log"))) < 8
    assert os.environ.get("POLARS_MAX_THREADS") == before


def test_rules_that_are_wrong_are_refused_before_the_run(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules: [{exclude: price >}]")
    with pytest.raises(RecsysError, match=r"rules\.yaml"):
        read(write(tmp_path, variants={"base": {}, "ruled": {"rules": "rules.yaml"}}))
