"""The simulated shop of the loop: people, a catalogue with their past events, and two bundles trained on these.

The catalogue is the most rated films of MovieLens. People have tastes in the singular vectors of the real ratings,
and a simulated past. The two bundles differ in their training alone: A is a small retrieval after one pass, B a
larger one with a reranker.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse.linalg

from experiments.config import RunConfig
from experiments.dataset import load_dataset
from experiments.pipelines.train import train
from experiments.simulation.behaviour import Behaviour, chosen_unaided
from experiments.simulation.people import People, people_near
from experiments.tracking.mlflow import NullTracker
from experiments.tracking.progress import Reporter
from features.arrays import Doubles
from features.instants import DAY
from features.schema import CATEGORIES, EVENT, ITEM, TIME, TITLE, USER
from features.tables.sources import get
from recsys.histories import user_item_matrix

EXPLORED, QUIET = "home", "feed"
"""Placements: of the answers that explore, and of those that do not."""

CLICK, PURCHASE, VIEW = "click", "purchase", "view"
PAST_DAYS = 60
DIMENSION = 16
"""Singular vectors that tastes have coordinates in."""

TOWERS = {"dimension": 32, "layers": 1, "history": 20}
RERANKER = {"candidates": 100, "trees": 30, "groups": 2000}
A: dict[str, Any] = {"towers": TOWERS | {"dimension": 8}, "training": {"epochs": 1}, "reranker": None}
B: dict[str, Any] = {"towers": TOWERS, "training": {"epochs": 6}, "reranker": RERANKER}
"""What the configurations of the two bundles differ in."""


@dataclass(frozen=True)
class Size:
    """items: of the catalogue; people: with a past of `past` events each; explorers: asked `rounds` times with
    exploration; testers: others, asked once in the test."""

    items: int = 600
    people: int = 4000
    past: int = 10
    explorers: int = 900
    rounds: int = 4
    testers: int = 1000


@dataclass(frozen=True)
class World:
    """item_ids, user_ids: of the rows of items and people; first, second: the folders of the bundles A and B."""

    people: People
    behaviour: Behaviour
    item_ids: tuple[str, ...]
    user_ids: tuple[str, ...]
    size: Size
    first: Path
    second: Path


def build(folder: Path, size: Size, seed: int, today: int, reporter: Reporter) -> World:
    """Write tables and train both bundles below `folder`. today: µs, the end of the past."""
    films, vectors = catalogue(folder / "movielens", size.items)
    people = people_near(vectors, size.people, seed=seed, drift=0.005, liked=0.04)
    item_ids = tuple(films.get_column(ITEM))
    user_ids = tuple(f"p{person:05d}" for person in range(size.people))
    write_past(folder / "data", films, people, user_ids, size.past, seed, today)
    first, second = (
        train(_config(folder, name, settings, seed), NullTracker(), reporter, publish=False)[0]
        for name, settings in (("a", A), ("b", B))
    )
    return World(people, Behaviour(), item_ids, user_ids, size, first, second)


def catalogue(folder: Path, n: int) -> tuple[pl.DataFrame, Doubles]:
    """The n films of MovieLens with most good ratings, and their right singular vectors (n, DIMENSION)."""
    data = {"source": "movielens", "path": str(folder), "events": {"positive": {"rating": 3.5}}}
    config = RunConfig.model_validate({"name": "catalogue", "data": data, "encoder": None})
    get(config.data)
    dataset = load_dataset(config)
    matrix = user_item_matrix(dataset.events).tocsc()
    most = np.sort(np.argsort(-np.diff(matrix.indptr), kind="stable")[:n])
    chosen = matrix[:, most].astype(np.float64)
    _, values, right = scipy.sparse.linalg.svds(chosen, k=DIMENSION, random_state=0)
    return dataset.catalog.frame[most].select(ITEM, TITLE, CATEGORIES), right.T * values


def write_past(
    folder: Path, films: pl.DataFrame, people: People, user_ids: tuple[str, ...], events: int, seed: int, today: int
) -> None:
    """The tables of the shop: items, and what people took without recommendations in the last days."""
    days = np.sort(np.random.default_rng([seed, 1]).uniform(-PAST_DAYS, 0, events))
    users, rows = chosen_unaided(people, days, seed=seed)
    at = np.random.default_rng([seed, 2]).uniform(-0.4, 0, len(users)) + np.repeat(days, len(user_ids))
    folder.mkdir()
    films.write_parquet(folder / "items.parquet")
    ids = films.get_column(ITEM)
    times = pl.Series(today + (at * DAY).astype(np.int64)).cast(pl.Datetime("us", "UTC"))
    pl.DataFrame({USER: pl.Series(user_ids)[users], ITEM: ids[rows], EVENT: CLICK, TIME: times}).write_parquet(
        folder / "events.parquet"
    )


def _config(folder: Path, name: str, settings: dict[str, Any], seed: int) -> RunConfig:
    data = {
        "source": "folder",
        "path": str(folder / "data"),
        "events": {"positive": {CLICK: None, PURCHASE: None}},
        "placements": {EXPLORED: {"repeats": False}, QUIET: {"repeats": False}},
    }
    common: dict[str, Any] = {"data": data, "encoder": None, "baselines": {"popular": {}}, "seed": seed}
    places = {"bundles": str(folder / "bundles"), "cache": str(folder / "cache")}
    return RunConfig.model_validate({"name": f"simulated-{name}", **common, **places, **settings})
