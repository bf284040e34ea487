"""The reranker: every feature by hand, learning the order of one feature, and its file."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from toy_data import DAY, noise, toy_catalog, toy_log

from features.errors import BundleError, DataError
from recsys.config import RerankerConfig
from recsys.evaluation.calibration import Calibration
from recsys.interfaces import Candidates, Scorer
from recsys.ranking import reranker as module
from recsys.ranking.pair_features import FEATURES, PairFeatures, repeat_consumption_features
from recsys.ranking.reranker import RankingExamples, RankingRows, Reranker, fit_reranker

R2 = 2**-0.5

# a reranker that was fitted with other values would read other features than it learned
DECAY, LONG_DECAY, SHORT_DECAY, TFIDF_DECAY, RECENT_EVENTS = 0.995, 0.99, 0.8, 0.8, 50

UNKNOWN = np.iinfo(np.int64).min

VECTORS = np.array([[1, 0], [0, 1], [R2, R2], [-1, 0]], np.float32)
TEXT = np.array([[1, 0], [0, 1], [0, 0], [R2, -R2]], np.float32)

TRAINED = [
    *((user, 0, 50 * DAY) for user in range(3)),  # long ago
    (0, 1, 95 * DAY),
    (1, 1, 80 * DAY),
    (2, 2, 100 * DAY),
]


@pytest.fixture(scope="module")
def features():
    catalog = toy_catalog(4, categories=[["aa", "xx"], ["bb"], ["aa"], ["xx", "aa"]], text=TEXT)
    catalog = replace(catalog, published=np.array([10 * DAY, UNKNOWN, 120 * DAY, 85 * DAY]))
    return PairFeatures.of(catalog, VECTORS, toy_log(TRAINED, n_items=4))


@pytest.fixture(scope="module")
def table(features):
    """(state, position) -> feature -> value. State 0 has positive events with 0, 0, 1; state 1 has no history."""
    log = toy_log([(0, 0, 10), (0, 0, 20), (0, 3, 25, False), (0, 1, 30), (0, 2, 200 * DAY)], n_items=4)
    states = log.states(np.array([0, -1]), np.array([110 * DAY, 110 * DAY]))
    rows = np.array([[2, 0, 3, -1], [1, 3, -1, -1]])
    scores = np.array([[0.9, 0.5, 0.25, -np.inf], [0.75, 0.5, -np.inf, -np.inf]], np.float32)
    matrix = features.matrix(states, Candidates(rows, scores))
    assert matrix.shape == (2, 4, len(FEATURES))
    assert matrix.dtype == np.float32
    return lambda state, position: dict(zip(FEATURES, matrix[state, position].tolist(), strict=True))


LOG3, LOG2 = np.log1p(3), np.log1p(2)

TFIDF = TfidfVectorizer().fit_transform(["title aa xx", "title bb", "title aa", "title xx aa"]).toarray()
PROFILE = TFIDF_DECAY * TFIDF[0] + TFIDF[1]

EXPECTED = {
    "retrieval_score": (0.9, 0.5, 0.25),
    "retrieval_rank": (0, 1, 2),
    "similarity_last": (R2, 0, 0),  # to item 1
    "similarity_max": (R2, 1, 0),
    "similarity_mean": (R2, 2 / 3, -2 / 3),
    "text_similarity": (0, 2 * 5**-0.5, R2 * (2 - 1) * 5**-0.5),  # profile (2, 1) / sqrt 5; item 2 has no text
    "word_similarity": TFIDF[[2, 0, 3]] @ PROFILE / np.linalg.norm(PROFILE),
    "category_share": (2 / 3, 2 / 3, 0),  # main categories of 0, 0, 1: aa, aa, bb
    # users: 3 with item 0, of them 2 with 1 and 1 with 2; weight = users of both / (users of the neighbour + 200)
    "neighbours_long": (LONG_DECAY / (3 + 200), 2 / (2 + 200), 0),
    "neighbours_short": (SHORT_DECAY / (3 + 200), 2 / (2 + 200), 0),
    "item_log_count": (np.log1p(1), LOG3, 0),
    "item_log_recent": (np.log1p(1), 0, 0),
    "item_log_newest": (np.log1p(1), 0, 0),
    "item_trend": (np.log1p(30 / 7) - np.log1p(1), 0, 0),
    "item_days_since_last": (0, 50, np.nan),  # to the end of the statistics, day 100
    "item_days_since_published": (-10, 100, 25),  # to the request, day 110
    "user_log_history": (LOG3, LOG3, LOG3),
    "user_popularity_gap": tuple(x - (2 * LOG3 + LOG2) / 3 for x in (np.log1p(1), LOG3, 0)),
    "user_item_log_count": (0, LOG2, 0),
    "user_item_recency": (0, DECAY + DECAY**2, 0),
    # finest categories are xx, bb, aa, aa; in the history xx, xx, bb: not those of candidates 2 and 3
    "user_category_log_count": (0, LOG2, 0),
    "user_category_recency": (0, DECAY + DECAY**2, 0),
    "user_category_days_since_last": (np.nan, 110, np.nan),
    "user_category_due": (np.nan, 110 / 0.5, np.nan),
    "user_item_share": (0, 2 / 3, 0),
    "user_item_days_since_last": (np.nan, 110, np.nan),
    "user_item_due": (np.nan, 110 / 0.5, np.nan),  # 10 µs between its two events count as half a day
    "user_log_moments": (LOG3, LOG3, LOG3),
    "user_repeat_share": (1 / 3, 1 / 3, 1 / 3),
    "user_days_since_last": (110, 110, 110),
}


def test_the_features_are_those_below():
    assert sorted(FEATURES) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_feature_by_hand(table, name):
    found = [table(0, position)[name] for position in range(3)]
    np.testing.assert_allclose(found, EXPECTED[name], rtol=1e-5, atol=1e-6)


def test_without_a_history_only_item_features_are_known(table):
    first, second = table(1, 0), table(1, 1)
    assert first["retrieval_score"] == 0.75
    assert second["retrieval_rank"] == 1
    assert first["item_log_count"] == pytest.approx(LOG2)
    assert first["item_days_since_last"] == pytest.approx(5)
    assert np.isnan(first["item_days_since_published"])  # unknown for item 1
    for name in (
        "text_similarity",
        "word_similarity",
        "category_share",
        "user_log_history",
        "user_item_log_count",
        "user_item_recency",
    ):
        assert first[name] == 0
    assert first["user_item_share"] == first["user_log_moments"] == 0
    for name in ("user_item_days_since_last", "user_item_due", "user_repeat_share", "user_days_since_last"):
        assert np.isnan(first[name])
    assert first["similarity_max"] == first["similarity_last"] == -1  # the minimum
    assert np.isnan(first["user_popularity_gap"])


def test_repeat_consumption_by_hand(features):
    """Item 0 on days 0, 10 and 30, 1 on day 30, 3 on day 1, a negative event with 2 on day 40; request on day 45."""
    rows = [(1, 0, 0), (1, 0, 10 * DAY), (1, 0, 30 * DAY), (1, 1, 30 * DAY), (1, 2, 40 * DAY, False), (1, 3, DAY)]
    states = toy_log(rows, n_items=4).states(np.array([1]), np.array([45 * DAY]))
    matrix = features.matrix(states, Candidates(np.array([[0, 1, 2]]), np.zeros((1, 3), np.float32)))[0]
    expected = {
        "user_item_log_count": (np.log1p(3), np.log1p(1), 0),
        "user_item_recency": (DECAY**4 + DECAY**2 + DECAY, 1, 0),
        "user_item_share": (3 / 4, 1 / 4, 0),
        "user_item_days_since_last": (15, 15, np.nan),
        "user_item_due": (15 / 15, np.nan, np.nan),
        "user_category_log_count": (np.log1p(3), np.log1p(1), np.log1p(1)),  # xx, bb, and aa by item 3
        "user_category_days_since_last": (15, 15, 44),
        "user_log_moments": (np.log1p(4),) * 3,
        "user_repeat_share": (2 / 5,) * 3,
        "user_days_since_last": (15,) * 3,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(matrix[:, FEATURES.index(name)], values, rtol=1e-6, err_msg=name)


def test_items_without_a_category_share_none():
    catalog = toy_catalog(3, categories=[[], [], ["a"]])
    log = toy_log([(0, 0, 1)], n_items=3)
    features = PairFeatures.of(catalog, np.eye(3, dtype=np.float32), log)
    found = Candidates(np.array([[1, 2]]), np.zeros((1, 2), np.float32))
    matrix = features.matrix(log.states(np.array([0]), np.array([2])), found)
    assert matrix[0, :, FEATURES.index("category_share")].tolist() == [0, 0]


def test_similarities_use_the_newest_events_and_counts_use_all(features):
    early = [(0, 0, t) for t in range(10)]
    log = toy_log(early + [(0, 1, 100 + t) for t in range(RECENT_EVENTS)], n_items=4)
    found = Candidates(np.array([[0, 1]]), np.zeros((1, 2), np.float32))
    matrix = features.matrix(log.states(np.array([0]), np.array([10**6])), found)[0]
    assert matrix[0, FEATURES.index("similarity_max")] == 0  # to item 1 alone
    assert matrix[:, FEATURES.index("user_item_log_count")] == pytest.approx(np.log1p([10, RECENT_EVENTS]))
    assert matrix[:, FEATURES.index("user_log_history")] == pytest.approx([np.log1p(RECENT_EVENTS + 10)] * 2)


def test_features_are_point_in_time(features):
    base = toy_log([(0, 0, 10), (0, 1, 30)], n_items=4)
    later = toy_log([(0, 0, 10), (0, 1, 30), (0, 3, 40), (0, 2, 50)], n_items=4)
    found = Candidates(np.array([[0, 1, 2, 3]]), np.zeros((1, 4), np.float32))
    at = np.array([0]), np.array([40])
    np.testing.assert_array_equal(features.matrix(base.states(*at), found), features.matrix(later.states(*at), found))


def toy(n=200, k=10, *, decides, seed=0):
    """States and candidates; in each list, the one with the largest value of a feature is relevant."""
    rng = np.random.default_rng(seed)
    events = noise()
    catalog = toy_catalog(30)
    vectors = rng.normal(size=(30, 8)).astype(np.float32)
    features = PairFeatures.of(catalog, vectors, events)
    states = events.states(rng.integers(0, 60, n), np.full(n, events.latest + 1))
    rows = np.stack([rng.permutation(30)[:k] for _ in range(n)])
    found = Candidates(rows, -np.sort(-rng.random((n, k)).astype(np.float32), axis=1))
    values = features.matrix(states, found)[:, :, FEATURES.index(decides)]
    return features, states, found, values == values.max(1, keepdims=True), values


def fit(features, examples, config):
    """A reranker of examples that have relevant candidates."""
    reranker = fit_reranker(features, examples, config, seed=0)
    assert reranker is not None
    return reranker


@pytest.mark.parametrize("decides", ["item_log_count", "similarity_last"])
def test_the_order_of_one_feature_is_learned(decides):
    features, states, found, relevant, _ = toy(decides=decides)
    fitted = fit(features, [RankingExamples(states, found, relevant)], RerankerConfig(trees=40, learning_rate=0.2))
    features, states, found, relevant, values = toy(decides=decides, seed=1)
    reranker = Reranker(fitted.booster, features)
    scores = reranker.score(states, found)
    assert isinstance(reranker, Scorer)
    assert scores.shape == found.rows.shape
    assert scores.dtype == np.float32
    first = values[np.arange(len(values)), scores.argmax(1)]
    assert (first >= np.sort(values, axis=1)[:, -2]).mean() > 0.9  # the largest or second largest value
    assert max(fitted.importance, key=fitted.importance.get) == decides
    assert sum(fitted.importance.values()) == pytest.approx(1)


@pytest.mark.parametrize("heavier", [0, 1])
def test_the_heavier_states_decide(heavier):
    """The first half of the states takes the items that one feature says, the others the last of them."""
    features, states, found, relevant, values = toy(decides="item_log_count")
    n = len(states)
    opposite = np.zeros_like(relevant)
    opposite[np.arange(n), values.argmin(1)] = True
    weights = (np.full(n, 10.0), np.ones(n)) if heavier == 0 else (np.ones(n), np.full(n, 10.0))
    examples = [
        RankingExamples(states, found, labels, weights=each)
        for labels, each in zip((relevant, opposite), weights, strict=True)
    ]
    scores = fit(features, examples, RerankerConfig(trees=40, learning_rate=0.2)).score(states, found)
    highest, lowest = (scores[np.arange(n), best] for best in (values.argmax(1), values.argmin(1)))
    assert ((highest > lowest) == (heavier == 0)).mean() > 0.95


def test_given_ranks_are_read_instead_of_places():
    features, states, found, relevant, _ = toy(decides="item_log_count")
    ranks = np.full(found.rows.shape, 7)
    rows = RankingRows.of(features, [RankingExamples(states, found, relevant, ranks)], seed=0)
    assert rows is not None
    assert set(rows.matrix[:, FEATURES.index("retrieval_rank")].tolist()) == {7.0}


def test_more_states_than_one_chunk_holds_score_as_each_does_alone():
    features, states, found, relevant, _ = toy(260, decides="item_log_count")
    reranker = fit(features, [RankingExamples(states, found, relevant)], RerankerConfig(trees=5))
    scores = reranker.score(states, found)
    for at in (0, 126, 127, 128, 129, 255, 256, 259):
        part = slice(at, at + 1)
        alone = reranker.score(states[part], Candidates(found.rows[part], found.scores[part]))
        np.testing.assert_array_equal(alone[0], scores[at])


def test_padding_is_neither_trained_on_nor_ranked():
    features, states, found, relevant, _ = toy(decides="item_log_count")
    rows, scores = found.rows.copy(), found.scores.copy()
    rows[:, 7:], scores[:, 7:] = -1, -np.inf
    relevant = relevant.copy()
    relevant[:, 7:] = True  # invalid labels, which must not be read
    padded = Candidates(rows, scores)
    config = RerankerConfig(trees=10)
    fitted = fit(features, [RankingExamples(states, padded, relevant)], config)
    short = Candidates(found.rows[:, :7], found.scores[:, :7])
    unpadded = fit(features, [RankingExamples(states, short, relevant[:, :7])], config)
    scores = fitted.score(states, padded)
    # products of matrices of other shapes are rounded in another way, and an example may fall beyond a threshold
    assert (np.abs(scores[:, :7] - unpadded.score(states, short)) > 0.01).mean() < 0.01
    assert np.isneginf(scores[:, 7:]).all()
    assert np.isfinite(scores[:, :7]).all()


def test_without_relevant_candidates_there_is_no_reranker():
    features, states, found, relevant, _ = toy(decides="item_log_count")
    assert (
        fit_reranker(features, [RankingExamples(states, found, relevant & False)], RerankerConfig(), seed=0) is None
    )
    rows = np.where(relevant, -1, found.rows)  # the relevant candidates become padding
    hidden = Candidates(rows, found.scores)
    assert fit_reranker(features, [RankingExamples(states, hidden, relevant)], RerankerConfig(), seed=0) is None


def test_all_examples_are_trained_on_and_equal_examples_give_equal_trees():
    features, states, found, relevant, _ = toy(decides="item_log_count")
    example = RankingExamples(states, found, relevant)
    config = RerankerConfig(trees=3)
    texts = [
        fit(features, examples, config).booster.model_to_string()
        for examples in ([example], [example], [example, example])
    ]
    assert texts[0] == texts[1]
    for text, rows in ((texts[0], 200 * 10), (texts[2], 2 * 200 * 10)):
        counted = next(line for line in text.splitlines() if line.startswith("leaf_count="))
        assert sum(int(c) for c in counted.removeprefix("leaf_count=").split()) == rows


def test_every_state_is_trained_on_with_its_own_features(monkeypatch):
    """With more states than one chunk holds."""
    features, states, found, relevant, _ = toy(600, decides="similarity_last")

    class Stop(Exception):
        pass

    def dataset(data, *, label, group, weight, feature_name):
        assert weight is None  # all are alike
        np.testing.assert_array_equal(data, features.matrix(states, found).reshape(6000, -1))
        np.testing.assert_array_equal(label, relevant.ravel())
        assert group.tolist() == [10] * 600
        raise Stop

    monkeypatch.setattr(module.lightgbm, "Dataset", dataset)
    with pytest.raises(Stop):
        fit_reranker(features, [RankingExamples(states, found, relevant)], RerankerConfig(), seed=0)


def test_all_relevant_candidates_and_a_sample_of_the_others_are_trained_on(monkeypatch):
    features, states, _, _, _ = toy(50, decides="similarity_last")
    rng = np.random.default_rng(1)
    rows = np.tile(np.arange(30), (50, 20))  # 600 candidates
    found = Candidates(rows, np.zeros(rows.shape, np.float32))
    relevant = rng.random(rows.shape) < 0.05

    class Stop(Exception):
        pass

    def dataset(data, *, label, group, weight, feature_name):
        assert weight is None  # all are alike
        assert label.sum() == relevant.sum()
        negatives = group.sum() - relevant.sum()
        assert negatives == pytest.approx(50 * 100 * 0.95, rel=0.05)
        ranks = data[: group[0], FEATURES.index("retrieval_rank")]
        assert (np.diff(ranks) > 0).all()  # their ranks among all candidates
        assert set(np.flatnonzero(relevant[0])) == set(ranks[label[: group[0]] > 0].astype(int))
        raise Stop

    monkeypatch.setattr(module.lightgbm, "Dataset", dataset)
    with pytest.raises(Stop):
        fit_reranker(features, [RankingExamples(states, found, relevant)], RerankerConfig(), seed=0)


def test_a_loaded_reranker_gives_the_same_scores(tmp_path):
    features, states, found, relevant, _ = toy(decides="item_log_count")
    trees = fit(features, [RankingExamples(states, found, relevant)], RerankerConfig(trees=10))
    lifted = replace(trees, cold_lift=0.25, calibration=Calibration(np.array([0.0, 1]), np.array([0.1, 0.3])))
    for fitted in (trees, lifted):
        fitted.save(tmp_path / "reranker.txt")
        assert (tmp_path / "reranker.txt").read_text().startswith("tree\n")
        loaded = Reranker.load(tmp_path / "reranker.txt", features, fitted.arrays)
        scores = fitted.score(states, found)
        np.testing.assert_array_equal(loaded.score(states, found), scores)
        probabilities = loaded.probabilities(found.rows, scores)
        np.testing.assert_array_equal(probabilities, fitted.probabilities(found.rows, scores))
    of_before = Reranker.load(tmp_path / "reranker.txt", features, {})  # written by a version without both
    np.testing.assert_array_equal(of_before.score(states, found), trees.score(states, found))
    assert of_before.probabilities(found.rows, scores) is None


@pytest.mark.parametrize("content", [b"", b"no model", b"tree\nversion=v4\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_model_is_rejected_by_name(tmp_path, features, content):
    (tmp_path / "reranker.txt").write_bytes(content)
    with pytest.raises(BundleError, match=r"reranker\.txt: not a LightGBM model: (it has no|not UTF-8 at)"):
        Reranker.load(tmp_path / "reranker.txt", features, {})


def test_a_model_of_other_features_is_rejected(tmp_path):
    features, states, found, relevant, _ = toy(decides="item_log_count")
    fitted = fit(features, [RankingExamples(states, found, relevant)], RerankerConfig(trees=2))
    text = fitted.booster.model_to_string().replace("retrieval_rank", "phase_of_moon")
    (tmp_path / "reranker.txt").write_text(text)
    with pytest.raises(BundleError, match=r"reranker\.txt: its features are .*phase_of_moon.*this version has"):
        Reranker.load(tmp_path / "reranker.txt", features, {})


def line_of(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"{name}="))


def lines_of_tree(text, name, change):
    """A model whose first tree has another line NAME=VALUES; the sizes of its trees fit."""
    line = line_of(text, name)
    values = change(line.partition("=")[2].split())
    new = f"{name}={' '.join(values)}" if values is not None else ""
    sizes = line_of(text, "tree_sizes")
    first, *others = sizes.partition("=")[2].split()
    fitting = f"tree_sizes={' '.join([str(int(first) + len(new) - len(line)), *others])}"
    return text.replace(line, new, 1).replace(sizes, fitting, 1)


BROKEN = {
    "no end of the parameters": lambda text: text.replace("end of parameters", "end"),
    "a tree left out": lambda text: text[: text.index("Tree=1")] + text[text.index("end of trees") :],
    "sizes of other trees": lambda text: text.replace("tree_sizes=", "tree_sizes=1"),
    "no sizes": lambda text: text.replace("tree_sizes", "sizes"),
    "another number": lambda text: text.replace("Tree=0", "Tree=5"),
    "a value missing": lambda text: lines_of_tree(text, "threshold", lambda values: values[1:]),
    "a leaf missing": lambda text: lines_of_tree(text, "leaf_value", lambda values: values[1:]),
    "a line missing": lambda text: lines_of_tree(text, "right_child", lambda _: None),
    "a word": lambda text: lines_of_tree(text, "leaf_value", lambda values: ["x", *values[1:]]),
    "no such feature": lambda text: lines_of_tree(text, "split_feature", lambda values: ["99", *values[1:]]),
    "a circle": lambda text: lines_of_tree(text, "left_child", lambda values: ["0", *values[1:]]),
    "no such node": lambda text: lines_of_tree(text, "right_child", lambda values: ["999", *values[1:]]),
    "a number beyond 32 bits": lambda text: lines_of_tree(text, "left_child", lambda v: ["9" * 30, *v[1:]]),
    "categories": lambda text: lines_of_tree(text, "num_cat", lambda _: ["1"]),
    "more leaves": lambda text: lines_of_tree(text, "num_leaves", lambda values: [str(int(values[0]) + 1)]),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_model_whose_trees_are_not_whole_is_rejected_before_lightgbm_reads_it(tmp_path, monkeypatch, damage):
    features, states, found, relevant, _ = toy(decides="item_log_count")
    fitted = fit(features, [RankingExamples(states, found, relevant)], RerankerConfig(trees=2))
    text = fitted.booster.model_to_string()
    assert int(line_of(text, "num_leaves").partition("=")[2]) > 2
    broken = BROKEN[damage](text)
    assert broken != text
    (tmp_path / "reranker.txt").write_text(broken)
    monkeypatch.setattr(module.lightgbm, "Booster", None)  # some of these end the process
    with pytest.raises(BundleError, match=r"reranker\.txt: not a LightGBM model: .*; train again$"):
        Reranker.load(tmp_path / "reranker.txt", features, {})


def test_a_reranker_that_lightgbm_refuses_is_named_with_its_rows(monkeypatch):
    features, states, found, relevant, _ = toy(decides="item_log_count")

    def refuse(*arguments, **more):
        raise module.lightgbm.basic.LightGBMError("Check failed: (x) > (y)\nmore")

    monkeypatch.setattr(module.lightgbm, "train", refuse)
    with pytest.raises(DataError) as caught:
        fit(features, [RankingExamples(states, found, relevant)], RerankerConfig(trees=2))
    assert re.fullmatch(
        r"the reranker cannot be fitted: LightGBM refuses [\d,]+ rows or the settings; check `reranker`, or set it "
        r"to null \(LightGBMError: Check failed: \(x\) > \(y\)\)",
        str(caught.value),
    )


class Blank:
    """Features, states and positions without content: only their numbers count."""

    users = np.zeros(100_000, np.int64)

    def matrix(self, states, candidates, ranks):
        return np.zeros((*candidates.rows.shape, 1), np.float32)

    def __getitem__(self, part):
        return self

    def compact(self):
        return self


@pytest.mark.parametrize(
    ("states", "smallest_leaf"),
    [(10, 20), (104, 20), (105, 21), (10_000, 2_000), (10_010, 2_000)],  # one in 500 pairs, 20 to 2,000
)
def test_the_settings_of_lightgbm(monkeypatch, states, smallest_leaf):
    given: dict[str, Any] = {}
    blank: Any = Blank()

    class Stop(Exception):
        pass

    def train(parameters, data, *, num_boost_round):
        given.update(parameters, trees=num_boost_round)
        raise Stop

    monkeypatch.setattr(module.lightgbm, "Dataset", lambda data, **options: None)
    monkeypatch.setattr(module.lightgbm, "train", train)
    rows = np.zeros((states, 100), np.int64)  # all 100 candidates are used
    found = Candidates(rows, np.zeros(rows.shape, np.float32))
    config = RerankerConfig(trees=11, leaves=5, learning_rate=0.25)
    with pytest.raises(Stop):
        fit_reranker(blank, [RankingExamples(blank, found, rows == 0)], config, seed=3)
    assert given == {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 100,
        "num_leaves": 5,
        "learning_rate": 0.25,
        "min_data_in_leaf": smallest_leaf,
        "deterministic": True,
        "force_row_wise": True,
        "seed": 3,
        "verbose": -1,
        "trees": 11,
    }


def test_categories_of_one_user_are_not_those_of_another():
    log = toy_log([(0, 1, 10), (1, 2, 20), (1, 2, 30)], n_items=3)
    states = log.states(np.array([0, 1]), np.array([40, 40]))
    found = repeat_consumption_features(states, np.array([[0, 1, 2]] * 2), np.array([0, 1, 2]))
    counts = np.log1p(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    np.testing.assert_allclose(found["user_category_log_count"], counts)
    np.testing.assert_allclose(found["user_item_log_count"], counts)
    np.testing.assert_allclose(found["user_repeat_share"], np.array([[0.0], [0.5]]))
    none = repeat_consumption_features(states, np.array([[0, 1, 2]] * 2), np.array([-1, -1, -1]))
    np.testing.assert_array_equal(none["user_category_log_count"], np.zeros((2, 3)))
