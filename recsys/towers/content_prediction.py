"""Vectors of cold items, predicted from what is known of them by several experts with learned weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import minimize

from features.arrays import Doubles, Floats, Ints
from features.catalog import Catalog, item_texts
from features.interactions import Interactions, Ragged, UserStates
from recsys.towers.model import TwoTowers, numeric_features

EXPERTS = (
    "regression",
    "100 nearest by words",
    "10 nearest by words",
    "100 nearest by content",
    "10 nearest by content",
)
"""What predicts the vector of a cold item: a ridge regression, and means of the nearest warm items."""

RIDGE = 4.0
"""Penalty of the ridge regression from content features, of length about 1, to item vectors."""

NEIGHBOURS = (100, 10)
"""Numbers of nearest warm items whose vectors are averaged."""

POWERS = (2, 4)
"""A neighbour weighs cosine ** power * sqrt(events), by words and by content. Cosines of contents differ less."""

HELD_OUT_FRACTION = 5
"""One in so many warm items is pseudo-cold: it is predicted without its events, to weigh the experts."""

MIN_WARM_ITEMS = 100
"""With fewer warm items none are held out, and the regression alone predicts."""

MAX_HELD_OUT = 2000
"""Most pseudo-cold items, and most of their events."""

MAX_PAIRS = 20_000_000
"""(cold item, warm item) pairs that are compared at a time."""

MAX_ITERATIONS, TOLERANCE, TINY = 50, 1e-3, 1e-12
"""Conjugate gradients: maximum of iterations; relative residual norm to stop at; smallest denominator."""


@dataclass(frozen=True)
class PseudoCold:
    """Warm items that were predicted as if they were cold, and events with them.

    rows (h,): the items, ascending; vectors (h, d): predicted; users (q, d): user vectors before events with them;
    targets (q,): index in `rows` of the item that the user took; seen: the items that each user had seen.
    """

    rows: Ints
    vectors: Floats
    users: Floats
    targets: Ints
    seen: Ragged


@dataclass(frozen=True)
class Prediction:
    """vectors (n_cold, d): predicted; weights: of EXPERTS, their sum is 1; pseudo_cold: None where items are few."""

    vectors: Floats
    weights: tuple[float, ...]
    pseudo_cold: PseudoCold | None


def predict_vectors(
    model: TwoTowers, catalog: Catalog, vectors: Floats, events: Interactions, cold: Ints, *, seed: int
) -> Prediction:
    """Vectors of the cold items, predicted from the vectors (n, d) of the warm ones.

    A ridge regression on content vectors, numbers, categories and TF-IDF predicts a vector (as Gantner et al. 2010,
    Learning attribute-to-feature mappings for cold-start recommendations). Means of the nearest warm items cover what
    the regression misses: words that few items share, and whole contents. The experts are weighed on pseudo-cold
    items: warm items, drawn evenly over their popularity, whose events are hidden. The weights, 0 or more, make the
    items that users took most likely among all pseudo-cold items (`_weights`).

    The prediction is v + c * sum_e a_e (x_e - mean_e): the mean vector v, the experts' predictions x_e, centred, the
    weights a_e, and a length c. c minimises sum_i sqrt(events_i) * |U (v_i - prediction_i)|^2 over the pseudo-cold
    items i: the squared error of the scores of users U. So a prediction is shorter where content says less.
    """
    positives = np.bincount(events.positives().items, minlength=len(catalog))  # (n,)
    warm = np.flatnonzero(positives)
    experts = _Experts.of(catalog, vectors, positives)
    rng = np.random.default_rng(seed)
    if len(warm) < MIN_WARM_ITEMS:
        return Prediction(experts.predict(warm, cold)[0], (1.0, *(0.0 for _ in EXPERTS[1:])), None)
    rows = _stratified(warm, positives, rng)
    states, targets = _states_before(events, rows, rng)
    users = model.user_vectors(states, vectors)  # (q, d)
    held_out = experts.predict(np.setdiff1d(warm, rows), rows).astype(np.float64)  # (e, h, d)
    weight = np.sqrt(positives[rows])[:, None]  # (h, 1)
    mean = (held_out * weight).sum(1, keepdims=True) / weight.sum()  # (e, 1, d)
    mean_vector = (vectors[rows] * weight).sum(0) / weight.sum()  # (d,)
    shares = _weights(users, held_out - mean, targets)  # (e,)
    combined = np.tensordot(shares, held_out - mean, 1)  # (h, d)
    products = users.T.astype(np.float64) @ users  # (d, d) U'U
    error = ((vectors[rows] - mean_vector) @ products * combined * weight).sum()
    length = max(0.0, error / max(float((combined @ products * combined * weight).sum()), TINY))

    def joined(predicted: Floats | Doubles) -> Floats:
        """(e, m, d) -> (m, d)."""
        out = mean_vector + length * np.tensordot(shares, predicted - mean, 1)
        return np.asarray(out, dtype=np.float32)

    pseudo = PseudoCold(rows, joined(held_out), users, targets, states.seen_items())
    return Prediction(joined(experts.predict(warm, cold)), tuple(shares.tolist()), pseudo)


def item_tfidf(catalog: Catalog) -> sp.csr_array:
    """(n, w) sparse float32: TF-IDF of words and word pairs that three items or more have; rows of norm 1 or 0."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # imported late, because it takes a second

    vectorizer = TfidfVectorizer(dtype=np.float32, ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    with contextlib.suppress(ValueError):  # how sklearn reports an empty vocabulary
        return sp.csr_array(vectorizer.fit_transform(item_texts(catalog.frame)))
    return sp.csr_array((len(catalog), 0), dtype=np.float32)


def content_features(catalog: Catalog, tfidf: sp.csr_array) -> sp.csr_array:
    """(n, f) sparse float32: content vectors, numbers as the item tower reads them, categories, and TF-IDF (n, w).

    The rows of each block but the numbers have norm 1 or 0.
    """
    n, blocks = len(catalog), [catalog.content, numeric_features(catalog)]
    row, slot = np.nonzero(catalog.categories >= 0)  # (c,) item and slot of each category of each item
    # (c,) 1 / sqrt(categories of the item), so that the item's row has norm 1
    share = (1.0 / np.sqrt((catalog.categories >= 0).sum(1).clip(min=1)))[row].astype(np.float32)
    shape = (n, len(catalog.category_names) + 1)
    blocks += [sp.csr_array((share, (row, catalog.categories[row, slot])), shape=shape), tfidf]
    return sp.csr_array(sp.hstack([sp.csr_array(block) for block in blocks], dtype=np.float32))


def _stratified(warm: Ints, positives: Ints, rng: np.random.Generator) -> Ints:
    """Rows of the pseudo-cold items, ascending: one of each run of warm items of similar popularity."""
    order = rng.permutation(warm)
    order = order[np.argsort(-positives[order], kind="stable")]
    run = max(HELD_OUT_FRACTION, -(-len(order) // MAX_HELD_OUT))
    starts = np.arange(0, len(order) - run + 1, run)
    return np.sort(order[starts + rng.integers(0, run, len(starts))])


def _states_before(events: Interactions, rows: Ints, rng: np.random.Generator) -> tuple[UserStates, Ints]:
    """The q states before positive events with the items `rows`, and the index in `rows` of each item (q,).

    Histories are without these items. q may be 0: where no user has another event before.
    """
    hidden = np.isin(np.arange(events.n_items), rows)
    positives = events.positives()
    at = np.flatnonzero(hidden[positives.items])
    at = np.sort(rng.permutation(at)[:MAX_HELD_OUT])
    states = events.where(~hidden[events.items]).states(positives.users[at], positives.times[at])
    known = np.flatnonzero(states.positives().lengths > 0)
    return states[known].compact(), np.searchsorted(rows, positives.items[at[known]])


def _weights(users: Floats, predictions: Floats, targets: Ints) -> Doubles:
    """Shares (e,) of the experts, 0 or more, of sum 1. predictions (e, h, d), centred; users (q, d); targets (q,).

    They minimise the mean of -log softmax(sum_e a_e <u, x_e>)[target] over the h items. An expert that predicts what
    the first one does has no weight. Where no expert helps, the first one has all the weight.
    """
    scores = np.stack([users @ vectors.T.astype(np.float32) for vectors in predictions])  # (e, q, h)
    scale = float(scores.std()) if scores.size else 0.0
    first: Doubles = np.eye(len(predictions))[0]
    if scale < TINY:
        return first
    scores /= scale
    queries = np.arange(len(targets))
    own = scores[:, queries, targets]  # (e, q)

    def loss(a: Doubles) -> tuple[float, Doubles]:
        """The loss and its gradient (e,)."""
        total = np.tensordot(a.astype(np.float32), scores, 1)  # (q, h)
        total -= total.max(1, keepdims=True)
        likely = np.exp(total)
        norm = likely.sum(1, keepdims=True)  # (q, 1)
        gradient = np.einsum("eqh,qh->e", scores, likely / norm, optimize=True) / len(queries) - own.mean(1)
        return float((np.log(norm[:, 0]) - total[queries, targets]).mean()), gradient.astype(np.float64)

    differs = first + (predictions != predictions[0]).any(axis=(1, 2)) > 0  # (e,)
    bounds = [(0, None if differ else 0) for differ in differs]
    found = minimize(loss, differs / differs.sum(), jac=True, bounds=bounds, method="L-BFGS-B").x
    total = float(found.sum())
    shares: Doubles = np.asarray(found, dtype=np.float64) / total if total > TINY else first
    return shares


@dataclass(frozen=True)
class _Experts:
    """features (n, f) of the regression; spaces: rows (n, w) whose cosines tell neighbours, and the power of each."""

    features: sp.csr_array
    spaces: tuple[tuple[sp.csr_array | Floats, int], ...]
    vectors: Floats
    positives: Ints

    @classmethod
    def of(cls, catalog: Catalog, vectors: Floats, positives: Ints) -> "_Experts":
        """Of a catalogue of n items. vectors (n, d); positives (n,): positive events of each item."""
        tfidf = item_tfidf(catalog)
        spaces = tuple(zip((tfidf, catalog.content), POWERS, strict=True))
        return cls(content_features(catalog, tfidf), spaces, vectors, positives)

    def predict(self, known: Ints, unknown: Ints) -> Floats:
        """The predictions of EXPERTS for the items `unknown` from the items `known`: (e, len(unknown), d)."""
        events = self.positives[known]
        regression = _ridge_predictions(self.features, self.vectors, known, unknown, events)
        means = [
            mean
            for rows, power in self.spaces
            for mean in _neighbour_means(rows, self.vectors, known, unknown, events, regression, power)
        ]
        return np.stack([regression, *means])


def _ridge_predictions(features: sp.csr_array, vectors: Floats, known: Ints, unknown: Ints, events: Ints) -> Floats:
    """Vectors (len(unknown), d) by weighted ridge regression with an intercept on features (n, f).

    The regression is fitted on the items `known`; events (len(known),): positive events of each. It solves
    (Xc' W Xc + RIDGE I) B = Xc' W Yc, where Xc, Yc are centred features and vectors and W the weights, by conjugate
    gradients (Hestenes & Stiefel 1952) for all d columns at a time: ten times as fast as scikit-learn, which solves
    column by column.
    """
    weights = np.sqrt(events)  # the vector of an item of few events is noisy
    weights = (weights / weights.mean()).astype(np.float32)[:, None]  # (m, 1), mean 1
    x, y = features[known], vectors[known]  # (m, f), (m, d)
    mean_x, mean_y = (weights.T @ x) / len(known), (weights.T @ y) / len(known)  # (1, f), (1, d)

    def centred(b: Floats) -> Floats:
        """Xc @ b, (f, d) -> (m, d), without a dense Xc."""
        out: Floats = x @ b - mean_x @ b
        return out

    def transposed(r: Floats) -> Floats:
        """Xc' @ r, (m, d) -> (f, d)."""
        out: Floats = x.T @ r - mean_x.T * r.sum(0)
        return out

    solution = np.zeros((x.shape[1], y.shape[1]), dtype=np.float32)  # (f, d) B
    residual = transposed(weights * (y - mean_y))  # (f, d)
    direction, squared = residual.copy(), (residual**2).sum(0)  # (f, d), (d,)
    initial = squared
    for _ in range(MAX_ITERATIONS):
        product = transposed(weights * centred(direction)) + RIDGE * direction  # (f, d) A p
        step = squared / (direction * product).sum(0).clip(min=TINY)  # (d,) r'r / p'Ap
        solution += step * direction
        residual -= step * product
        previous, squared = squared, (residual**2).sum(0)
        if (squared <= TOLERANCE**2 * initial).all():
            break
        direction = residual + squared / previous.clip(min=TINY) * direction
    rows: Floats = features[unknown] @ solution - mean_x @ solution + mean_y
    return rows


def _neighbour_means(
    rows: sp.csr_array | Floats,
    vectors: Floats,
    known: Ints,
    unknown: Ints,
    events: Ints,
    fallback: Floats,
    power: int,
) -> Iterator[Floats]:
    """For each of NEIGHBOURS, vectors (len(unknown), d): weighted means of as many nearest items of `known`.

    rows (n, w): unit rows or zero. A neighbour weighs cosine ** power * sqrt(events). events (len(known),): positive
    events of each. An item that shares nothing with any of `known` gets its row of `fallback` (len(unknown), d).
    """
    out = [fallback.copy() for _ in NEIGHBOURS]
    weight = np.sqrt(events).astype(np.float32)  # (len(known),)
    known_rows, known_vectors = rows[known].T, vectors[known]
    size = max(1, MAX_PAIRS // len(known))
    for at in range(0, len(unknown), size):
        product = rows[unknown[at : at + size]] @ known_rows
        cosines = product if isinstance(product, np.ndarray) else product.toarray()  # (size, len(known))
        nearest = torch.from_numpy(cosines).topk(min(NEIGHBOURS[0], len(known)), dim=1)  # NEIGHBOURS descend
        place = nearest.indices.numpy()  # (size, w): of the w nearest in `known`, nearest first
        weights = nearest.values.clamp(min=0).numpy() ** power * weight[place]
        for means, k in zip(out, NEIGHBOURS, strict=True):
            shares = weights[:, :k]
            total = shares.sum(1, keepdims=True)  # (size, 1)
            starts = np.arange(len(shares) + 1) * shares.shape[1]
            shape = (len(shares), len(known))
            summed = sp.csr_array((shares.ravel(), place[:, :k].ravel(), starts), shape=shape) @ known_vectors
            has_neighbours = total[:, 0] > 0  # (size,)
            means[at : at + size][has_neighbours] = (summed / total.clip(min=TINY))[has_neighbours]
    yield from out
