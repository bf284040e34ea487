"""STAR: items that are like the last ones of a history by content and by common users, without any training."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats
from features.errors import ConfigError, DataError
from features.interactions import Interactions, Ragged
from recsys.baselines.content import tfidf_rows
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts, profile
from recsys.ranking.item_similarity import item_similarity


@dataclass(frozen=True)
class Star(DenseRecommender):
    """terms (n, v) sparse float32: TF-IDF rows; content (n, d) float32: content vectors; all of norm 1 or 0.

    common (n, n) sparse float32: cosines of items by users, 0 on the diagonal.
    """

    terms: sp.csr_array
    content: Floats
    common: sp.csr_array
    decay: float
    last: int
    weight: float
    vectors: float

    def scores(self, positives: Ragged) -> Floats:
        """Sum over the last items of decay ** age * (weight * content cosine + (1 - weight) * common): (b, n).

        The content cosine is vectors * cosine of content vectors + (1 - vectors) * cosine of TF-IDF rows.
        """
        histories = profile(positives, len(self.popularity), self.decay, self.last)  # (b, n)
        scores: Floats = (histories @ self.common).toarray() * np.float32(1 - self.weight)
        if self.weight > 0 and self.vectors < 1:
            words: Floats = (histories @ self.terms @ self.terms.T).toarray()
            scores += np.float32(self.weight * (1 - self.vectors)) * words
        if self.weight > 0 and self.vectors > 0:
            scores += np.float32(self.weight * self.vectors) * ((histories @ self.content) @ self.content.T)
        return scores


def fit_star(
    events: Interactions,
    texts: list[str],
    content: Floats,
    *,
    decay: float = 0.7,
    last: int = 3,
    weight: float = 0.5,
    vectors: float = 0.0,
    k: int = 1000,
) -> Star:
    """STAR's retrieval (Lee et al. 2024, "STAR: A simple training-free approach for recommendations using large
    language models", arXiv 2410.16458), with the paper's defaults of decay, last and weight.

    score = sum over the last items of decay ** age * (weight * content cosine + (1 - weight) * c), where c_ij is
    the number of users with both items, divided by the square root of the product of their numbers of users. Each
    positive event counts alike: the paper's factor for ratings is left out. So is the length of the history,
    which does not change an order. k: each item keeps the c of its k nearest.

    texts (n,): as in `fit_tfidf`; content (n, d): content vectors of norm 1, 0 where an item has none; vectors:
    the share of the content cosine that is theirs, the rest is of TF-IDF rows. The paper embeds the texts by a
    language model.
    Raises ConfigError on settings out of range; DataError without positive events, on a wrong number of texts, or
    when the items have neither words nor vectors.
    """
    if not 0 < decay <= 1 or last < 1 or not 0 <= weight <= 1 or not 0 <= vectors <= 1 or k < 1:
        raise ConfigError(
            f"STAR with decay={decay}, last={last}, weight={weight}, vectors={vectors}, k={k}: needs 0 < decay <= 1, "
            "last >= 1, 0 <= weight <= 1, 0 <= vectors <= 1, k >= 1"
        )
    popularity = positive_counts(events)
    try:
        terms = tfidf_rows(texts, events.n_items)
    except DataError:
        if len(texts) != events.n_items or not content.any():
            raise
        terms = sp.csr_array((events.n_items, 1), dtype=np.float32)  # no words: the vectors alone
    common = item_similarity(events, k=k, shrink=0, exponent=0.5)
    return Star(popularity, events.latest, terms, content, common, decay, last, weight, vectors)
