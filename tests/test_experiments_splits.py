"""Splits against a naive loop and values by hand, and the guard against leaks in every part of a run."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_data import DAY, SMALL, START, chain, noise, rows_of, toy_catalog, toy_log

from experiments.config import RunConfig
from experiments.dataset import Dataset, keep_frequent
from experiments.evaluation.baselines import fit_baseline
from experiments.pipelines import fit as fit_module
from experiments.pipelines import reranking
from experiments.pipelines.fit import train_two_stage
from experiments.pipelines.train import fit_and_evaluate
from experiments.splits import SplitConfig, check_no_leak, leave_last_out, time_split, window_cuts
from features.errors import DataError, LeakError
from features.ids import IdMap
from features.tables.report import Report
from recsys.baselines import KINDS
from recsys.config import RerankerConfig, TrainingConfig
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.rules import Rules

event = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9), st.booleans(), st.booleans())


def rows_of_targets(targets):
    """Every target as (user, as_of, seen items, items of positive events, item), sorted."""
    seen, positives = rows_of(targets.states.seen_items()), rows_of(targets.states.positives())
    return sorted(
        (int(targets.states.users[s]), int(targets.states.as_of[s]), tuple(seen[s]), tuple(positives[s]), int(i))
        for s, i in zip(targets.state, targets.item, strict=True)
    )


def naive(rows, start, end, *, history, repeats):
    """The expected value of `rows_of_targets`, by a loop over the log."""
    out = set()
    for user, item, time, positive, _ in rows:
        if not (positive and start <= time < end):
            continue
        as_of = start if history == "fixed" else time
        past = sorted((r for r in rows if r[0] == user and r[2] < as_of), key=lambda r: r[2])  # a stable sort
        seen = tuple(r[1] for r in past if r[4])
        if repeats or item not in seen:
            out.add((user, as_of, seen, tuple(r[1] for r in past if r[3]), item))
    return sorted(out)


@given(
    st.lists(event, min_size=1, max_size=25),
    st.lists(st.integers(0, 10), min_size=3, max_size=3, unique=True).map(sorted),
    st.sampled_from(["prequential", "fixed"]),
    st.booleans(),
)
def test_time_split_equals_a_naive_loop(rows, window, history, repeats):
    log = toy_log(rows)
    validation_cut, cut, end = window
    validation = naive(rows, validation_cut, cut, history=history, repeats=repeats)
    test = naive(rows, cut, end, history=history, repeats=repeats)
    if not validation or not test:
        with pytest.raises(DataError, match="nothing to predict"):
            time_split(log, tuple(window), history=history, repeats=repeats)
        return
    split = time_split(log, tuple(window), history=history, repeats=repeats)
    assert rows_of_targets(split.validation) == validation
    assert rows_of_targets(split.test) == test
    for part, limit in ((split.fit, validation_cut), (split.train, cut)):
        kept = [(u, i, t) for u, i, t, _, _ in sorted(rows, key=lambda r: (r[0], r[2])) if t < limit]
        assert list(zip(part.users, part.items, part.times, strict=True)) == kept


def test_histories_end_strictly_before_the_target_and_new_users_are_tested():
    log = toy_log([(0, 1, 5), (0, 2, 10), (0, 3, 10), (0, 4, 12), (1, 5, 11), (1, 0, 13)])
    split = time_split(log, (5, 10, 14), history="prequential", repeats=False)
    assert rows_of_targets(split.test) == [
        (0, 10, (1,), (1,), 2),  # items 2 and 3 have the same time: neither is in the history of the other
        (0, 10, (1,), (1,), 3),
        (0, 12, (1, 2, 3), (1, 2, 3), 4),
        (1, 11, (), (), 5),  # user 1 has no event before the cut
        (1, 13, (5,), (5,), 0),
    ]
    assert len(split.test.states) == 4  # the two targets of one time share a state


def test_fixed_history_ends_at_the_cut():
    log = toy_log([(0, 1, 5), (0, 2, 10), (0, 3, 10), (0, 4, 12), (1, 5, 11)])
    split = time_split(log, (4, 10, 13), history="fixed", repeats=False)
    assert rows_of_targets(split.test) == [(0, 10, (1,), (1,), i) for i in (2, 3, 4)] + [(1, 10, (), (), 5)]
    assert "fixed" in split.note


def test_without_repeats_targets_seen_before_are_dropped():
    log = toy_log([(0, 1, 5), (0, 2, 6, False, True), (0, 3, 7, True, False), (0, 1, 11), (0, 2, 12), (0, 3, 13)])
    window = (6, 10, 14)
    without = time_split(log, window, history="prequential", repeats=False)
    assert [row[4] for row in rows_of_targets(without.test)] == [3]  # its earlier event does not count as seen
    with_repeats = time_split(log, window, history="prequential", repeats=True)
    assert [row[4] for row in rows_of_targets(with_repeats.test)] == [1, 2, 3]


def test_rolling_windows_partition_the_test_events():
    times = np.arange(100) * 7
    log = toy_log([(0, 0, int(t)) for t in times])
    windows = window_cuts(log, SplitConfig(test=0.4, validation=0.25, windows=4))
    assert [w[1] for w in windows] == [60 * 7, 70 * 7, 80 * 7, 90 * 7]  # the newest 40 % in four windows
    assert [w[2] for w in windows] == [
        70 * 7,
        80 * 7,
        90 * 7,
        99 * 7 + 1,
    ]  # each window ends where the next one starts
    assert [w[0] for w in windows] == [
        45 * 7,
        52 * 7,
        60 * 7,
        67 * 7,
    ]  # the newest quarter of the events before the cut
    tested = np.concatenate(
        [time_split(log, w, history="prequential", repeats=True).test.states.as_of for w in windows]
    )
    assert tested.tolist() == times[60:].tolist()  # every test event is in one window


def test_events_at_the_time_of_the_cut_are_test_events():
    log = toy_log([(0, i % 6, t) for i, t in enumerate([0, 1, 2, 3, 4, 5, 5, 5, 8, 9])])
    (window,) = window_cuts(log, SplitConfig(test=0.3, validation=0.2))
    split = time_split(log, window, history="prequential", repeats=True)
    assert window[1] == 5
    assert split.train.latest == 4
    assert len(split.test) == 5


@pytest.mark.parametrize("times", [[], [5], [5] * 20, [1] * 19 + [2]])
def test_times_without_room_for_cuts_are_refused(times):
    log = toy_log([(0, 0, t) for t in times])
    with pytest.raises(DataError, match="needs events before, between and after"):
        window_cuts(log, SplitConfig())


def test_the_error_of_a_window_without_targets_says_why():
    log = toy_log([(0, 1, 1), (0, 2, 2), (0, 1, 3), (0, 3, 4, False)])
    with pytest.raises(
        DataError, match=r"000003, 1970-01-01T00:00:00.000004\) UTC.* all 1 positive events are of items that"
    ):
        time_split(log, (2, 3, 4), history="prequential", repeats=False)
    with pytest.raises(DataError, match=r"000004, .* no event is positive; check data.events"):
        time_split(log, (2, 4, 5), history="prequential", repeats=True)
    with pytest.raises(DataError, match=r"three positive events; the maximum over 4 users is 2"):
        leave_last_out(toy_log([(0, 1, 1), (0, 2, 2), (0, 3, 3, False), (1, 1, 1)]), repeats=True)


def test_the_error_of_a_window_names_the_user_with_most_of_its_events():
    rows = [(0, 1, 1), (0, 2, 2), *((3, item % 2, 3 + item) for item in range(8))]
    ids = IdMap(("ann", "bea", "cid", "bot"))
    with pytest.raises(
        DataError, match=r"all 4 positive .* seen; 4 of them \(100%\) are of the user 'bot': if it is no"
    ):
        time_split(toy_log(rows), (2, 7, 11), history="prequential", repeats=False, user_ids=ids)


def test_events_of_one_time_are_named_as_the_cause():
    log = toy_log([(user, item, 10 * user) for user in range(4) for item in range(5)])
    with pytest.raises(
        DataError, match=r"nothing to train on: the events of each user all have one time.*one second"
    ):
        log.check_targets()
    with pytest.raises(DataError, match="each of the 4 users has one event only"):
        toy_log([(user, 0, user) for user in range(4)]).check_targets()
    with pytest.raises(DataError, match="no event is positive"):
        toy_log([(0, 0, 1, False), (0, 1, 2, False)]).check_targets()
    with pytest.raises(DataError, match="add events"):
        toy_log([(0, 0, 1), (0, 1, 2, False)]).check_targets()
    with pytest.raises(DataError, match="no event is positive"):
        toy_log([]).check_targets()
    toy_log([(0, 0, 1, False), (0, 1, 2)]).check_targets()


def test_the_error_of_too_few_times_says_what_to_do():
    log = toy_log([(0, 0, 0)] * 5 + [(0, 0, 1)] * 5)
    with pytest.raises(
        DataError,
        match=r"of 10 events lacks some: 5 of them have the same time, 1970-01-01T00.*use fewer",
    ):
        window_cuts(log, SplitConfig(windows=5))


def test_events_of_the_same_time_keep_the_order_of_the_log():
    first = toy_log([(0, 3, 1), (0, 1, 1), (0, 2, 1), (0, 5, 2)])
    other = toy_log([(0, 2, 1), (0, 1, 1), (0, 3, 1), (0, 5, 2)])
    for log, history in ((first, (3, 1, 2)), (other, (2, 1, 3))):
        test = time_split(log, (0, 2, 3), history="prequential", repeats=True).test
        assert rows_of_targets(test) == [(0, 2, history, history, 5)]
    assert leave_last_out(first, repeats=True).validation.item.tolist() == [2]
    assert leave_last_out(other, repeats=True).validation.item.tolist() == [3]


def test_targets_where_keeps_the_states_they_need():
    log = toy_log([(0, 1, 5), (0, 2, 10), (0, 3, 10), (1, 5, 11), (0, 4, 12)])
    test = time_split(log, (4, 10, 14), history="prequential", repeats=True).test
    kept = test.where(np.isin(test.item, [4, 3]))
    assert rows_of_targets(kept) == [row for row in rows_of_targets(test) if row[4] in (3, 4)]
    assert len(kept.states) == 2


ROWS = [(0, 1, 1), (0, 2, 4), (1, 3, 5), (0, 3, 7, True, False), (1, 4, 8), (2, 5, 9), (1, 1, 10)]


def split_of(rows, window=(4, 7, 11), **options):
    settings: dict[str, Any] = {"history": "prequential", "repeats": True} | options
    return time_split(toy_log(rows), window, **settings)


def test_the_hash_depends_on_the_events_only():
    assert split_of(ROWS).hash == split_of(ROWS).hash
    assert (
        split_of(ROWS).hash == split_of(ROWS[::-1]).hash
    )  # no user has two events at one time: the sorted log is the same
    assert len(split_of(ROWS).hash) == 16


def changes():
    for i, row in enumerate(ROWS):
        yield f"{i} removed", ROWS[:i] + ROWS[i + 1 :]
        for part, other in ((0, 3), (1, 0), (2, row[2] + 1)):
            yield f"{i} {part}", [*ROWS[:i], (*row[:part], other, *row[part + 1 :]), *ROWS[i + 1 :]]
        if row[2] < 7:  # from the cut on, seen events are not part of the split
            yield f"{i} seen", [*ROWS[:i], (*row[:3], True, False), *ROWS[i + 1 :]]
        yield f"{i} positive", [*ROWS[:i], (*row[:3], False, True), *ROWS[i + 1 :]]


@pytest.mark.parametrize("rows", [pytest.param(rows, id=name) for name, rows in changes()])
def test_the_hash_changes_with_any_event(rows):
    assert split_of(rows).hash != split_of(ROWS).hash


def test_the_hash_changes_with_the_kind_of_split():
    hashes = {
        split_of(ROWS).hash,
        split_of(ROWS, window=(4, 8, 11)).hash,
        split_of(ROWS, window=(5, 7, 11)).hash,
        split_of(ROWS, window=(4, 7, 10)).hash,
        split_of(ROWS, history="fixed").hash,
        leave_last_out(toy_log(ROWS), repeats=True).hash,
    }
    assert len(hashes) == 6


HISTORY = [(0, 1, 1), (0, 2, 2), (1, 3, 1), (1, 4, 4), (0, 3, 5), (0, 4, 6, False), (0, 5, 7), (1, 2, 9)]


@pytest.mark.parametrize(
    ("at", "row"),
    [
        (5, None),  # removed: the last history is shorter
        (5, (0, 0, 6, False)),  # another item
        (5, (0, 4, 5, False)),  # another time
        (5, (0, 4, 6, False, False)),  # not seen
    ],
)
def test_the_hash_changes_with_an_event_of_a_history_after_the_cut(at, row):
    """Event 5 is no target and no training event. It is in the history of the target at time 7."""
    changed = HISTORY[:at] + ([] if row is None else [row]) + HISTORY[at + 1 :]
    assert split_of(changed, window=(2, 5, 8)).hash != split_of(HISTORY, window=(2, 5, 8)).hash


def test_the_hash_does_not_change_with_an_event_that_no_part_of_the_split_has():
    outside = [*HISTORY[:7], (1, 5, 9), (2, 1, 8)]  # after the end of the window
    assert split_of(outside, window=(2, 5, 8)).hash == split_of(HISTORY, window=(2, 5, 8)).hash


def test_the_hash_changes_with_the_type_of_an_event_in_a_history():
    log = toy_log(HISTORY)
    hashes = set()
    for type_of_event in (0, 1):
        types = np.zeros(len(log), np.int64)
        types[np.flatnonzero((log.users == 0) & (log.times == 6))] = type_of_event
        typed = replace(log, types=types, n_types=2)
        hashes.add(time_split(typed, (2, 5, 8), history="prequential", repeats=True).hash)
    assert len(hashes) == 2


def with_leak(events, cut):
    """The events before the cut, and one event at the cut."""
    leaked = events.where(np.arange(len(events)) == np.flatnonzero(events.times >= cut)[0])
    past = events.before(cut)
    merged = [
        np.append(getattr(past, n), getattr(leaked, n)) for n in ("users", "items", "times", "positive", "seen")
    ]
    merged[2][-1] = cut
    return type(events).sort(*merged, events.n_users, events.n_items)


@pytest.fixture(scope="module")
def dataset():
    events = noise()
    catalog = toy_catalog(events.n_items, categories=[["odd" if i % 2 else "even"] for i in range(events.n_items)])
    users = IdMap(tuple(f"u{i}" for i in range(events.n_users)))
    return Dataset(catalog, users, events, "0" * 16, Report(()))


@pytest.fixture(scope="module")
def split(dataset):
    (window,) = window_cuts(dataset.events, SplitConfig(test=0.2, validation=0.3))
    return time_split(dataset.events, window, history="prequential", repeats=True)


CONFIG = RunConfig.model_validate(
    {
        "name": "toy",
        "data": {"source": "folder", "path": ".", "events": {"positive": {"take": None}}},
        "encoder": None,
        "towers": SMALL,
        "training": TrainingConfig(epochs=1),
        "reranker": RerankerConfig(candidates=10, trees=2),
        "baselines": {"popular": {"days": 90}, "item-knn": {"decay": 0.9, "shrink": 1, "exponent": 0.5, "k": 10}},
    }
)


class SilentReporter:
    def say(self, text):
        pass

    def steps(self, description, total):
        return lambda done: None


def test_a_run_without_leaks_passes(dataset, split):
    outcomes, _, trained = fit_and_evaluate(CONFIG, dataset, {"home": split}, SilentReporter(), None)
    assert [o.name for o in outcomes["home"]] == ["popular", "item-knn", "two towers", "two towers + reranker"]
    assert trained.recommender.fitted_until < split.cut


def test_the_rules_of_a_shop_are_evaluated_as_well(dataset, split):
    """What a rule excludes is never hit; a rule that excludes nothing changes nothing."""
    ids = dataset.catalog.ids.ids
    hidden = np.unique(split.test.item)[:2]
    for names, changes in ((["no such item"], False), ([ids[row] for row in hidden], True)):
        rules = Rules.model_validate({"rules": [{"name": "a", "exclude": {"items": names}}]})
        outcomes, _, _ = fit_and_evaluate(CONFIG, dataset, {"home": split}, SilentReporter(), None, rules)
        plain, ruled = outcomes["home"][-2:]
        assert (plain.name, ruled.name) == ("two towers + reranker", "with the rules")
        of_hidden = np.isin(ruled.items, hidden)
        assert np.isinf(ruled.ranks[of_hidden]).all() == changes
        assert (ruled.ranks <= plain.ranks)[~of_hidden].all()  # others move up


def test_the_reranker_is_fitted_on_candidates_published_by_then(dataset, split, monkeypatch):
    """Item 3 is published on the middle day of the validation window, item 4 after the window."""
    middle = int(np.median(split.validation.states.as_of)) // DAY * DAY
    published = dataset.catalog.published.copy()
    published[[3, 4]] = middle, split.cut + DAY
    dated = replace(dataset, catalog=replace(dataset.catalog, published=published))
    examples = []
    monkeypatch.setattr(reranking.RankingRows, "of", lambda features, given, *, seed: examples.extend(given))
    config = CONFIG.model_copy(update={"reranker": RerankerConfig(candidates=30, trees=2)})
    fit_module.select_model(config, dated, {"home": split}, print, lambda description, total: print)
    (example,) = examples
    rows, early = example.candidates.rows, example.states.as_of < middle
    assert 0 < early.sum() < len(early)
    assert not (rows == 4).any()
    assert not (rows[early] == 3).any()
    assert (rows[~early] == 3).any()
    targets = {(user, as_of, item) for user, as_of, _, _, item in rows_of_targets(split.validation)}
    states = example.states
    for row, column in zip(*np.nonzero(rows >= 0), strict=True):
        pair = int(states.users[row]), int(states.as_of[row]), int(rows[row, column])
        assert example.relevant[row, column] == (pair in targets)


def test_the_guard_counts_the_cut_itself_as_future():
    log = toy_log([(0, 1, 5), (0, 2, 10)])
    check_no_leak(11, statistics=ItemStatistics.of(log))
    check_no_leak(None, statistics=ItemStatistics.of(log))  # leave-last-out has no cut
    with pytest.raises(LeakError, match=r"the cut is 1970-01-01T00:00:00.000010 .*statistics has seen .*000010"):
        check_no_leak(10, statistics=ItemStatistics.of(log))


def test_every_leaking_part_is_named():
    early, late = ItemStatistics.of(toy_log([(0, 1, 5)])), ItemStatistics.of(toy_log([(0, 1, 10)]))
    with pytest.raises(LeakError) as caught:
        check_no_leak(10, features=late, popularity=early, normalisation=late)
    assert "features" in str(caught.value)
    assert "normalisation" in str(caught.value)
    assert "popularity" not in str(caught.value)


def test_an_event_that_is_not_positive_leaks_as_well():
    log = toy_log([(0, 1, 5), (0, 2, 10, False)])
    with pytest.raises(LeakError):
        check_no_leak(10, statistics=ItemStatistics.of(log))


def test_a_leak_into_features_is_caught(dataset, split):
    leaky = PairFeatures.of(dataset.catalog, np.zeros((30, 8), np.float32), with_leak(dataset.events, split.cut))
    with pytest.raises(LeakError, match="features has seen"):
        check_no_leak(split.cut, features=leaky)


def test_a_leak_into_the_vocabulary_is_caught(dataset, split):
    check_no_leak(split.cut, vocabulary=keep_frequent(dataset, split.cut, 3))
    with pytest.raises(LeakError, match="vocabulary has seen"):
        check_no_leak(split.cut, vocabulary=keep_frequent(dataset, split.cut + DAY, 3))


@pytest.mark.parametrize("name", ["popular", "popular 7 days", *(kind for kind in KINDS if kind != "popular")])
def test_a_leak_into_any_baseline_is_caught(dataset, split, name):
    arguments = {"popular 7 days": {"days": 7}}.get(name, {})
    check_no_leak(split.cut, **{name: fit_baseline(name, arguments, dataset, split.train)})
    with pytest.raises(LeakError, match=f"{name} has seen"):
        check_no_leak(
            split.cut, **{name: fit_baseline(name, arguments, dataset, with_leak(dataset.events, split.cut))}
        )


def test_a_run_with_a_leak_into_training_events_fails(dataset, split):
    """One event at the cut is in `train`: it leaks into the towers and their negatives, popularity and features."""
    leaky = replace(split, train=with_leak(dataset.events, split.cut))
    with pytest.raises(LeakError) as caught:
        train_two_stage(CONFIG, dataset, {"home": leaky}, print, lambda description, total: print)
    for part in ("towers", "popularity", "features"):
        assert f"{part} has seen" in str(caught.value)
    with pytest.raises(LeakError, match="popular has seen"):  # the model that a run fits first
        fit_and_evaluate(CONFIG, dataset, {"home": leaky}, SilentReporter(), None)


@pytest.mark.parametrize("config", [CONFIG, CONFIG.model_copy(update={"reranker": None})], ids=["reranked", "plain"])
def test_a_run_with_a_leak_into_fitting_events_fails(dataset, split, config):
    """One event of the validation window is in `fit`: it leaks into the choice of epochs and the reranker."""
    leaky = replace(split, fit=with_leak(dataset.events, split.validation_cut))
    with pytest.raises(LeakError, match="has seen"):
        train_two_stage(config, dataset, {"home": leaky}, print, lambda description, total: print)


def test_a_run_with_a_leak_into_the_vocabulary_fails(dataset, split):
    leaky = replace(dataset, fitted_until=split.cut)
    with pytest.raises(LeakError, match="vocabulary has seen"):
        train_two_stage(CONFIG, leaky, {"home": split}, print, lambda description, total: print)


def test_the_vocabulary_holds_the_items_that_are_frequent_before_the_cut(dataset):
    cut = START + 30 * DAY
    kept = keep_frequent(dataset, cut, 4)
    positives = dataset.events.before(cut).positives()
    frequent = [i for i in range(30) if (positives.items == i).sum() >= 4]
    assert 0 < len(frequent) < 30
    assert list(kept.catalog.ids.ids) == [f"i{i}" for i in frequent]
    before = [
        (u, f"i{i}", t)
        for u, i, t in zip(dataset.events.users, dataset.events.items, dataset.events.times, strict=True)
    ]
    after = [
        (u, kept.catalog.ids.ids[i], t)
        for u, i, t in zip(kept.events.users, kept.events.items, kept.events.times, strict=True)
    ]
    assert after == [e for e in before if int(e[1][1:]) in frequent]
    assert kept.left_out == len(before) - len(after)
    assert keep_frequent(dataset, cut, 0) is dataset


def test_chain_walks_one_item_a_step():
    events = chain()
    assert ((events.items[1:] - events.items[:-1]) % 12)[events.users[1:] == events.users[:-1]].tolist() == [1] * 360
