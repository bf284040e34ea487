"""Baselines: each `fit_*` takes Interactions and returns a frozen `DenseRecommender`."""

import inspect
from collections.abc import Callable, Mapping

from recsys.baselines.als import fit_als
from recsys.baselines.content import fit_bridge, fit_tfidf
from recsys.baselines.ease import fit_ease, fit_ease_bridge
from recsys.baselines.frequency import fit_frequency
from recsys.baselines.grids import GRIDS, OF_CONTENT_VECTORS, Grid, Setting, Settings
from recsys.baselines.neighbours import fit_item_knn
from recsys.baselines.star import fit_star
from recsys.dense_recommender import DenseRecommender
from recsys.retrieval.popular import fit_popular

KINDS: dict[str, Callable[..., DenseRecommender]] = {
    "popular": fit_popular,
    "item-knn": fit_item_knn,
    "ease": fit_ease,
    "als": fit_als,
    "tfidf": fit_tfidf,
    "bridge": fit_bridge,
    "ease-bridge": fit_ease_bridge,
    "star": fit_star,
    "frequency": fit_frequency,
}
"""Kind -> fit function. The kind is the first word of a baseline's name. Settings are its keyword arguments."""

NEED_TEXTS = ("tfidf", "bridge", "ease-bridge", "star")
"""Kinds whose fit function takes item texts after the events."""

NEED_VECTORS = ("star",)
"""Kinds whose fit function takes the content vectors of the items after the texts."""


def check_baseline(name: str, arguments: Mapping[str, float]) -> None:
    """Raises ValueError when the kind is unknown or its fit function does not accept the arguments."""
    kind = name.split()[0] if name.strip() else name
    if kind not in KINDS:
        raise ValueError(f"no baseline {kind!r}; there are {', '.join(KINDS)}")
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    settings = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if unknown := next((argument for argument in arguments if argument not in settings), None):
        raise ValueError(f"{name!r} has no setting {unknown!r}; it has {', '.join(settings) or 'none'}")


__all__ = [
    "GRIDS",
    "KINDS",
    "NEED_TEXTS",
    "NEED_VECTORS",
    "OF_CONTENT_VECTORS",
    "Grid",
    "Setting",
    "Settings",
    "check_baseline",
    "fit_als",
    "fit_bridge",
    "fit_ease",
    "fit_ease_bridge",
    "fit_frequency",
    "fit_item_knn",
    "fit_popular",
    "fit_star",
    "fit_tfidf",
]
