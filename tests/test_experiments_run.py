"""Offline experiments: the file, the groups of cells, what is computed again, the result, and the decision."""

import json
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import yaml
from toy_data import outcome_table, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.evaluation.outcomes import read_outcomes, write_outcomes
from experiments.evaluation.verdict import DO_NOT, INCONCLUSIVE, SHIP, Rule, verdict
from experiments.pipelines.experiment import cells as cells_module
from experiments.pipelines.experiment.cells import cells_of, groups_of, run_group
from experiments.pipelines.experiment.definition import load_experiment
from experiments.pipelines.experiment.result import result_of
from experiments.pipelines.experiment.run import failed
from experiments.pipelines.fit import FittedOnce
from features.errors import ConfigError, DataError, RecsysError
from recsys.cli.main import app
from recsys.cli.options import config_path
from recsys.evaluation.bootstrap import Interval

VARIANTS = {
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
    cells = cells_of(read(write(tmp_path)), "data", tmp_path)
    assert len({cell.path for cell in cells}) == 10
    groups = {frozenset((cell.variant, cell.seed) for cell in group) for group in groups_of(cells)}
    shared = ("base", "small ranker", "retrieval")
    assert groups == {
        *(frozenset((name, seed) for name in shared) for seed in (0, 1)),
        *(frozenset([(name, seed)]) for name in ("wide", "popular") for seed in (0, 1)),
    }
    cells[0].path.write_text("there")
    assert sum(map(len, groups_of(cells))) == 9
    again = cells_of(read(write(tmp_path, name="renamed")), "data", tmp_path)
    assert [cell.path for cell in again] == [cell.path for cell in cells]
    others = cells_of(read(write(tmp_path)), "other data", tmp_path)
    assert not {cell.path for cell in others} & {cell.path for cell in cells}


def test_rules_belong_to_what_a_cell_depends_on(tmp_path):
    variants = {"base": {}, "ruled": {"rules": "rules.yaml"}}
    (tmp_path / "rules.yaml").write_text("rules: [{name: adults, exclude: {columns: {adult: [true]}}}]")
    first = cells_of(read(write(tmp_path, variants=variants)), "data", tmp_path)
    (tmp_path / "rules.yaml").write_text("rules: [{name: adults, exclude: {columns: {adult: [false]}}}]")
    second = cells_of(read(write(tmp_path, variants=variants)), "data", tmp_path)
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
    both = cells_of(experiment, "data", together)
    run_group(both, tmp_path / "cells.log")
    assert (len(trained), len(set(trained))) == (4, 2)  # selection and refit, of two cells each
    for cell in cells_of(experiment, "data", alone):
        run_group([cell], tmp_path / "cells.log")
        assert read_outcomes(cell.path).equals(read_outcomes(together / cell.path.name))
    assert "window 1, small ranker, seed 0" in (tmp_path / "cells.log").read_text()


def test_a_run_goes_on_where_it_was(tmp_path):
    write_tables(tmp_path / "data")
    path = write(tmp_path, seeds=[0], variants={name: VARIANTS[name] for name in ("base", "popular")})
    command = ["experiment", "run", str(path), "--out", str(tmp_path / "out"), "--jobs", "1", "--json"]
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


def outcomes_of(tmp_path, ranks, **sections):
    """The result of outcomes that are given: variant -> ranks of users u0, u1, … by seed."""
    experiment = read(
        write(
            tmp_path, variants={name: {"set": {"reranker.trees": 2 + i}} for i, name in enumerate(ranks)}, **sections
        )
    )
    cells = cells_of(experiment, "data", tmp_path / "out")
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
    assert result.render().row_count == 4
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


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
    with pytest.raises(DataError, match="'nowhere' is none of home"):
        outcomes_of(tmp_path / "3", better, decision={"placement": "nowhere"})


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
    cell = next(cell for cell in cells_of(experiment, "data", tmp_path) if cell.variant == "popular")
    monkeypatch.setattr(cells_module, "chosen_baseline", lambda *_: {})
    with pytest.raises(DataError, match="popular cannot be fitted on these data: remove the variant"):
        run_group([cell], tmp_path / "cells.log")
    assert not cell.path.exists()


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (DataError("no events"), DataError, "base, seed 0, base, seed 1: no events"),
        (
            BrokenProcessPool("x"),
            RecsysError,
            "the process was killed, perhaps for memory: run again with fewer --jobs",
        ),
        (KeyError("x"), KeyError, "x"),
    ],
)
def test_the_error_of_a_process_names_its_cells(tmp_path, error, expected, message):
    group = [cell for cell in cells_of(read(write(tmp_path)), "data", tmp_path) if cell.variant == "base"]
    found = failed(error, group)
    assert type(found) is expected
    assert message in str(found)


def test_rules_that_are_wrong_are_refused_before_the_run(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules: [{exclude: price >}]")
    with pytest.raises(RecsysError, match=r"rules\.yaml"):
        read(write(tmp_path, variants={"base": {}, "ruled": {"rules": "rules.yaml"}}))
