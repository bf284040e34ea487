"""Settings of baselines are chosen on validation: on planted data, from the cache, without a leak; how it is said."""

import functools
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from test_experiments_evaluation_ranking import catalog, outcome_of
from toy_data import SMALL, Lines, toy_catalog, toy_log

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.evaluation.baselines import fit_chosen
from experiments.evaluation.choice import Choice, describe_choices
from experiments.evaluation.ranking import Comparison, join_windows
from experiments.pipelines.train import _in_all_windows, chosen_baseline, comparison
from experiments.splits import Targets, leave_last_out, time_split
from features.errors import DataError, FileError, LeakError
from features.ids import IdMap
from features.instants import DAY
from features.tables.report import Report
from recsys import baselines

__all__ = ["catalog"]
N_USERS, N_ITEMS = 200, 12
VALIDATION, CUT, END = 100 * DAY, 110 * DAY, 120 * DAY
SECOND_BEST = 1 / np.log2(3)
"""NDCG of the second place."""


def dataset_of(rows, **changes):
    """rows: (user, item, time in days)."""
    events = toy_log([(user, item, int(day * DAY)) for user, item, day in rows], N_USERS, N_ITEMS)
    users = IdMap(tuple(f"u{row}" for row in range(N_USERS)))
    return Dataset(toy_catalog(N_ITEMS), users, events, "0" * 16, Report(()), **changes)


def config_of(tmp_path, named, placements=("home",)):
    return RunConfig.model_validate(
        {
            "name": "toy",
            "data": {
                "source": "folder",
                "path": ".",
                "events": {"positive": {"take": None}},
                "placements": {name: {"repeats": name == "again"} for name in placements},
            },
            "towers": SMALL,
            "baselines": named,
            "cache": str(tmp_path / "cache"),
        }
    )


def splits_of(dataset, placements=("home",)):
    window = (VALIDATION, CUT, END)
    return {
        name: time_split(dataset.events, window, history="prequential", repeats=name == "again")
        for name in placements
    }


def chosen(tmp_path, rows, named, placements=("home",), code="1"):
    """fit_chosen of the one baseline of `named`."""
    dataset = rows if isinstance(rows, Dataset) else dataset_of(rows)
    config = config_of(tmp_path, named, placements)
    return fit_chosen(next(iter(named)), config, dataset, splits_of(dataset, placements), code)


def fresh(first, item, day, n):
    """n users, each with one event."""
    return [(first + at, item, day) for at in range(n)]


# item 0 leads in all time and in 90 and 30 days, item 2 in 7 days, item 1 on the last day, and it is what users take
TREND = [
    *(fresh(0, 0, 80, 50) + fresh(50, 2, 96, 10) + fresh(60, 1, 99.9, 5)),
    *(fresh(100, 1, 101, 4) + fresh(110, 1, 111, 4)),
]


def test_the_days_of_popularity_are_those_that_find_the_trend(tmp_path):
    fitted, seconds = chosen(tmp_path, TREND, {"popular": {}})
    assert fitted["home"].choice == Choice({}, {"days": 1}, 5, 1.0, 0.5)  # place 3: 1 / log2(4)
    assert seconds > 0
    model = fitted["home"].recommender
    assert (model.days, model.fitted_until) == (1, 101 * DAY)  # refitted on all of train


# three users take B then X; three take A, C and Y; users of validation have A, C and B, and take X next
A, C, B, X, Y = range(5)
RECENT = [
    *[(user, item, 1 + at) for user in range(3) for at, item in enumerate((B, X))],
    *[(user, item, 1 + at) for user in range(3, 6) for at, item in enumerate((A, C, Y))],
    *[(user, item, 50 + at) for user in range(100, 104) for at, item in enumerate((A, C, B))],
    *[(user, X, 101) for user in range(100, 104)],
    (120, X, 111),
]


def test_the_decay_is_the_first_of_those_that_rank_the_newest_item_first(tmp_path):
    fixed = {"k": 10, "shrink": 0, "exponent": 0.5}
    fitted, _ = chosen(tmp_path, RECENT, {"item-knn": fixed})
    # X scores s, Y scores s * (decay + decay ** 2): the lesser for .5 and .3 only
    assert fitted["home"].choice == Choice(fixed, {"decay": 0.5}, 6, 1.0, SECOND_BEST)
    assert fitted["home"].recommender.decay == 0.5


def test_a_model_is_fitted_once_for_all_settings_that_only_its_scores_depend_on(tmp_path, monkeypatch):
    fits = count_fits(monkeypatch, "item-knn")
    chosen(tmp_path, RECENT, {"item-knn": {"exponent": 0.5}})
    assert len(fits) == 2 * 2 + 1  # each of two k and of two shrink, then the chosen ones on train
    assert [arguments["k"] for _, arguments in fits[:-1]] == [1000] * 2 + [100] * 2
    assert all("decay" not in arguments for _, arguments in fits)


# frequent items of users of validation: P has ages 0 and 6, Q has ages 2 and 3; then Z, which is new, and P again
P, Q, Z = 0, 1, 9
OWN = [
    *[(user, item, 50 + at) for user in range(4) for at, item in enumerate((P, 2, 3, Q, Q, 4, P))],
    *[(user, item, day) for user in range(4) for item, day in ((P, 101), (Z, 102), (P, 111), (10, 112))],
]


def test_each_placement_has_its_own_settings(tmp_path):
    """With decay .7 item P is before Q, with .9 and .99 behind. Z is not of the history: nothing depends on decay."""
    both = ("home", "again")
    fitted, _ = chosen(tmp_path, OWN, {"frequency": {}}, both)
    assert fitted["home"].choice.chosen == {"decay": 0.99}
    assert fitted["home"].choice.best == fitted["home"].choice.worst
    assert fitted["again"].choice.chosen == {"decay": 0.7}
    assert fitted["again"].choice.best > fitted["again"].choice.worst
    assert [fitted[name].recommender.decay for name in both] == [0.99, 0.7]
    assert fitted["home"].seconds == fitted["again"].seconds  # fitted once


def count_fits(monkeypatch, kind):
    fits, fit = [], baselines.KINDS[kind]

    @functools.wraps(fit)
    def counting(events, *contents, **arguments):
        fits.append((events.latest, arguments))
        return fit(events, *contents, **arguments)

    monkeypatch.setitem(baselines.KINDS, kind, counting)
    return fits


def test_a_second_run_reads_the_choice(tmp_path, monkeypatch):
    fits = count_fits(monkeypatch, "popular")
    first, _ = chosen(tmp_path, TREND, {"popular": {}})
    assert [latest for latest, _ in fits] == [int(99.9 * DAY)] * 5 + [101 * DAY]
    again, seconds = chosen(tmp_path, TREND, {"popular": {}})
    assert len(fits) == 7  # the model alone
    assert seconds == 0
    assert again["home"].choice == first["home"].choice
    named, _ = chosen(tmp_path, TREND, {"popular of late": {}})  # the name is not a setting
    assert len(fits) == 8
    assert named["home"].choice == first["home"].choice


@pytest.mark.parametrize("change", ["code", "data", "split", "grid", "fixed", "damage"])
def test_what_a_choice_depends_on_makes_a_new_one(tmp_path, monkeypatch, change):
    chosen(tmp_path, RECENT, {"item-knn": {"k": 10, "shrink": 0}})
    fits = count_fits(monkeypatch, "item-knn")
    dataset, fixed, code = dataset_of(RECENT), {"k": 10, "shrink": 0}, "1"
    if change == "code":
        code = "2"
    elif change == "data":
        dataset = replace(dataset, hash="1" * 16)
    elif change == "split":
        dataset = dataset_of([*RECENT, (121, X, 112)])
    elif change == "grid":
        grid = baselines.Grid({"exponent": (0.5, 0.3)}, {"decay": (0.9,)})
        monkeypatch.setitem(baselines.GRIDS, "item-knn", grid)
    elif change == "fixed":
        fixed["shrink"] = 1
    else:
        (kept,) = (tmp_path / "cache" / "baselines").iterdir()
        kept.write_text(kept.read_text()[:50])
    fitted, seconds = chosen(tmp_path, dataset, {"item-knn": fixed}, code=code)
    assert len(fits) == 3  # two exponents, then train
    assert seconds > 0
    assert fitted["home"].choice.tried == (2 if change == "grid" else 12)


def test_settings_of_the_configuration_stay(tmp_path, monkeypatch):
    fits = count_fits(monkeypatch, "popular")
    fitted, seconds = chosen(tmp_path, TREND, {"popular 7 days": {"days": 7}})
    assert fits == [(101 * DAY, {"days": 7})]
    assert (fitted["home"].choice.fixed, fitted["home"].choice.chosen) == ({"days": 7}, {})
    assert (fitted["home"].choice.tried, seconds) == (0, 0)
    assert not (tmp_path / "cache").exists()


def test_a_choice_that_cannot_be_kept_says_so(tmp_path):
    (tmp_path / "cache").write_text("here")
    with pytest.raises(FileError, match=r"the chosen settings of a baseline cannot be kept: .*cache"):
        chosen(tmp_path, TREND, {"popular": {}})


def test_the_choice_does_not_depend_on_test_events(tmp_path):
    before, _ = chosen(tmp_path, TREND, {"popular": {}})
    others = [row for row in TREND if row[2] < 110] + fresh(110, 0, 111, 30)  # now item 0 would be best
    after, seconds = chosen(tmp_path, others, {"popular": {}})
    assert seconds > 0
    assert after["home"].choice == before["home"].choice


def test_a_leak_into_the_fitting_events_of_a_choice_is_caught(tmp_path):
    dataset = dataset_of(TREND)
    split = splits_of(dataset)["home"]
    with pytest.raises(LeakError, match="fit has 69 events that are not the 65 before the validation cut, 4 of them"):
        fit_chosen(
            "popular", config_of(tmp_path, {"popular": {}}), dataset, {"home": replace(split, fit=split.train)}, "1"
        )
    late = replace(dataset, fitted_until=VALIDATION)
    with pytest.raises(LeakError, match="vocabulary has seen"):
        fit_chosen("popular", config_of(tmp_path, {"popular": {}}), late, {"home": split}, "1")


def test_leave_last_out_chooses_on_the_last_item_but_one(tmp_path):
    """The users of RECENT, where all of A, C, Y and of A, C, B are fitted on; X or item 10 is the last but one."""
    rows = [(user, item, 1 + at) for user in range(3) for at, item in enumerate((B, X))]  # two events: trained on
    rows += [(user, item, 1 + at) for user in range(3, 6) for at, item in enumerate((A, C, Y, 10, 11))]
    rows += [(user, item, 1 + at) for user in range(100, 104) for at, item in enumerate((A, C, B, X, 11))]
    dataset = dataset_of(rows)
    config = config_of(tmp_path, {"item-knn": {"k": 10, "shrink": 0, "exponent": 0.5}})
    split = leave_last_out(dataset.events, repeats=False)
    fitted, _ = fit_chosen("item-knn", config, dataset, {"home": split}, "1")
    choice = fitted["home"].choice
    assert (choice.chosen, choice.tried) == ({"decay": 0.5}, 6)
    # X is the target of four users of seven; item 10 has the same place whatever the decay
    assert choice.best - choice.worst == pytest.approx(4 / 7 * (1 - SECOND_BEST))
    assert fitted["home"].recommender.fitted_until == split.train.latest == 3 * DAY


def test_content_vectors_are_tried_where_there_are_some(tmp_path):
    fixed = {"decay": 0.7, "last": 3}
    plain, _ = chosen(tmp_path, RECENT, {"star": fixed})
    assert plain["home"].choice.tried == 3
    assert list(plain["home"].choice.chosen) == ["weight"]
    dataset = dataset_of(RECENT)
    vectors = np.zeros((N_ITEMS, 2), np.float32)
    vectors[[B, X], 0] = vectors[[A, Y], 1] = 1
    seen = replace(dataset, catalog=replace(dataset.catalog, content=vectors, has_content=vectors.any(1)))
    with_vectors, _ = chosen(tmp_path, seen, {"star": fixed})
    assert with_vectors["home"].choice.tried == 6
    other = replace(seen, catalog=replace(seen.catalog, content=vectors[:, ::-1]))
    _, seconds = chosen(tmp_path, other, {"star": fixed})
    assert seconds > 0  # the choice depends on the vectors


def test_all_combinations_are_judged_on_one_sample(tmp_path, monkeypatch):
    sampled = []

    def record(targets, n, seed):
        sampled.append((n, seed))
        return targets

    monkeypatch.setattr(Targets, "sample", record)
    chosen(tmp_path, TREND, {"popular": {}})
    assert sampled == [(5000, 0)]


# --- what is left out


def without_words(dataset):
    frame = dataset.catalog.frame.with_columns(title=pl.lit(""))
    return replace(dataset, catalog=replace(dataset.catalog, frame=frame))


@pytest.mark.parametrize("name", ["tfidf", "bridge", "ease-bridge", "star"])
def test_a_baseline_that_lacks_texts_is_left_out_and_named(tmp_path, name):
    dataset, lines = without_words(dataset_of(RECENT)), Lines()
    assert chosen_baseline(name, config_of(tmp_path, {name: {}}), dataset, splits_of(dataset), lines) == {}
    (line,) = lines.lines
    assert line.startswith(f"{name} is left out: TF-IDF of 12 item texts: no word has two letters")


def test_the_line_of_a_choice_has_its_cost(tmp_path):
    dataset, lines = dataset_of(TREND), Lines()
    config = config_of(tmp_path, {"popular": {}, "popular 7 days": {"days": 7}})
    for name in ("popular", "popular 7 days", "popular"):
        chosen_baseline(name, config, dataset, splits_of(dataset), lines)
    first, second = lines.lines  # nothing was chosen for the second one
    text = "popular · home: chosen on validation of 5: days 1 (NDCG@10 best 1.0000, worst 0.5000)"
    assert first.startswith(f"{text}, in ")
    assert first.endswith(" s")
    assert second == f"{text}, by an earlier run"


def test_a_table_names_the_baselines_that_were_left_out(tmp_path, catalog):
    config = config_of(tmp_path, {"popular": {}, "tfidf": {}, "star": {}})
    split = splits_of(dataset_of(TREND))["home"]
    table = comparison(config, "home", [split], [outcome_of(catalog, name="popular")], config.baselines)
    assert table.note.endswith("; baselines left out, see the lines of the run: tfidf, star")
    outcomes = [outcome_of(catalog, name=name) for name in config.baselines]
    assert "left out, see" not in comparison(config, "home", [split], outcomes, config.baselines).note
    assert "left out, see" not in comparison(config, "home", [split], outcomes[:1]).note  # a table without baselines


def test_a_baseline_that_one_window_lacks_is_in_no_table(catalog):
    first, second = outcome_of(catalog, name="a"), outcome_of(catalog, name="b")
    joined = _in_all_windows([[first, second], [second]])
    assert [outcome.name for outcome in joined] == ["b"]
    assert len(joined[0].ranks) == 2 * len(second.ranks)


def test_errors_of_the_data_leave_out_one_baseline(tmp_path, monkeypatch):
    def fails(events, **arguments):
        raise DataError("too many items")

    monkeypatch.setitem(baselines.KINDS, "ease", fails)
    dataset, lines = dataset_of(TREND), Lines()
    config = config_of(tmp_path, {"ease": {}, "popular": {"days": 7}})
    assert chosen_baseline("ease", config, dataset, splits_of(dataset), lines) == {}
    assert lines.lines == ["ease is left out: too many items"]
    assert list(chosen_baseline("popular", config, dataset, splits_of(dataset), lines)) == ["home"]


# --- how a choice is said

CHOICE = Choice({"k": 500}, {"decay": 0.9, "shrink": 20}, 12, 0.05432, 0.0311)


def test_a_choice_is_said_in_plain_words():
    assert describe_choices([]) == ""
    assert describe_choices([CHOICE]) == (
        "chosen on validation of 12: decay 0.9, shrink 20 (NDCG@10 best 0.0543, worst 0.0311); "
        "fixed in the configuration: k 500"
    )
    of_all_time = Choice({}, {"days": None}, 5, 0.5, 0.25)
    assert describe_choices([of_all_time]) == (
        "chosen on validation of 5: days all (NDCG@10 best 0.5000, worst 0.2500)"
    )
    assert describe_choices([Choice({"days": 7, "k": 0.5}, {})]) == "fixed in the configuration: days 7, k 0.5"


def test_choices_of_windows_are_counted():
    other = replace(CHOICE, fixed={}, chosen={"decay": 0.5, "shrink": 20}, best=0.0743, worst=0.0111)
    first = replace(CHOICE, fixed={})
    assert describe_choices([first, other, other]) == (
        "chosen in each of 3 windows on its own validation of 12: decay 0.5 (2) / 0.9 (1), shrink 20 "
        "(NDCG@10 best 0.0676, worst 0.0178; means over the windows)"
    )


def test_a_table_says_how_settings_were_chosen(catalog):
    first = replace(outcome_of(catalog, name="item-knn"), choices=(CHOICE,))
    joined = join_windows([first, first])
    assert joined.choices == (CHOICE, CHOICE)
    ours = outcome_of(catalog, name="ours")
    table = Comparison("t", "home", "n", ("h",), (first, ours), "ours", 0)
    assert table.settings == {"item-knn": describe_choices([CHOICE])}
    assert str(table.render().caption).splitlines()[1] == f"item-knn: {describe_choices([CHOICE])}"
    rows = json.loads(json.dumps(table.to_dict()["rows"]))
    assert rows[0]["settings"] == [
        {
            "fixed": {"k": 500},
            "chosen": {"decay": 0.9, "shrink": 20},
            "tried": 12,
            "best": 0.05432,
            "worst": 0.0311,
        }
    ]
    assert "settings" not in rows[1]
    fixed = replace(first, choices=(Choice({"k": 5}, {}),))
    table = Comparison("t", "home", "n", ("h",), (fixed, ours), "ours", 0)
    assert table.to_dict()["rows"][0]["settings"][0]["best"] is None  # JSON has no NaN


# --- the grids


def test_each_kind_has_a_grid_of_settings_that_it_has():
    assert set(baselines.GRIDS) == set(baselines.KINDS)
    for kind, grid in baselines.GRIDS.items():
        values = {**grid.fitted, **grid.applied}
        assert not set(grid.fitted) & set(grid.applied)
        baselines.check_baseline(kind, dict.fromkeys(values, 1))
        assert all(len(set(tried)) == len(tried) >= 2 for tried in values.values())
    assert baselines.GRIDS["popular"].combinations()[0] == (
        {"days": None},
        [{}],
    )  # of equals, all time


def test_a_grid_has_every_combination_once():
    grid = baselines.Grid({"a": (1, 2), "b": (3,)}, {"c": (4, 5)})
    applied = [{"c": 4}, {"c": 5}]
    assert grid.combinations() == [({"a": 1, "b": 3}, applied), ({"a": 2, "b": 3}, applied)]
    assert grid.without({"a", "c"}) == baselines.Grid({"b": (3,)}, {})
    assert baselines.Grid().combinations() == [({}, [{}])]
