"""Where the alignment starts: the directions in which an item's views agree, in closed form.

Regularised canonical correlation of several sets (Kettenring 1971, the sum of correlations). Each space is whitened,
with shrinkage; the shared directions are the leading eigenvectors of all cross-covariances between the views of one
item. From a few hundred items this beats a network that begins anywhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy import sparse

from features.arrays import Floats, Ints
from features.content.spaces import SpaceKey
from recsys.content.alignment import AffineMap, Alignment, Views

RELATIVE_NOISE = 1e-7
"""Variances below this share of the largest are noise of rounding."""

ABSOLUTE_NOISE = 1e-12
"""Variances below this are none: a space whose few views are all the same has no directions, and maps to zeros."""


@dataclass(frozen=True)
class Spectrum:
    """One space's views of n items: mean (d,), variances (r,) along directions (d, r), and the views' coordinates.

    sums (n, r): over the views of each item; counts (n,): how many there are; square (r, r): sum of x x' over views.
    """

    mean: Floats
    variances: Floats
    directions: Floats
    sums: Floats
    counts: Ints
    square: Floats

    @classmethod
    def of(cls, views: list[Views], n: int) -> "Spectrum":
        """All channels of one space."""
        x = np.concatenate([v.vectors for v in views]).astype(np.float64)
        items = np.concatenate([v.items for v in views])
        mean = x.mean(0)
        x -= mean
        # few views of many dimensions lie in a subspace: the smaller of the two products finds it
        if len(x) < x.shape[1]:
            values, left = np.linalg.eigh(x @ x.T)
            keep = values > max(RELATIVE_NOISE * values[-1], ABSOLUTE_NOISE * len(x))
            directions = x.T @ left[:, keep] / np.sqrt(values[keep])
        else:
            values, directions = np.linalg.eigh(x.T @ x)
            keep = values > max(RELATIVE_NOISE * values[-1], ABSOLUTE_NOISE * len(x))
            directions = directions[:, keep]
        x = x @ directions
        owner = sparse.csr_array((np.ones(len(x)), (items, np.arange(len(x)))), shape=(n, len(x)))
        return cls(mean, values[keep] / len(x), directions, owner @ x, owner.sum(1).astype(np.int64), x.T @ x)

    def whitener(self, shrinkage: float) -> Floats:
        """(r,) scale of each direction; shrinkage is in units of the mean variance over all d directions."""
        return np.asarray((self.variances + shrinkage * self.variances.sum() / len(self.mean)) ** -0.5)


def spectra(channels: Mapping[str, Views], n: int) -> dict[SpaceKey, Spectrum]:
    """By space. Channels of one space are views of one kind."""
    spaces = dict.fromkeys(views.space for views in channels.values())
    return {key: Spectrum.of([v for v in channels.values() if v.space == key], n) for key in spaces}


def fit_cca(
    known: Mapping[SpaceKey, Spectrum],
    shrinkage: Mapping[SpaceKey, float],
    power: float,
    within: float,
    nested: tuple[int, ...],
) -> Alignment:
    """The leading directions, as many as nested[-1], scaled by their agreement to `power`: the first matter most.

    within: weight of agreement between views of one space (two captions, a title and a text, words written and
    spoken) against that of two spaces; without it the shared space would forget what only words tell.
    """
    dimension = nested[-1]
    white = {key: spectrum.whitener(shrinkage[key]) for key, spectrum in known.items()}
    ends = np.cumsum([0, *(len(w) for w in white.values())])
    k = np.zeros((ends[-1], ends[-1]))
    for i, (a, one) in enumerate(known.items()):
        for j, (b, other) in enumerate(known.items()):
            both = (one.counts > 0) & (other.counts > 0)
            if i < j and both.any():
                left = one.sums[both] / one.counts[both, None] * white[a]
                right = other.sums[both] / other.counts[both, None] * white[b]
                block = left.T @ right / both.sum()
                k[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = block
                k[ends[j] : ends[j + 1], ends[i] : ends[i + 1]] = block.T
        pairs = (one.counts * (one.counts - 1)).sum()
        # where nothing in its own space can agree, what varies most is what it tells
        block = (one.sums.T @ one.sums - one.square) / pairs if pairs else np.diag(one.variances)
        own = white[a][:, None] * block * white[a]
        k[ends[i] : ends[i + 1], ends[i] : ends[i + 1]] = within * (own + own.T) / 2
    rank = min(dimension, len(k))
    values, vectors = scipy.linalg.eigh(k, subset_by_index=[len(k) - rank, len(k) - 1])
    scale = np.maximum(values[::-1], 0) ** power
    maps = {}
    for i, (key, spectrum) in enumerate(known.items()):
        weight = np.zeros((len(spectrum.mean), dimension))
        rows = white[key][:, None] * vectors[ends[i] : ends[i + 1], ::-1] * scale
        weight[:, :rank] = spectrum.directions @ rows
        # of mean length 1 over the views: what is learned later begins at one scale
        weight /= np.sqrt((rows * (spectrum.square @ rows)).sum() / spectrum.counts.sum()) or 1.0
        maps[key] = AffineMap(spectrum.mean.astype(np.float32), weight.astype(np.float32))
    return Alignment(maps, nested)
