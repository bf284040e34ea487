"""The slate: what is shown of the candidates. The service, batch jobs and the evaluation fill it by one function."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.arrays import Doubles, Floats, Ints
from features.catalog import Catalog
from features.schema import GROUP
from recsys.interfaces import Candidates, first_occurrences

Find = Callable[[Ints, int], Candidates]
"""(indices of states (c,), n) -> the n best candidates of these states: (c, n)."""


@dataclass(frozen=True)
class Slate:
    """k items, best first.

    items (k,): external ids; rows (k,) int64: their rows in the bundle with this fingerprint; positions (k,) int64
    from 1; scores (k,) float32; propensities (k,) float64: the probability that the item is shown at this position,
    given the user (1 for a deterministic policy); reasons (k,): the source of each item; trace: stage ->
    milliseconds.
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


def fill_slates(find: Find, states: int, k: int, groups: Ints) -> Candidates:
    """The slates of b states: the best item of each group, at most k, then padding: (b, k).

    groups (n,): of `item_groups`. Where the candidates have fewer than k groups, four times as many are asked for,
    until the slate is full or there are no more.
    """
    filled, pending, asked = Candidates.empty(states, k), np.arange(states), k
    while len(pending):
        found = find(pending, asked)
        chosen = distinct_groups(found, groups, k)
        filled.put(pending, chosen)
        is_done = (chosen.rows >= 0).all(1) | ((found.rows >= 0).sum(1) < asked) | (asked >= len(groups))
        pending, asked = pending[~is_done], min(4 * asked, len(groups))
    return filled


def distinct_groups(found: Candidates, groups: Ints, k: int) -> Candidates:
    """The first k candidates of each line with a finite score, one of each group: (b, k)."""
    is_usable = (found.rows >= 0) & np.isfinite(found.scores)
    is_first = first_occurrences(np.where(is_usable, groups[found.rows], -1))
    return found.where(is_first, k)


def slate_of(
    chosen: Candidates, catalog: Catalog, *, reason: str, trace: dict[str, float], fingerprint: str
) -> Slate:
    """The slate of one state, whose items were chosen: (1, k). reason: of items whose source is not known."""
    kept = chosen.rows[0] >= 0
    rows, scores = chosen.rows[0][kept], chosen.scores[0][kept]
    return Slate(
        items=tuple(catalog.ids.ids[row] for row in rows.tolist()),
        rows=rows,
        positions=np.arange(1, len(rows) + 1, dtype=np.int64),
        scores=scores,
        propensities=np.ones(len(rows)),
        reasons=tuple(name or reason for name in chosen.source_names(0)[: len(rows)]),
        trace=trace,
        fingerprint=fingerprint,
    )
