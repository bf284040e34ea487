"""Recall, time and size of every kind of index, on one thread, up to ten million items.

The parts are kinds (recall, time, size), rivals (other libraries), cuts (a search by the first dimensions, rescored
with all), filters, live (concurrent searches, changes and swaps) and sizes (costs as a function of the number of
items). `experiments/bench/retrieval/vectors.py` makes the vectors. Indexes are kept in the cache and built only once.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from experiments.bench.retrieval import speed
from experiments.bench.retrieval.concurrent_updates import SWAP, measure_updates
from experiments.bench.retrieval.peers import measure_peers
from experiments.bench.retrieval.vectors import VectorDataset, load_vector_dataset
from experiments.bench.runner import Bar, Result
from experiments.config import load_config
from features.errors import ConfigError

PARTS = ("kinds", "rivals", "cuts", "filters", "live", "sizes")
ITEMS, SHORT = 1_000_000, 55_000
SIZES = {
    "exact": (10_000, 100_000, 1_000_000),
    "ivf-flat": (100_000, 1_000_000, 10_000_000),
    "ivf-pq": (100_000, 1_000_000, 10_000_000),
    "hnsw": (60_000, 100_000, 200_000),
}
LIVE = 105_000
"""Items of the part `live`; the index starts with 100,000 of them."""


def run(
    *,
    short: bool = False,
    config: str = "configs/demo.yaml",
    part: str = "",
    graph: int = 200_000,
    largest: int = 10_000_000,
    seconds: float = 60.0,
) -> Result:
    """Figures of all parts, or of one `part`.

    graph: maximum number of items of a graph, which takes minutes to build. largest: maximum number of items of the
    part sizes. seconds: duration of the part live, once to warm up and once to measure. short: 55,000 items, a
    hundred users, one pass of training, without rivals and sizes, and only with the bars of live and filters.

    Raises ConfigError for an unknown part.
    """
    if part and part not in PARTS:
        raise ConfigError(f"bench retrieval: no part {part!r}; choose from {', '.join(PARTS)}")
    chosen = [part] if part else [name for name in PARTS if not (short and name in {"rivals", "sizes"})]
    n = SHORT if short else ITEMS
    figures: dict[str, Any] = {}
    bars: list[Bar] = []
    with threadpool_limits(1):
        material = load_vector_dataset(load_config(Path(config)), 1 if short else 4, graph)
        if short:
            material = replace(material, users=material.users[:100])
        figures |= {"trained items": len(material.items), "users who ask": len(material.users), "threads": 1}
        for name in chosen:
            measured, part_bars = _measure(name, material, n, short, largest, seconds)
            figures |= {f"{name}: {key}": value for key, value in measured.items()}
            bars += [] if short and name in {"kinds", "cuts"} else part_bars  # these are for a million items
    return Result(figures, bars)


def _measure(
    part: str, material: VectorDataset, n: int, short: bool, largest: int, seconds: float
) -> tuple[dict[str, Any], list[Bar]]:
    """Figures and bars of one part over n items."""
    if part == "live":
        items = np.array(material.sampled(SHORT if short else LIVE)[0])
        return measure_updates(items, material.users, 2.5 if short else seconds, swap=1.0 if short else SWAP)
    if part == "rivals":
        ours = speed.kinds(material, min(n, material.graph), ("ivf-flat", "hnsw"))[0]
        return ours | measure_peers(material, n), []
    if part == "sizes":
        figures: dict[str, Any] = {}
        for kind, ns in SIZES.items():
            figures |= speed.sizes(material, kind, sorted({min(n, largest) for n in ns}))
        return figures, []
    if part == "filters":
        return speed.filters(material, n, (speed.BEST,) if short else (speed.BEST, "hnsw"))
    parts: dict[str, Callable[[VectorDataset, int], speed.Measured]] = {
        "kinds": speed.kinds,
        "cuts": speed.cuts,
    }
    return parts[part](material, n)
