"""One recommendation in process: CPU time of its stages, on one thread.

The models have the sizes of those of configs/demo.yaml and are made from noise: what models have learned does not
change how long they take. Items lie in clusters, as those of trained towers do. Stages are measured in turn within
each request, so that each finds the caches as a request leaves them; figures are medians over requests of many users.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_limits

from experiments.bench.runner import Bar, Result
from features.arrays import Floats, Ints
from features.catalog import Catalog
from features.content.spaces import unit
from features.ids import IdMap
from features.instants import DAY
from features.interactions import Interactions, Ragged, UserStates
from recsys.config import RerankerConfig, RetrieverConfig, TowerConfig
from recsys.interfaces import Candidates
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import NEIGHBOURS, PairFeatures
from recsys.ranking.reranker import RankingExamples, Reranker, fit_reranker
from recsys.ranking.slate import fill_slates, item_groups
from recsys.ranking.tfidf import TfidfIndex
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.index import Index
from recsys.retrieval.popular import fit_popular
from recsys.towers.model import TwoTowers

ITEMS, MANY_ITEMS = 9_066, 100_000
"""Items of configs/demo.yaml, and a larger catalogue."""

HISTORIES = (5, 50, 200, 500)
JUDGED = 200
"""The history that the bars are for."""

REQUESTS, SHORT_REQUESTS = 200, 5
TOWERS = TowerConfig(dimension=128, layers=2, heads=2, history=100)
RERANKER = RerankerConfig(candidates=500, trees=100, leaves=7)
K, WORDS, CONTENT, CLUSTERS, EXAMPLES = 20, 20_000, 256, 256, 60


@dataclass
class Clock:
    """Milliseconds by stage. Each call of `mark` ends one stage and begins the next. seconds: the clock, CPU time of
    this thread by default."""

    seconds: Callable[[], float] = time.thread_time
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    last: float = 0.0

    def start(self) -> None:
        """Begin the first stage."""
        self.last = self.seconds()

    def mark(self, stage: str) -> None:
        """End a stage."""
        now = self.seconds()
        self.stages[stage].append(1e3 * (now - self.last))
        self.last = self.seconds()

    def median(self, stage: str) -> float:
        """The median of a stage."""
        return statistics.median(self.stages[stage])


def run(*, short: bool = False, seed: int = 0, retriever: str = "hnsw", many: int = MANY_ITEMS) -> Result:
    """Figures of 9,066 items and of `many`, whose index is of the kind `retriever`, by length of history.

    short: 1,000 items, five requests, no bars.
    """
    figures: dict[str, float | str] = {"threads": 1, "retriever of many items": retriever}
    bars: list[Bar] = []
    n_requests = SHORT_REQUESTS if short else REQUESTS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            for n, kind in ((1_000, "exact"),) if short else ((ITEMS, "exact"), (many, retriever)):
                recommender, groups = make(n, RetrieverConfig.model_validate({"kind": kind}), seed)
                for history in HISTORIES:
                    found = measure(recommender, groups, history, n_requests, seed)
                    figures |= {f"{n} items, {history} events: {name}": value for name, value in found.items()}
                    bars += _bars(n, found) if history == JUDGED and not short else []
                recall = recall_of(recommender, seed, n_requests)
                figures[f"{n} items: recall@500 of {kind}"] = recall
                bars += [] if short else [Bar(f"{n} items: recall@500 of {kind}", recall, ">=", 0.95)]
    finally:
        torch.set_num_threads(threads)
    return Result(figures | {"load_average": os.getloadavg()[0]}, bars)


def _bars(n: int, found: dict[str, float]) -> list[Bar]:
    limits = {
        "user tower ms": 0.8,
        "features ms": 1.0,
        "(features + trees) / trees": 3.0,
        "p50 ms": 3.0,
        "p99 ms": 6.0,
    }
    return [Bar(f"{n} items, {JUDGED} events: {name}", found[name], "<=", limit) for name, limit in limits.items()]


def make(n: int, config: RetrieverConfig, seed: int) -> tuple[TwoStageRecommender, Ints]:
    """A recommender of n items, and their groups."""
    rng = np.random.default_rng(seed)
    events = _events(n, rng)
    catalog = _catalog(n, rng)
    statistics_ = ItemStatistics.of(events)
    torch.manual_seed(seed)
    towers = TwoTowers(catalog, statistics_, TOWERS).eval()
    centres = rng.standard_normal((CLUSTERS, TOWERS.dimension), dtype=np.float32)
    noise = rng.standard_normal((n, TOWERS.dimension), dtype=np.float32)
    vectors: Floats = unit(centres[rng.integers(CLUSTERS, size=n)] + 0.7 * noise)
    texts = [" ".join(words) for words in rng.integers(WORDS, size=(n, 6)).astype(str)]
    neighbours = sp.csr_array(
        (
            rng.random(n * NEIGHBOURS, dtype=np.float32),
            rng.integers(n, size=n * NEIGHBOURS, dtype=np.int32),
            np.arange(0, n * NEIGHBOURS + 1, NEIGHBOURS, dtype=np.int32),
        ),
        shape=(n, n),
    )
    features = PairFeatures(catalog, vectors, statistics_, TfidfIndex.of(texts), neighbours)
    index, popular = Index(vectors, config, seed=seed), fit_popular(events, days=30)
    retrieval = TwoStageRecommender(
        towers, vectors, index, popular, None, RERANKER.candidates, RERANKER.sources, events.latest
    )
    states = states_of(n, 50, EXAMPLES, seed)
    candidates = retrieval.retrieve(states, RERANKER.candidates, features=features)
    relevant = rng.random(candidates.rows.shape) < 0.02
    reranker = fit_reranker(features, [RankingExamples(states, candidates, relevant)], RERANKER, seed=seed)
    recommender = replace(retrieval, reranker=reranker)
    return recommender, item_groups(catalog)


def _catalog(n: int, rng: np.random.Generator) -> Catalog:
    ids = IdMap(tuple(f"i{row}" for row in range(n)))
    frame = pl.DataFrame(
        {
            "item_id": ids.ids,
            "title": [f"Item {row}" for row in range(n)],
            "description": [""] * n,
            "categories": [[f"c{c}" for c in row] for row in rng.integers(300, size=(n, 2)).tolist()],
            "price": rng.random(n),
            "available": [True] * n,
            "published_at": [None] * n,
        },
        schema_overrides={"published_at": pl.Datetime("us", "UTC")},
    )
    content: Floats = unit(rng.standard_normal((n, CONTENT), dtype=np.float32))
    return Catalog.of(frame, ids, content, np.ones(n, dtype=np.bool_))


def _events(n: int, rng: np.random.Generator) -> Interactions:
    m = 20 * n
    items = rng.zipf(1.2, m) % n
    times = np.sort(rng.integers(0, 365 * DAY, m))
    yes = np.ones(m, dtype=np.bool_)
    return Interactions.sort(rng.integers(0, max(1, n // 10), m), items, times, yes, yes, max(1, n // 10), n)


def states_of(n: int, history: int, b: int, seed: int) -> UserStates:
    """b users with as many positive events each, of different items."""
    rng = np.random.default_rng([seed, history])
    items = np.concatenate([rng.permutation(n)[:history] for _ in range(b)])
    times = np.sort(rng.integers(0, 365 * DAY, (b, history)), axis=1).ravel()
    ends = np.arange(1, b + 1) * history
    yes = np.ones(len(items), dtype=np.bool_)
    return UserStates(np.arange(b), np.full(b, 366 * DAY), Ragged(items, ends - history, ends), times, yes, yes, None)


def measure(
    recommender: TwoStageRecommender, groups: Ints, history: int, n_requests: int, seed: int
) -> dict[str, float]:
    """Figures of requests of users with one length of history."""
    clock, n = Clock(), len(groups)
    states, allow = states_of(n, history, n_requests + 3, seed), np.ones(n, dtype=np.bool_)
    reranker = recommender.reranker
    assert isinstance(reranker, Reranker)
    for b in range(len(states)):
        one = states[b : b + 1].compact()
        seen = one.seen_items()

        def find(_: Ints, k: int, one: UserStates = one, seen: Ragged = seen) -> Candidates:
            return recommender.recommend(one, k, allow=allow, exclude=seen)

        clock.start()
        recommender.user_vectors(one)
        clock.mark("user tower")
        candidates = recommender.retrieve(one, recommender.candidates, allow=allow, exclude=seen)
        clock.mark("retrieval with the tower")
        matrix = reranker.features.matrix(one, candidates)
        clock.mark("features")
        reranker.predict(matrix)
        clock.mark("trees")
        fill_slates(find, 1, K, groups)
        clock.mark("whole")
    for times in clock.stages.values():
        del times[:3]  # first requests fill caches
    figures = {f"{stage} ms": clock.median(stage) for stage in ("user tower", "features", "trees")}
    figures["retrieval ms"] = clock.median("retrieval with the tower") - figures["user tower ms"]
    figures["(features + trees) / trees"] = (figures["features ms"] + figures["trees ms"]) / figures["trees ms"]
    figures |= {f"p{q} ms": float(np.quantile(clock.stages["whole"], q / 100)) for q in (50, 99)}
    return figures


def recall_of(recommender: TwoStageRecommender, seed: int, n_requests: int) -> float:
    """Share of the 500 items nearest to a user that the index finds."""
    n = len(recommender.vectors)
    users = recommender.user_vectors(states_of(n, 50, n_requests, seed))
    found = recommender.index.search(users, RERANKER.candidates).rows
    exact = Index(recommender.vectors, RetrieverConfig(), seed=seed).search(users, RERANKER.candidates).rows
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]))
