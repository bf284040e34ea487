"""ALS for implicit feedback, by the package `implicit`. No other file imports it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from features.arrays import Floats
from features.errors import ConfigError, missing_package
from features.interactions import Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts, profile, user_item_matrix

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares


def _single_blas_thread() -> threadpool_limits:
    """Limits BLAS to one thread. implicit calls BLAS from its own threads; nested pools are slow and may hang."""
    return threadpool_limits(1, "blas")


@dataclass(frozen=True)
class ImplicitALS(DenseRecommender):
    """model: a fitted model with item factors (n, f) float32. Its user factors are not used."""

    model: "AlternatingLeastSquares"

    def scores(self, positives: Ragged) -> Floats:
        """Inner products of item factors and the user factors of the histories: (b, n) float32."""
        import torch  # for its faster product; imported late, because the import is slow

        history = profile(positives, len(self.popularity), 1.0)  # (b, n)
        with _single_blas_thread():
            users = self.model.recalculate_user(np.arange(len(positives)), sp.csr_matrix(history))  # (b, f)
        return (torch.from_numpy(users) @ torch.from_numpy(self.model.item_factors).T).numpy()


def fit_als(
    events: Interactions,
    *,
    factors: int = 256,
    regularization: float = 1.0,
    alpha: float = 10.0,
    iterations: int = 15,
    seed: int = 0,
) -> ImplicitALS:
    """ALS for implicit feedback (Hu, Koren & Volinsky 2008; solver of Takács et al. 2011).

    alpha: confidence of a positive item. The factors of a user are computed from the history of the request (equation
    4 of Hu et al.), so that users without training events are served too.
    Raises DataError without positive events, ConfigError on settings out of range.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError as error:
        raise missing_package("the baseline als", "implicit", "train") from error

    if factors < 1 or regularization < 0 or alpha <= 0 or iterations < 1:
        raise ConfigError(
            f"ALS with factors={factors}, regularization={regularization}, alpha={alpha}, iterations={iterations}: "
            "needs factors >= 1, regularization >= 0, alpha > 0, iterations >= 1"
        )
    popularity = positive_counts(events)
    with _single_blas_thread():
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, iterations=iterations, random_state=seed
        )
        model.fit(sp.csr_matrix(user_item_matrix(events)), show_progress=False)
    return ImplicitALS(popularity, events.latest, model)
