"""Fusion of a content query and a user: weights 0 and 1 against single searches, others by hand."""

import numpy as np
import pytest
from scipy.stats import zscore

from features.content.spaces import unit
from recsys.retrieval.fusion import WeightedQuery, fused_search
from recsys.retrieval.index import Index

RNG = np.random.default_rng(0)
CONTENTS = unit(RNG.normal(size=(400, 6)).astype(np.float32))
VECTORS = unit(RNG.normal(size=(400, 4)).astype(np.float32))
QUERIES = unit(RNG.normal(size=(3, 6)).astype(np.float32))
USERS = unit(RNG.normal(size=(3, 4)).astype(np.float32))


def fused(k=20, weight=0.5, allow=None):
    weighted = (
        WeightedQuery(QUERIES, 1 - weight, Index(CONTENTS), CONTENTS),
        WeightedQuery(USERS, weight, Index(VECTORS), VECTORS),
    )
    return fused_search(weighted, k, allow=allow)


def test_weights_0_and_1_are_the_single_searches():
    np.testing.assert_array_equal(fused(weight=0).rows, Index(CONTENTS).search(QUERIES, 20).rows)
    np.testing.assert_array_equal(fused(weight=1).rows, Index(VECTORS).search(USERS, 20).rows)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_other_weights_by_hand(weight):
    found = fused(weight=weight)
    for i in range(3):
        content, user = CONTENTS @ QUERIES[i], VECTORS @ USERS[i]
        rows = np.union1d(np.argsort(-content)[:100], np.argsort(-user)[:100])
        scores = (1 - weight) * zscore(content[rows]) + weight * zscore(user[rows])
        order = np.argsort(-scores)[:20]
        assert found.rows[i].tolist() == rows[order].tolist()
        np.testing.assert_allclose(found.scores[i], scores[order], atol=1e-4)


def test_exactly_the_allowed_items_are_returned():
    allow = np.arange(400) % 50 == 7
    found = fused(allow=allow)
    assert sorted(found.rows[0][found.rows[0] >= 0].tolist()) == list(range(7, 400, 50))
    assert (found.rows[:, 8:] == -1).all()


@pytest.mark.parametrize(("k", "depth"), [(1, 100), (20, 100), (21, 105), (60, 300)])
def test_each_query_retrieves_five_candidates_for_each_result_and_at_least_100(k, depth):
    class Recorder(Index):
        def search(self, queries, k, **options):
            depths.append(k)
            return super().search(queries, k, **options)

    depths: list[int] = []
    query = WeightedQuery(QUERIES, 1.0, Recorder(CONTENTS), CONTENTS)
    assert fused_search([query, query], k).rows.shape == (3, k)
    assert depths == [depth, depth]
