"""The settings of each baseline that are tried on validation where a configuration does not fix them."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Setting = int | float | None
"""None: the fit function's "no limit", as of the days of popularity."""

Settings = dict[str, Setting]

DECAYS = (0.5, 0.3, 0.7, 0.85, 0.95, 0.99)


@dataclass(frozen=True)
class Grid:
    """Setting -> values, of which the first is tried first.

    fitted: settings that a model is fitted with; applied: those that only its scores depend on, so that one fitted
    model serves all their values.
    """

    fitted: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    applied: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)

    def without(self, names: Collection[str]) -> "Grid":
        """The grid without some settings."""
        fitted, applied = (
            {name: values for name, values in part.items() if name not in names}
            for part in (self.fitted, self.applied)
        )
        return Grid(fitted, applied)

    def combinations(self) -> list[tuple[Settings, list[Settings]]]:
        """Each combination of `fitted`, with all combinations of `applied`: one empty combination for no settings."""
        return [(fitted, _products(self.applied)) for fitted in _products(self.fitted)]


def _products(values: Mapping[str, tuple[Setting, ...]]) -> list[Settings]:
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


EASE = Grid({"regularization": (200, 50, 1000)}, {"decay": DECAYS})

GRIDS: dict[str, Grid] = {
    "popular": Grid({"days": (None, 90, 30, 7, 1)}),
    "item-knn": Grid({"k": (1000, 100), "shrink": (10, 100), "exponent": (0.5, 0.3)}, {"decay": DECAYS}),
    "ease": EASE,
    "ease-bridge": EASE,
    "als": Grid({"factors": (64, 256), "regularization": (1, 10), "alpha": (10, 40)}),
    "tfidf": Grid({}, {"decay": DECAYS}),
    "bridge": Grid({"ridge": (1, 0.3, 3)}, {"decay": DECAYS}),
    "frequency": Grid({}, {"decay": (0.99, 0.9, 0.7)}),
    "star": Grid({}, {"decay": (0.7, 0.5, 0.9), "last": (3, 20), "weight": (0.5, 0.25, 0.1), "vectors": (0, 1)}),
}
"""Kind -> grid. Each has 3 to 48 combinations. The ranges cover what is best on groceries, films and sequences."""

OF_CONTENT_VECTORS = ("vectors",)
"""Settings that are tried only where items have content vectors."""
