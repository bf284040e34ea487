"""Implicit ALS through the package `implicit`: the one file that imports it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from features.arrays import Floats
from features.errors import ConfigError
from features.interactions import Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts, profile, user_item_matrix

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares


def _one_pool() -> threadpool_limits:
    """implicit calls BLAS from threads of its own: with a second pool inside it warns, crawls and may hang."""
    return threadpool_limits(1, "blas")


@dataclass(frozen=True)
class ImplicitALS(DenseRecommender):
    """model: fitted, with item factors (n, f) float32; its own user factors are not used."""

    model: "AlternatingLeastSquares"

    def scores(self, positives: Ragged) -> Floats:
        """Dot products of item factors with user factors solved for these histories: (b, n) float32."""
        import torch  # a faster product; not at the top, since every command would wait for it

        history = profile(positives, len(self.popularity), 1.0)
        with _one_pool():
            users = self.model.recalculate_user(np.arange(len(positives)), sp.csr_matrix(history))
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
    """ALS for implicit feedback (Hu, Koren & Volinsky 2008; solver of Takács et al. 2011), confidence alpha if liked.

    A user's factors are solved anew from the history at hand (their equation 4), so users unseen in training are
    served as well. Raises DataError without positive events, ConfigError on settings out of range.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    if factors < 1 or regularization < 0 or alpha <= 0 or iterations < 1:
        raise ConfigError(
            f"ALS with factors={factors}, regularization={regularization}, alpha={alpha}, iterations={iterations}: "
            "needs factors >= 1, regularization >= 0, alpha > 0, iterations >= 1"
        )
    popularity = positive_counts(events)
    with _one_pool():
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, iterations=iterations, random_state=seed
        )
        model.fit(sp.csr_matrix(user_item_matrix(events)), show_progress=False)
    return ImplicitALS(popularity, events.latest, model)
