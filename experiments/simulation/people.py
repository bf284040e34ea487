"""Simulated people: tastes over the vectors of a real catalogue, which move with time.

A taste is a unit vector near an item of the catalogue. The *liking* of an item is a number from 0 to 1: a logistic
function of the cosine between taste and item, whose middle is chosen such that a person likes a given share of the
catalogue by more than one half. A taste drifts: each day it turns by an angle towards a direction of its own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from features.arrays import Doubles, Floats, Ints
from features.errors import DataError

if TYPE_CHECKING:
    from recsys.bundle.model import Bundle

SIMULATED = "simulated: no person did any of this"
"""What every report of simulated people says of itself. JSON says `"simulated": true`."""

SPREAD = 0.5
"""Length of the random vector that is added to an item to make a taste: the cosine of the two is near .9."""

WIDTH = 0.25
"""Width of the logistic function, in standard deviations of the cosines between tastes and items."""


@dataclass(frozen=True)
class People:
    """u people and n items.

    items (n, d): unit vectors; tastes, turns (u, d): unit vectors, orthogonal for each person: the taste of day 0,
    and the direction that it turns to; drift: radians a day; middle, width: of the logistic function.
    """

    items: Doubles
    tastes: Doubles
    turns: Doubles
    drift: float
    middle: float
    width: float

    def tastes_at(self, users: Ints, days: Doubles) -> Doubles:
        """(b, d): the tastes of users (b,) at days (b,), counted from the begin of the simulation."""
        angles = self.drift * days[:, None]  # (b, 1)
        return np.cos(angles) * self.tastes[users] + np.sin(angles) * self.turns[users]

    def liking(self, users: Ints, rows: Ints, days: Doubles) -> Doubles:
        """(b, k): the liking of items rows (b, k) by users (b,) at days (b,); 0 where a row is -1."""
        cosines = np.einsum("bd,bkd->bk", self.tastes_at(users, days), self.items[rows])
        return np.where(rows >= 0, self._of_cosines(cosines), 0.0)

    def likings(self, users: Ints, days: Doubles) -> Doubles:
        """(b, n): the liking of all items by users (b,) at days (b,)."""
        return self._of_cosines(self.tastes_at(users, days) @ self.items.T)

    def _of_cosines(self, cosines: Doubles) -> Doubles:
        out: Doubles = expit((cosines - self.middle) / self.width)
        return out


def people_near(
    vectors: Floats | Doubles, n: int, *, seed: int, drift: float = 0.0, liked: float = 0.02, spread: float = SPREAD
) -> People:
    """n people with tastes near items that are drawn at random.

    vectors (m, d): of the items, of any length; their mean is subtracted, because contents of one catalogue may all
    have small angles between them. liked: the share of the catalogue that a person likes by more than one half, on
    average. drift: radians a day. Raises DataError for vectors that are all equal.
    """
    items = np.asarray(vectors, dtype=np.float64)
    items = _unit(items - items.mean(0))
    if not len(items) or not items.any():
        raise DataError(f"{len(items)} item vectors that do not differ: no tastes can be simulated; give others")
    rng = np.random.default_rng(seed)
    near = items[rng.integers(0, len(items), n)]
    tastes = _unit(near + spread * _unit(rng.normal(size=near.shape)))
    turns = rng.normal(size=near.shape)
    turns = _unit(turns - (turns * tastes).sum(1, keepdims=True) * tastes)
    cosines = tastes[:1000] @ items.T  # of enough people for a quantile
    return People(items, tastes, turns, drift, float(np.quantile(cosines, 1 - liked)), WIDTH * float(cosines.std()))


def bundle_vectors(bundle: "Bundle") -> Floats:
    """(n, d): what people of a bundle's catalogue have tastes in: the contents' vectors, or those of behaviour."""
    return bundle.catalog.content if bundle.catalog.has_content.any() else bundle.vectors


def _unit(vectors: Doubles) -> Doubles:
    """Rows of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: Doubles = vectors / np.maximum(lengths, 1e-12)
    return out
