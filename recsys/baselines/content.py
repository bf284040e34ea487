"""Content baselines: a TF-IDF profile, and a bridge from content to behaviour that places cold items."""

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
    """terms (n, v) sparse float32, unit rows or zero."""

    terms: sp.csr_array
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Cosine of each item's text with the sum of the history's, weighted decay ** age: (b, n) float32."""
        tastes = profile(positives, len(self.popularity), self.decay) @ self.terms  # (b, v)
        lengths = np.sqrt(tastes.power(2).sum(axis=1))[:, None]
        scores: Floats = (tastes @ self.terms.T).toarray()
        np.divide(scores, lengths, out=scores, where=lengths > 0)
        return scores


@dataclass(frozen=True)
class ContentBridge(DenseRecommender):
    """behaviour (n, d) and predicted (n, d) float32: an item as its users see it, and as its content suggests.

    Where an item has no behaviour its row of `behaviour` is the predicted one.
    """

    behaviour: Floats
    predicted: Floats
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Dot product of the history's behaviour vectors, weighted decay ** age, with predicted ones: (b, n)."""
        users: Floats = profile(positives, len(self.popularity), self.decay) @ self.behaviour  # (b, d)
        return users @ self.predicted.T


def fit_tfidf(events: Interactions, texts: list[str], *, decay: float = 0.8) -> TfidfProfile:
    """Content profile (Lops, de Gemmis & Semeraro 2011): cosine with the recency-weighted sum of TF-IDF rows.

    texts (n,) in row order; items without text score 0. Texts are known of all items, new ones too; nothing but
    popularity is fitted on events. Raises DataError on a wrong number of texts, no words, or no positive events.
    """
    _check_decay(decay)
    return TfidfProfile(positive_counts(events), events.latest, _tfidf(texts, events.n_items), decay)


def fit_bridge(
    events: Interactions, texts: list[str], *, dim: int = 64, ridge: float = 1.0, decay: float = 0.8, seed: int = 0
) -> ContentBridge:
    """Bridge from content to behaviour: vectors from a truncated SVD of X, then ridge regression from TF-IDF rows to
    them over the warm items (as Gantner et al. 2010 map attributes to factors).

    X is divided by (user count * item count)^.25, half way from the raw matrix (PureSVD, Cremonesi, Koren & Turrin
    2010) to the normalised one (EigenRec, Nikolakopoulos et al. 2019), so that popularity counts less; item vectors
    are rows of V sqrt(S), unit length.
    Every item, warm or cold, is scored by its predicted vector, so that their scores are comparable. dim is cut to
    what the matrix allows. Raises DataError on a wrong number of texts, no words, or no positive events.
    """
    from sklearn.decomposition import TruncatedSVD  # sklearn takes a second to import, which every command would pay
    from sklearn.linear_model import Ridge

    _check_decay(decay)
    if dim < 1 or ridge <= 0:
        raise ConfigError(f"content bridge with dim={dim}, ridge={ridge}: needs dim >= 1, ridge > 0")
    popularity = positive_counts(events)
    terms = _tfidf(texts, events.n_items)
    warm = popularity > 0
    x = user_item_matrix(events)[:, warm]
    x = sp.diags_array(np.maximum(x.sum(axis=1), 1.0) ** -0.25) @ x @ sp.diags_array(x.sum(axis=0) ** -0.25)
    dim = min(dim, *x.shape)
    svd = TruncatedSVD(dim, n_iter=7, random_state=seed).fit(x)
    vectors = svd.components_.T * np.sqrt(svd.singular_values_)  # (warm, dim)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    regression = Ridge(alpha=ridge, solver="sparse_cg").fit(terms[warm], vectors)
    predicted = regression.predict(terms).astype(np.float32).reshape(events.n_items, dim)
    behaviour = predicted.copy()
    behaviour[warm] = vectors
    return ContentBridge(popularity, events.latest, behaviour, predicted, decay)


def _check_decay(decay: float) -> None:
    if not 0 < decay <= 1:
        raise ConfigError(f"a content profile with decay={decay}: needs 0 < decay <= 1")


def _tfidf(texts: list[str], n_items: int) -> sp.csr_array:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) != n_items:
        raise DataError(
            f"{len(texts)} texts for {n_items} items: pass one an item, in row order, empty if it has none"
        )
    try:
        terms = TfidfVectorizer(dtype=np.float32).fit_transform(texts)
    except ValueError as error:  # sklearn's only sign of an empty vocabulary
        raise DataError(f"TF-IDF of {n_items} item texts: {error}; use a baseline without content") from error
    return sp.csr_array(terms)
