"""Content baselines: a TF-IDF profile, and a regression from TF-IDF to behaviour vectors, which covers cold items."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats
from features.errors import ConfigError, DataError
from features.interactions import Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts, profile, user_item_matrix


@dataclass(frozen=True)
class TfidfProfile(DenseRecommender):
    """terms (n, v) sparse float32: TF-IDF rows of norm 1 or 0."""

    terms: sp.csr_array
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Cosine of each item's TF-IDF row and the sum of decay ** age * row over the history: (b, n) float32."""
        users = profile(positives, len(self.popularity), self.decay) @ self.terms  # (b, v)
        norms = np.sqrt(users.power(2).sum(axis=1))[:, None]  # (b, 1)
        scores: Floats = (users @ self.terms.T).toarray()
        np.divide(scores, norms, out=scores, where=norms > 0)
        return scores


@dataclass(frozen=True)
class ContentBridge(DenseRecommender):
    """behaviour (n, d), predicted (n, d) float32: item vectors from events, and predicted from content.

    The row of a cold item in `behaviour` is the predicted one.
    """

    behaviour: Floats
    predicted: Floats
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Inner product of `predicted` and the sum of decay ** age * behaviour vector over the history: (b, n)."""
        users: Floats = profile(positives, len(self.popularity), self.decay) @ self.behaviour  # (b, d)
        return users @ self.predicted.T


def fit_tfidf(events: Interactions, texts: list[str], *, decay: float = 0.8) -> TfidfProfile:
    """Content profile (Lops, de Gemmis & Semeraro 2011): cosine with the recency-weighted sum of TF-IDF rows.

    texts (n,): texts of all items, cold ones too, in row order; items without text score 0. Only popularity is fitted
    on events. Raises DataError on a wrong number of texts, no words, or no positive events.
    """
    _check_decay(decay)
    return TfidfProfile(positive_counts(events), events.latest, tfidf_rows(texts, events.n_items), decay)


def fit_bridge(
    events: Interactions, texts: list[str], *, dim: int = 64, ridge: float = 1.0, decay: float = 0.8, seed: int = 0
) -> ContentBridge:
    """Ridge regression from TF-IDF rows to item vectors of a truncated SVD (as Gantner et al. 2010 map attributes).

    The SVD is that of X / (user count * item count)^.25, X the user-item matrix: half way between the raw matrix
    (PureSVD, Cremonesi, Koren & Turrin 2010) and the normalised one (EigenRec, Nikolakopoulos et al. 2019), so that
    popularity counts less. Item vectors are the rows of V sqrt(S), scaled to unit length.

    The regression is fitted on the warm items. Every item, warm or cold, is scored by its predicted vector, so that
    scores are comparable. dim is reduced to the smaller side of the matrix if it is larger.
    Raises DataError on a wrong number of texts, no words, or no positive events.
    """
    from sklearn.decomposition import TruncatedSVD  # imported late, because it takes a second
    from sklearn.linear_model import Ridge

    _check_decay(decay)
    if dim < 1 or ridge <= 0:
        raise ConfigError(f"content bridge with dim={dim}, ridge={ridge}: needs dim >= 1, ridge > 0")
    popularity = positive_counts(events)
    terms = tfidf_rows(texts, events.n_items)
    warm = popularity > 0
    x = user_item_matrix(events)[:, warm]  # (n_users, warm)
    x = sp.diags_array(np.maximum(x.sum(axis=1), 1.0) ** -0.25) @ x @ sp.diags_array(x.sum(axis=0) ** -0.25)
    dim = min(dim, *x.shape)
    svd = TruncatedSVD(dim, n_iter=7, random_state=seed).fit(x)
    vectors = svd.components_.T * np.sqrt(svd.singular_values_)  # (warm, dim)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    regression = Ridge(alpha=ridge, solver="sparse_cg").fit(terms[warm], vectors)
    predicted = regression.predict(terms).astype(np.float32).reshape(events.n_items, dim)  # (n, dim)
    behaviour = predicted.copy()
    behaviour[warm] = vectors
    return ContentBridge(popularity, events.latest, behaviour, predicted, decay)


def _check_decay(decay: float) -> None:
    if not 0 < decay <= 1:
        raise ConfigError(f"a content profile with decay={decay}: needs 0 < decay <= 1")


def tfidf_rows(texts: list[str], n_items: int) -> sp.csr_array:
    """(n, v) sparse float32: TF-IDF rows of norm 1 or 0. Raises DataError on a wrong number of texts or no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) != n_items:
        raise DataError(
            f"{len(texts)} texts for {n_items} items: pass one text for each item, in row order, empty if it has none"
        )
    try:
        terms = TfidfVectorizer(dtype=np.float32).fit_transform(texts)
    except ValueError as error:  # how sklearn reports an empty vocabulary
        raise DataError(
            f"TF-IDF of {n_items} item texts: no word has two letters or more; use a baseline without content"
        ) from error
    return sp.csr_array(terms)
