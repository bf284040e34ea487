"""What is served: a bundle of noise with the sizes of configs/demo.yaml, and the tables of its users."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from pydantic_core import to_jsonable_python

from experiments.bench.rerank import RERANKER, TOWERS, make
from experiments.config import RunConfig
from features.instants import DAY, now_micros
from features.schema import EVENT, ITEM, TIME, USER, DataConfig
from recsys.bundle.io import save_bundle
from recsys.bundle.item_map import ItemMap
from recsys.bundle.registry import publish_bundle
from recsys.config import RetrieverConfig
from recsys.ranking.reranker import Reranker

USERS, SHORT_USERS = 2_000, 50
HISTORY = 100
"""Events of each user, of as many different items."""

CLICK = "click"


@dataclass(frozen=True)
class World:
    """bundle: its folder, which is published; data: its data configuration; users: ids."""

    bundle: Path
    data: DataConfig
    users: tuple[str, ...]


def build(folder: Path, items: int, users: int, kind: str, seed: int) -> World:
    """Write tables and a bundle below `folder`. kind: of the retriever."""
    retriever = RetrieverConfig.model_validate({"kind": kind})
    recommender, _ = make(items, retriever, seed)
    reranker = recommender.reranker
    assert isinstance(reranker, Reranker)
    catalog, statistics = reranker.features.catalog, reranker.features.statistics
    config = RunConfig(
        name="bench-serve",
        data=DataConfig.model_validate(
            {"source": "folder", "path": str(folder / "data"), "events": {"positive": {CLICK: None}}}
        ),
        encoder=None,
        towers=TOWERS,
        retriever=retriever,
        reranker=RERANKER,
        seed=seed,
    )
    (folder / "data").mkdir()
    catalog.frame.write_parquet(folder / "data" / "items.parquet")
    names = tuple(f"u{user}" for user in range(users))
    _events(names, catalog.ids.ids, seed).write_parquet(folder / "data" / "events.parquet")
    facts = {"config": to_jsonable_python(config.recorded()), "seed": seed, "metrics": []}
    places = np.random.default_rng([seed, 2]).random((items, 2)).astype(np.float32)
    noise = ItemMap(places, "noise")
    bundle = save_bundle(folder / "bundles", catalog, recommender, statistics, facts, item_map=noise)
    publish_bundle(bundle)
    return World(bundle, config.data, names)


def _events(users: tuple[str, ...], items: tuple[str, ...], seed: int) -> pl.DataFrame:
    """The events table: HISTORY events of each user in the last 30 days."""
    rng = np.random.default_rng([seed, 1])
    rows = np.concatenate([rng.choice(len(items), HISTORY, replace=False) for _ in users])
    times = now_micros() - np.sort(rng.integers(DAY, 30 * DAY, len(rows)))[::-1]
    return pl.DataFrame(
        {
            USER: np.repeat(np.array(users), HISTORY),
            ITEM: np.array(items)[rows],
            EVENT: [CLICK] * len(rows),
            TIME: pl.Series(times).cast(pl.Datetime("us", "UTC")),
        }
    )
