"""How well, how fast and how large: every kind of search, on one thread, up to ten million items.

Parts: kinds (recall, time, size), rivals (other libraries), cuts (first dimensions, then all), filters, live
(searched, changed and swapped at once) and sizes (what growth costs). Vectors: `retrieval_data`. Indexes are kept in
the cache: what is built once is only searched the next time.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from experiments.bench.retrieval import speed
from experiments.bench.retrieval.concurrent_updates import SWAP, live
from experiments.bench.retrieval.peers import rivals
from experiments.bench.retrieval.vectors import Material, material
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
"""Items that may be there; 100,000 are at the beginning."""


def run(
    *,
    short: bool = False,
    config: str = "configs/demo.yaml",
    part: str = "",
    graph: int = 200_000,
    largest: int = 10_000_000,
    seconds: float = 60.0,
) -> Result:
    """All parts, or one; graph: most items of a graph, which takes minutes to build; largest: most items of `sizes`;
    seconds: of `live`, once to warm up and once that count.

    short: 55,000 items, a hundred users, one pass of training, neither rivals nor sizes, and the
    bars of changes and filters alone.
    Raises ConfigError for a part that there is not.
    """
    if part and part not in PARTS:
        raise ConfigError(f"no part {part!r} of the benchmark of retrieval; there are: {', '.join(PARTS)}")
    chosen = [part] if part else [name for name in PARTS if not (short and name in {"rivals", "sizes"})]
    n = SHORT if short else ITEMS
    figures: dict[str, Any] = {}
    bars: list[Bar] = []
    with threadpool_limits(1):
        made = material(load_config(Path(config)), 1 if short else 4, graph)
        if short:
            made = replace(made, users=made.users[:100])
        figures |= {"trained items": len(made.items), "users who ask": len(made.users), "threads": 1}
        for name in chosen:
            measured, held = _measure(name, made, n, short, largest, seconds)
            figures |= {f"{name}: {key}": value for key, value in measured.items()}
            bars += [] if short and name in {"kinds", "cuts"} else held  # those are of a million items
    return Result(figures, bars)


def _measure(
    part: str, made: Material, n: int, short: bool, largest: int, seconds: float
) -> tuple[dict[str, Any], list[Bar]]:
    if part == "live":
        items = np.array(made.many(SHORT if short else LIVE)[0])
        return live(items, made.users, 2.5 if short else seconds, swap=1.0 if short else SWAP)
    if part == "rivals":
        ours = speed.kinds(made, min(n, made.graph), ("ivf-flat", "hnsw"))[0]
        return ours | rivals(made, n), []
    if part == "sizes":
        figures: dict[str, Any] = {}
        for kind, ns in SIZES.items():
            figures |= speed.sizes(made, kind, sorted({min(n, largest) for n in ns}))
        return figures, []
    if part == "filters":
        return speed.filters(made, n, (speed.BEST,) if short else (speed.BEST, "hnsw"))
    parts: dict[str, Callable[[Material, int], speed.Measured]] = {
        "kinds": speed.kinds,
        "cuts": speed.cuts,
    }
    return parts[part](made, n)
