"""Score fusion of several queries, each in its own space: search content and user, for example."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Floats
from recsys.interfaces import Candidates, Retriever, first_occurrences, sort_candidates

CANDIDATES_PER_RESULT = 5
"""Candidates that each query retrieves for each item of the result; at least 100 in all."""


@dataclass(frozen=True)
class WeightedQuery:
    """b query vectors (b, d) with a weight; the index searches the items' vectors (n, d) of the same space."""

    queries: Floats
    weight: float
    index: Retriever
    vectors: Floats


def fused_search(weighted: Sequence[WeightedQuery], k: int, *, allow: Bools | None = None) -> Candidates:
    """The k best items for each of b requests, of the union of the items nearest to any of its queries: (b, k).

    score = sum over queries q of weight_q * z_q, where z_q is the inner product with the item, standardised over the
    candidates of the request: inner products in different spaces differ in scale.
    """
    depth = max(100, CANDIDATES_PER_RESULT * k)
    retrieved = [query.index.search(query.queries, depth, allow=allow).rows for query in weighted]
    rows = np.concatenate(retrieved, axis=1)  # (b, w)
    valid = first_occurrences(rows)  # (b, w): neither padding nor a duplicate
    scores = np.zeros(rows.shape)
    for query in weighted:
        products = np.einsum("bd,bwd->bw", query.queries, query.vectors[np.maximum(rows, 0)], optimize=True)
        scores += query.weight * _standardised(products, valid)
    return sort_candidates(rows, np.where(valid, scores, -np.inf), k)


def _standardised(values: np.ndarray, valid: Bools) -> np.ndarray:
    """(b, w): (value - mean) / standard deviation, both over the valid values of the line; 0 where not valid."""
    count = valid.sum(axis=1, keepdims=True).clip(min=1)  # (b, 1)
    centred = np.where(valid, values - np.where(valid, values, 0).sum(axis=1, keepdims=True) / count, 0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    out: np.ndarray = centred / np.maximum(deviation, 1e-6)
    return out
