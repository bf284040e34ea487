"""Items without events, placed among the others by what they say and show."""

import contextlib

import numpy as np
import scipy.sparse as sp
from scipy.optimize import nnls

from features.arrays import Bools, Floats, Ints
from features.catalog import Catalog, item_texts
from features.content.spaces import unit
from features.interactions import Interactions
from recsys.retrieval.index import Index
from recsys.towers.model import TwoTowers, numeric_features

TOP = 10
"""Places of a list in which newcomers are counted."""

MAX_LIFT = 4.0
"""Newcomers are lifted to at most this multiple of their number's share of those places."""

MIN_STEP, MAX_STEP = 1 / 64, 8.0
"""Lengths of the shortest step that is tried, and of the longest: little of an item's own direction is left by it."""

FILLER_FRACTION = 4
"""One in so many coordinates, the last ones, takes what is left of a newcomer's length."""

RIDGE = 4.0
"""Penalty of the regression from contents to vectors, whose features are of length about 1."""

NEIGHBOURS = 100
"""Items with most words in common whose vectors also say where a newcomer would lie."""

HELD_OUT_FRACTION = 5
"""One in so many of the other items is held out to see what the regression and the neighbours are worth."""

MIN_WARM_ITEMS = 100
"""Other items that there must be for that: with fewer the regression alone speaks."""

MAX_PAIRS = 20_000_000
"""Pairs of a newcomer and another item that are compared at once."""

MAX_ITERATIONS, TOLERANCE, TINY = 50, 1e-3, 1e-12
"""Of conjugate gradients: at most so many, until so little is left; and what stands for nothing in a division."""


def place_cold_items(model: TwoTowers, catalog: Catalog, events: Interactions, *, seed: int) -> Floats:
    """The item vectors of towers fitted on `events`, those of items without a positive event by content: (n, d).

    A ridge regression from words, contents, categories and numbers to the vectors of the other items says where such
    an item would come to lie (as Gantner et al. 2010, Learning attribute-to-feature mappings for cold-start
    recommendations), and so do its neighbours by words, since rare words that few items share are lost on a
    regression: each has as much of a say as foretells other items that are held out (`_predicted`). The less can be
    said of an item the shorter is what is predicted, and the lower it should stand: made longer it would be found
    where nobody is known to want it. It becomes a unit vector by what no user looks at (`_filler`), which hardly
    changes its products with users.

    Those are small: what the towers know of a user's next items they do not know of new ones, and these would never
    be seen. Hence those that nobody has touched and that are available move, all by the same step, FARTHEST at most,
    towards what users have in common, until they take config.newcomers of the first places of lists, or PARITY times
    the share of the catalogue that they are, whichever is less. Where they take as much already, they stay. Those
    that are published after the events move with the others and are not counted, since nobody is shown them yet: how
    many places they take when they come out is seen to when the towers are next fitted.
    """
    vectors = model.item_vectors().copy()
    positives = np.bincount(events.positives().items, minlength=len(catalog))
    unknown, known = np.flatnonzero(positives == 0), np.flatnonzero(positives)
    most = model.config.newcomers
    if len(unknown) == 0 or most == 0 or not model.config.content:
        return vectors
    states, asked = model.newest_users(vectors, events, seed=seed)
    predicted = _predicted(catalog, vectors, known, unknown, positives, asked, seed=seed)
    aside = _filler(len(unknown), model.config.dimension, seed)
    vectors[unknown] = _unit_length(predicted, aside)
    touched = np.bincount(events.items, minlength=len(catalog)) > 0
    new = (catalog.available & ~touched)[unknown]
    shown = catalog.available & catalog.published_by(events.latest)
    counted = shown[unknown[new]]
    if counted.any():
        share = min(most, MAX_LIFT * int(counted.sum()) / int(shown.sum()))
        rivals = Index(vectors).search(asked, TOP, allow=shown & touched, exclude=states.seen_items()).scores
        vectors[unknown[new]] = _lift(predicted[new], aside[new], counted, asked, rivals, share)
    return vectors


def informative_part(vectors: Floats) -> Floats:
    """Unit rows (b, d) to ask for items similar to items (b, d) with: without what makes newcomers of full length
    (`_filler`)."""
    return unit(vectors * (np.arange(vectors.shape[1]) < _informative_width(vectors.shape[1])))


def item_tfidf(catalog: Catalog) -> sp.csr_array:
    """(n, w) sparse float32: TF-IDF of words and pairs of words that three items have, rows of length 1 or 0."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import

    words = TfidfVectorizer(dtype=np.float32, ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    with contextlib.suppress(ValueError):  # sklearn's only sign that there is no such word
        return sp.csr_array(words.fit_transform(item_texts(catalog.frame)))
    return sp.csr_array((len(catalog), 0), dtype=np.float32)


def content_features(catalog: Catalog, words: sp.csr_array) -> sp.csr_array:
    """(n, f) sparse float32: what is known of items besides events.

    Content vectors, numbers as the item tower reads them, categories, and words; rows of each but the numbers are of
    length 1 or 0.
    """
    n, blocks = len(catalog), [catalog.content, numeric_features(catalog)]
    row, slot = np.nonzero(catalog.categories >= 0)
    share = (1.0 / np.sqrt((catalog.categories >= 0).sum(1).clip(min=1)))[row].astype(np.float32)
    shape = (n, len(catalog.category_names) + 1)
    blocks += [sp.csr_array((share, (row, catalog.categories[row, slot])), shape=shape), words]
    return sp.csr_array(sp.hstack([sp.csr_array(block) for block in blocks], dtype=np.float32))


def _predicted(
    catalog: Catalog, vectors: Floats, known: Ints, unknown: Ints, positives: Ints, asked: Floats, *, seed: int
) -> Floats:
    """Rows for `unknown` from those of `known`, as regression and neighbours say. liked (n,): events of each item.

    How much each has to say is what foretells best the products of users `asked` with items that are held out: least
    squares, an item weighing as the root of its events. Neighbours that foretell nothing have no say.
    """
    words = item_tfidf(catalog)
    features = content_features(catalog, words)

    def both(of: Ints, rows: Ints) -> tuple[Floats, Floats]:
        regressed = _ridge_predictions(features, vectors, of, rows, positives[of])
        return regressed, _neighbour_means(words, vectors, of, rows, positives[of], regressed)

    if len(known) < MIN_WARM_ITEMS:
        return both(known, unknown)[0]
    order = np.random.default_rng(seed).permutation(known)
    held, rest = np.sort(order[: len(order) // HELD_OUT_FRACTION]), np.sort(order[len(order) // HELD_OUT_FRACTION :])
    told = np.stack([vectors[held], *both(rest, held)]).astype(np.float64)  # (3, m, d): the truth, and what is said
    weight = np.sqrt(positives[held])[:, None]
    middle = (told * weight).sum(1, keepdims=True) / weight.sum()  # (3, 1, d)
    products = np.einsum("amd,bme,de->ab", (told - middle) * weight, told - middle, asked.T @ asked, optimize=True)
    root = np.linalg.cholesky(products[1:, 1:] + TINY * (1 + np.trace(products)) * np.eye(2))
    says, _ = nnls(root.T, np.linalg.solve(root, products[1:, 0]))
    regressed, beside = both(known, unknown)
    rows = middle[0] + says[0] * (regressed - middle[1]) + says[1] * (beside - middle[2])
    return np.asarray(rows, dtype=np.float32)


def _ridge_predictions(features: sp.csr_array, vectors: Floats, known: Ints, unknown: Ints, events: Ints) -> Floats:
    """Rows for `unknown` by weighted ridge regression with an intercept, from the rows and events of `known`.

    By conjugate gradients (Hestenes & Stiefel 1952) for all coordinates at once: ten times as fast as scikit-learn's,
    which takes them one after the other.
    """
    weights = np.sqrt(events)  # an item of a hundred events lies where it should, one of a single event by chance
    weights = (weights / weights.mean()).astype(np.float32)[:, None]
    x, y = features[known], vectors[known]
    middle_x, middle_y = (weights.T @ x) / len(known), (weights.T @ y) / len(known)  # (1, f), (1, d)

    def centred(b: Floats) -> Floats:
        out: Floats = x @ b - middle_x @ b
        return out

    def transposed(r: Floats) -> Floats:
        out: Floats = x.T @ r - middle_x.T * r.sum(0)
        return out

    solved = np.zeros((x.shape[1], y.shape[1]), dtype=np.float32)
    left = transposed(weights * (y - middle_y))
    step, size = left.copy(), (left**2).sum(0)
    begun = size
    for _ in range(MAX_ITERATIONS):
        along = transposed(weights * centred(step)) + RIDGE * step
        length = size / (step * along).sum(0).clip(min=TINY)
        solved += length * step
        left -= length * along
        before, size = size, (left**2).sum(0)
        if (size <= TOLERANCE**2 * begun).all():
            break
        step = left + size / before.clip(min=TINY) * step
    rows: Floats = features[unknown] @ solved - middle_x @ solved + middle_y
    return rows


def _neighbour_means(
    words: sp.csr_array, vectors: Floats, known: Ints, unknown: Ints, events: Ints, otherwise: Floats
) -> Floats:
    """Rows for `unknown`: means of those NEIGHBOURS of `known` whose words are most alike.

    They weigh as the square of the cosine and the root of their events. Rows of `otherwise` where none is shared.
    """
    out, theirs, weight = otherwise.copy(), sp.csc_array(words[known].T), np.sqrt(events).astype(np.float32)
    size = max(1, MAX_PAIRS // len(known))
    for at in range(0, len(unknown), size):
        alike = (words[unknown[at : at + size]] @ theirs).toarray()  # (size, known)
        if len(known) > NEIGHBOURS:
            least = np.partition(alike, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]
            alike[alike < least[:, None]] = 0
        alike = alike**2 * weight
        total = alike.sum(1, keepdims=True)
        there = total[:, 0] > 0
        out[at : at + size][there] = (alike[there] / total[there]) @ vectors[known]
    return out


def _filler(n: int, d: int, seed: int) -> Floats:
    """n unit rows (n, d), at random in the last coordinates, those that users vary least in (`TwoTowers.rotate`).

    At random, so that what is left of one newcomer's length does not make it alike to the others.
    """
    rows, kept = np.zeros((n, d), dtype=np.float32), _informative_width(d)
    rows[:, kept:] = np.random.default_rng(seed).standard_normal((n, d - kept), dtype=np.float32)
    return unit(rows)


def _informative_width(d: int) -> int:
    return d - max(1, d // FILLER_FRACTION)


def _unit_length(rows: Floats, aside: Floats) -> Floats:
    """Unit rows (n, d): of longer rows the direction, and shorter ones with what is left of 1 aside."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1)
    along = (rows * aside).sum(1, keepdims=True)
    left = np.copysign(np.sqrt(along**2 + (1 - (rows**2).sum(1, keepdims=True)).clip(min=0)), along) - along
    return unit(rows + left * aside)  # of length 1 up to rounding


def _lift(predicted: Floats, aside: Floats, counted: Bools, asked: Floats, rivals: Floats, share: float) -> Floats:
    """Unit rows for what was predicted of m new items, moved as far as they take at most `share` of the first places.

    counted (m,): those that can be shown; asked (b, d): users, whose best others have the scores `rivals` (b, FIRST).
    """
    common = unit(asked.mean(0, keepdims=True))

    def moved(step: float) -> Floats:
        return _unit_length(predicted + step * common, aside)

    def taken(step: float) -> float:
        theirs = Index(moved(step)[counted]).search(asked, TOP).scores
        first = np.argsort(-np.concatenate([rivals, theirs], axis=1), axis=1, kind="stable")[:, :TOP]
        return float((first >= TOP).mean())

    # the share rises with the step, and falls again when little else than the step is left of the items
    steps, shares = np.append(0.0, np.geomspace(MIN_STEP, MAX_STEP, 20)), list[float]()
    for step in steps:
        shares.append(taken(step))
        if shares[-1] > share:
            break
    else:
        return moved(steps[int(np.argmax(shares))])
    low, high = (steps[max(0, len(shares) - 2)], steps[len(shares) - 1])
    for _ in range(8):
        step = (low + high) / 2
        low, high = (step, high) if taken(step) <= share else (low, step)
    return moved(low)
