"""The guard against leaks: each part of a run with a planted leak, whatever the part says of itself."""

from dataclasses import replace

import numpy as np
import pytest
from toy_data import DAY, SMALL, START, chain, noise, rows_of_targets, toy_catalog, toy_log

from experiments.config import RunConfig
from experiments.dataset import Dataset, keep_frequent
from experiments.evaluation.baselines import fit_baseline
from experiments.evaluation.leaks import check_no_leak, check_vocabulary
from experiments.evaluation.ranking import evaluate
from experiments.pipelines import fit as fit_module
from experiments.pipelines import reranking
from experiments.pipelines.fit import train_two_stage
from experiments.pipelines.train import fit_and_evaluate
from experiments.splits import SplitConfig, check_histories, check_split, leave_last_out, time_split, window_cuts
from features.errors import LeakError
from features.ids import IdMap
from features.interactions import Ragged
from features.tables.report import Report
from recsys.baselines import KINDS
from recsys.config import RerankerConfig, TrainingConfig
from recsys.interfaces import Candidates
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.rules import Rules
from recsys.retrieval.popular import fit_popular
from recsys.towers.model import TwoTowers
from recsys.towers.training import fit_towers


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


def lying(part, **values):
    """The part, which says that it knows nothing."""
    return replace(part, fitted_until=-(2**62), **values)


def test_the_guard_counts_the_cut_itself_as_future():
    log = toy_log([(0, 1, 5), (0, 2, 10)])
    check_no_leak(log, 11, statistics=ItemStatistics.of(log))
    check_no_leak(log, None, statistics=ItemStatistics.of(log))  # leave-last-out has no cut
    with pytest.raises(LeakError, match=r"the cut is 1970-01-01T00:00:00.000010 .*statistics has seen .*000010"):
        check_no_leak(log, 10, statistics=ItemStatistics.of(log))


def test_every_leaking_part_is_named():
    past = toy_log([(0, 1, 5)])
    early, late = ItemStatistics.of(past), ItemStatistics.of(toy_log([(0, 1, 10)]))
    with pytest.raises(LeakError) as caught:
        check_no_leak(past, 10, features=late, popularity=early, normalisation=lying(late))
    assert "features has seen" in str(caught.value)
    assert "normalisation holds other values" in str(caught.value)
    assert "popularity" not in str(caught.value)


def test_an_event_that_is_not_positive_leaks_as_well():
    log = toy_log([(0, 1, 5), (0, 2, 10, False)])
    with pytest.raises(LeakError):
        check_no_leak(log.before(10), 10, statistics=ItemStatistics.of(log))


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("total", "all counts"),
        ("recent", "counts of 30 days"),
        ("newest", "counts of 7 days"),
        ("last", "times of the latest events"),
    ],
)
def test_counts_over_all_time_are_refused_whatever_they_say(dataset, split, field, named):
    all_time, honest = ItemStatistics.of(dataset.events), ItemStatistics.of(split.train)
    check_no_leak(split.train, split.cut, features=honest)
    planted = replace(honest, **{field: getattr(all_time, field)})
    with pytest.raises(LeakError, match=rf"features holds other values .* give: {named};"):
        check_no_leak(split.train, split.cut, features=planted)


def test_neighbours_over_all_time_are_refused_whatever_they_say(dataset, split):
    vectors = np.zeros((30, 8), np.float32)
    early = split.train.where(split.train.users < 12)  # so few users that items have no user in common yet
    honest, planted = (PairFeatures.of(dataset.catalog, vectors, log) for log in (early, split.train))
    check_no_leak(early, split.cut, features=honest)
    with pytest.raises(LeakError, match=r"features holds other values .* give: neighbours;"):
        check_no_leak(early, split.cut, features=replace(honest, neighbours=planted.neighbours))


def test_a_leak_into_features_is_caught(dataset, split):
    leaky = PairFeatures.of(dataset.catalog, np.zeros((30, 8), np.float32), with_leak(dataset.events, split.cut))
    with pytest.raises(LeakError, match="features has seen"):
        check_no_leak(split.train, split.cut, features=leaky)


def test_a_leak_into_the_vocabulary_is_caught(dataset, split):
    check_no_leak(split.train, split.cut, vocabulary=keep_frequent(dataset, split.cut, 3))
    late = keep_frequent(dataset, split.cut + DAY, 3)
    with pytest.raises(LeakError, match="vocabulary has seen"):
        check_no_leak(split.train, split.cut, vocabulary=late)


def test_a_vocabulary_that_was_chosen_by_later_events_is_refused(dataset):
    cut = START + 30 * DAY
    check_vocabulary(keep_frequent(dataset, cut, 4), cut, 4)
    with pytest.raises(LeakError, match=r"vocabulary has \d+ items with fewer than 4 events before it, such as 'i"):
        check_vocabulary(lying(keep_frequent(dataset, cut + 30 * DAY, 4)), cut, 4)


def test_the_popularity_of_an_item_with_thousands_of_events_is_no_leak():
    """Its tie-break comes near to 1."""
    past = toy_log([(u % 4, u % 3 // 2, 5 + u) for u in range(6000)])
    for days in (None, 7, 30):
        check_no_leak(past, None, popular=fit_popular(past, days=days))
    one_less, leaky = past.where(np.arange(len(past)) > 0), lying(fit_popular(past, days=7))
    with pytest.raises(LeakError, match=r"popular holds other values .* counts of 7 days"):
        check_no_leak(one_less, None, popular=leaky)


def test_towers_on_items_of_equal_counts_are_no_leak(dataset):
    past = toy_log([(u, i, 5) for u in range(4) for i in range(6)])
    check_no_leak(past, None, towers=TwoTowers(toy_catalog(6), ItemStatistics.of(past), SMALL))


@pytest.mark.parametrize("name", ["popular", "popular 7 days", *(kind for kind in KINDS if kind != "popular")])
def test_a_leak_into_any_baseline_is_caught(dataset, split, name):
    arguments = {"popular 7 days": {"days": 7}}.get(name, {})
    check_no_leak(split.train, split.cut, **{name: fit_baseline(name, arguments, dataset, split.train)})
    leaky = fit_baseline(name, arguments, dataset, with_leak(dataset.events, split.cut))
    with pytest.raises(LeakError, match=f"{name} has seen"):
        check_no_leak(split.train, split.cut, **{name: leaky})
    with pytest.raises(LeakError, match=f"{name} holds other values"):
        check_no_leak(split.train, split.cut, **{name: lying(leaky)})


def test_towers_that_were_trained_on_the_test_window_are_refused_whatever_they_say(dataset, split):
    def leaky_fit(catalog, events, *settings, **others):
        return lying(fit_towers(catalog, dataset.events, *settings, **others))

    with pytest.raises(LeakError, match=r"selection holds other values .* give: counts of items;"):
        train_two_stage(CONFIG, dataset, {"home": split}, print, lambda description, total: print, leaky_fit)


@pytest.mark.parametrize("moved", [0, DAY], ids=["with its time", "with an earlier time"])
def test_an_event_of_the_test_window_in_training_is_refused(dataset, split, moved):
    """Before anything is fitted, by the events themselves: their number, or when they are."""
    train = with_leak(dataset.events, split.cut)
    train = replace(train, times=np.minimum(train.times, split.cut - moved))
    leaky = replace(split, train=train)
    text = f"train has {len(train):,} events that are not the {len(split.train):,} before the cut"
    for start in (
        lambda: train_two_stage(CONFIG, dataset, {"home": leaky}, print, lambda description, total: print),
        lambda: fit_and_evaluate(CONFIG, dataset, {"home": leaky}, SilentReporter(), None),
    ):
        with pytest.raises(LeakError, match=text) as caught:
            start()
        assert ("1 of them later" in str(caught.value)) == (moved == 0)


@pytest.mark.parametrize("config", [CONFIG, CONFIG.model_copy(update={"reranker": None})], ids=["reranked", "plain"])
def test_an_event_of_the_validation_window_in_fitting_is_refused(dataset, split, config):
    """It would leak into the choice of epochs and the reranker."""
    leaky = replace(split, fit=with_leak(dataset.events, split.validation_cut))
    with pytest.raises(LeakError, match=f"fit has {len(split.fit) + 1:,} events"):
        train_two_stage(config, dataset, {"home": leaky}, print, lambda description, total: print)


def test_a_last_event_in_the_training_of_leave_last_out_is_refused():
    events = chain(n_users=5)
    split = leave_last_out(events, repeats=True)
    check_split(events, split)
    positives = events.positives()
    leaky = positives.where(np.arange(len(positives)) != positives.offsets[1] - 1)  # all but the last of one user
    with pytest.raises(LeakError, match=f"leave-last-out, but train has {len(leaky)} events that are not the"):
        check_split(events, replace(split, train=leaky))


def test_a_history_that_holds_its_target_is_refused(dataset, split):
    states, catalog = split.test.states, dataset.catalog
    popular = fit_baseline("popular", {}, dataset, split.train)
    inclusive = Ragged(states.items.flat, states.items.begin, states.items.end + 1)
    leaky = replace(split.test, states=replace(states, items=inclusive))
    check_histories(split.test, split.cut)
    with pytest.raises(LeakError, match=f"{len(states):,} histories hold events that are not earlier"):
        evaluate("popular", popular, split, catalog, leaky, repeats=True, seconds=0)


def test_later_events_in_the_middle_of_a_history_are_refused(split):
    states = split.test.states
    at = int(states.items.begin[np.argmax(states.items.lengths > 2)]) + 1
    times = states.times.copy()
    times[at] = split.cut + 100 * DAY
    with pytest.raises(LeakError, match="histories hold events that are not earlier"):
        check_histories(replace(split.test, states=replace(states, times=times)), split.cut)


def test_a_history_of_leave_last_out_that_holds_its_target_is_refused():
    events = chain(n_users=5)
    split = leave_last_out(events, repeats=True)
    for targets in (split.validation, split.test):
        check_histories(targets, None)
        states = targets.states
        inclusive = Ragged(states.items.flat, states.items.begin, states.items.end + 1)
        with pytest.raises(LeakError, match="leave-last-out, but 5 histories hold events that are not earlier"):
            check_histories(replace(targets, states=replace(states, items=inclusive)), None)


def test_the_histories_of_the_validation_window_are_looked_through(dataset, split):
    states = split.validation.states
    inclusive = Ragged(states.items.flat, states.items.begin, states.items.end + 1)
    leaky = replace(split.validation, states=replace(states, items=inclusive))
    with pytest.raises(LeakError, match="histories hold events that are not earlier"):
        check_split(dataset.events, replace(split, validation=leaky))


class Careless:
    """A recommender that lists all items, whatever is allowed."""

    def recommend(self, states, k, *, allow=None, exclude=None):
        rows = np.tile(np.arange(30), (len(states), 1))
        return Candidates(rows, -rows.astype(np.float32))


def test_an_item_that_is_published_later_is_refused_in_a_list(dataset, split):
    evaluate("all", Careless(), split, dataset.catalog, split.test, repeats=True, seconds=0)
    published = dataset.catalog.published.copy()
    published[7] = split.test.states.as_of.max() + 2 * DAY
    dated = replace(dataset.catalog, published=published)
    with pytest.raises(LeakError, match=r"Careless lists the item 'i7', which was published on 20.*, on 20"):
        evaluate("all", Careless(), split, dated, split.test, repeats=True, seconds=0)


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
