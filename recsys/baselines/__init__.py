"""Baselines: each `fit_*` takes Interactions and returns a frozen `DenseRecommender`."""

import inspect
from collections.abc import Callable, Mapping

from recsys.baselines.als import fit_als
from recsys.baselines.content import fit_bridge, fit_tfidf
from recsys.baselines.ease import fit_ease
from recsys.baselines.frequency import fit_frequency
from recsys.baselines.neighbours import fit_item_knn
from recsys.dense_recommender import DenseRecommender
from recsys.retrieval.popular import fit_popular

KINDS: dict[str, Callable[..., DenseRecommender]] = {
    "popular": fit_popular,
    "item-knn": fit_item_knn,
    "ease": fit_ease,
    "als": fit_als,
    "tfidf": fit_tfidf,
    "bridge": fit_bridge,
    "frequency": fit_frequency,
}
"""Kind -> fit function. The kind is the first word of a baseline's name. Kinds of NEED_TEXTS also take item texts."""

NEED_TEXTS = ("tfidf", "bridge")
"""Kinds whose fit function takes item texts after the events."""


def check_baseline(name: str, arguments: Mapping[str, float]) -> None:
    """Raises ValueError when the kind is unknown or its fit function does not accept the arguments."""
    kind = name.split()[0] if name.strip() else name
    if kind not in KINDS:
        raise ValueError(f"no baseline {kind!r}; there are {', '.join(KINDS)}")
    settings = list(inspect.signature(KINDS[kind]).parameters)[1 + (kind in NEED_TEXTS) :]
    if unknown := next((argument for argument in arguments if argument not in settings), None):
        raise ValueError(f"{name!r} has no setting {unknown!r}; it has {', '.join(settings) or 'none'}")


__all__ = [
    "KINDS",
    "NEED_TEXTS",
    "check_baseline",
    "fit_als",
    "fit_bridge",
    "fit_ease",
    "fit_frequency",
    "fit_item_knn",
    "fit_popular",
    "fit_tfidf",
]
