"""A question and who asks it: items near to both."""

import numpy as np

from features.interactions import Bools
from recsys.candidates import Candidates, Floats, Retriever, first_of_each, ordered

DEEP = 5
"""For each item that is asked for, so many are looked up by the question, and so many by who asks."""


def blended(
    by_content: Retriever,
    contents: Floats,
    asked: Floats,
    by_behaviour: Retriever,
    vectors: Floats,
    users: Floats,
    k: int,
    *,
    weight: float,
    allow: Bools | None = None,
) -> Candidates:
    """The k best of the items nearest to b questions and of those nearest to who asks them.

    asked (b, m) among contents (n, m); users (b, d) among vectors (n, d). The score is (1 - weight) times how near
    an item is to the question and weight times how near it is to the user, each measured in standard deviations of
    the candidates: cosines of two spaces are of different sizes.
    """
    deep = max(100, DEEP * k)
    found = [by_content.search(asked, deep, allow=allow).rows, by_behaviour.search(users, deep, allow=allow).rows]
    rows = np.concatenate(found, axis=1)  # (b, 2 deep)
    there = first_of_each(rows)
    scores = np.zeros(rows.shape)
    for share, items, queries in ((1 - weight, contents, asked), (weight, vectors, users)):
        near = np.einsum("bd,bwd->bw", queries, items[np.maximum(rows, 0)], optimize=True)
        scores += share * _standard(near, there)
    return ordered(rows, np.where(there, scores, -np.inf), k)


def _standard(near: np.ndarray, there: Bools) -> np.ndarray:
    """Each line of (b, w) less its mean, over its standard deviation, of those that are there."""
    count = there.sum(axis=1, keepdims=True).clip(min=1)
    centred = np.where(there, near - np.where(there, near, 0).sum(axis=1, keepdims=True) / count, 0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    out: np.ndarray = centred / np.maximum(spread, 1e-6)
    return out
