"""Several questions at once, each in its own space: words and who says them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Floats
from recsys.interfaces import Candidates, Retriever, first_occurrences, sort_candidates

CANDIDATES_PER_RESULT = 5
"""For each item that is asked for, so many are looked up by each question."""


@dataclass(frozen=True)
class WeightedQuery:
    """asked (b, d) by `weight`, of the items' vectors (n, d), which the index finds."""

    asked: Floats
    weight: float
    index: Retriever
    vectors: Floats


def fused_search(questions: Sequence[WeightedQuery], k: int, *, allow: Bools | None = None) -> Candidates:
    """The k best for each of b times some questions, among the items nearest to any of them.

    The score is the weighted sum of how near an item is to each, measured in standard deviations of the candidates:
    cosines of two spaces are of different sizes.
    """
    deep = max(100, CANDIDATES_PER_RESULT * k)
    found = [question.index.search(question.asked, deep, allow=allow).rows for question in questions]
    rows = np.concatenate(found, axis=1)  # (b, w)
    there = first_occurrences(rows)
    scores = np.zeros(rows.shape)
    for question in questions:
        near = np.einsum("bd,bwd->bw", question.asked, question.vectors[np.maximum(rows, 0)], optimize=True)
        scores += question.weight * _standardised(near, there)
    return sort_candidates(rows, np.where(there, scores, -np.inf), k)


def _standardised(near: np.ndarray, there: Bools) -> np.ndarray:
    """Each line of (b, w) less its mean, over its standard deviation, of those that are there."""
    count = there.sum(axis=1, keepdims=True).clip(min=1)
    centred = np.where(there, near - np.where(there, near, 0).sum(axis=1, keepdims=True) / count, 0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    out: np.ndarray = centred / np.maximum(spread, 1e-6)
    return out
