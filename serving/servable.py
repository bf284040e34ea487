"""The interface of a bundle that the service can serve."""

from collections.abc import Mapping
from typing import Any, Protocol

from features.arrays import Bools, Floats, Ints
from features.catalog import Catalog
from features.interactions import Ragged, UserStates
from features.schema import DataConfig
from recsys.bundle.item_map import ItemMap
from recsys.content.content_space import ContentSpace
from recsys.interfaces import Candidates
from recsys.ranking.explain import Explainable, Explainer


class ServableBundle(Protocol):
    """Interface of a bundle that the service can serve; `recsys.bundle.model.Bundle` implements it."""

    @property
    def fingerprint(self) -> str:
        """Identifier of the bundle in responses and in the event log."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Its manifest: how it was trained."""
        ...

    @property
    def content(self) -> ContentSpace | None:
        """The content space of its items; None when they have no content vectors."""
        ...

    @property
    def catalog(self) -> Catalog:
        """Its items."""
        ...

    @property
    def data(self) -> DataConfig:
        """Its data configuration: event rules and placements."""
        ...

    @property
    def item_map(self) -> ItemMap | None:
        """The map of its first items, in row order; None where it has none."""
        ...

    @property
    def recommender(self) -> Explainable:
        """Its recommender: user tower, index, reranker."""
        ...

    @property
    def explainer(self) -> Explainer:
        """Explains its recommendations."""
        ...

    @property
    def popular(self) -> Ints:
        """(n,) int64: rows, the most popular first."""
        ...

    @property
    def popularity(self) -> Floats:
        """(n,) float32: the scores that `popular` is ordered by."""
        ...

    @property
    def vectors(self) -> Floats | None:
        """Vectors of behaviour (n, d), unit rows; None where there are none."""
        ...

    def close(self) -> None:
        """End the use of what it was loaded from; no request follows."""
        ...

    @property
    def note(self) -> str:
        """Which part does not run as configured, and why; "" when all parts do."""
        ...

    def similar(self, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
        """The k items nearest to each item of rows (b,)."""
        ...

    def search(self, content: Floats, k: int, *, allow: Bools | None = None) -> Candidates:
        """The k items nearest to each content vector (b, D) of the bundle's space."""
        ...

    def search_for(
        self, content: Floats, states: UserStates, k: int, *, weight: float, allow: Bools | None = None
    ) -> Candidates:
        """The k items nearest to each content vector (b, D) and user (b states); weight: of the user."""
        ...
