"""Seconds that every metric of `recsys.evaluation.metrics` takes for 100,000 users' lists of 100 candidates.

The figures are the seconds of each metric, their sum, and the lower bound (both arrays are read once). Where ranx is
installed, it is timed on the same rankings; the construction of its dictionaries is not counted.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench.runner import Bar, Result
from recsys.evaluation import metrics
from recsys.interfaces import Candidates

USERS, ITEMS, DEPTH, CUTOFF, DIM = 100_000, 20_000, 100, 10, 64
PEER_USERS = 5_000
"""Users that ranx is timed on: it reads dictionaries, and to build them for all users would take minutes."""

BAR_SECONDS = 2.0


def run(*, short: bool = False, seed: int = 0) -> Result:
    """Seconds of each metric, the minimum of 3 runs. short: one run, without ranx."""
    rng = np.random.default_rng(seed)
    start = rng.integers(ITEMS, size=(USERS, 1))
    rows = (start + np.arange(DEPTH) * 197) % ITEMS  # 197 and ITEMS are coprime: the items of a list are distinct
    scores = -np.sort(-np.round(rng.random((USERS, DEPTH), dtype=np.float32), 2), axis=1)  # with many ties
    candidates = Candidates(rows, scores)
    users = np.arange(USERS)
    items = rng.integers(ITEMS, size=USERS)
    hit = rng.random(USERS) < 0.3  # (USERS,) users whose target is among their candidates
    items[hit] = rows[hit, rng.integers(DEPTH, size=int(hit.sum()))]
    counts = rng.zipf(1.5, ITEMS).clip(max=100_000)
    vectors = rng.standard_normal((ITEMS, DIM), dtype=np.float32)
    repeats = 1 if short else 3

    ranks = metrics.target_ranks(candidates, users, items)
    lists = rows[:, :CUTOFF]
    timed: dict[str, Callable[[], object]] = {
        "target_ranks": lambda: metrics.target_ranks(candidates, users, items),
        "hit": lambda: metrics.per_user(metrics.hit(ranks, CUTOFF, depth=DEPTH), users),
        "ndcg": lambda: metrics.per_user(metrics.ndcg(ranks, CUTOFF, depth=DEPTH), users),
        "mrr": lambda: metrics.per_user(metrics.reciprocal_rank(ranks, CUTOFF, depth=DEPTH), users),
        "basket": lambda: metrics.basket_metrics(ranks, users, CUTOFF, depth=DEPTH),
        "coverage": lambda: metrics.coverage(lists, ITEMS),
        "novelty": lambda: metrics.novelty(lists, counts),
        "popularity": lambda: metrics.average_popularity(lists, counts),
        "popularity_percentile": lambda: metrics.popularity_percentile(lists, counts),
        "diversity": lambda: metrics.diversity(lists, vectors),
    }
    figures: dict[str, Any] = {"users": USERS, "candidates": DEPTH, "cutoff": CUTOFF, "vector_dim": DIM}
    seconds = {name: _seconds(work, repeats) for name, work in timed.items()}
    figures |= {f"{name}_seconds": round(s, 4) for name, s in seconds.items()}
    total = sum(seconds.values())
    figures["all_seconds"] = round(total, 4)
    figures["floor_read_once_seconds"] = round(_seconds(lambda: (rows.max(), scores.max()), repeats), 4)
    if not short and importlib.util.find_spec("ranx"):
        figures |= _peer(candidates, items, repeats)
    return Result(figures, [Bar("all metrics, 100,000 users x 100 candidates, seconds", total, "<=", BAR_SECONDS)])


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """The minimum over `repeats` calls."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _peer(candidates: Candidates, items: np.ndarray, repeats: int) -> dict[str, Any]:
    """Seconds of ranx and of our code for the five basket metrics of the first PEER_USERS users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ranx import Qrels, Run, evaluate

        users = range(PEER_USERS)
        qrels = Qrels({str(u): {str(items[u]): 1} for u in users})
        ordered = np.arange(DEPTH, 0, -1, dtype=float).tolist()
        run = Run({str(u): dict(zip(map(str, candidates.rows[u].tolist()), ordered, strict=True)) for u in users})
        names = [f"{m}@{CUTOFF}" for m in ("hit_rate", "recall", "ndcg", "mrr", "map")]
        evaluate(qrels, run, names)  # compiles
        peer_seconds = _seconds(lambda: evaluate(qrels, run, names), repeats)
    own = Candidates(candidates.rows[:PEER_USERS], candidates.scores[:PEER_USERS])
    rows = np.arange(PEER_USERS)

    def ours() -> object:
        ranks = metrics.target_ranks(own, rows, items[:PEER_USERS])
        return metrics.basket_metrics(ranks, rows, CUTOFF, depth=DEPTH)

    return {
        "peer_users": PEER_USERS,
        "peer_ranx_basket_seconds": round(peer_seconds, 4),
        "ours_basket_on_peer_users_seconds": round(_seconds(ours, repeats), 4),
    }
