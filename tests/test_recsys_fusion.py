"""A question and who asks it: the ends are each alone, the middle by hand."""

import numpy as np
import pytest
from scipy.stats import zscore

from features.content.spaces import unit
from recsys.retrieval.fusion import WeightedQuery, fused_search
from recsys.retrieval.index import Index

RNG = np.random.default_rng(0)
CONTENTS = unit(RNG.normal(size=(400, 6)).astype(np.float32))
VECTORS = unit(RNG.normal(size=(400, 4)).astype(np.float32))
ASKED = unit(RNG.normal(size=(3, 6)).astype(np.float32))
USERS = unit(RNG.normal(size=(3, 4)).astype(np.float32))


def blend(k=20, weight=0.5, allow=None):
    questions = (
        WeightedQuery(ASKED, 1 - weight, Index(CONTENTS), CONTENTS),
        WeightedQuery(USERS, weight, Index(VECTORS), VECTORS),
    )
    return fused_search(questions, k, allow=allow)


def test_without_weight_the_question_speaks_alone_and_with_all_of_it_the_user():
    np.testing.assert_array_equal(blend(weight=0).rows, Index(CONTENTS).search(ASKED, 20).rows)
    np.testing.assert_array_equal(blend(weight=1).rows, Index(VECTORS).search(USERS, 20).rows)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_between_them_by_hand(weight):
    found = blend(weight=weight)
    for i in range(3):
        near, positives = CONTENTS @ ASKED[i], VECTORS @ USERS[i]
        rows = np.union1d(np.argsort(-near)[:100], np.argsort(-positives)[:100])
        scores = (1 - weight) * zscore(near[rows]) + weight * zscore(positives[rows])
        best = np.argsort(-scores)[:20]
        assert found.rows[i].tolist() == rows[best].tolist()
        np.testing.assert_allclose(found.scores[i], scores[best], atol=1e-4)


def test_what_is_not_allowed_is_in_neither_part_and_all_that_is_comes():
    allow = np.arange(400) % 50 == 7
    found = blend(allow=allow)
    assert sorted(found.rows[0][found.rows[0] >= 0].tolist()) == list(range(7, 400, 50))
    assert (found.rows[:, 8:] == -1).all()
