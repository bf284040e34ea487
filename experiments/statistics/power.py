"""Power: which difference a number of users can show, and how many users a difference needs."""

import math

from scipy.special import ndtri

from features.arrays import Doubles

LEVEL, POWER = 0.05, 0.8
"""Two-sided level of a test, and the probability with which it shows a difference that is there."""


def detectable(deviation: float, users: int, *, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest difference of means that a two-sided test shows with probability `power`.

    deviation: of the difference of one user (paired), or the root of the sum of both arms' variances with as many
    users in each. (z(1 - level / 2) + z(power)) * deviation / sqrt(users); Lehr 1992 for the usual values.
    """
    return float(ndtri(1 - level / 2) + ndtri(power)) * deviation / math.sqrt(users)


def detectable_of(differences: Doubles) -> float | None:
    """`detectable` of paired differences (u,), one a user; None of a single user."""
    return detectable(float(differences.std(ddof=1)), len(differences)) if len(differences) > 1 else None


def users_needed(deviation: float, difference: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The number of users from which on `detectable` is at most `difference`; inf for a difference of 0."""
    if difference == 0:
        return math.inf
    return math.ceil((float(ndtri(1 - level / 2) + ndtri(power)) * deviation / difference) ** 2)
