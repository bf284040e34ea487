"""The bundle in memory: everything that one training run hands to the service."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.catalog import Catalog
from features.interactions import Ragged, UserStates
from features.schema import DataConfig
from recsys.bundle.item_map import ItemMap
from recsys.content.content_space import ContentSpace
from recsys.interfaces import Candidates
from recsys.ranking.explain import BEHAVIOUR, Channel, Explainer
from recsys.ranking.reranker import Reranker
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.fusion import WeightedQuery, fused_search
from recsys.retrieval.mutable_index import MutableIndex
from recsys.towers.cold_start import informative_part


class Lease(Protocol):
    """The use of a copy on disk; `recsys.bundle.serving_copy.Lease` implements it."""

    @property
    def end(self) -> Callable[[], object]:
        """Ends the use; a second call does nothing."""
        ...


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    manifest: format, fingerprint, config, hashes of data and split, code version, seed, metrics, and the SHA-256 of
    every file; content: the space of the items' contents, None where they have none; contents: the index of
    `catalog.content`; item_map: of the items that were trained, None where there is none; lease: keeps the copy that
    a service has loaded it from (`recsys.bundle.serving_copy`).
    """

    path: Path
    manifest: dict[str, Any]
    catalog: Catalog
    recommender: TwoStageRecommender
    content: ContentSpace | None
    contents: MutableIndex
    item_map: ItemMap | None = None
    lease: Lease | None = field(default=None, repr=False, compare=False)

    def close(self) -> None:
        """End the use of the copy that it was loaded from; no request may follow."""
        if self.lease is not None:
            self.lease.end()

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name what is served (`recsys.bundle.formats.fingerprint_of`): the name of the folder."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def data(self) -> DataConfig:
        """The data configuration: what events mean, and the placements."""
        return DataConfig.model_validate(self.manifest["config"]["data"])

    @cached_property
    def popular(self) -> Ints:
        """Item rows (n,) int64, most popular first."""
        return self.recommender.fallback.order

    @property
    def popularity(self) -> Floats:
        """The scores (n,) that `popular` is ordered by."""
        return self.recommender.fallback.popularity

    @cached_property
    def explainer(self) -> Explainer:
        """Explains its recommendations: by the content channels and, where there is a reranker, by behaviour.

        The vector of a cold item is predicted from its content: it says nothing about behaviour.
        """
        recommender, popular = self.recommender, self.recommender.fallback
        contents = {} if self.content is None else self.content.channels
        channels = {name: Channel(channel.vectors, channel.present) for name, channel in contents.items()}
        if isinstance(recommender.reranker, Reranker):
            weights = recommender.reranker.features.neighbours
            channels[BEHAVIOUR] = Channel(recommender.vectors, popular.popularity > 0, weights)
        trained = len(recommender.towers.items.known)
        return Explainer(self.catalog, channels, popular.popularity, trained, popular.days, popular.fitted_until)

    @property
    def vectors(self) -> Floats:
        """Item vectors of the towers (n, d): unit rows."""
        return self.recommender.vectors

    @property
    def note(self) -> str:
        """Why another kind of retriever than the configured one is in use, "" where the configured one is."""
        return self.contents.note

    def similar(self, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
        """The k items nearest to each of rows (b,). exclude: by default each item itself."""
        own = Ragged(rows, np.arange(len(rows)), np.arange(1, len(rows) + 1)) if exclude is None else exclude
        queries = informative_part(self.recommender.vectors[rows])  # (b, d)
        return self.recommender.index.search(queries, k, allow=allow, exclude=own)

    def search(self, content: Floats, k: int, *, allow: Bools | None = None) -> Candidates:
        """The k items nearest to each of contents (b, m) in the bundle's space; items without content come last."""
        return self.contents.search(content, k, allow=allow)

    def search_for(
        self, content: Floats, states: UserStates, k: int, *, weight: float, allow: Bools | None = None
    ) -> Candidates:
        """The k items for each of contents (b, m), fused with the users of b states; see `fused_search`.

        weight: of the user, in 0..1; the content's is 1 - weight.
        """
        recommender = self.recommender
        users = recommender.user_vectors(states)  # (b, d)
        weighted = (
            WeightedQuery(content, 1 - weight, self.contents, self.catalog.content),
            WeightedQuery(users, weight, recommender.index, recommender.vectors),
        )
        return fused_search(weighted, k, allow=allow)
