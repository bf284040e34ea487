"""Two bundles side by side, before one takes the other's place: another space, another training."""

from typing import Any

import numpy as np

from features.arrays import Floats
from features.errors import BundleError
from recsys.bundle.model import Bundle
from recsys.towers.cold_start import informative_part


def compare_bundles(a: Bundle, b: Bundle, *, k: int = 10, sample: int = 2000, seed: int = 0) -> dict[str, Any]:
    """What would change with b in a's place.

    items: in a, in b, in both; overlap: mean share of the k nearest items that stay the same, among at most `sample`
    drawn items that both have, by the towers and by content; metrics: the tables each was published with.
    Raises BundleError when they share too few items.
    """
    common = [name for name in a.catalog.ids.ids if name in b.catalog.ids]
    if len(common) <= k:
        raise BundleError(f"{a.path.name} and {b.path.name} share {len(common)} items: too few to compare")
    chosen = np.random.default_rng(seed).permutation(len(common))[:sample]
    names = [common[i] for i in chosen]
    rows = [bundle.catalog.ids.rows(names) for bundle in (a, b)]
    behaviour = [informative_part(bundle.recommender.vectors[r]) for bundle, r in zip((a, b), rows, strict=True)]
    content = [bundle.catalog.content[r] for bundle, r in zip((a, b), rows, strict=True)]
    said = a.catalog.has_content[rows[0]] & b.catalog.has_content[rows[1]]
    overlap: dict[str, float | None] = {"behaviour": _overlap(behaviour[0], behaviour[1], k), "content": None}
    if said.sum() > k:
        overlap["content"] = _overlap(content[0][said], content[1][said], k)
    return {
        "items": {a.fingerprint: len(a.catalog), b.fingerprint: len(b.catalog), "both": len(common)},
        "spaces": {x.fingerprint: None if x.content is None else str(x.content.space) for x in (a, b)},
        "k": k,
        "overlap": overlap,
        "metrics": {x.fingerprint: x.manifest["metrics"] for x in (a, b)},
    }


def _overlap(x: Floats, y: Floats, k: int) -> float:
    """Mean share of the k nearest rows of x (n, dx) that are among y's (n, dy); a row is not its own."""
    near = [np.argpartition(-_others(v), k, axis=1)[:, :k] for v in (x, y)]
    same = (near[0][:, :, None] == near[1][:, None, :]).any(2)
    return float(same.mean())


def _others(vectors: Floats) -> Floats:
    scores: Floats = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return scores
