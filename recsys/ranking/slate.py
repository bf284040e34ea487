"""The slate: what one request gets, after the rules that hold whatever the models say."""

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

    items (k,) external ids; rows (k,) int64 of them in the bundle that `fingerprint` names; positions (k,) int64
    from 1; scores (k,) float32; propensities (k,) float64: the chance that the item was shown here, given the user
    (1 for a deterministic policy); reasons (k,); trace: stage -> milliseconds.
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
    """(n,) int64: items with one number are variants of one product (column group_id); without it, each its own."""
    if GROUP not in catalog.frame.columns:
        return np.arange(len(catalog), dtype=np.int64)
    named = catalog.frame.get_column(GROUP)
    codes = named.rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
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
    """The first k of one user's candidates (1, c): available, finite in score, one variant of each product."""
    rows, scores = found.rows[0], found.scores[0]
    kept = np.flatnonzero((rows >= 0) & np.isfinite(scores))
    kept = kept[available[rows[kept]]]
    first = np.sort(np.unique(groups[rows[kept]], return_index=True)[1])  # unique's index is the first occurrence
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
