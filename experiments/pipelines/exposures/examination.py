"""How often each position of a placement is examined, estimated from what was drawn there.

The position-based model: a person examines position p with a probability that depends on p alone, and responds to an
examined item by what it is. At explored positions, items are drawn at random from pools of equal standing
(`recsys.ranking.exploration`). So the share of drawn items that get a response is, up to a common factor, the
examination of the position (Joachims, Swaminathan & Schnabel 2017, "Unbiased Learning-to-Rank with Biased Feedback";
Wang et al. 2018, "Position Bias Estimation for Unbiased Learning to Rank in Personal Search"). Lists are read from
the top: the shares are made not to rise with the position, by isotonic regression.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from features.arrays import Bools, Doubles, Ints

MIN_RESPONSES = 100
"""Responses to drawn items, over all positions, from which on examination is estimated."""

MIN_EXAMINATION = 0.05
"""Lowest examination that is believed: a response is worth at most 20 times one at the first position. Clipping
trades a small bias for a bounded variance (Joachims et al. 2017)."""


@dataclass(frozen=True)
class Examination:
    """positions (p,): the explored ones, ascending; probability (p,): of each relative to the first of them."""

    positions: Ints
    probability: Doubles

    def of(self, positions: Ints) -> Doubles:
        """The examination of positions of any shape, all of them explored."""
        out: Doubles = self.probability[np.searchsorted(self.positions, positions)]
        return out


def estimate(positions: Ints, drawn: Bools, responded: Bools) -> Examination | None:
    """From m items at explored positions: where each stood, whether it was drawn, and whether a response followed.

    None where fewer than MIN_RESPONSES responses are to drawn items. A position where nothing was drawn has the
    examination of a neighbour.
    """
    if np.count_nonzero(drawn & responded) < MIN_RESPONSES:
        return None
    distinct, place = np.unique(positions, return_inverse=True)
    shown = np.bincount(place[drawn], minlength=len(distinct))
    known = shown > 0
    share = np.bincount(place[drawn & responded], minlength=len(distinct))[known] / shown[known]
    falling = isotonic_regression(share, weights=shown[known], increasing=False).x
    at = np.flatnonzero(known)
    nearest = at[np.abs(np.arange(len(distinct))[:, None] - at).argmin(1)]
    probability = np.maximum(falling / falling[0], MIN_EXAMINATION)[np.searchsorted(at, nearest)]
    return Examination(distinct.astype(np.int64), probability)
