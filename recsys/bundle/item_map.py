"""The items in the plane: what is near in the space of the items' vectors is near on the map, for people to look at.

t-SNE (van der Maaten and Hinton, JMLR 2008), begun from the principal components (Kobak and Berens, Nature
Communications 2019), as openTSNE computes it. Of a large catalogue a sample is embedded, and every other item stands
among its nearest items of the sample, so that the time does not grow much with the catalogue.
"""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from features.arrays import Floats

FEW, SAMPLE = 500, 10_000
"""Items up to which principal components show enough, and those that t-SNE places, at most."""

PERPLEXITY, NEAREST = 20, 5
"""Neighbours that t-SNE keeps near an item, as a smooth count; items of the sample among which another one stands."""

EARLY, LATE = 125, 250
"""Steps of the optimization: those that form clusters, and those that arrange them. About as many as it takes
until no more of an item's neighbours become its neighbours on the map."""


@dataclass(frozen=True)
class ItemMap:
    """Coordinates (n, 2) float32 of items in row order, from 0 to 1; method: "t-SNE" or "PCA"."""

    points: Floats
    method: str


def fit_map(vectors: Floats, seed: int) -> ItemMap:
    """The map of items with vectors (n, d). By principal components of FEW items, and where openTSNE is missing."""
    n = len(vectors)
    if n <= FEW or find_spec("openTSNE") is None:
        return ItemMap(_unit_square(_principal(vectors)), "PCA")
    import openTSNE

    chosen = np.random.default_rng(seed).permutation(n)[:SAMPLE]
    others = np.setdiff1d(np.arange(n), chosen)
    tsne = openTSNE.TSNE(
        perplexity=PERPLEXITY,
        metric="cosine",
        initialization="pca",
        early_exaggeration_iter=EARLY,
        n_iter=LATE,
        n_jobs=1,  # sums of several threads are not the same bit by bit
        random_state=seed,
    )
    points = np.zeros((n, 2), dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which method it chooses for few items
        embedding = tsne.fit(vectors[chosen])
        points[chosen] = embedding
        if len(others):
            points[others] = embedding.prepare_partial(vectors[others], initialization="median", k=NEAREST)
    return ItemMap(_unit_square(points), "t-SNE")


def _principal(vectors: Floats) -> np.ndarray:
    """(n, 2): the two first principal components; zeros where there are fewer."""
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    found = left[:, :2] * sizes[:2]  # (n, at most 2)
    # the sign of a component is arbitrary: its largest value is positive
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=0, keepdims=True), axis=0)
    found = found * np.where(largest < 0, -1, 1)
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _unit_square(points: np.ndarray) -> Floats:
    """Points (n, 2) between 0 and 1, in the same proportions, in the middle."""
    low, high = points.min(axis=0), points.max(axis=0)
    size = float((high - low).max()) or 1.0
    out: Floats = (0.5 + (points - (low + high) / 2) / size).astype(np.float32)
    return out
