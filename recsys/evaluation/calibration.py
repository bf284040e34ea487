"""Calibration: probabilities from scores, and whether they are what happens."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.arrays import Doubles, Floats

BIN_EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Probabilities between the bins of `reliability`."""


@dataclass(frozen=True)
class ReliabilityBin:
    """n predictions of similar probability: their mean, and the mean of what happened."""

    n: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """A rising function from scores to probabilities, piecewise linear, constant beyond its ends.

    scores, probabilities (m,): its knots, ascending.
    """

    scores: Doubles
    probabilities: Doubles

    @classmethod
    def of(cls, scores: Floats, happened: Doubles) -> "Calibration":
        """Isotonic regression of what happened (n,), each from 0 to 1, on scores (n,) (Zadrozny & Elkan 2002).

        The scores must not be of a model that was fitted on what happened: such a model is too sure. At least one.
        """
        from sklearn.isotonic import IsotonicRegression  # imported late, because it takes a second

        fitted = IsotonicRegression(out_of_bounds="clip").fit(scores.astype(np.float64), happened)
        return cls(fitted.X_thresholds_, fitted.y_thresholds_)

    def __call__(self, scores: Floats) -> Doubles:
        """Probabilities of scores, of their shape."""
        return np.interp(scores, self.scores, self.probabilities)

    @property
    def arrays(self) -> dict[str, Doubles]:
        """The knots by name."""
        return {"calibration.scores": self.scores, "calibration.probabilities": self.probabilities}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Doubles]) -> "Calibration | None":
        """What `arrays` gave; None where they are not there."""
        if "calibration.scores" not in arrays:
            return None
        return cls(arrays["calibration.scores"], arrays["calibration.probabilities"])


def reliability(probabilities: Doubles, happened: Doubles) -> tuple[ReliabilityBin, ...]:
    """Predictions (n,) against what happened (n,), by BIN_EDGES; bins without predictions are left out."""
    bins = np.digitize(probabilities, BIN_EDGES)
    counts = np.bincount(bins, minlength=len(BIN_EDGES) + 1)
    predicted, observed = (
        np.bincount(bins, weights=values, minlength=len(counts)) for values in (probabilities, happened)
    )
    return tuple(
        ReliabilityBin(int(n), float(p / n), float(o / n))
        for n, p, o in zip(counts, predicted, observed, strict=True)
        if n
    )
