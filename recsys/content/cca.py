"""The closed form that the alignment starts from: regularised generalised canonical correlation analysis.

The sum-of-correlations form for several sets (Kettenring 1971). Each space is whitened, with shrinkage. The shared
directions are the leading eigenvectors of the matrix of all cross-covariances between views of one item. On a few
hundred items, a network that starts from here beats one that starts from anything else.
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
"""Variances below this share of the largest one are rounding errors."""

ABSOLUTE_NOISE = 1e-12
"""Variances below this are zero: a space whose views are all equal has no directions and maps to zeros."""


@dataclass(frozen=True)
class Spectrum:
    """Second-order statistics of the p views of n items in one space.

    mean (d,); directions (d, r): eigenvectors V of the covariance; variances (r,): their eigenvalues. With the
    coordinates y = V' (x - mean) of a view x: sums (n, r): sum of y over the views of each item; counts (n,): number
    of views of each item; square (r, r): sum of y y' over all views.
    """

    mean: Floats
    variances: Floats
    directions: Floats
    sums: Floats
    counts: Ints
    square: Floats

    @classmethod
    def of(cls, views: list[Views], n: int) -> "Spectrum":
        """Of all channels of one space over n items."""
        x = np.concatenate([v.vectors for v in views]).astype(np.float64)  # (p, d)
        items = np.concatenate([v.items for v in views])  # (p,)
        mean = x.mean(0)
        x -= mean
        # X X' (p, p) and X' X (d, d) have the same nonzero eigenvalues: decompose the smaller one
        if len(x) < x.shape[1]:
            values, u = np.linalg.eigh(x @ x.T)  # (p,), (p, p)
            keep = values > max(RELATIVE_NOISE * values[-1], ABSOLUTE_NOISE * len(x))
            directions = x.T @ u[:, keep] / np.sqrt(values[keep])  # (d, r): V = X' U / sqrt(values)
        else:
            values, directions = np.linalg.eigh(x.T @ x)  # (d,), (d, d)
            keep = values > max(RELATIVE_NOISE * values[-1], ABSOLUTE_NOISE * len(x))
            directions = directions[:, keep]  # (d, r)
        y = x @ directions  # (p, r)
        owner = sparse.csr_array((np.ones(len(y)), (items, np.arange(len(y)))), shape=(n, len(y)))  # 1: item of view
        return cls(mean, values[keep] / len(y), directions, owner @ y, owner.sum(1).astype(np.int64), y.T @ y)

    def whitener(self, shrinkage: float) -> Floats:
        """Scale of each direction, (r,): (variance + shrinkage * sum of the variances / d) ** -0.5."""
        return np.asarray((self.variances + shrinkage * self.variances.sum() / len(self.mean)) ** -0.5)


def spectra(channels: Mapping[str, Views], n: int) -> dict[SpaceKey, Spectrum]:
    """The spectrum of each space; all channels in a space count as views of it."""
    spaces = dict.fromkeys(views.space for views in channels.values())
    return {key: Spectrum.of([v for v in channels.values() if v.space == key], n) for key in spaces}


def fit_cca(
    spectrum_of: Mapping[SpaceKey, Spectrum],
    shrinkage: Mapping[SpaceKey, float],
    power: float,
    within: float,
    nested: tuple[int, ...],
) -> Alignment:
    """The alignment onto the nested[-1] leading eigenvectors of K, scaled by eigenvalue ** power.

    K (sum of r, sum of r) has a block for each pair of spaces a, b, with whiteners W and coordinates y of the views:
    K_ab = W_a mean(y_a y_b') W_b, over the items in both spaces, y being the mean of an item's views in the space;
    K_aa = within * W_a mean(y y*') W_a, over pairs of two views of one item in the space.
    within: weight of the agreement inside a space (two captions, title and text, written and spoken words). Without
    it the shared space loses what is expressed in text only.
    """
    dimension = nested[-1]  # D
    white = {key: spectrum.whitener(shrinkage[key]) for key, spectrum in spectrum_of.items()}
    ends = np.cumsum([0, *(len(w) for w in white.values())])  # space i has rows ends[i]:ends[i + 1] of K
    k = np.zeros((ends[-1], ends[-1]))
    for i, (a, spectrum) in enumerate(spectrum_of.items()):
        for j, (b, peer) in enumerate(spectrum_of.items()):
            common = (spectrum.counts > 0) & (peer.counts > 0)  # (n,)
            if i < j and common.any():
                y_a = spectrum.sums[common] / spectrum.counts[common, None] * white[a]  # (items, r_a)
                y_b = peer.sums[common] / peer.counts[common, None] * white[b]  # (items, r_b)
                block = y_a.T @ y_b / common.sum()  # (r_a, r_b)
                k[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = block
                k[ends[j] : ends[j + 1], ends[i] : ends[i + 1]] = block.T
        pairs = (spectrum.counts * (spectrum.counts - 1)).sum()  # ordered pairs of two views of one item
        # sum of y y*' over pairs = (sum y)(sum y)' - sum of y y'; without pairs, the variances take its place
        block = (spectrum.sums.T @ spectrum.sums - spectrum.square) / pairs if pairs else np.diag(spectrum.variances)
        own = white[a][:, None] * block * white[a]  # (r_a, r_a)
        k[ends[i] : ends[i + 1], ends[i] : ends[i + 1]] = within * (own + own.T) / 2
    rank = min(dimension, len(k))
    values, vectors = scipy.linalg.eigh(k, subset_by_index=[len(k) - rank, len(k) - 1])  # ascending: (rank,)
    scale = np.maximum(values[::-1], 0) ** power
    maps = {}
    for i, (key, spectrum) in enumerate(spectrum_of.items()):
        weight = np.zeros((len(spectrum.mean), dimension))  # (d, D)
        rows = white[key][:, None] * vectors[ends[i] : ends[i + 1], ::-1] * scale  # (r, rank)
        weight[:, :rank] = spectrum.directions @ rows
        # divide by the root mean square length of the mapped views: training then starts at the same scale everywhere
        weight /= np.sqrt((rows * (spectrum.square @ rows)).sum() / spectrum.counts.sum()) or 1.0
        maps[key] = AffineMap(spectrum.mean.astype(np.float32), weight.astype(np.float32))
    return Alignment(maps, nested)
