"""Parts of a training run: popular items, samples of states, titles and notes of tables, and what a run records."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_experiments_evaluation_ranking import catalog as ranking_catalog
from test_experiments_evaluation_ranking import outcome_of, split_of
from toy_data import DAY, SMALL, Lines, chain, toy_catalog, toy_log

from experiments.config import RunConfig
from experiments.dataset import Dataset, _dataset_notes
from experiments.evaluation.baselines import fit_baseline
from experiments.evaluation.choice import Choice
from experiments.evaluation.ranking import Comparison
from experiments.pipelines import fit, train
from experiments.pipelines.fit import build_two_stage
from experiments.splits import time_split
from experiments.tracking import mlflow
from experiments.tracking.record import record_tables
from features.errors import ConfigError
from features.ids import IdMap
from features.tables.report import Report
from recsys import baselines
from recsys.item_statistics import ItemStatistics
from recsys.retrieval.popular import fit_popular
from recsys.towers.model import TwoTowers

catalog = ranking_catalog
NO_DATA: Any = None
DATA = {"source": "folder", "path": "data", "events": {"positive": {"take": None}}}


def config(**sections):
    return RunConfig.model_validate({"name": "toy", "data": DATA, "towers": SMALL.model_dump()} | sections)


# --- fitting


def test_cold_users_get_the_most_popular_items_of_30_days():
    old = [(user, 0, 0) for user in range(3)]  # 30 days before the latest event: not counted
    events = toy_log([*old, (0, 1, 1), (1, 2, 30 * DAY), (2, 2, 30 * DAY)], n_items=3)
    towers = TwoTowers(toy_catalog(3), ItemStatistics.of(events), SMALL)
    stage = build_two_stage(towers, events, config())
    np.testing.assert_allclose(stage.fallback.popularity, [0.75, 1.25, 2.5])  # ties: events of all time, over 4
    np.testing.assert_array_equal(stage.fallback.popularity, fit_popular(events, days=30).popularity)
    assert (stage.candidates, stage.fitted_until, stage.reranker) == (500, 30 * DAY, None)
    assert build_two_stage(towers, events, config(reranker=None)).candidates == 0
    assert build_two_stage(towers, events, config(reranker={"candidates": 20})).candidates == 20
    assert (fit.TOWERS, fit.RERANKED) == ("two towers", "two towers + reranker")


def test_popular_items_of_days_leave_out_the_event_exactly_that_long_ago():
    events = toy_log([(0, 0, 0), (0, 1, 1), (0, 2, 2 * DAY)], n_items=3)
    assert (fit_popular(events, days=2).popularity >= 1).tolist() == [False, True, True]
    assert (fit_popular(events, days=1.5).popularity >= 1).tolist() == [False, False, True]
    assert fit_popular(events).popularity.tolist() == [1, 1, 1]
    for days in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match=r"popular in the last .* days: days must be greater than 0"):
            fit_popular(events, days=days)


def test_a_sample_keeps_all_targets_of_its_states():
    rows = [(user, item, time) for user in range(8) for item, time in ((0, 1), (1, 4), (2, 10), (3, 10))]
    split = time_split(toy_log(rows, 8), (3, 6, 20), history="prequential", repeats=True)
    targets = split.test
    n = len(targets.states)
    assert targets.sample(n, 0) is targets
    some = targets.sample(5, seed=3)
    chosen = np.sort(np.random.default_rng(3).permutation(n)[:5])
    assert some.states.users.tolist() == targets.states.users[chosen].tolist()
    assert len(some) == 10  # two targets each


def test_arguments_that_end_in_an_overflow_are_an_error_of_the_configuration(monkeypatch):
    def overflows(events, **arguments):
        raise OverflowError("too large")

    monkeypatch.setitem(baselines.KINDS, "ease", overflows)
    with pytest.raises(ConfigError) as caught:
        fit_baseline("ease + recency", {"decay": 0.5}, NO_DATA, chain())
    assert str(caught.value) == "baselines.ease + recency: {'decay': 0.5} cannot be used: too large"


# --- what is said of the data


def dataset(rows, n_users, **changes):
    events = toy_log(rows, n_users, 6)
    users = IdMap(tuple(f"u{row}" for row in range(n_users)))
    return Dataset(toy_catalog(6), users, events, "h", Report(()), **changes)


def notes(rows, n_users, newest=0.1, **changes):
    return _dataset_notes(dataset(rows, n_users, **changes), newest)


def of_one(n, others, *, end=False):
    """n events of user 0, and one of each of the others, before or after them."""
    start = others if end else 0
    own = [(0, at % 6, start + at) for at in range(n)]
    return [*own, *((1 + user, user % 6, (0 if end else n) + user) for user in range(others))]


@pytest.mark.parametrize(
    ("n", "others", "named"),
    [
        (50, 450, True),  # a tenth of 500 events; five times the mean is 5.5
        (49, 441, False),  # fewer than 50 events
        (50, 451, False),  # less than a tenth
    ],
)
def test_a_user_with_a_tenth_of_the_events_is_named(n, others, named):
    found = notes(of_one(n, others), others + 1)
    text = f"the user 'u0' has {n} of {n + others} events (10%): if it is no person, leave its events out"
    assert (text in found) == named


def test_a_user_with_five_times_the_events_of_others_is_named():
    rows = [(user, at % 6, 100 * user + at) for user in range(4) for at in range(60)]
    assert notes(rows, 4) == []  # a quarter each
    rows += [(0, at % 6, 10_000 + at) for at in range(1_000)]
    assert notes(rows, 4) == []  # 1,060 of 1,240 are less than five times the mean of 310


def test_a_user_with_half_of_the_newest_events_is_named():
    rows = [(1 + at % 999, at % 6, at) for at in range(1_000)]
    rows += [(0, at % 6, 1_000 + at) for at in range(60)]
    (found,) = notes(rows, 1_000, newest=0.1)
    assert found.startswith("the user 'u0' has 60 of 1")
    assert "of the newest 10% of the events (5" in found


def test_events_that_tell_nothing_are_noted():
    assert notes([], 1) == []
    same = notes([(0, 2, 1), (0, 2, 2), (1, 2, 3)], 2)
    assert same == ["all 3 events are of the item 'i2': check item_id"]
    assert notes([(0, 2, 1)], 1) == ["each user has one event only: no event has a history; check user_id"]
    once = notes([(0, 2, 1), (1, 3, 1)], 2)
    assert once == ["each user has one event only: no event has a history; check user_id"]
    assert notes([(0, 2, 1), (0, 3, 2)], 1) == []
    (at_once,) = notes([(0, 2, 1), (0, 3, 1)], 1)
    assert "one time" in at_once or "same time" in at_once
    ignored = notes([(0, 2, 1), (0, 3, 2)], 1, unknown_items=1_000, duplicates=2)
    assert ignored == [
        "1,000 logged events ignored: their items are not in the tables",
        "2 logged events ignored: the tables contain them",
    ]


def test_events_before_the_day_of_the_publication_are_noted():
    early = dataset([(0, 2, 5), (0, 3, DAY + 5), (0, 4, 2 * DAY)], 1)
    published = np.array([0, 0, DAY, DAY + 9, 2 * DAY, 0])  # only the first event is a day too early
    early = replace(early, catalog=replace(early.catalog, published=published))
    assert _dataset_notes(early, 0.1) == [
        "1 events are older than the publication of their item: as targets they cannot be hit"
    ]


# --- tables and records


def test_titles_and_notes_of_a_table(catalog):
    rules = config(data=DATA | {"placements": {"home": {}, "again": {"repeats": True}}})
    split, outcome = split_of([(0, 0, 1), (0, 1, 3), (0, 2, 10), (0, 0, 11), (1, 3, 12)]), outcome_of(catalog)
    table = train.comparison(rules, "home", [split], [outcome])
    cut = np.datetime64(split.cut, "us")
    assert table.title == "toy · home: repeats excluded"
    assert table.note == (
        f"time cut, prequential: models see only events before {cut} UTC; 1 test events are left out, because their "
        "users had seen the items"
    )
    assert (table.placement, table.hashes, table.ours, table.seed) == (
        *("home", (split.hash,)),
        *("two towers + reranker", 0),
    )
    twice = train.comparison(config(reranker=None, data=rules.data.model_dump()), "again", [split, split], [outcome])
    assert twice.title == "toy · again: repeats allowed"
    assert twice.note.endswith(" UTC (2 windows); 2 test events are left out, because their users had seen the items")
    assert twice.ours == "two towers"


def test_what_is_printed_of_an_epoch_and_of_a_window():
    assert train.format_line({"epoch": 2.0, "loss": 1.23456}) == "epoch 2  loss 1.235"
    lines = Lines()
    empty: Any = SimpleNamespace(content_note="", left_out=0)
    train.report_window(config(), empty, lines)
    assert lines.lines == []
    kept: Any = SimpleNamespace(content_note="contents: text of 3", left_out=1_234)
    train.report_window(config(data=DATA | {"min_train_events": 5}), kept, lines)
    assert lines.lines == [
        "contents: text of 3",
        "1,234 events left out: items with fewer than 5 before the validation window",
    ]


def test_the_metrics_that_are_tracked(catalog):
    outcome = replace(outcome_of(catalog, name="ease + recency"), choices=(Choice({"decay": 0.5}, {}),))
    table = Comparison("t", "home", "n", ("h",), (outcome,), "ease + recency", 0)
    recorded = []
    tracker: Any = SimpleNamespace(
        metrics=lambda values: recorded.append(values),
        tags=lambda values: recorded.append(values),
        headline=lambda metric: recorded.append(metric),
        text=lambda name, content: recorded.append((name, content)),
        figure=lambda name, figure: recorded.append((name, figure)),
    )
    record_tables(tracker, [table], {"curve": "figure"})
    metrics, how, headline, (text, shown), (data, values), plot = recorded
    assert metrics == pytest.approx(
        {
            "home_ease___recency.hr_at_10": 0.625,
            "home_ease___recency.ndcg_at_10": table.rows[0]["ndcg_at_10"]["mean"],
        }
    )
    assert how == {"settings.home_ease___recency": "fixed in the configuration: decay 0.5"}
    assert (headline, plot) == ("home_ease___recency.ndcg_at_10", ("curve", "figure"))
    assert (text, data) == ("tables.txt", "tables.json")
    assert "ease + recency" in shown
    assert json.loads(values) == json.loads(json.dumps([table.to_dict()]))


def test_the_stages_of_a_run():
    assert train.stage_names(config()) == [
        "reading the tables",
        "encoding the contents of the items",
        "fitting and evaluating the baselines and the recommender",
        "refitting the selected model on all events, to be served",
        "writing the bundle",
    ]


def test_parameters_are_flattened():
    nested = {"a": {"b c": 1, "d": {"e": [2]}}, "f": None}
    assert mlflow._flatten(nested) == {"a.b_c": 1, "a.d.e": [2], "f": None}
    assert mlflow.DEFAULT_URI == "sqlite:///mlflow.db"
    nothing = mlflow.NullTracker()
    assert nothing.nested() is nothing


def test_the_environment_of_the_page(monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", raising=False)
    found = mlflow._ui_environment()
    assert found["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert found["PYTHONWARNINGS"] == "ignore:starlette.middleware.wsgi is deprecated"
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    found = mlflow._ui_environment()
    assert found["PYTHONWARNINGS"] == "error,ignore:starlette.middleware.wsgi is deprecated"
    assert found["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "true"
