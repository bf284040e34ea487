"""How often each position of a placement is examined, estimated from what was drawn there.

The position-based model: a person examines position p with a probability that depends on p alone, and responds to an
examined item by what it is. At explored positions items are drawn at random (`recsys.ranking.exploration`), so that
what is drawn does not depend on the position, but for one thing: pools are dealt in turn, and the pools of lower
positions get items that stand a little lower among those that follow the slate. So the logarithm of the share of
drawn items that get a response is fitted as a number for each position and a slope for the place among these items
(a Poisson regression). The numbers are the examination, up to a common factor (Joachims, Swaminathan & Schnabel 2017,
"Unbiased Learning-to-Rank with Biased Feedback"; Wang et al. 2018, "Position Bias Estimation for Unbiased Learning to
Rank in Personal Search"). Lists are read from the top: isotonic regression keeps the numbers from rising.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from sklearn.linear_model import PoissonRegressor

from features.arrays import Bools, Doubles, Ints

MIN_RESPONSES = 100
"""Responses to drawn items, over all positions, from which on examination is estimated."""

MIN_EXAMINATION = 0.05
"""Lowest examination that is believed: a response is worth at most 20 times one at the first position. Clipping
trades a small bias for a bounded variance (Joachims et al. 2017)."""

_PENALTY = 1e-6
"""Of the regression: a position without a response would have no finite number."""


@dataclass(frozen=True)
class Examination:
    """positions (p,): ascending; probability (p,): examination of each, relative to the first of them."""

    positions: Ints
    probability: Doubles

    def of(self, positions: Ints) -> Doubles:
        """The examination of positions of any shape; of one that is not known, that of the next known one."""
        at = np.searchsorted(self.positions, positions).clip(max=len(self.positions) - 1)
        out: Doubles = self.probability[at]
        return out


def estimate(positions: Ints, places: Ints, responded: Bools) -> Examination | None:
    """From m drawn items: the position of each, its place among those that follow the slate, whether a response
    followed. All (m,). None where fewer than MIN_RESPONSES did."""
    if np.count_nonzero(responded) < MIN_RESPONSES:
        return None
    cells, cell = np.unique(np.stack((positions, places), axis=1), axis=0, return_inverse=True)  # (c, 2)
    shown = np.bincount(cell)
    share = np.bincount(cell, responded) / shown
    distinct, column = np.unique(cells[:, 0], return_inverse=True)
    slope = cells[:, 1] / max(1, int(cells[:, 1].max()))
    regressors = np.column_stack((np.eye(len(distinct))[column], slope))
    model = PoissonRegressor(alpha=_PENALTY, fit_intercept=False, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    levels = np.exp(model.fit(regressors, share, sample_weight=shown).coef_[:-1])
    falling = isotonic_regression(levels, weights=np.bincount(column, shown), increasing=False).x
    return Examination(distinct.astype(np.int64), np.maximum(falling / falling[0], MIN_EXAMINATION))
