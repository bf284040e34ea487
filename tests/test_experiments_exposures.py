"""What the reranker learns from exposures: examination, gains, the window, weights; nothing changes without them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from toy_data import START, Lines, toy_config, toy_log, toy_stage, write_tables

from experiments.bench.exposures import benchmark
from experiments.config import RunConfig, load_config
from experiments.dataset import load_dataset
from experiments.pipelines.exposures.answers import SHOWN_WEIGHT, Answers, examples_of, objectives, read_answers
from experiments.pipelines.exposures.examination import Examination, estimate
from experiments.pipelines.reranking import train_reranker
from experiments.pipelines.train import train
from experiments.splits import Split, targets
from experiments.tracking.mlflow import NullTracker
from features.ids import IdMap
from features.instants import DAY
from features.log.event_log import EventLog
from features.log.records import Event, Exploration, Exposure
from recsys.ranking.exploration import LAW
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import RankingRows

MINUTE = 60_000_000


def drawn_items(examination, slope, shown=20_000, rounds=3):
    """Expected responses, rounded, to items that were drawn `shown` times at each (position, place)."""
    p = len(examination)
    positions, places = np.repeat(np.arange(1, p + 1), rounds), np.tile(np.arange(rounds), p) * p
    places = places + positions - 1
    responses = (shown * 0.2 * np.repeat(examination, rounds) * np.exp(-slope * places)).round().astype(int)
    times = np.stack((responses, shown - responses), axis=1).ravel()
    cells = np.repeat(np.arange(p * rounds), shown)
    return positions[cells], places[cells], np.repeat(np.tile([True, False], p * rounds), times)


def test_the_examination_is_the_planted_one():
    planted = np.array([1, 0.5, 0.33, 0.25, 0.2])
    found = estimate(*drawn_items(planted, slope=0.0))
    assert found is not None
    assert found.positions.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(found.probability, planted, rtol=0.01)


def test_that_lower_pools_have_worse_items_is_no_examination():
    planted = np.array([1, 0.8, 0.8, 0.6, 0.5])
    positions, places, responded = drawn_items(planted, slope=0.08)
    found = estimate(positions, places, responded)
    assert found is not None
    np.testing.assert_allclose(found.probability, planted, rtol=0.01)
    blind = estimate(positions, np.zeros_like(places), responded)  # what the shares alone would say
    assert blind is not None
    assert blind.probability[-1] < 0.8 * planted[-1]


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_the_counts(seed):
    rng = np.random.default_rng(seed)
    positions = rng.integers(1, 7, 30_000)
    places = rng.integers(0, 3, len(positions)) * 6 + positions - 1
    responded = rng.random(len(positions)) < 0.3 / positions * np.exp(-0.05 * places)
    found = estimate(positions, places, responded)
    assert found is not None
    counts = np.bincount(positions, responded)[1:]
    error = np.sqrt(1 / counts + 1 / counts[0])  # of the logarithm
    assert (np.abs(np.log(found.probability * np.arange(1, 7)))[1:] < 3 * error[1:]).all()


def test_examination_falls_is_clipped_and_needs_responses():
    rises = estimate(*drawn_items(np.array([0.5, 1.0, 0.01]), slope=0.0))
    assert rises is not None
    np.testing.assert_allclose(rises.probability, [1, 1, 0.05], rtol=0.01)
    assert rises.of(np.array([[1, 3], [2, 9]])).tolist() == [[1, 0.05], [1, 0.05]]
    few = np.arange(300) < 99
    assert estimate(np.ones(300, np.int64), np.zeros(300, np.int64), few) is None
    assert estimate(np.ones(300, np.int64), np.zeros(300, np.int64), np.arange(300) < 100) is not None


def config_of(log=None, *, chosen=None, rules=None):
    data = {
        "source": "folder",
        "path": ".",
        "events": rules or {"positive": {"click": None, "purchase": None}, "weights": {"purchase": 3}},
        "placements": {"home": {"repeats": True}, "cart": {}},
        "log": None if log is None else str(log),
    }
    reranker = {"candidates": 20, "trees": 5, "objectives": chosen or {}}
    return RunConfig.model_validate({"name": "toy", "data": data, "encoder": None, "reranker": reranker})


def test_objectives_are_named_or_those_of_the_positive_events():
    config = config_of(chosen={"home": {"click": 1, "purchase": 5}})
    assert objectives(config, "home") == {"click": 1, "purchase": 5}
    assert objectives(config, "cart") == {"click": 1, "purchase": 3}
    assert objectives(config_of(chosen={"home": {}}), "home") == {}
    with pytest.raises(ValidationError, match=r"objectives names hom: data\.placements has home, cart"):
        config_of(chosen={"hom": {"click": 1}})


ITEMS, USERS = tuple("abcdxyz"), ("ann", "bob")


def answer(request, user, items, pools, *, at=0, placement="home", rate=0.5):
    """An exposure at minute `at`; pools: position -> (own item, pool)."""
    own = [pair[0] for pair in pools.values()]
    drawn = tuple(p for p in pools if items[p - 1] != pools[p][0])
    propensities = [1.0] * len(items)
    for p, (first, pool) in pools.items():
        propensities[p - 1] = 1 - rate if items[p - 1] == first else rate / len(pool)
    exploration = Exploration(
        "try", LAW, rate, 1, tuple(pools), tuple(own), tuple(tuple(pair[1]) for pair in pools.values()), drawn
    )
    facts = (placement, START + at * MINUTE, "f", "default", "model", (), tuple(items), (0.0,) * len(items))
    return Exposure(request, user, *facts, tuple(propensities), exploration=exploration)


def did(request, user, item, kind="click", at=1, value=None):
    name = f"{request}{item}{kind}{at}"
    return Event(user, item, kind, START + at * MINUTE, value, event_id=name, request_id=request)


def read(folder, *records, config=None, cut=1000, start=0):
    """`read_answers` of a log with these records; the validation window: minutes start to cut."""
    log = EventLog(folder / "log")
    log.append_now(records)
    log.close()
    catalog: Any = SimpleNamespace(ids=IdMap(ITEMS))
    dataset: Any = SimpleNamespace(users=IdMap(USERS), catalog=catalog)
    split: Any = SimpleNamespace(validation_cut=START + start * MINUTE, cut=START + cut * MINUTE)
    return read_answers(config or config_of(folder / "log"), dataset, {"home": split, "cart": split})


@pytest.fixture
def few(monkeypatch):
    """One response to a drawn item is enough."""
    monkeypatch.setattr("experiments.pipelines.exposures.examination.MIN_RESPONSES", 1)


TWO = {1: ("a", ["x", "z"]), 3: ("c", ["y"])}


def rows(answers):
    names = [(USERS[u], ITEMS[i]) for u, i in zip(answers.users, answers.items, strict=True)]
    return [(*name, int(p), float(g)) for name, p, g in zip(names, answers.positions, answers.gains, strict=True)]


def test_explored_positions_with_what_followed(few, tmp_path):
    found, notes = read(
        tmp_path,
        answer("r1", "ann", ["x", "b", "c"], TWO),
        answer("r2", "bob", ["a", "b", "y"], TWO, at=5),
        answer("r3", "eve", ["x", "b", "y"], TWO, at=6),  # no user of the data set
        answer("r4", "ann", ["a", "b", "q"], {1: ("a", ["x"]), 3: ("c", ["q"])}, at=7),  # q is no item
        answer("r5", "ann", ["a", "b", "c"], TWO, at=8, placement="similar"),
        did("r1", "ann", "x"),
        did("r1", "ann", "x", "purchase", at=500),
        did("r1", "ann", "b"),  # position 2 is not explored
        did("r2", "bob", "y", "purchase", at=6),
        did("r2", "bob", "a", "view", at=6),  # is worth nothing
    )
    assert sorted(found) == ["home"]
    assert rows(found["home"]) == [
        ("ann", "x", 1, 4),
        ("ann", "c", 3, 0),
        ("bob", "a", 1, 0),
        ("bob", "y", 3, 3),
        ("ann", "a", 1, 0),
    ]
    assert found["home"].answers.tolist() == [0, 0, 1, 1, 2]
    assert found["home"].times.tolist() == [START, START, *[START + 5 * MINUTE] * 2, START + 7 * MINUTE]
    assert notes[0].startswith("home: the reranker learns from 2 responses to 3 answers; position 3 is examined ")
    assert len(notes) == 1


def test_nothing_of_the_cut_or_later_is_read_and_nothing_before_the_window(few, tmp_path):
    found, _ = read(
        tmp_path,
        answer("r0", "ann", ["x", "b", "y"], TWO, at=99),
        answer("r1", "ann", ["x", "b", "y"], TWO, at=100),
        answer("r2", "bob", ["x", "b", "y"], TWO, at=199),
        answer("r3", "bob", ["x", "b", "y"], TWO, at=200),
        did("r0", "ann", "x", at=101),
        did("r1", "ann", "x", at=199),
        did("r1", "ann", "y", at=200),
        did("r2", "bob", "x", at=200),
        did("r3", "bob", "x", at=199),  # a clock that is behind
        start=100,
        cut=200,
    )
    assert rows(found["home"]) == [("ann", "x", 1, 1), ("ann", "y", 3, 0), ("bob", "x", 1, 0), ("bob", "y", 3, 0)]


def test_a_minimum_value_counts(few, tmp_path):
    config = config_of(tmp_path / "log", rules={"positive": {"rating": 4}})
    records = [answer(f"r{n}", "ann", ["x", "b", "y"], TWO, at=n) for n in range(3)]
    given = [did(f"r{n}", "ann", "x", "rating", at=n + 1, value=value) for n, value in enumerate((3.5, 4, 5))]
    found, _ = read(tmp_path, *records, *given, config=config)
    assert found["home"].gains[::2].tolist() == [0, 1, 1]
    unrated = tmp_path / "unrated"
    config = config_of(unrated / "log", rules={"positive": {"rating": 4}})
    found, _ = read(unrated, records[0], did("r0", "ann", "x", "rating"), config=config)
    assert found == {}


def test_without_exploration_a_line_says_so(tmp_path):
    plain = replace(answer("r1", "ann", ["a", "b"], {}), exploration=None)
    found, notes = read(tmp_path, plain, did("r1", "ann", "a"))
    assert found == {}
    assert notes == (
        "home: exposures are not learned from: 0 responses to 0 drawn items do not tell how often each position is "
        "examined (100 are needed); serve with a rule `explore` (docs/rules.md)",
    )
    split: Any = SimpleNamespace(validation_cut=1, cut=2)
    dataset: Any = SimpleNamespace()
    assert read_answers(config_of(), dataset, {"home": split}) == ({}, ())  # no log


def test_a_placement_without_objectives_is_not_learned_from(few, tmp_path):
    config = config_of(tmp_path / "log", chosen={"home": {}})
    records = answer("r1", "ann", ["x", "b", "y"], TWO), did("r1", "ann", "x")
    assert read(tmp_path, *records, config=config) == ({}, ())


def window():
    """Users 0 and 1 of four have events before the window, days 20 to 40; user 3 has none."""
    past = [(user, item, (item + 1) * DAY) for user in (0, 1) for item in range(12)]
    joined = toy_log([*past, (0, 3, 25 * DAY), (1, 4, 30 * DAY), (0, 5, 50 * DAY)], 4, 30)
    valid = targets(joined, 20 * DAY, 40 * DAY, "prequential", repeats=True)
    split = Split("toy", 40 * DAY, 20 * DAY, joined.before(20 * DAY), joined.before(40 * DAY), valid, valid)
    recommender, catalog, _ = toy_stage(split.fit, reranked=False)
    return split, replace(recommender, candidates=20), catalog


def shown():
    """Three answers: user 0 on day 26, user 1 on day 31, user 3 on day 32."""
    return Answers(
        answers=np.array([0, 0, 0, 1, 1, 2, 2]),
        users=np.array([0, 0, 0, 1, 1, 3, 3]),
        items=np.array([20, 21, 22, 23, 24, 20, 21]),
        positions=np.array([1, 2, 3, 1, 3, 1, 2]),
        times=np.array([26, 26, 26, 31, 31, 32, 32]) * DAY,
        gains=np.array([0, 1, 6, 2, 0, 1, 1.0]),
        examination=Examination(np.array([1, 2, 3]), np.array([1, 0.5, 0.25])),
    )


def test_each_response_is_an_example_weighted_by_gain_and_examination():
    split, retrieval, catalog = window()
    features = PairFeatures.of(catalog, retrieval.vectors, split.fit)
    found = examples_of(shown(), config_of(), "home", split, features, retrieval, share=1)
    assert found is not None
    assert found.states.users.tolist() == [0, 0, 1]  # user 3 has no history
    assert (found.states.as_of // DAY).tolist() == [26, 26, 31]
    assert found.states.items.lengths.tolist() == [13, 13, 13]  # the event of day 50 is in none
    sets = [set(line[line >= 0].tolist()) for line in found.candidates.rows]
    assert sets == [{20, 21, 22}, {20, 21, 22}, {23, 24}]
    taken = [found.candidates.rows[line][found.relevant[line]].tolist() for line in range(3)]
    assert taken == [[21], [22], [23]]
    worth = np.array([1 / 0.5, 6 / 0.25, 2 / 1])
    assert found.weights is not None
    np.testing.assert_allclose(found.weights, SHOWN_WEIGHT * worth / worth.mean())
    states = found.states.compact()
    all_items = retrieval.retrieve(states, 20)
    assert found.ranks is not None
    for line in range(3):
        items = found.candidates.rows[line][found.candidates.rows[line] >= 0]
        own = retrieval.vectors[items] @ retrieval.user_vectors(states)[line]
        np.testing.assert_allclose(found.candidates.scores[line, : len(items)], own, rtol=1e-5)
        listed = all_items.rows[line].tolist()
        ranks = [
            listed.index(item) if item in listed else (all_items.scores[line] > score).sum()
            for item, score in zip(items.tolist(), found.candidates.scores[line], strict=False)
        ]
        assert found.ranks[line, : len(items)].tolist() == ranks


def test_at_most_a_share_of_the_groups_and_none_without_a_response():
    split, retrieval, catalog = window()
    features = PairFeatures.of(catalog, retrieval.vectors, split.fit)
    config = config_of()
    assert config.reranker is not None
    config = config.model_copy(update={"reranker": config.reranker.model_copy(update={"groups": 4})})
    found = examples_of(shown(), config, "home", split, features, retrieval, share=2)
    assert found is not None
    assert len(found.states) == 2
    nothing = replace(shown(), gains=np.zeros(7))
    assert examples_of(nothing, config, "home", split, features, retrieval, share=1) is None


def test_the_reranker_learns_from_the_answers_beside_its_queries(monkeypatch):
    split, retrieval, catalog = window()
    kept: list[RankingRows | None] = []
    of = RankingRows.of

    def recorded(*arguments, seed):
        kept.append(of(*arguments, seed=seed))
        return kept[-1]

    monkeypatch.setattr(RankingRows, "of", recorded)
    train_reranker(config_of(), catalog, {"home": split}, retrieval)
    train_reranker(config_of(), catalog, {"home": split}, retrieval, {"home": shown()})
    before, after = kept
    assert before is not None
    assert after is not None
    n, m = len(before.sizes), len(before.matrix)
    assert n >= 1
    np.testing.assert_array_equal(after.matrix[:m], before.matrix)
    assert (before.weights == 1).all()
    assert after.sizes[n:].tolist() == [3, 3, 2]
    assert after.users[n:].tolist() == [0, 0, 1]
    assert (after.weights[:n] == 1).all()
    assert after.weights[n:].mean() == pytest.approx(SHOWN_WEIGHT)


def bundle_of(folder, *records, log):
    """Files of a bundle, trained on toy tables with or without a log, and the lines of the run."""
    write_tables(folder / "data")
    if log:
        writer = EventLog(folder / "log")
        writer.append_now(records)
        writer.close()
    reporter = Lines()
    path, _ = train(load_config(toy_config(folder)), NullTracker(), reporter)
    files = (file for file in path.iterdir() if file.suffix in (".txt", ".safetensors"))
    return {file.name: file.read_bytes() for file in files}, reporter


def test_without_explored_exposures_the_bundle_is_the_same_bit_by_bit(tmp_path):
    exposures = [
        replace(answer(f"r{n}", f"u{n % 40}", ["i1", "i2"], {}, at=n * 60), exploration=None)
        for n in range(30 * 24)  # a month, as the events of the tables
    ]
    plain, _ = bundle_of(tmp_path / "plain", log=False)
    empty, _ = bundle_of(tmp_path / "empty", log=True)
    exposed, reporter = bundle_of(tmp_path / "exposed", *exposures, log=True)
    assert any("reranker" in name for name in plain)
    assert plain == empty == exposed
    assert any(line.startswith("home: exposures are not learned from: 0 responses") for line in reporter.lines)


def test_the_data_hash_covers_the_exposures(tmp_path):
    """What is fitted on other exposures is not taken from a cache."""
    write_tables(tmp_path / "data")
    config = load_config(toy_config(tmp_path))
    hashes = [load_dataset(config).hash]
    for number in range(2):
        writer = EventLog(tmp_path / "log")
        writer.append_now([answer(f"r{number}", "u1", ["i1", "i2"], {})])
        writer.close()
        hashes.append(load_dataset(config).hash)
    assert len({*hashes}) == 3
    assert load_dataset(config).hash == hashes[-1]


def test_the_benchmark_has_its_figures(monkeypatch):
    monkeypatch.setattr("experiments.pipelines.exposures.examination.MIN_RESPONSES", 30)
    figures = benchmark.run(short=True, seed=1).figures
    assert figures["simulated"] is True
    assert figures["true examination"] == [round(1 / p, 3) for p in range(1, 11)]
    clicks = figures["expected clicks of a slate"]
    assert list(clicks) == ["retrieval", "retrieved negatives", "exposures", "exposures without debiasing"]
    gain = figures["exposures - retrieved negatives"]
    assert gain["mean"] == pytest.approx(clicks["exposures"] - clicks["retrieved negatives"])
    assert gain["low"] < gain["mean"] < gain["high"]
