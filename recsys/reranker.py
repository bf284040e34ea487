"""The second stage: fifteen features of user, item and pair, ordered by LambdaMART. The only import of lightgbm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.catalog import Catalog
from features.errors import BundleError, DependencyError
from features.interactions import Ints, Ragged, UserStates
from recsys.baselines.profiles import ages
from recsys.candidates import Candidates, Floats
from recsys.metrics import Doubles
from recsys.settings import RerankerConfig
from recsys.statistics import ItemStatistics

try:
    import lightgbm
except OSError as error:  # the wheel links the system's OpenMP, which slim images lack
    raise DependencyError(
        f"lightgbm cannot be loaded ({error}): install libgomp, e.g. apt-get install libgomp1"
    ) from error

FEATURES = (
    "retrieval_score",
    "retrieval_rank",
    "similarity_last",
    "similarity_max",
    "similarity_mean",
    "text_similarity",
    "category_share",
    "item_log_count",
    "item_log_recent",
    "item_trend",
    "item_days_since_last",
    "user_log_history",
    "user_popularity_gap",
    "user_item_log_count",
    "user_item_recency",
)
"""Columns of the feature matrix, in order."""

DECAY = 0.99
"""Weight of an own event in user_item_recency against the one before it in the history."""

RECENT_EVENTS = 50
"""Newest positive events of a user that similarities are taken with."""


@dataclass(frozen=True)
class PairFeatures:
    """Makes the feature matrix of (state, candidate) pairs from arrays fixed at training.

    vectors (n, d) item vectors of the towers that found the candidates; statistics of the items.
    """

    catalog: Catalog
    vectors: Floats
    statistics: ItemStatistics

    @property
    def fitted_until(self) -> int:
        """µs of the latest event that the features have seen."""
        return self.statistics.fitted_until

    def matrix(self, states: UserStates, candidates: Candidates) -> Floats:
        """(b, k, len(FEATURES)) float32; NaN where a feature does not exist; padding rows are meaningless."""
        s, liked = self.statistics, states.liked()
        rows = np.maximum(candidates.rows, 0)  # (b, k)
        recent = liked.tail(RECENT_EVENTS)  # (b, h), right-aligned
        there = recent >= 0
        known = np.maximum(recent, 0)
        count = there.sum(1).clip(min=1)[:, None]
        similar = np.einsum("bkd,bhd->bkh", self.vectors[rows], self.vectors[known], optimize=True)
        similar[np.broadcast_to(~there[:, None, :], similar.shape)] = np.nan
        profile = (self.catalog.content[known] * there[:, :, None]).sum(1)  # (b, m)
        profile /= np.linalg.norm(profile, axis=1, keepdims=True).clip(min=1e-9)
        main = self.catalog.categories[:, 0]
        same = (main[rows][:, :, None] == main[known][:, None, :]) & there[:, None, :]
        same &= (main[rows] >= 0)[:, :, None]  # items without a category share none
        popularity = np.log1p(s.total[rows])  # of the candidates only, not of the catalogue
        recently = np.log1p(s.recent[rows])
        count_own, recency_own = own_events(liked, rows, len(self.catalog))
        # until the statistics were taken, not until now: a bundle orders tomorrow as it was judged today
        days = (s.fitted_until - s.last[rows].astype(np.float64)) / 86400e6
        empty = ~there.any(1)
        mean_popularity = (np.log1p(s.total[known]) * there).sum(1) / count[:, 0]
        filled = np.where(np.isnan(similar), -1.0, similar)
        columns = (
            candidates.scores,
            np.broadcast_to(np.arange(candidates.rows.shape[1]), rows.shape),
            filled[:, :, -1],
            filled.max(2),
            np.where(there[:, None, :], filled, 0).sum(2) / count,
            np.einsum("bkm,bm->bk", self.catalog.content[rows], profile, optimize=True),
            same.sum(2) / count,
            popularity,
            recently,
            np.log1p(s.newest[rows] * (30 / 7)) - recently,
            np.where(s.total[rows] > 0, days, np.nan),
            np.broadcast_to(np.log1p(liked.lengths)[:, None], rows.shape),
            popularity - np.where(empty, np.nan, mean_popularity)[:, None],
            np.log1p(count_own),
            recency_own,
        )
        return np.stack([np.asarray(c, dtype=np.float32) for c in columns], axis=-1)


def own_events(liked: Ragged, rows: Ints, n_items: int) -> tuple[Doubles, Doubles]:
    """How often each of rows (b, k) is in its history, and the sum of DECAY ** age over that: two (b, k) arrays.

    age: events of the history since then.
    """
    which, items = liked.pairs()
    keys, group = np.unique(which * n_items + items, return_inverse=True)
    asked = np.arange(len(rows))[:, None] * n_items + rows
    at = np.searchsorted(keys, asked)
    found = np.append(keys, -1)[at] == asked

    def of(weights: Doubles) -> Doubles:
        return np.where(found, np.append(np.bincount(group, weights, len(keys)), 0.0)[at], 0.0)

    return of(np.ones(len(items))), of(np.power(DECAY, ages(liked)))


class Reranker:
    """LambdaMART (Burges 2010) behind `Scorer`."""

    def __init__(self, booster: lightgbm.Booster, features: PairFeatures) -> None:
        """A fitted booster and the features it reads."""
        self.booster = booster
        self.features = features

    def score(self, states: UserStates, candidates: Candidates) -> Floats:
        """See `Scorer`."""
        b, k = candidates.rows.shape
        matrix = self.features.matrix(states, candidates).reshape(b * k, len(FEATURES))
        scores = self.booster.predict(matrix, num_threads=1).reshape(b, k).astype(np.float32)
        return np.where(candidates.rows >= 0, scores, -np.inf)

    @property
    def importance(self) -> dict[str, float]:
        """Share of the total gain of each feature."""
        gain = self.booster.feature_importance("gain")
        return dict(zip(FEATURES, (gain / max(gain.sum(), 1e-12)).tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write the trees in LightGBM's own text format."""
        path.write_text(self.booster.model_to_string())

    @classmethod
    def load(cls, path: Path, features: PairFeatures) -> "Reranker":
        """Read what `save` wrote. Raises BundleError when the file is no model of these features."""
        try:
            booster = lightgbm.Booster(model_str=path.read_text())
        except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: not a LightGBM model: {error}") from error
        if tuple(booster.feature_name()) != FEATURES:
            raise BundleError(f"{path}: its features are {booster.feature_name()}, this version has {list(FEATURES)}")
        return cls(booster, features)


@dataclass(frozen=True)
class Lesson:
    """Candidates of b states, and which of them were taken: relevant (b, k) bool."""

    states: UserStates
    candidates: Candidates
    relevant: np.ndarray


def fit_reranker(
    features: PairFeatures, lessons: Sequence[Lesson], config: RerankerConfig, *, seed: int
) -> Reranker | None:
    """Fit on what was taken. None when nothing was: only states with a relevant candidate teach an order."""
    parts, labels, sizes = [], [], []
    for lesson in lessons:
        rows, scores = lesson.candidates.rows, lesson.candidates.scores
        useful = np.flatnonzero((lesson.relevant & (rows >= 0)).any(1))
        for start in range(0, len(useful), 256):
            part = useful[start : start + 256]
            valid = rows[part] >= 0
            parts.append(features.matrix(lesson.states[part], Candidates(rows[part], scores[part]))[valid])
            labels.append(lesson.relevant[part][valid])
            sizes.append(valid.sum(1))
    if not parts:
        return None
    data = lightgbm.Dataset(
        np.concatenate(parts),
        label=np.concatenate(labels).astype(np.float32),
        group=np.concatenate(sizes),
        feature_name=list(FEATURES),
    )
    booster = lightgbm.train(
        {
            "objective": "lambdarank",
            # every candidate: all begin with equal scores, and a shorter list would learn from whichever stand first
            "lambdarank_truncation_level": max(int(size.max()) for size in sizes),
            "num_leaves": config.leaves,
            "learning_rate": config.learning_rate,
            "min_data_in_leaf": min(2000, max(20, sum(map(len, parts)) // 500)),
            "deterministic": True,
            "force_row_wise": True,
            "seed": seed,
            "verbose": -1,
        },
        data,
        num_boost_round=config.trees,
    )
    return Reranker(booster, features)
