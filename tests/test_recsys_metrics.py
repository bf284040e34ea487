"""Ranks and metrics: by hand, against ranks in the full catalogue, against ranx."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench.metrics import run as bench
from features.errors import ConfigError, DataError
from recsys.evaluation import metrics
from recsys.interfaces import Candidates, top_k

INF = float("inf")


def candidates(rows, scores):
    return Candidates(np.array(rows, dtype=np.int64), np.array(scores, dtype=np.float32))


def ranks_of(rows, scores, state, item):
    return metrics.target_ranks(candidates(rows, scores), np.array(state), np.array(item)).tolist()


def test_ranks_by_hand():
    rows = [[4, 2, 7, 1], [5, 3, -1, -1]]
    scores = [[0.9, 0.5, 0.5, 0.1], [1.0, 1.0, -INF, -INF]]
    # list 0: item 4 is first, 2 and 7 are tied at ranks 2 and 3; item 1 ends a full list; 9 is not in it
    # list 1 is padded: its tie does not continue, and -1 is never found
    state, item = [0, 0, 0, 0, 0, 1, 1, 1], [4, 2, 7, 1, 9, 5, 3, -1]
    assert ranks_of(rows, scores, state, item) == [1.0, 2.5, 2.5, INF, INF, 1.5, 1.5, INF]


def test_a_tie_at_the_end_of_a_full_list_is_no_hit():
    assert ranks_of([[0, 1, 2, 3]], [[1.0, 1.0, 1.0, 1.0]], [0, 0], [0, 3]) == [INF, INF]


def test_ranks_of_no_lists_and_no_targets():
    assert ranks_of(np.empty((1, 0)), np.empty((1, 0)), [0], [2]) == [INF]
    assert ranks_of([[1]], [[1.0]], np.array([], int), np.array([], int)) == []


def test_ranks_do_not_depend_on_the_chunk_size(monkeypatch):
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 9, size=(50, 40)).astype(np.float32)
    found = top_k(dense, 20)
    state, item = rng.integers(50, size=300), rng.integers(40, size=300)
    expected = metrics.target_ranks(found, state, item)
    monkeypatch.setattr(metrics, "_CHUNK", 70)
    np.testing.assert_array_equal(metrics.target_ranks(found, state, item), expected)


@given(st.lists(st.integers(0, 6), min_size=12, max_size=12), st.integers(2, 14))
def test_up_to_half_of_the_list_ranks_are_those_of_the_full_catalogue(values, depth):
    dense = np.array([values], dtype=np.float32)
    every = np.arange(12)
    true = np.array([(dense[0] > v).sum() + ((dense[0] == v).sum() + 1) / 2 for v in dense[0]])
    ranks = metrics.target_ranks(top_k(dense.copy(), depth), np.zeros(12, np.int64), every)
    for k in range(1, depth // 2 + 1):
        np.testing.assert_array_equal(metrics.hit(ranks, k, depth=depth), true <= k)
        np.testing.assert_allclose(metrics.ndcg(ranks, k, depth=depth), (true <= k) / np.log2(true + 1))
        np.testing.assert_allclose(metrics.reciprocal_rank(ranks, k, depth=depth), (true <= k) / true)


def test_single_events_by_hand():
    ranks = np.array([1.0, 1.5, 3.0, 10.0, 11.0, INF])
    assert metrics.hit(ranks, 10, depth=20).tolist() == [1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(metrics.ndcg(ranks, 10, depth=20), [1, 0.75647, 0.5, 0.28906, 0, 0], atol=1e-5)
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks, 10, depth=20), [1, 2 / 3, 1 / 3, 0.1, 0, 0])


@pytest.mark.parametrize("metric", [metrics.hit, metrics.ndcg, metrics.reciprocal_rank])
@pytest.mark.parametrize(("k", "depth"), [(11, 20), (0, 20), (1, 1)])
def test_cutoffs_above_half_of_the_list_are_rejected(metric, k, depth):
    with pytest.raises(ConfigError, match=f"k = {k} with lists of {depth}"):
        metric(np.array([1.0]), k, depth=depth)
    with pytest.raises(ConfigError, match=f"k = {k} with lists of {depth}"):
        metrics.basket_metrics(np.array([1.0]), np.array([0]), k, depth=depth)


def test_baskets_by_hand():
    # state 3: targets at 1 and 3 and one not found; state 5: one at 4; state 8: one beyond the cutoff
    ranks, state = np.array([3.0, INF, 1.0, 4.0, 6.0]), np.array([3, 3, 3, 5, 8])
    got, states = metrics.basket_metrics(ranks, state, 5, depth=10)
    assert states.tolist() == [3, 5, 8]
    np.testing.assert_allclose(got["hit_rate"], [1, 1, 0])
    np.testing.assert_allclose(got["recall"], [2 / 3, 1, 0])
    np.testing.assert_allclose(got["mrr"], [1, 1 / 4, 0])
    np.testing.assert_allclose(got["map"], [(1 / 1 + 2 / 3) / 3, 1 / 4, 0])
    # (1 + .5) / (1 + .63093 + .5), 1 / log2 5
    np.testing.assert_allclose(got["ndcg"], [1.5 / 2.13093, 0.43068, 0], atol=1e-5)


def test_tied_targets_share_their_mid_rank():
    got, _ = metrics.basket_metrics(np.array([1.5, 1.5]), np.array([0, 0]), 5, depth=10)
    assert got["map"].tolist() == [1.0]
    assert got["ndcg"][0] == pytest.approx(2 / np.log2(2.5) / (1 + 1 / np.log2(3)))


def test_a_basket_of_more_targets_than_the_cutoff_can_be_perfect():
    got, _ = metrics.basket_metrics(np.arange(1.0, 8.0), np.zeros(7, np.int64), 5, depth=14)
    assert got["ndcg"].tolist() == [1.0]
    assert got["recall"].tolist() == [5 / 7]


def test_agrees_with_ranx_on_random_rankings(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling ranx takes longer than running it as Python
    rng = np.random.default_rng(0)
    lists, depth, k = 40, 20, 10
    rows = np.stack([rng.permutation(60)[:depth] for _ in range(lists)])
    scores = np.tile(np.arange(depth, 0, -1, dtype=np.float32), (lists, 1))
    targets = [rng.permutation(60)[: rng.integers(1, 16)] for _ in range(lists)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of ranx and numba
        from ranx import Qrels, Run, evaluate

        qrels = Qrels({str(i): {str(t): 1 for t in ts} for i, ts in enumerate(targets)})
        run = Run({str(i): {str(r): float(s) for r, s in zip(rows[i], scores[i], strict=True)} for i in range(lists)})
        names = ["hit_rate", "recall", "ndcg", "mrr", "map"]
        peer = evaluate(qrels, run, [f"{n}@{k}" for n in names], return_mean=False)
    state = np.repeat(np.arange(lists), [len(t) for t in targets])
    ranks = metrics.target_ranks(Candidates(rows, scores), state, np.concatenate(targets))
    ours, states = metrics.basket_metrics(ranks, state, k, depth=depth)
    assert states.tolist() == list(range(lists))
    order = np.argsort([int(q) for q in qrels.keys()])  # noqa: SIM118  (Qrels iterates otherwise)
    for name in names:
        np.testing.assert_allclose(ours[name], np.asarray(peer[f"{name}@{k}"])[order], err_msg=name)


def test_users_weigh_the_same_however_many_events_they_have():
    values, users = metrics.per_user(np.array([1.0, 0.0, 0.0, 1.0]), np.array([7, 2, 7, 7]))
    assert users.tolist() == [2, 7]
    np.testing.assert_allclose(values, [0, 2 / 3])


def test_per_user_rejects_values_that_are_not_finite_and_unknown_users():
    with pytest.raises(DataError, match="nan of user 4 at position 1"):
        metrics.per_user(np.array([1.0, np.nan]), np.array([3, 4]))
    with pytest.raises(DataError, match="user -1 at position 0"):
        metrics.per_user(np.array([1.0]), np.array([-1]))
    with pytest.raises(DataError, match="2 values for 1 users"):
        metrics.per_user(np.zeros(2), np.zeros(1, np.int64))


ROWS = np.array([[0, 1, 2], [0, 3, -1], [-1, -1, -1]])


def test_coverage_by_hand():
    assert metrics.coverage(ROWS, 5) == 4 / 5
    assert metrics.coverage(np.full((2, 2), -1), 5) == 0


def test_novelty_and_popularity_by_hand():
    counts = np.array([8, 4, 4, 0])  # shares 1/2, 1/4, 1/4, and an unseen item counts as 1: 1/16
    np.testing.assert_allclose(metrics.novelty(ROWS, counts), [(1 + 2 + 2) / 3, (1 + 4) / 2, np.nan])
    np.testing.assert_allclose(metrics.average_popularity(ROWS, counts), [16 / 3, 4, np.nan])
    # percentiles: item 3 the lowest of four: .125; items 1 and 2 share the middle: .5; item 0: .875
    np.testing.assert_allclose(metrics.popularity_percentile(ROWS, counts), [1.875 / 3, 0.5, np.nan])


def test_a_random_list_has_no_popularity_bias():
    rng = np.random.default_rng(0)
    counts = rng.zipf(1.5, 500)
    rows = np.stack([rng.permutation(500)[:10] for _ in range(2000)])
    assert metrics.popularity_percentile(rows, counts).mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(metrics.popularity_percentile(np.arange(500)[None], counts), [0.5])


def test_diversity_by_hand():
    vectors = np.array([[2, 0], [0, 3], [1, 1], [0, 0]], dtype=np.float32)
    c = np.sqrt(0.5)
    # list 0: cosines 0, c, c; list 1: item 3 has no direction, so no pair is left
    np.testing.assert_allclose(metrics.diversity(ROWS, vectors), [1 - 2 * c / 3, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.diversity(np.array([[0, 0], [0, 1]]), vectors), [0, 1], atol=1e-6)


def test_diversity_equals_a_loop_over_pairs(monkeypatch):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((30, 5)).astype(np.float32)
    rows = np.stack([rng.permutation(30)[:6] for _ in range(9)])
    rows[4, 3:] = -1
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    naive = []
    for row in rows:
        items = row[row >= 0]
        naive.append(np.mean([1 - unit[a] @ unit[b] for a in items for b in items if a != b]))
    monkeypatch.setattr(metrics, "_CHUNK", 10)
    np.testing.assert_allclose(metrics.diversity(rows, vectors), naive, rtol=1e-5)


def test_the_benchmark_measures_every_metric():
    result = bench(short=True)
    assert [bar.bar for bar in result.bars] == [2.0]
    assert result.figures["all_seconds"] == pytest.approx(result.bars[0].value, abs=1e-3)
    for name in ("target_ranks", "ndcg", "basket", "coverage", "novelty", "popularity_percentile", "diversity"):
        assert result.figures[f"{name}_seconds"] > 0
