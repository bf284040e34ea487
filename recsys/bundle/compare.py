"""Comparison of two bundles before one replaces the other: items, nearest neighbours, metrics."""

from typing import Any

import numpy as np

from features.arrays import Floats
from features.errors import BundleError
from recsys.bundle.model import Bundle
from recsys.towers.cold_start import informative_part


def compare_bundles(a: Bundle, b: Bundle, *, k: int = 10, sample: int = 2000, seed: int = 0) -> dict[str, Any]:
    """A report of what changes when b replaces a.

    items: number of items in a, in b, and in both; spaces: of the contents; overlap: mean share of the k nearest
    items that are the same in both, among at most `sample` random common items, by the vectors of the towers
    (behaviour) and by content, None where too few items have content; metrics: the tables of both manifests.
    Raises BundleError when k or fewer items are in both.
    """
    common = [name for name in a.catalog.ids.ids if name in b.catalog.ids]
    if len(common) <= k:
        raise BundleError(
            f"{a.path.name} and {b.path.name} share {len(common)} items: too few, more than {k} are needed"
        )
    chosen = np.random.default_rng(seed).permutation(len(common))[:sample]
    names = [common[i] for i in chosen]
    rows = [bundle.catalog.ids.rows(names) for bundle in (a, b)]
    behaviour = [informative_part(bundle.recommender.vectors[r]) for bundle, r in zip((a, b), rows, strict=True)]
    content = [bundle.catalog.content[r] for bundle, r in zip((a, b), rows, strict=True)]
    has_content = a.catalog.has_content[rows[0]] & b.catalog.has_content[rows[1]]
    overlap: dict[str, float | None] = {"behaviour": _overlap(behaviour[0], behaviour[1], k), "content": None}
    if has_content.sum() > k:
        overlap["content"] = _overlap(content[0][has_content], content[1][has_content], k)
    return {
        "items": {a.fingerprint: len(a.catalog), b.fingerprint: len(b.catalog), "both": len(common)},
        "spaces": {x.fingerprint: None if x.content is None else str(x.content.space) for x in (a, b)},
        "k": k,
        "overlap": overlap,
        "metrics": {x.fingerprint: x.manifest["metrics"] for x in (a, b)},
    }


def _overlap(x: Floats, y: Floats, k: int) -> float:
    """Mean share of the k nearest rows of x (n, dx) that are among the k nearest of y (n, dy); own row left out."""
    nearest = [np.argpartition(-_similarities(v), k, axis=1)[:, :k] for v in (x, y)]  # (n, k) each
    same = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(2)  # (n, k)
    return float(same.mean())


def _similarities(vectors: Floats) -> Floats:
    """Inner products (n, n) of all pairs of rows; -inf of a row with itself."""
    scores: Floats = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return scores
