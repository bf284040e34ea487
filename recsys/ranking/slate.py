"""The slate: the items of one response, after the rules that do not depend on the models."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from features.arrays import Bools, Doubles, Floats, Ints
from features.catalog import Catalog
from features.schema import GROUP
from recsys.interfaces import Candidates


@dataclass(frozen=True)
class Slate:
    """k items, best first.

    items (k,): external ids; rows (k,) int64: their rows in the bundle with this fingerprint; positions (k,) int64
    from 1; scores (k,) float32; propensities (k,) float64: the probability that the item is shown at this position,
    given the user (1 for a deterministic policy); reasons (k,); trace: stage -> milliseconds.
    """

    items: tuple[str, ...]
    rows: Ints
    positions: Ints
    scores: Floats
    propensities: Doubles
    reasons: tuple[str, ...]
    trace: dict[str, float]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.items)


def item_groups(catalog: Catalog) -> Ints:
    """Group of each item, (n,) int64: variants of a product (column group_id) share one; others have their own."""
    if GROUP not in catalog.frame.columns:
        return np.arange(len(catalog), dtype=np.int64)
    names = catalog.frame.get_column(GROUP)
    codes = names.rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
    return np.where(codes < 0, np.arange(len(catalog)), len(catalog) + codes).astype(np.int64)


def make_slate(
    found: Candidates,
    catalog: Catalog,
    groups: Ints,
    k: int,
    *,
    available: Bools,
    reason: str,
    trace: dict[str, float],
    fingerprint: str,
) -> Slate:
    """The first k of one user's candidates (1, c) that are available and have a finite score, one of each group."""
    rows, scores = found.rows[0], found.scores[0]
    kept = np.flatnonzero((rows >= 0) & np.isfinite(scores))
    kept = kept[available[rows[kept]]]
    first = np.sort(np.unique(groups[rows[kept]], return_index=True)[1])  # first of each group
    chosen = kept[first[:k]]
    return Slate(
        items=tuple(catalog.ids.ids[row] for row in rows[chosen].tolist()),
        rows=rows[chosen],
        positions=np.arange(1, len(chosen) + 1, dtype=np.int64),
        scores=scores[chosen],
        propensities=np.ones(len(chosen)),
        reasons=(reason,) * len(chosen),
        trace=trace,
        fingerprint=fingerprint,
    )
