"""The result of an experiment: figures, segments, intervals, decisions, and the page."""

import json
import re

import numpy as np
import polars as pl
import pytest
import scipy.stats
from test_experiments_run import DATA, read, write
from toy_data import Lines, outcome_table

from experiments.evaluation.outcomes import write_outcomes
from experiments.evaluation.verdict import DO_NOT, SHIP
from experiments.pipelines.experiment.cells import cells_of
from experiments.pipelines.experiment.report import markdown, page, table
from experiments.pipelines.experiment.result import QUARTERS, result_of
from experiments.statistics.significance import permutation_test
from features.errors import DataError
from recsys.evaluation.bootstrap import bootstrap

FIGURES = {"coverage": 0.5, "novelty": 3.0, "diversity": None, "popularity": 0.75}
LISTS = json.dumps([{"home": {**FIGURES, "cold_share": share}} for share in (0, 0.5)])
"""What the lists of two windows have; without contents there is no diversity."""


HOUR = pl.col("rank").cast(pl.Int64).cast(pl.Datetime("us", "UTC"))


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
        write_outcomes(cell.path, [outcome_table(rows)], {"lists": LISTS})
    return result_of(experiment, cells, {"data_hash": "d", "code_version": "c", "seeds": [0, 1]}, {})


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
    assert (other["better"], other["worse"]) == (0.5, 0)
    assert [row["variant"] for row in result.lists] == ["a", "b"]
    assert (result.lists[0]["cold_share"], result.lists[0]["novelty"]) == (0.25, 3)
    assert result.figures("b")["home.cold_share"] == 0.25
    assert "home.diversity" not in result.figures("b")
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
        write_outcomes(cell.path, [outcomes.with_columns(rank=hit).cast({"history": pl.Int32})], {"lists": LISTS})
    result = result_of(experiment, cells, {"seeds": [0]}, {})
    means = {row["segment"]: row["mean"] for row in result.rows if (row["variant"], row["metric"]) == ("b", "hr")}
    # 11 users before u2, too few; all users are known, which says no more than all
    assert means == {"all": 0.5, "known items": 0, "cold items": 1, "50 events and more": 0.5}
    p = {row["segment"]: (row["p"], row["p_adjusted"]) for row in result.rows if row["variant"] == "b"}
    assert p["known items"] == (1, 1)
    assert p["cold items"][1] == pytest.approx(6 / 4 * p["cold items"][0])  # 4 of 6 tests of segments are as small


def test_segments_by_time_and_by_category(tmp_path):
    """40 users with an event in each of 4 hours; only those of the third hour, or of the category B, are found."""
    experiment = read(write(tmp_path, seeds=[0], variants={"a": {}, "b": {"set": {"reranker.trees": 2}}}))
    cells = cells_of(experiment, DATA, tmp_path / "out", Lines())
    categories = {"x0": "A", "x1": "B", "x2": "A"}  # x3 has none
    for cell in cells:
        events = [(cell.variant, f"u{u}", f"x{(u + hour) % 4}", hour) for u in range(40) for hour in range(4)]
        outcomes = outcome_table(events).with_columns(
            time=pl.col("rank").cast(pl.Int64).cast(pl.Datetime("us", "UTC"))
        )
        hit = (pl.col("rank") == 2) | (pl.col("item") == "x1")
        rank = pl.when(hit & (cell.variant == "b")).then(1.0).otherwise(60.0)
        write_outcomes(cell.path, [outcomes.with_columns(rank=rank)], {"lists": LISTS})
    result = result_of(experiment, cells, {"seeds": [0]}, categories)
    means = {row["segment"]: row["mean"] for row in result.rows if (row["variant"], row["metric"]) == ("b", "hr")}
    assert means == {
        "all": 7 / 16,
        **dict(zip(QUARTERS, (0.25, 0.25, 1, 0.25), strict=True)),
        "category A": 0.25,
        "category B": 1,
    }
    text = page(result)
    assert text.count("over time</figcaption>") == 2
    assert text.count("<svg") == 5  # by segment and over time for two metrics, and the lists


def test_the_page_asks_no_other_host_and_escapes_names(tmp_path):
    result = outcomes_of(tmp_path, {"a": [[40] * 30] * 2, "<b>": [[1] * 30] * 2})
    text = page(result)
    assert "<b>" not in text
    assert "&lt;b&gt;: SHIP." in text
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!#)[^\"'>)]+", text)
    assert text.count("<svg") == 3
    assert text.count("<tr") == 2 + len(result.rows) + len(result.lists)
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
        figures, lists = shown.locator("table").all()
        shown.get_by_role("button", name="mean").click()
        means = [float(text) for text in figures.locator("td:nth-child(6)").all_inner_texts()]
        assert means == sorted(means)
        shown.get_by_role("button", name="mean").click()
        assert [float(text) for text in figures.locator("td:nth-child(6)").all_inner_texts()] == means[::-1]
        lists.get_by_role("button", name="variant").click()
        assert lists.locator("td:nth-child(2)").all_inner_texts() == ["a", "b"]
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
