"""The TF-IDF index: cosines against scikit-learn and the TF-IDF profile; new and changed items."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from toy_data import toy_log

from recsys.baselines.content import fit_tfidf
from recsys.histories import latest_items, recency_weights
from recsys.ranking.tfidf import TfidfIndex

DECAY, WIDTH = 0.8, 262_144

TEXTS = [
    "A shark terrorises a beach town",
    "the SHARK returns, and the town pays",
    "two robots and a princess in space",
    "",
    "a beach holiday",
    "robots robots robots",
]
LOG = toy_log([(0, 0, 1), (0, 4, 2), (0, 2, 3, False), (1, 5, 1), (2, 3, 1)], n_items=6)


def similarities(tfidf: TfidfIndex, positives, rows):
    """Of each history, one after another."""
    history, items, ages = latest_items(positives, len(tfidf.rows.indptr) - 1)
    weights = recency_weights(ages, DECAY)
    return np.array([tfidf.similarity(items[history == b], weights[history == b], rows[b]) for b in range(len(rows))])


@pytest.fixture(scope="module")
def tfidf():
    return TfidfIndex.of(TEXTS)


def test_cosines_of_items_are_those_of_tfidf(tfidf):
    terms = TfidfVectorizer().fit_transform(TEXTS)
    np.testing.assert_allclose((tfidf.rows @ tfidf.rows.T).toarray(), (terms @ terms.T).toarray(), atol=1e-6)
    assert tfidf.rows.shape == (6, WIDTH)
    assert tfidf.rows[[3]].nnz == 0


def test_similarities_are_those_of_the_tfidf_profile(tfidf):
    """User 0 has positive events with 0, then 4; user 2 with an item without any word."""
    positives = LOG.states(np.array([0, 1, 2]), np.full(3, 9)).positives()
    rows = np.array([[5, 4, 3, 2, 1, 0]] * 3)
    found = similarities(tfidf, positives, rows)
    np.testing.assert_allclose(found, fit_tfidf(LOG, TEXTS, decay=DECAY).scores(positives)[:, ::-1], atol=1e-6)
    assert found[0, 1] > found[0, 5] > found[0, 4] > 0  # the newest item, the one before, an item with a common word
    assert found[0, 3] == 0  # a negative event, and no common word
    assert (found[2] == 0).all()


def test_new_items_keep_the_idf_of_training(tfidf):
    extended = tfidf.put(8, np.array([6, 1, 7]), ["a beach", TEXTS[2], "zebra"])
    assert extended.rows.shape == (8, WIDTH)
    np.testing.assert_array_equal(extended.idf, tfidf.idf)
    for row in (0, 2, 3, 4, 5):
        np.testing.assert_array_equal(extended.rows[[row]].toarray(), tfidf.rows[[row]].toarray())
    cosines = (extended.rows @ extended.rows.T).toarray()
    assert cosines[1, 2] == pytest.approx(1)
    assert cosines[6, 4] == pytest.approx((tfidf.rows[[4]] @ extended.rows[[6]].T).toarray()[0, 0])
    assert cosines[6, 4] > cosines[6, 0] > 0
    assert cosines[7].tolist() == [0] * 7 + [pytest.approx(1)]
    assert tfidf.rows.shape == (6, WIDTH), "the old index has not changed"


def test_without_any_word_all_similarities_are_zero():
    empty = TfidfIndex.of(["", ""])
    positives = toy_log([(0, 0, 1)], n_items=2).states(np.array([0]), np.array([2])).positives()
    assert similarities(empty, positives, np.array([[0, 1]])).tolist() == [[0, 0]]
