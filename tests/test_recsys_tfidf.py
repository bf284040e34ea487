"""Words of items: cosines as scikit-learn's and the TF-IDF profile's, and items that come later or change."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from toy_data import toy_log

from recsys.baselines.content import fit_tfidf
from recsys.ranking.tfidf import DECAY, WIDTH, TfidfIndex

TEXTS = [
    "A shark terrorises a beach town",
    "the SHARK returns, and the town pays",
    "two robots and a princess in space",
    "",
    "a beach holiday",
    "robots robots robots",
]
LOG = toy_log([(0, 0, 1), (0, 4, 2), (0, 2, 3, False), (1, 5, 1), (2, 3, 1)], n_items=6)


@pytest.fixture(scope="module")
def words():
    return TfidfIndex.of(TEXTS)


def test_cosines_of_items_are_those_of_tfidf(words):
    terms = TfidfVectorizer().fit_transform(TEXTS)
    np.testing.assert_allclose((words.rows @ words.rows.T).toarray(), (terms @ terms.T).toarray(), atol=1e-6)
    assert words.rows.shape == (6, WIDTH)
    assert words.rows[[3]].nnz == 0


def test_histories_find_items_as_the_profile_does(words):
    """User 0 liked 0 and then 4; user 2 liked what has no words."""
    positives = LOG.states(np.array([0, 1, 2]), np.full(3, 9)).positives()
    rows = np.array([[5, 4, 3, 2, 1, 0]] * 3)
    found = words.similarity(positives, rows)
    np.testing.assert_allclose(found, fit_tfidf(LOG, TEXTS, decay=DECAY).scores(positives)[:, ::-1], atol=1e-6)
    assert found[0, 1] > found[0, 5] > found[0, 4] > 0  # what came last, what came before, what shares a word
    assert found[0, 3] == 0  # skipped, and in other words
    assert (found[2] == 0).all()


def test_words_of_items_that_come_later_weigh_as_before(words):
    grown = words.put(8, np.array([6, 1, 7]), ["a beach", TEXTS[2], "zebra"])
    assert grown.rows.shape == (8, WIDTH)
    np.testing.assert_array_equal(grown.idf, words.idf)
    for row in (0, 2, 3, 4, 5):
        np.testing.assert_array_equal(grown.rows[[row]].toarray(), words.rows[[row]].toarray())
    cosines = (grown.rows @ grown.rows.T).toarray()
    assert cosines[1, 2] == pytest.approx(1)
    assert cosines[6, 4] == pytest.approx((words.rows[[4]] @ grown.rows[[6]].T).toarray()[0, 0])
    assert cosines[6, 4] > cosines[6, 0] > 0
    assert cosines[7].tolist() == [0] * 7 + [pytest.approx(1)]
    assert words.rows.shape == (6, WIDTH), "those before are as they were"


def test_without_any_word_nothing_is_alike():
    bare = TfidfIndex.of(["", ""])
    positives = toy_log([(0, 0, 1)], n_items=2).states(np.array([0]), np.array([2])).positives()
    assert bare.similarity(positives, np.array([[0, 1]])).tolist() == [[0, 0]]
