"""The bundle in memory: everything that one training run hands to the service."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.catalog import Catalog
from features.interactions import Ragged, UserStates
from features.schema import DataConfig
from recsys.content.content_space import ContentSpace
from recsys.interfaces import Candidates
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.fusion import WeightedQuery, fused_search
from recsys.retrieval.mutable_index import MutableIndex
from recsys.towers.cold_start import informative_part


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    manifest: format, fingerprint, config, hashes of data and split, code version, seed, metrics, and the SHA-256 of
    every file. content: where the items' contents lie, None where they have none; contents: finds items by
    `catalog.content`.
    """

    path: Path
    manifest: dict[str, Any]
    catalog: Catalog
    recommender: TwoStageRecommender
    content: ContentSpace | None
    contents: MutableIndex

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything in the manifest, and by it over every file."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def data(self) -> DataConfig:
        """What events mean, and which placements there are."""
        return DataConfig.model_validate(self.manifest["config"]["data"])

    @cached_property
    def popular(self) -> Ints:
        """(n,) int64 rows, the most popular first."""
        return np.argsort(-self.recommender.fallback.popularity, kind="stable").astype(np.int64)

    @property
    def note(self) -> str:
        """Why candidates are not found by the kind that was asked for, "" where they are."""
        return self.contents.note

    def similar(self, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
        """The k items nearest to each of rows (b,), themselves left out unless `exclude` says otherwise."""
        own = Ragged(rows, np.arange(len(rows)), np.arange(1, len(rows) + 1)) if exclude is None else exclude
        asked = informative_part(self.recommender.vectors[rows])
        return self.recommender.index.search(asked, k, allow=allow, exclude=own)

    def search(self, content: Floats, k: int, *, allow: Bools | None = None) -> Candidates:
        """The k items nearest to each of some contents (b, m) of the bundle's space; those without any last."""
        return self.contents.search(content, k, allow=allow)

    def search_for(
        self, content: Floats, who: UserStates, k: int, *, weight: float, allow: Bools | None = None
    ) -> Candidates:
        """The k items near to some contents (b, m) and to who asks (b states); see `fused_search`."""
        its = self.recommender
        users = its.towers.user_vectors(who, its.vectors)
        questions = (
            WeightedQuery(content, 1 - weight, self.contents, self.catalog.content),
            WeightedQuery(users, weight, its.index, its.vectors),
        )
        return fused_search(questions, k, allow=allow)
