"""The baselines against their known figures, which checks our evaluation.

The data are Amazon Beauty 2014, 5-core (`sequences/Beauty.txt`: `user item item …` lines in time order). The split is
strict leave-last-out: models are fitted without the last two items of each user, and predict the last item from all
items before it, over the full catalogue. Seen items are excluded, ties count at mid-rank, and item ids are shuffled.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.runner import Bar, Result
from experiments.splits import leave_last_out
from features.errors import SourceError
from features.ids import IdMap
from features.interactions import Interactions
from recsys import baselines
from recsys.evaluation import metrics
from recsys.interfaces import Recommender

DEPTH, CUTOFF = 100, 10
TOLERANCE = 0.02

REFERENCE = {
    "item-knn + recency": (0.0716, 0.0434),
    "ease + recency": (0.0749, 0.0445),
    "item-knn": (0.0634, 0.0363),
    "ease": (0.0670, 0.0356),
    "als": (0.0601, 0.0322),
}
"""Model -> HR@10 and NDCG@10 of independent implementations under the same protocol. BARRED names those with bars."""

FITS: dict[str, Callable[[Interactions], Recommender]] = {
    "item-knn + recency": lambda e: baselines.fit_item_knn(e, k=1000, shrink=50, exponent=0.3, decay=0.5),
    "ease + recency": lambda e: baselines.fit_ease(e, regularization=200, decay=0.5),
    "item-knn": lambda e: baselines.fit_item_knn(e, k=1000, shrink=10, exponent=0.5, decay=1.0),
    "popular": baselines.fit_popular,
    "ease": lambda e: baselines.fit_ease(e, regularization=200, decay=1.0),
    "als": lambda e: baselines.fit_als(e, factors=256, regularization=1.0, alpha=10.0),
}
BARRED = ("item-knn + recency", "ease + recency")


def run(*, short: bool = False, data: str | None = None) -> Result:
    """Figures of all models. short: only the two with bars. data: the folder that holds `sequences/` ($RECSYS_DATA).

    Raises SourceError when there is no such folder or file.
    """
    folder = data or os.environ.get("RECSYS_DATA")
    if folder is None:
        raise SourceError("bench baselines needs sequences/Beauty.txt: set --data or RECSYS_DATA to its folder")
    events = read_sequences(Path(folder) / "sequences" / "Beauty.txt")
    split = leave_last_out(events, repeats=False)
    figures: dict[str, Any] = {
        "split": split.note,
        "split_hash": split.hash,
        "test_users": len(split.test),
        "items": events.n_items,
    }
    bars = []
    for name in BARRED if short else FITS:
        started = time.perf_counter()
        fitted = FITS[name](split.train)
        fit_seconds = time.perf_counter() - started
        started = time.perf_counter()
        candidates = fitted.recommend(split.test.states, DEPTH, exclude=split.test.states.seen_items())
        figures[f"{name} fit_seconds"] = round(fit_seconds, 2)
        figures[f"{name} recommend_seconds"] = round(time.perf_counter() - started, 2)
        ranks = metrics.target_ranks(candidates, split.test.state, split.test.item)
        for i, (label, metric) in enumerate({"hr_at_10": metrics.hit, "ndcg_at_10": metrics.ndcg}.items()):
            value = float(metrics.per_user(metric(ranks, CUTOFF, depth=DEPTH), split.test.users)[0].mean())
            figures[f"{name} {label}"] = round(value, 4)
            if name in BARRED:
                distance = abs(value / REFERENCE[name][i] - 1)
                bars.append(
                    Bar(f"{name} {label}, relative distance from {REFERENCE[name][i]}", distance, "<=", TOLERANCE)
                )
            if name in REFERENCE:
                figures[f"{name} {label} reference"] = REFERENCE[name][i]
    return Result(figures, bars)


def read_sequences(path: Path) -> Interactions:
    """Interactions of a file of sequences; every event is positive and seen.

    The time of an event is its position in the user's line, because the file has no clock times. Raises SourceError
    when there is no such file.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; it needs one line for each user, `user item item …`, oldest first")
    lines = [line.split()[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    sizes = np.array([len(line) for line in lines], dtype=np.int64)
    raw = [item for line in lines for item in line]
    ids = IdMap.shuffled(raw)
    users = np.repeat(np.arange(len(lines), dtype=np.int64), sizes)
    times = np.arange(len(raw), dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    every = np.ones(len(raw), dtype=np.bool_)
    return Interactions.sort(users, ids.rows(raw), times, every, every, len(lines), len(ids))
