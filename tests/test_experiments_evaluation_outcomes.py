"""Outcomes on disk: what is written, what is refused, and a comparison whose figures are known by hand."""

import json

import numpy as np
import polars as pl
import pytest
from toy_data import Lines, outcome_table, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.evaluation.outcomes import compare_outcomes, read_outcomes, write_outcomes
from experiments.pipelines.train import evaluate_run
from features.errors import DataError, FileError
from recsys.cli.main import app


def test_a_file_that_has_an_event_of_a_model_twice_is_refused(tmp_path):
    rows = [("m", "u", "x", 1), ("m", "u", "x", 2), ("n", "u", "x", 1), ("m", "u", "y", 1)]
    write_outcomes(tmp_path / "a.parquet", [outcome_table(rows)], {})
    with pytest.raises(DataError, match=r"a\.parquet: 1 rows repeat the model and event of another row"):
        compare_outcomes(tmp_path / "a.parquet", tmp_path / "a.parquet")


@pytest.fixture
def files(tmp_path):
    """A and B: user u has two events, v one; B alone has an event of w, A alone a model."""
    a = outcome_table([("m", "u", "x", 1), ("m", "u", "y", 20), ("m", "v", "x", 3), ("old", "u", "x", 1)])
    b = outcome_table([("m", "v", "x", 1), ("m", "u", "y", 3), ("m", "u", "x", np.inf), ("m", "w", "x", 1)])
    write_outcomes(tmp_path / "a.parquet", [a], {"seed": "0"})
    write_outcomes(tmp_path / "b.parquet", [b], {"seed": "1"})
    return tmp_path / "a.parquet", tmp_path / "b.parquet"


def test_a_comparison_pairs_events_and_averages_by_user(files):
    compared = compare_outcomes(*files)
    assert compared.unpaired == (0, 1)
    (row,) = compared.rows
    assert (row["model"], row["placement"], row["users"], row["events"]) == ("m", "home", 2, 3)
    # HR@10: u hits 1 of 2 in A and 1 of 2 in B, v 1 of 1 in both
    assert row["hr_at_10_a"]["mean"] == row["hr_at_10_b"]["mean"] == 0.75
    assert row["hr_at_10_change"] == {"mean": 0, "low": 0, "high": 0}
    # NDCG@10: rank 1 gives 1, rank 3 gives 1 / log2(4) = .5
    assert row["ndcg_at_10_a"]["mean"] == pytest.approx((0.5 + 0.5) / 2)
    assert row["ndcg_at_10_b"]["mean"] == pytest.approx((0.25 + 1) / 2)
    assert row["ndcg_at_10_change"]["mean"] == pytest.approx((-0.25 + 0.5) / 2)
    assert row["ndcg_at_10_change"]["low"] == pytest.approx(-0.25)
    assert row["ndcg_at_10_change"]["high"] == pytest.approx(0.5)


def test_the_command_prints_both_forms(files):
    runner = CliRunner()
    printed = runner.invoke(app, ["experiment", "compare", *map(str, files), "--json"], catch_exceptions=False)
    assert json.loads(printed.stdout) == compare_outcomes(*files).to_dict()
    shown = runner.invoke(app, ["experiment", "compare", *map(str, files)], catch_exceptions=False).stdout
    assert "0.6250" in shown
    assert "1 that only B has" in shown


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file; check the path$"),
        (lambda path: path.mkdir(), "a folder; give a file$"),
        (lambda path: path.write_bytes(b"no parquet"), "is no parquet file.*name one, or write it again"),
        (lambda path: pl.DataFrame({"a": [1]}).write_parquet(path), "is no file of outcomes"),
        (
            lambda path: write_outcomes(path, [outcome_table([("other", "u", "x", 1)])], {}),
            "no model is in both files",
        ),
        (lambda path: write_outcomes(path, [outcome_table([("m", "u", "z", 1)])], {}), "no event in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(files, tmp_path, write, message):
    path = tmp_path / "c.parquet"
    write(path)
    with pytest.raises(DataError, match=rf"c\.parquet.*{message}|{message}.*c\.parquet"):
        compare_outcomes(files[0], path)


def test_a_model_that_is_not_in_both_is_refused(files):
    with pytest.raises(DataError, match="no model 'old' is in both files"):
        compare_outcomes(*files, model="old")


def test_an_evaluation_writes_the_ranks_that_its_tables_average(tmp_path):
    write_tables(tmp_path / "data")
    config = load_config(toy_config(tmp_path), {})
    path = tmp_path / "out" / "outcomes.parquet"
    tables = evaluate_run(config, Lines(), outcomes_file=path)
    rows = read_outcomes(path)
    assert rows.get_column("placement").unique().sort().to_list() == ["again", "home"]
    for one in tables:
        for row in one.rows:
            own = rows.filter(model=row["name"], placement=one.placement)
            hits = own.group_by("user").agg((pl.col("rank") <= 10).mean().alias("hit"))
            assert hits.get_column("hit").mean() == pytest.approx(row["hr_at_10"]["mean"])
    assert rows.select("user", "item").row(0)[0].startswith("u")
    with pytest.raises(FileError, match="outcomes cannot be written"):
        write_outcomes(path / "below-a-file", [rows], {})
    assert pl.read_parquet_metadata(path)["seed"] == "0"
    compared = compare_outcomes(path, path)
    assert {row["ndcg_at_10_change"]["mean"] for row in compared.rows} == {0.0}


def test_p_values_are_adjusted_for_all_rows_and_one_user_shows_nothing(tmp_path):
    paths = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path, rank in zip(paths, (20, 1), strict=True):
        users = [
            (model, f"u{u}", "x", rank if model == "better" else 5) for model in ("better", "same") for u in range(12)
        ]
        write_outcomes(path, [outcome_table(users)], {})
    better, same = compare_outcomes(*paths, seed=3).rows
    smallest = better["hr_at_10_p"]  # of 2 ** 12 sign changes, 2 are as extreme
    assert smallest == pytest.approx(2 / 2**12, abs=6e-4)
    assert better["hr_at_10_p_adjusted"] == pytest.approx(4 * min(smallest, better["ndcg_at_10_p"]), abs=2e-3)
    assert (same["ndcg_at_10_p"], same["ndcg_at_10_p_adjusted"]) == (1, 1)
    write_outcomes(paths[0], [outcome_table([("m", "u", "x", 1)])], {})
    (row,) = compare_outcomes(paths[0], paths[0]).rows
    assert row["ndcg_at_10_detectable"] is None


def test_the_cells_of_a_comparison(files):
    compared = compare_outcomes(*files)
    table = compared.render()
    assert table.caption == (
        "in brackets: 95 % interval over users; Δ: B minus A, paired by event and user; p: permutation test, "
        "adjusted for all rows by Holm's method;\ndetectable: the difference that so many users show with a "
        "probability of 80 %\n"
        "left out: 0 events that only A has, 1 that only B has"
    )
    headers = ["model", "placement", "users", "events", "metric", "A", "B", "Δ", "p", "detectable"]
    assert [column.header for column in table.columns] == headers
    cells = [list(column.cells) for column in table.columns]
    assert [column[0] for column in cells] == [
        *("m", "home", "2", "3", "HR@10"),
        *("0.7500 [0.5000, 1.0000]", "0.7500 [0.5000, 1.0000]", "+0.0000 [+0.0000, +0.0000]"),
        *("1.0000", "0.0000"),
    ]
    assert [column[1] for column in cells] == [
        *("", "", "", "", "NDCG@10"),
        *("0.5000 [0.5000, 0.5000]", "0.6250 [0.2500, 1.0000]", "+0.1250 [-0.2500, +0.5000]"),
        *("1.0000", "1.0506"),  # 2.801585 times the deviation .53033 of -.25 and .5, / root of 2
    ]
    assert "left out" not in str(compare_outcomes(files[0], files[0]).render().caption)
    assert compare_outcomes(*files, model="m").to_dict() == compared.to_dict()


def test_files_of_one_model_each_are_compared_whatever_its_name(tmp_path):
    paths = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path, model, rank in zip(paths, ("base", "variant"), (20, 1), strict=True):
        write_outcomes(path, [outcome_table([(model, f"u{u}", "x", rank) for u in range(3)])], {})
    (row,) = compare_outcomes(*paths).rows
    assert (row["model"], row["hr_at_10_change"]["mean"]) == ("variant against base", 1)
    with pytest.raises(DataError, match=r"no model 'base' is in both files: .*: base; .*: variant$"):
        compare_outcomes(*paths, model="base")
