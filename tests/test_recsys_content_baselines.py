"""The baselines that join behaviour and content, `ease-bridge` and `star`, against brute force."""

import numpy as np
import pytest
from toy_data import noise, toy_log

from features.errors import DataError
from features.interactions import Ragged
from recsys.baselines import ease, fit_ease, fit_ease_bridge, fit_star, fit_tfidf

WORDS = ["red", "green", "blue", "round", "square", "soft", "hard", "old", "new"]
TEXTS = [f"{WORDS[i % 9]} {WORDS[(i * i) % 7]} thing{i % 5}" for i in range(34)]
TEXTS[31], TEXTS[33] = "", "unlike anything"
"""Texts of 34 items; items 30 to 33 are cold. Item 31 has none, and no other item has a word of item 33."""

HISTORIES = [[3, 9, 1, 30], [5], [2, 2, 8, 4, 7, 2], []]


@pytest.fixture(scope="module")
def events():
    log = noise(n_items=30)
    return toy_log(list(zip(log.users, log.items, log.times, log.positive, strict=True)), log.n_users, 34)


@pytest.fixture(scope="module")
def cosines(events):
    terms = fit_tfidf(events, TEXTS).terms.toarray().astype(np.float64)
    return terms @ terms.T


@pytest.mark.parametrize("block", [1, 512])
def test_the_column_of_a_cold_item_is_the_mean_of_its_nearest_warm_columns(events, cosines, monkeypatch, block):
    monkeypatch.setattr(ease, "_BLOCK", block)
    plain = fit_ease(events, regularization=20.0)
    assert plain.warm.tolist() == list(range(30))
    weights = np.zeros((34, 34))
    weights[:30, :30] = plain.weights
    for cold in range(30, 34):
        nearest = sorted(range(30), key=lambda warm: (-cosines[cold, warm], -plain.popularity[warm], warm))[:4]
        total = sum(cosines[cold, warm] for warm in nearest)
        for warm in nearest:
            if total:
                weights[:, cold] += cosines[cold, warm] / total * weights[:, warm]
    fitted = fit_ease_bridge(events, TEXTS, regularization=20.0, decay=0.5, neighbours=4)
    expected = np.zeros((4, 34))
    for row, history in enumerate(HISTORIES):
        for item in set(history):
            age = history[::-1].index(item)
            expected[row] += 0.5**age * weights[item]
    np.testing.assert_allclose(fitted.scores(Ragged.of(HISTORIES)), expected, atol=1e-5)
    assert expected[0, 30] != 0
    assert not expected[:, [31, 33]].any()


def test_of_equally_near_items_the_popular_ones_are_the_neighbours():
    # items 0 to 2 have the words of the cold item 3; of them 2 has three events, 0 two and 1 one
    events = toy_log([(0, 0, 1), (0, 2, 2), (1, 0, 1), (1, 2, 2), (2, 2, 1), (2, 1, 2)], n_items=4)
    fitted = fit_ease_bridge(events, ["red"] * 4, neighbours=2)
    column = fitted.neighbours.toarray()
    np.testing.assert_allclose(column[:, 3], [0.5, 0, 0.5, 0])
    assert not column[:, :3].any()


def test_where_all_items_are_warm_it_is_ease():
    events, texts = noise(n_items=20), TEXTS[:20]
    bridge, plain = fit_ease_bridge(events, texts), fit_ease(events)
    histories = Ragged.of([[3, 1], [7]])
    np.testing.assert_array_equal(bridge.scores(histories), plain.scores(histories))
    assert bridge.neighbours.nnz == 0


@pytest.mark.parametrize(("weight", "vectors"), [(0.5, 0.0), (0.25, 1.0), (0.8, 0.3), (0.0, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("last", [2, 100])
def test_star_is_its_sum_over_the_last_items(events, cosines, weight, vectors, last):
    rng = np.random.default_rng(0)
    content = rng.standard_normal((34, 5))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    content[7] = 0  # an item without a vector
    fitted = fit_star(events, TEXTS, content.astype(np.float32), decay=0.7, last=last, weight=weight, vectors=vectors)
    positives = events.positives()
    takers = [set(positives.users[positives.items == item].tolist()) for item in range(34)]
    expected = np.zeros((4, 34))
    for row, history in enumerate(HISTORIES):
        for item in set(history):
            age = history[::-1].index(item)
            if age >= last:
                continue
            for other in range(34):
                both = len(takers[item] & takers[other])
                common = both / np.sqrt(len(takers[item]) * len(takers[other])) if both and item != other else 0
                like = vectors * content[item] @ content[other] + (1 - vectors) * cosines[item, other]
                expected[row, other] += 0.7**age * (weight * like + (1 - weight) * common)
    np.testing.assert_allclose(fitted.scores(Ragged.of(HISTORIES)), expected, atol=1e-5)


def test_star_of_items_without_words_reads_their_vectors(events):
    content = np.eye(34, dtype=np.float32)
    content[30] = content[2]
    fitted = fit_star(events, [""] * 34, content, weight=1.0, vectors=1.0)
    scores = fitted.scores(Ragged.of([[2]]))
    assert np.flatnonzero(scores[0]).tolist() == [2, 30]
    with pytest.raises(DataError, match="no word has two letters"):
        fit_star(events, [""] * 34, np.zeros((34, 1), np.float32))
    with pytest.raises(DataError, match="3 texts for 34 items"):
        fit_star(events, [""] * 3, content)
