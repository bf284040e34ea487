"""Small logs, catalogues and data sets with results that can be computed by hand."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from experiments.evaluation.outcomes import SCHEMA
from features.catalog import Catalog
from features.ids import IdMap
from features.instants import DAY
from features.interactions import Interactions, Ragged
from features.tables.read import ITEMS
from recsys.baselines import fit_popular
from recsys.config import RerankerConfig, SourceQuotas, TowerConfig
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import RankingExamples, fit_reranker
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.index import Index
from recsys.towers.model import TwoTowers

START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 10**6

SMALL = TowerConfig(dimension=8, layers=1, heads=2, history=5, dropout=0.0, id_dropout=0.0)

FACTS: dict[str, Any] = {
    "config": {"data": {"source": "folder", "path": "x", "events": {"positive": {"take": None}}}},
    "data_hash": "d",
    "split_hash": "s",
    "code_version": "0",
    "seed": 0,
    "metrics": [],
}
"""The description of a run that `save_bundle` records."""


class Lines:
    """A reporter that keeps the lines of a run."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def steps(self, what, total):
        return lambda done: None


def toy_log(rows, n_users=4, n_items=6):
    """Interactions from (user, item, time[, positive[, seen]]) tuples in log order; the flags default to True."""
    full = [(*row, *(True,) * (5 - len(row))) for row in rows]
    columns = zip(*full, strict=True) if full else ([],) * 5
    users, items, times, positive, seen = (np.array(c, dtype=np.int64) for c in columns)
    return Interactions.sort(users, items, times, positive.astype(np.bool_), seen.astype(np.bool_), n_users, n_items)


def toy_catalog(n, *, categories=None, text=None):
    """Items i0, i1, …; categories: a list of names for each item; text (n, m): vectors, zero where missing."""
    ids = IdMap(tuple(f"i{row}" for row in range(n)))
    text = np.zeros((n, 1), np.float32) if text is None else np.asarray(text, np.float32)
    frame = pl.DataFrame(
        {"item_id": ids.ids, "title": [f"Title {row}" for row in range(n)], "categories": categories or [None] * n},
        schema_overrides=ITEMS,
    )
    frame = frame.with_columns(pl.lit(None, kind).alias(k) for k, kind in ITEMS.items() if k not in frame.columns)
    return Catalog.of(frame.select(list(ITEMS)), ids, text, text.any(1))


def chain(n_users=40, n_items=12, length=10, *, seed=0):
    """Each user takes items i, i + 1, ... modulo n_items, from a random start, one every hour."""
    rng = np.random.default_rng(seed)
    first_item, delay = rng.integers(0, n_items, n_users), rng.integers(0, 30 * DAY, n_users)
    step = np.arange(length)
    users = np.repeat(np.arange(n_users), length)
    items = (first_item[:, None] + step).ravel() % n_items
    times = (START + delay[:, None] + step * 3600 * 10**6).ravel()
    return toy_log(np.stack([users, items, times], axis=1).tolist(), n_users, n_items)


def noise(n_users=60, n_items=30, length=12, *, seed=0):
    """Random events over 60 days: a tenth is not positive, and a tenth does not count as seen."""
    rng = np.random.default_rng(seed)
    m = n_users * length
    rows = zip(
        rng.integers(0, n_users, m).tolist(),
        (n_items * rng.random(m) ** 2).astype(int).tolist(),
        (START + rng.integers(0, 60 * DAY, m)).tolist(),
        (rng.random(m) < 0.9).tolist(),
        (rng.random(m) < 0.9).tolist(),
        strict=True,
    )
    return toy_log(list(rows), n_users, n_items)


def toy_stage(events, catalog=None, *, reranked=True, config=SMALL, seed=0):
    """(recommender, catalogue, statistics) of untrained towers; the reranker is fitted on random relevance."""
    import torch

    torch.manual_seed(seed)
    catalog = catalog or toy_catalog(events.n_items)
    statistics = ItemStatistics.of(events)
    model = TwoTowers(catalog, statistics, config)
    vectors = model.item_vectors()
    index = Index(vectors)
    reranker = None
    if reranked:
        users = np.arange(events.n_users)
        states = events.states(users, np.full(len(users), int(np.quantile(events.times, 0.7))))
        candidates = index.search(model.user_vectors(states, vectors), 20)
        rng = np.random.default_rng(seed)
        relevant = rng.random(candidates.rows.shape) < 0.5 / (1 + candidates.rows.clip(min=0))
        features = PairFeatures.of(catalog, vectors, events)
        reranker = fit_reranker(
            features, [RankingExamples(states, candidates, relevant)], RerankerConfig(trees=5), seed=seed
        )
        assert reranker is not None
    popular = fit_popular(events)
    stage = TwoStageRecommender(model, vectors, index, popular, reranker, 20, SourceQuotas(), events.latest)
    return stage, catalog, statistics


def rows_of(ragged: Ragged) -> list[list[int]]:
    """The slices, as lists."""
    return [ragged.flat[b:e].tolist() for b, e in zip(ragged.begin, ragged.end, strict=True)]


def write_tables(folder: Path, n_users=40, n_items=12, length=13) -> None:
    """Writes items.csv and events.csv of a `chain`: users u0, u1, …, items i0, i1, … of two categories."""
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(n_items)],
            "title": [f"Title {i}" for i in range(n_items)],
            "categories": [f'["{"odd" if i % 2 else "even"}"]' for i in range(n_items)],
        }
    ).write_csv(folder / "items.csv")
    events = chain(n_users, n_items, length)
    pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in events.users],
            "item_id": [f"i{i}" for i in events.items],
            "event": ["take"] * len(events),
            "timestamp": pl.Series(events.times).cast(pl.Datetime("us", "UTC")).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ"),
        }
    ).write_csv(folder / "events.csv")


def toy_config(folder: Path, **sections: object) -> Path:
    """Path of a new configuration file in `folder`, for the tables that `write_tables` wrote to folder/data."""
    config = {
        "name": "toy",
        "data": {
            "source": "folder",
            "path": str(folder / "data"),
            "events": {"positive": {"take": None}},
            "placements": {"home": {"repeats": False}, "again": {"repeats": True}},
            "log": str(folder / "log"),
        },
        "split": {"test": 0.2, "validation": 0.2},
        "encoder": None,
        "towers": SMALL.model_dump(),
        "training": {"epochs": 2, "batch_events": 256, "learning_rate": 0.01},
        "reranker": {"candidates": 10, "trees": 3},
        "baselines": {"popular": {}, "item-knn": {"decay": 0.9, "shrink": 1, "exponent": 0.5, "k": 10}},
        "bundles": str(folder / "bundles"),
        "cache": str(folder / "cache"),
        **sections,
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def outcome_table(rows):
    """Outcomes of (model, user, item, rank) tuples; one placement, one window, one moment."""
    columns = list(zip(*rows, strict=True))
    return pl.DataFrame(
        {
            "model": columns[0],
            "placement": ["home"] * len(rows),
            "window": [1] * len(rows),
            "user": columns[1],
            "item": columns[2],
            "time": pl.Series([0] * len(rows)).cast(pl.Datetime("us", "UTC")),
            "rank": [float(rank) for rank in columns[3]],
            "warm_user": [True] * len(rows),
            "warm_item": [True] * len(rows),
            "history": [1] * len(rows),
        },
        schema=SCHEMA,
    )


def rows_of_targets(targets):
    """Every target as (user, as_of, seen items, items of positive events, item), sorted."""
    seen, positives = rows_of(targets.states.seen_items()), rows_of(targets.states.positives())
    return sorted(
        (int(targets.states.users[s]), int(targets.states.as_of[s]), tuple(seen[s]), tuple(positives[s]), int(i))
        for s, i in zip(targets.state, targets.item, strict=True)
    )
