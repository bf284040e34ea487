"""Offline experiments: the file, the groups of cells, what is computed again, the result, and the decision."""

import json
import os
import re
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
import yaml
from toy_data import Lines, outcome_table, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.evaluation.outcomes import read_outcomes, write_outcomes
from experiments.evaluation.verdict import DO_NOT, INCONCLUSIVE, SHIP, Rule, verdict
from experiments.pipelines.experiment import cells as cells_module
from experiments.pipelines.experiment.cells import cells_of, groups_of, run_group
from experiments.pipelines.experiment.definition import load_experiment
from experiments.pipelines.experiment.report import markdown, page, table
from experiments.pipelines.experiment.result import result_of
from experiments.pipelines.experiment.run import failed, run_experiment, run_groups
from experiments.pipelines.fit import FittedOnce
from experiments.statistics.significance import permutation_test
from experiments.tracking.mlflow import NullTracker
from features.errors import ConfigError, DataError, RecsysError
from recsys.cli.main import app
from recsys.cli.options import config_path
from recsys.evaluation.bootstrap import Interval, bootstrap

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
    return load_experiment(path, config_path, {})


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
    names = [run["tags"]["mlflow.runName"] for run in runs]
    assert names[0].startswith("toy 20")
    assert names[1:] == ["base", "b"]
    assert whole["artifacts"] == ["result.json", "result.md", "result.html"]
    written = json.loads((tmp_path / "out" / "result.json").read_text())["variants"]
    assert {name: facts["model"] for name, facts in written.items()} == {"base": "popular", "b": "item-knn"}
    assert written["b"]["config"]["baselines"]["item-knn"]["k"] == 10
    assert whole["tags"]["decision.b"] == result.decisions[0]["decision"] == other["tags"]["decision"]
    assert base["tags"]["decision"] == "control"
    assert base["artifacts"] == other["artifacts"] == ["outcomes/seed-0"]
    figures = {f"{at}.{metric}_at_10" for at in ("home", "again") for metric in ("hr", "ndcg")}
    assert set(base["metrics"]) == figures
    assert set(other["metrics"]) == figures | {
        f"{name}.change.{of}" for name in figures for of in ("mean", "low", "high")
    }


def outcomes_of(tmp_path, ranks, **sections):
    """The result of outcomes that are given: variant -> ranks of users u0, u1, … by seed."""
    experiment = read(
        write(
            tmp_path, variants={name: {"set": {"reranker.trees": 2 + i}} for i, name in enumerate(ranks)}, **sections
        )
    )
    cells = cells_of(experiment, DATA, tmp_path / "out", Lines())
    for cell in cells:
        rows = [(cell.variant, f"u{u}", "x", rank) for u, rank in enumerate(ranks[cell.variant][cell.seed])]
        write_outcomes(cell.path, [outcome_table(rows)], {})
    return result_of(experiment, cells, {"data_hash": "d", "code_version": "c", "seeds": [0, 1]})


def test_the_result_by_hand(tmp_path):
    # hits of 4 users: control 1 0 0 0 in both seeds; other 1 1 0 0 and 1 1 1 0
    result = outcomes_of(tmp_path, {"a": [[1, 60, 60, 60]] * 2, "b": [[1, 1, 60, 60], [1, 1, 1, 60]]})
    control, other = (row for row in result.rows if row["metric"] == "hr")
    assert (control["mean"], control["change"]) == (0.25, None)
    assert other["mean"] == pytest.approx(0.625)
    assert other["change"]["mean"] == pytest.approx(0.375)
    assert other["between_seeds"] == pytest.approx(np.std([0.25, 0.5], ddof=1))
    assert other["p_adjusted"] >= other["p"]
    # differences 0, 1, .5, 0 have a deviation of .4787; 2.801585 * .4787 / 2
    assert other["detectable"] == pytest.approx(2.801585 * np.std([0, 1, 0.5, 0], ddof=1) / 2)
    assert table(result).row_count == 4
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_segments_are_judged_on_their_own_events(tmp_path):
    # 60 users with two events each, one of a cold item; the variant finds the cold items alone
    experiment = read(write(tmp_path, seeds=[0], variants={"a": {}, "b": {"set": {"reranker.trees": 2}}}))
    cells = cells_of(experiment, DATA, tmp_path / "out", Lines())
    for cell in cells:
        rows = [(cell.variant, f"u{u}", item, 60) for u in range(60) for item in "xy"]
        is_cold = pl.col("item") == "y"
        outcomes = outcome_table(rows).with_columns(
            warm_item=~is_cold, warm_user=pl.lit(True), history=pl.when(pl.col("user") < "u2").then(3).otherwise(70)
        )
        hit = pl.when(is_cold).then(1.0).otherwise(60.0) if cell.variant == "b" else pl.lit(60.0)
        write_outcomes(cell.path, [outcomes.with_columns(rank=hit).cast({"history": pl.Int32})], {})
    result = result_of(experiment, cells, {"seeds": [0]})
    means = {row["segment"]: row["mean"] for row in result.rows if (row["variant"], row["metric"]) == ("b", "hr")}
    # 11 users before u2, too few; all users are known, which says no more than all
    assert means == {"all": 0.5, "known items": 0, "cold items": 1, "50 events and more": 0.5}
    p = {row["segment"]: (row["p"], row["p_adjusted"]) for row in result.rows if row["variant"] == "b"}
    assert p["known items"] == (1, 1)
    assert p["cold items"][1] == pytest.approx(6 / 4 * p["cold items"][0])  # 4 of 6 tests of segments are as small


def test_the_page_asks_no_other_host_and_escapes_names(tmp_path):
    result = outcomes_of(tmp_path, {"a": [[40] * 30] * 2, "<b>": [[1] * 30] * 2})
    text = page(result)
    assert "<b>" not in text
    assert "&lt;b&gt;: SHIP." in text
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!#)[^\"'>)]+", text)
    assert text.count("<svg") == 2
    assert text.count("<tr") == 1 + len(result.rows)
    assert page(result) == text
    assert "SHIP" in markdown(result)


def test_the_page_in_a_browser(tmp_path, browser):
    result = outcomes_of(tmp_path, {"a": [[40] * 30] * 2, "b": [[1] * 30] * 2})
    (tmp_path / "result.html").write_text(page(result), encoding="utf-8")
    grounds = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        shown = context.new_page()
        asked: list[str] = []
        shown.on("request", lambda request, asked=asked: asked.append(request.url))
        shown.goto((tmp_path / "result.html").as_uri())
        grounds.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        shown.get_by_role("button", name="mean").click()
        means = [float(text) for text in shown.locator("td:nth-child(6)").all_inner_texts()]
        assert means == sorted(means)
        shown.get_by_role("button", name="mean").click()
        assert [float(text) for text in shown.locator("td:nth-child(6)").all_inner_texts()] == means[::-1]
        assert all(url.startswith("file:") for url in asked)
        context.close()
    assert grounds[0] != grounds[1]


def test_seeds_that_differ_make_the_interval_wider(tmp_path):
    rng = np.random.default_rng(0)
    control = [[60] * 50] * 2
    same = [list(rng.choice([1, 60], 50))] * 2
    flipped = [same[0], [1] * 40 + [60] * 10]
    narrow = outcomes_of(tmp_path / "n", {"a": control, "b": same}).rows[1]["change"]
    wide = outcomes_of(tmp_path / "w", {"a": control, "b": flipped}).rows[1]["change"]
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])


def test_outcomes_of_other_events_are_refused(tmp_path):
    with pytest.raises(DataError, match="b, seed 1, was evaluated on other events than a"):
        outcomes_of(tmp_path, {"a": [[1, 2]] * 2, "b": [[1, 2], [1, 2, 3]]})


def test_the_decision_of_a_file(tmp_path):
    better = {"a": [[40] * 30] * 2, "b": [[1] * 30] * 2}
    (decision,) = outcomes_of(tmp_path / "1", better).decisions
    assert (decision["variant"], decision["decision"]) == ("b", SHIP)
    worse = {"a": better["b"], "b": better["a"]}
    assert outcomes_of(tmp_path / "2", worse).decisions[0]["decision"] == DO_NOT


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


def test_the_interval_of_few_seeds_by_hand(tmp_path):
    # differences of ten users, the mean of two seeds: their means are .2 and .4
    ranks = {"a": [[60] * 10] * 2, "b": [[1] * 2 + [60] * 8, [1] * 4 + [60] * 6]}
    row = next(row for row in outcomes_of(tmp_path, ranks).rows if row["change"] and row["metric"] == "hr")
    by_user = np.array([1, 1, 0.5, 0.5, 0, 0, 0, 0, 0, 0])
    seeds, users = 0.02 / 2, by_user.var(ddof=1) / 10
    error = (seeds + users) ** 0.5
    freedom = error**4 / (seeds**2 / 1 + users**2 / 9)
    by_seeds, over_users = 2 * scipy.stats.t.sf(0.3 / error, freedom), permutation_test(by_user, seed=0)
    assert row["p"] == pytest.approx(max(by_seeds, over_users))
    plain = bootstrap(by_user, seed=0)
    wider = scipy.stats.t.ppf(0.975, freedom) * error / (scipy.stats.norm.ppf(0.975) * users**0.5)
    assert row["change"]["low"] == pytest.approx(0.3 - wider * (0.3 - plain.low))


def test_rules_that_are_wrong_are_refused_before_the_run(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules: [{exclude: price >}]")
    with pytest.raises(RecsysError, match=r"rules\.yaml"):
        read(write(tmp_path, variants={"base": {}, "ruled": {"rules": "rules.yaml"}}))
