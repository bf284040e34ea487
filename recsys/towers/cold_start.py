"""Vectors of cold items, predicted from their content, and the lift that gives them a share of the top places."""

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
"""Top places of a list, in which the share of cold items is measured."""

MAX_LIFT = 4.0
"""Cold items get at most this multiple of their share of the catalogue as their share of the top places."""

MIN_STEP, MAX_STEP = 1 / 64, 8.0
"""Shortest and longest lift that is tried. After the longest, item vectors hardly differ."""

FILLER_FRACTION = 4
"""One in so many coordinates, the last ones, holds the filler that makes a cold item's vector a unit vector."""

RIDGE = 4.0
"""Penalty of the ridge regression from content features, of length about 1, to item vectors."""

NEIGHBOURS = 100
"""Warm items of highest TF-IDF cosine that predict a cold item's vector."""

HELD_OUT_FRACTION = 5
"""One in so many warm items is held out, to weigh the predictions of the regression and of the neighbours."""

MIN_WARM_ITEMS = 100
"""With fewer warm items none are held out, and the regression alone predicts."""

MAX_PAIRS = 20_000_000
"""(cold item, warm item) pairs that are compared at a time."""

MAX_ITERATIONS, TOLERANCE, TINY = 50, 1e-3, 1e-12
"""Conjugate gradients: maximum of iterations; relative residual norm to stop at; smallest denominator."""


def place_cold_items(model: TwoTowers, catalog: Catalog, events: Interactions, *, seed: int) -> Floats:
    """Item vectors (n, d) of towers fitted on `events`; the vectors of cold items are predicted from content.

    A cold item has no positive event. Two models, fitted on the warm items, predict its vector: a ridge regression on
    content vectors, numbers, categories and TF-IDF (as Gantner et al. 2010, Learning attribute-to-feature mappings
    for cold-start recommendations), and a mean of its neighbours by TF-IDF. The neighbours cover rare words, which
    the regression misses because few items share them. The weights of the two are fitted on held-out warm items
    (`_predicted`).

    A prediction is shorter when the content says less about the item. A shorter vector has lower scores, as it
    should: scaling it to unit length would rank the item high for users who may not want it. `_filler` makes it a
    unit vector instead, in coordinates in which users hardly differ, so that its scores hardly change.

    The towers know less about users' interest in cold items than in warm ones. Predictions are therefore short, and
    cold items would never be recommended. Available items without any event are therefore lifted: all move by the
    same step, at most MAX_STEP, along the mean user vector. The step is chosen so that they take config.newcomers of
    the TOP places of lists, or MAX_LIFT times their share of the catalogue, whichever is less. They do not move when
    they take that share already. Items published after `events` move with the others but are not counted, because
    they are not shown yet; the next fit counts them.
    """
    vectors = model.item_vectors().copy()  # (n, d)
    positives = np.bincount(events.positives().items, minlength=len(catalog))  # (n,) positive events of each item
    cold, warm = np.flatnonzero(positives == 0), np.flatnonzero(positives)  # item rows
    max_share = model.config.newcomers
    if len(cold) == 0 or max_share == 0 or not model.config.content:
        return vectors
    states, users = model.newest_users(vectors, events, seed=seed)  # (b, d) user vectors
    predicted = _predicted(catalog, vectors, warm, cold, positives, users, seed=seed)  # (n_cold, d)
    filler = _filler(len(cold), model.config.dimension, seed)  # (n_cold, d)
    vectors[cold] = _unit_length(predicted, filler)
    has_events = np.bincount(events.items, minlength=len(catalog)) > 0  # (n,) of any kind
    unseen = (catalog.available & ~has_events)[cold]  # (n_cold,)
    shown = catalog.available & catalog.published_by(events.latest)  # (n,)
    shown_now = shown[cold[unseen]]  # (n_unseen,)
    if shown_now.any():
        share = min(max_share, MAX_LIFT * int(shown_now.sum()) / int(shown.sum()))
        competitors = Index(vectors).search(users, TOP, allow=shown & has_events, exclude=states.seen_items()).scores
        vectors[cold[unseen]] = _lift(predicted[unseen], filler[unseen], shown_now, users, competitors, share)
    return vectors


def informative_part(vectors: Floats) -> Floats:
    """Unit rows (b, d): query vectors for items similar to items (b, d), without the coordinates of `_filler`."""
    return unit(vectors * (np.arange(vectors.shape[1]) < _informative_width(vectors.shape[1])))


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


def _predicted(
    catalog: Catalog, vectors: Floats, warm: Ints, cold: Ints, positives: Ints, users: Floats, *, seed: int
) -> Floats:
    """Vectors (n_cold, d) of the cold items, predicted from the vectors of the warm items.

    positives (n,): positive events of each item; users (b, d): user vectors.

    The prediction is v + a1 * r + a2 * k: the mean vector v, and the predictions r of the regression and k of the
    neighbours, both centred. a1, a2 >= 0 minimise sum_i sqrt(positives_i) * |U (v_i - v - a1 r_i - a2 k_i)|^2 over
    the held-out warm items i: the squared error of the scores of users U. Neighbours that predict nothing get the
    weight 0.
    """
    tfidf = item_tfidf(catalog)
    features = content_features(catalog, tfidf)

    def predict(known: Ints, unknown: Ints) -> tuple[Floats, Floats]:
        """Both predictions (len(unknown), d) from the items `known`."""
        regression = _ridge_predictions(features, vectors, known, unknown, positives[known])
        return regression, _neighbour_means(tfidf, vectors, known, unknown, positives[known], regression)

    if len(warm) < MIN_WARM_ITEMS:
        return predict(warm, cold)[0]
    order = np.random.default_rng(seed).permutation(warm)
    held_out, fit_rows = (np.sort(part) for part in np.split(order, [len(order) // HELD_OUT_FRACTION]))
    rows = np.stack([vectors[held_out], *predict(fit_rows, held_out)]).astype(np.float64)  # (3, m, d): v, r and k
    weight = np.sqrt(positives[held_out])[:, None]  # (m, 1)
    mean = (rows * weight).sum(1, keepdims=True) / weight.sum()  # (3, 1, d)
    # (3, 3) weighted products of scores: sum_i w_i (x_i - mean_x)' U'U (y_i - mean_y) for x, y in (v, r, k)
    products = np.einsum("amd,bme,de->ab", (rows - mean) * weight, rows - mean, users.T @ users, optimize=True)
    # normal equations G a = g, G = products[1:, 1:], g = products[1:, 0]; with G = L L': min_a>=0 |L' a - L^-1 g|
    root = np.linalg.cholesky(products[1:, 1:] + TINY * (1 + np.trace(products)) * np.eye(2))  # (2, 2) L
    weights, _ = nnls(root.T, np.linalg.solve(root, products[1:, 0]))  # (2,) a1, a2
    regression, neighbours = predict(warm, cold)
    combined = mean[0] + weights[0] * (regression - mean[1]) + weights[1] * (neighbours - mean[2])  # (n_cold, d)
    return np.asarray(combined, dtype=np.float32)


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
    tfidf: sp.csr_array, vectors: Floats, known: Ints, unknown: Ints, events: Ints, fallback: Floats
) -> Floats:
    """Vectors (len(unknown), d): weighted means of the NEIGHBOURS items of `known` with the highest TF-IDF cosine.

    A neighbour weighs cosine^2 * sqrt(events). events (len(known),): positive events of each. An item that shares no
    word with any of `known` gets its row of `fallback` (len(unknown), d).
    """
    out, known_terms = fallback.copy(), sp.csc_array(tfidf[known].T)  # (w, len(known))
    weight = np.sqrt(events).astype(np.float32)  # (len(known),)
    size = max(1, MAX_PAIRS // len(known))
    for at in range(0, len(unknown), size):
        similarity = (tfidf[unknown[at : at + size]] @ known_terms).toarray()  # (size, len(known)) cosines
        if len(known) > NEIGHBOURS:
            threshold = np.partition(similarity, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]  # (size,)
            similarity[similarity < threshold[:, None]] = 0
        similarity = similarity**2 * weight
        total = similarity.sum(1, keepdims=True)  # (size, 1)
        has_neighbours = total[:, 0] > 0  # (size,)
        out[at : at + size][has_neighbours] = (similarity[has_neighbours] / total[has_neighbours]) @ vectors[known]
    return out


def _filler(n: int, d: int, seed: int) -> Floats:
    """n random unit rows (n, d), zero except in the last coordinates, where users differ least (`TwoTowers.rotate`).

    They are random so that the filler does not make cold items similar to each other.
    """
    rows, informative = np.zeros((n, d), dtype=np.float32), _informative_width(d)
    rows[:, informative:] = np.random.default_rng(seed).standard_normal((n, d - informative), dtype=np.float32)
    return unit(rows)


def _informative_width(d: int) -> int:
    """Number of leading coordinates that hold no filler."""
    return d - max(1, d // FILLER_FRACTION)


def _unit_length(rows: Floats, filler: Floats) -> Floats:
    """Unit rows (n, d): longer rows are scaled down, and filler (n, d), unit rows, is added to shorter ones.

    The amount t solves |row + t * filler| = 1: t = -<row, filler> +- sqrt(<row, filler>^2 + 1 - |row|^2), with the
    sign of <row, filler>.
    """
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1)
    component = (rows * filler).sum(1, keepdims=True)  # (n, 1) <row, filler>
    missing = (1 - (rows**2).sum(1, keepdims=True)).clip(min=0)  # (n, 1) 1 - |row|^2
    amount = np.copysign(np.sqrt(component**2 + missing), component) - component
    return unit(rows + amount * filler)  # `unit` removes the rounding error


def _lift(
    predicted: Floats, filler: Floats, shown_now: Bools, users: Floats, competitors: Floats, share: float
) -> Floats:
    """Unit rows (m, d) of m predicted vectors, moved as far as they take at most `share` of the top places.

    The move is step * mean user direction, with one step for all rows. shown_now (m,): items that can be shown
    already; users (b, d): user vectors; competitors (b, TOP): highest scores of the other items for each user.
    """
    mean_user = unit(users.mean(0, keepdims=True))  # (1, d)

    def moved(step: float) -> Floats:
        return _unit_length(predicted + step * mean_user, filler)

    def share_taken(step: float) -> float:
        scores = Index(moved(step)[shown_now]).search(users, TOP).scores  # (b, TOP)
        top = np.argsort(-np.concatenate([competitors, scores], axis=1), axis=1, kind="stable")[:, :TOP]
        return float((top >= TOP).mean())  # columns from TOP on are the moved items

    # the share rises with the step, and falls again when the step is so long that the items hardly differ
    steps, shares = np.append(0.0, np.geomspace(MIN_STEP, MAX_STEP, 20)), list[float]()
    for step in steps:
        shares.append(share_taken(step))
        if shares[-1] > share:
            break
    else:  # no step exceeds the share: take the step of the largest share
        return moved(steps[int(np.argmax(shares))])
    low, high = (steps[max(0, len(shares) - 2)], steps[len(shares) - 1])
    for _ in range(8):  # bisection
        step = (low + high) / 2
        low, high = (step, high) if share_taken(step) <= share else (low, step)
    return moved(low)
