"""Items without events, placed among the others by what they say and show."""

import contextlib

import numpy as np
import scipy.sparse as sp

from features.catalog import Catalog, item_texts
from features.interactions import Interactions, Ints
from recsys.candidates import Floats
from recsys.index import ExactIndex
from recsys.towers import TwoTowers, numbers

FIRST = 10
"""Places of a list in which newcomers are counted."""

PARITY = 2.0
"""Newcomers are lifted to at most this multiple of their number's share of those places."""

USERS = 2000
"""At most this many users are asked where newcomers would stand."""

RIDGE = 2.0
"""Penalty of the regression from contents to vectors, whose features are of length about 1."""


def place_newcomers(model: TwoTowers, catalog: Catalog, events: Interactions, *, seed: int) -> Floats:
    """The item vectors of towers fitted on `events`, those of items without a positive event by content: (n, d).

    A ridge regression from words, contents, categories and numbers to the vectors of the other items says where such
    an item would come to lie (as Gantner et al. 2010, Learning attribute-to-feature mappings for cold-start
    recommendations). What is predicted lies nearer to the middle than what was learned, and what the towers know of
    a user's next items they do not know of new ones: these would never be seen. Hence those that nobody has touched
    move, all by the same step, towards what users have in common, until they take config.newcomers of the first
    places of lists, or PARITY times the share of the catalogue that they are, whichever is less.
    """
    vectors = model.item_vectors().copy()
    liked = np.bincount(events.liked().items, minlength=len(catalog))
    unknown, known = np.flatnonzero(liked == 0), np.flatnonzero(liked)
    most = model.config.newcomers
    if len(unknown) == 0 or most == 0 or not model.config.content:
        return vectors
    vectors[unknown] = _predicted(content_features(catalog), vectors, known, unknown, liked[known])
    new = np.flatnonzero(np.bincount(events.items, minlength=len(catalog)) == 0)
    if len(new):
        vectors[new] = _lifted(model, vectors, events, new, min(most, PARITY * len(new) / len(catalog)), seed)
    return vectors


def content_features(catalog: Catalog) -> sp.csr_array:
    """(n, f) sparse float32: what is known of items besides events.

    TF-IDF of words and pairs of words, content vectors, categories and numbers, each block of rows of length 1 or 0,
    numbers as the item tower reads them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import

    n, blocks = len(catalog), [catalog.content, numbers(catalog)]
    row, slot = np.nonzero(catalog.categories >= 0)
    share = (1.0 / np.sqrt((catalog.categories >= 0).sum(1).clip(min=1)))[row].astype(np.float32)
    shape = (n, len(catalog.category_names) + 1)
    blocks.append(sp.csr_array((share, (row, catalog.categories[row, slot])), shape=shape))
    words = TfidfVectorizer(dtype=np.float32, ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    with contextlib.suppress(ValueError):  # sklearn's only sign that there is no word three items share
        blocks.append(words.fit_transform(item_texts(catalog.frame)))
    return sp.csr_array(sp.hstack([sp.csr_array(block) for block in blocks], dtype=np.float32))


def _predicted(features: sp.csr_array, vectors: Floats, known: Ints, unknown: Ints, events: Ints) -> Floats:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import normalize

    weights = np.sqrt(events)  # an item of a hundred events lies where it should, one of a single event by chance
    ridge = Ridge(RIDGE, solver="sparse_cg", tol=1e-3)
    ridge.fit(sp.csr_matrix(features[known]), vectors[known], sample_weight=weights / weights.mean())
    predicted = ridge.predict(sp.csr_matrix(features[unknown])).reshape(len(unknown), -1)
    unit: Floats = normalize(predicted.astype(np.float32))
    return unit


def _lifted(model: TwoTowers, vectors: Floats, events: Interactions, new: Ints, share: float, seed: int) -> Floats:
    """The new items' vectors, moved as far as their share of the users' first places is at most `share`."""
    from sklearn.preprocessing import normalize

    users = np.unique(events.liked().users)
    users = np.sort(np.random.default_rng(seed).permutation(users)[:USERS])
    states = events.states(users, np.full(len(users), events.latest + 1))
    asked = model.user_vectors(states, vectors)
    common = normalize(asked.mean(0, keepdims=True))
    touched = np.ones(len(vectors), dtype=np.bool_)
    touched[new] = False
    rivals = ExactIndex(vectors).search(asked, FIRST, allow=touched, exclude=states.seen_items()).scores

    def moved(step: float) -> Floats:
        unit: Floats = normalize(vectors[new] + np.float32(step) * common)
        return unit

    low, high = 0.0, 2.0
    for _ in range(12):
        step = (low + high) / 2
        theirs = ExactIndex(moved(step)).search(asked, FIRST).scores
        first = np.argsort(-np.concatenate([rivals, theirs], axis=1), axis=1, kind="stable")[:, :FIRST]
        low, high = (step, high) if (first >= FIRST).mean() <= share else (low, step)
    return moved(low)
