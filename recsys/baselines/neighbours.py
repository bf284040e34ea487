"""Item-based nearest neighbours with recency weights."""

from dataclasses import dataclass

import scipy.sparse as sp

from features.arrays import Floats
from features.errors import ConfigError
from features.interactions import Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts, profile
from recsys.ranking.item_similarity import item_similarity


@dataclass(frozen=True)
class ItemKNN(DenseRecommender):
    """similarity (n, n) sparse: row = item of the history, column = scored item; the k largest of each row."""

    similarity: sp.csr_array
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Sum over the history of decay ** age * similarity: (b, n) float32."""
        weights = profile(positives, len(self.popularity), self.decay)
        scores: Floats = (weights @ self.similarity).toarray()
        return scores


def fit_item_knn(
    events: Interactions, *, k: int = 1000, shrink: float = 50.0, exponent: float = 0.3, decay: float = 0.5
) -> ItemKNN:
    """Item-kNN: scores are sums of `item_similarity` from the items of the history to the scored item.

    decay = 1 gives plain item-kNN. Raises DataError without positive events, ConfigError on settings out of range.
    """
    if k < 1 or shrink < 0 or not 0 <= exponent <= 1 or not 0 < decay <= 1:
        raise ConfigError(
            f"item-kNN with k={k}, shrink={shrink}, exponent={exponent}, decay={decay}: "
            "needs k >= 1, shrink >= 0, 0 <= exponent <= 1, 0 < decay <= 1"
        )
    similarity = item_similarity(events, k=k, shrink=shrink, exponent=exponent)
    return ItemKNN(positive_counts(events), events.latest, similarity, decay)
