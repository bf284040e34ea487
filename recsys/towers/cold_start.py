"""Placement of cold items: vectors predicted from content, and the lift that lets them be found."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Doubles, Floats
from features.catalog import Catalog
from features.content.spaces import unit
from features.interactions import Interactions
from recsys.evaluation import metrics
from recsys.retrieval.index import Index
from recsys.towers.content_prediction import EXPERTS, Prediction, PseudoCold, predict_vectors
from recsys.towers.model import MAX_SAMPLED_USERS, TwoTowers

TOP, DEPTH = 10, 20
"""Places that count, and the length of lists in which ranks up to TOP are exact."""

STEPS = np.concatenate([[0.0], np.geomspace(1 / 64, 2, 29)])
"""Lifts that are tried: steps along the mean user vector. After longer ones, item vectors hardly differ."""

MAX_LIFT = 4.0
"""Cold items get at most this multiple of their share of the catalogue as their share of the first ten places."""

FILLER_FRACTION = 4
"""One in so many coordinates, the last ones, holds the filler that makes a cold item's vector a unit vector."""


@dataclass(frozen=True)
class Lift:
    """What a lift of cold items gives and costs in lists of ten of the towers.

    step: of the move along the mean user vector; ndcg: NDCG@10 of events with known items; share: of the places that
    cold items take; hr_cold: HR@10 of events with pseudo-cold items that are moved as far, among all items, NaN where
    there are none.
    """

    step: float
    ndcg: float
    share: float
    hr_cold: float


@dataclass(frozen=True)
class Placement:
    """Where cold items were placed.

    vectors (n, d): item vectors, those of cold items predicted and lifted; weights: of EXPERTS, empty where nothing
    is predicted; lifts: what was tried, by ascending steps; chosen: the step.
    """

    vectors: Floats
    weights: tuple[float, ...] = ()
    lifts: tuple[Lift, ...] = ()
    chosen: float = 0.0

    def lines(self) -> Iterator[str]:
        """For people to read."""
        if self.weights:
            parts = [f"{name} {share:.0%}" for name, share in zip(EXPERTS, self.weights, strict=True) if share]
            yield f"vectors of cold items are predicted by: {', '.join(parts)}"
        if self.lifts:
            yield "cold items in lists of the towers, by their lift:"
        for number, lift in enumerate(self.lifts):
            is_chosen = lift.step == self.chosen
            if is_chosen or number % 4 == 0:
                cost = lift.ndcg / (self.lifts[0].ndcg or 1.0) - bool(self.lifts[0].ndcg)
                yield (
                    f"  +{lift.step:.3f}: NDCG@10 of known items {cost:+.1%}, {lift.share:.1%} of the places, "
                    f"HR@10 of pseudo-cold items {lift.hr_cold:.4f}" + (" <- chosen" if is_chosen else "")
                )


def place_cold_items(
    model: TwoTowers, catalog: Catalog, events: Interactions, *, price: float, seed: int
) -> Placement:
    """Item vectors (n, d) of towers fitted on `events`; the vectors of cold items are predicted from content.

    A cold item has no positive event. `predict_vectors` says how its vector is predicted. A prediction is shorter
    when the content says less about the item. A shorter vector has lower scores, as it should: scaling it to unit
    length would rank the item high for users who may not want it. `_filler` makes it a unit vector instead, in
    coordinates in which users hardly differ, so that its scores hardly change.

    The towers know less about users' interest in cold items than in warm ones. Predictions are therefore short, and
    cold items would never be recommended. Available items without any event are therefore lifted: all move by the
    same step along the mean user vector. The step is the longest up to which NDCG@10 of events with known items is
    lower by at most the share `price`, and they take at most MAX_LIFT times their share of the catalogue of the
    places. price 0: nothing is lifted. config.cold_share replaces the price by a share of the places. Items published
    after `events` move with the others but are not counted, because they are not shown yet; the next fit counts them.
    """
    vectors = model.item_vectors().copy()  # (n, d)
    positive = np.bincount(events.positives().items, minlength=len(catalog)) > 0  # (n,)
    cold = np.flatnonzero(~positive)  # item rows
    if len(cold) == 0 or not positive.any() or not model.config.content:
        return Placement(vectors)
    prediction = predict_vectors(model, catalog, vectors, events, cold, seed=seed)
    filler = _filler(len(catalog), model.config.dimension, seed)  # (n, d)
    placed = vectors.copy()
    placed[cold] = _unit_length(prediction.vectors, filler[cold])
    has_events = np.bincount(events.items, minlength=len(catalog)) > 0  # (n,) of any kind
    unseen = (catalog.available & ~has_events)[cold]  # (n_cold,)
    shown = catalog.available & catalog.published_by(events.latest)  # (n,)
    share = model.config.cold_share
    if (price == 0 if share is None else share == 0) or not shown[cold[unseen]].any():
        return Placement(placed, prediction.weights)
    trial = _Trial.of(model, vectors, events, shown & has_events, prediction, seed=seed)
    rows = cold[unseen]
    lifts = list[Lift]()
    for step in STEPS:
        moved = _unit_length(prediction.vectors[unseen] + step * trial.direction, filler[rows])
        lifts.append(trial.lift(float(step), moved[shown[rows]], filler))
    most = MAX_LIFT * int(shown[rows].sum()) / int(shown.sum())
    chosen = choose_step(lifts, price, most) if share is None else choose_step(lifts, 1, min(share, most))
    placed[rows] = _unit_length(prediction.vectors[unseen] + chosen * trial.direction, filler[rows])
    return Placement(placed, prediction.weights, tuple(lifts), chosen)


def choose_step(lifts: list[Lift], price: float, share: float) -> float:
    """The longest step where NDCG@10 is lower by at most `price`, and cold items take at most `share` of the places.

    It ends where they take fewer places again: after longer steps all cold items look alike. No step where NDCG@10
    is 0 without one: nothing is known of what a lift costs.
    """
    chosen = lifts[0]
    for lift in lifts[1:]:
        costs_too_much = lift.ndcg < (1 - price) * lifts[0].ndcg or lifts[0].ndcg == 0
        if costs_too_much or not chosen.share <= lift.share <= share:
            break
        chosen = lift
    return chosen.step


def informative_part(vectors: Floats) -> Floats:
    """Unit rows (b, d): query vectors for items similar to items (b, d), without the coordinates of `_filler`."""
    return unit(vectors * (np.arange(vectors.shape[1]) < _informative_width(vectors.shape[1])))


@dataclass(frozen=True)
class _Trial:
    """What lifts are judged by.

    direction (1, d): the mean user vector. users (b, d): before each user's last positive event; top (b, DEPTH): the
    best scores of known items; rank (b,): of the item that was taken, inf beyond TOP; own (b,): its score.
    pseudo: pseudo-cold items; pseudo_top (q, DEPTH): the best scores of the other known items for their users.
    """

    direction: Floats
    users: Floats
    top: Floats
    rank: Doubles
    own: Floats
    pseudo: PseudoCold | None
    pseudo_top: Floats

    @classmethod
    def of(
        cls,
        model: TwoTowers,
        vectors: Floats,
        events: Interactions,
        known: Bools,
        prediction: Prediction,
        *,
        seed: int,
    ) -> "_Trial":
        """known (n,): the items that compete with the cold ones."""
        positives, index = events.positives(), Index(vectors)
        last = np.flatnonzero(np.append(positives.users[1:] != positives.users[:-1], True))  # of each user
        last = np.sort(np.random.default_rng(seed).permutation(last)[:MAX_SAMPLED_USERS])
        states = events.states(positives.users[last], positives.times[last])
        has_history = np.flatnonzero(states.positives().lengths > 0)
        states, items = states[has_history].compact(), positives.items[last[has_history]]
        users = model.user_vectors(states, vectors)
        found = index.search(users, DEPTH, allow=known, exclude=states.seen_items())
        rank = metrics.target_ranks(found, np.arange(len(items)), items)
        own = np.einsum("bd,bd->b", users, vectors[items], dtype=np.float32)
        pseudo, top = prediction.pseudo_cold, np.empty((0, DEPTH), np.float32)
        if pseudo is not None:
            others = known & ~np.isin(np.arange(len(known)), pseudo.rows)
            top = index.search(pseudo.users, DEPTH, allow=others, exclude=pseudo.seen).scores
        return cls(unit(users.sum(0, keepdims=True)), users, found.scores, rank, own, pseudo, top)

    def lift(self, step: float, moved: Floats, filler: Floats) -> Lift:
        """What it gives and costs that cold items have the vectors moved (m, d). filler (n, d): see `_filler`."""
        scores = Index(moved).search(self.users, DEPTH).scores  # (b, DEPTH)
        ranks = self.rank + (scores > self.own[:, None]).sum(1)
        both = np.concatenate([self.top, scores], axis=1)
        best = np.argsort(-both, axis=1, kind="stable")[:, :TOP]
        taken = np.isfinite(np.take_along_axis(both, best, 1))
        return Lift(
            step=step,
            ndcg=float(metrics.ndcg(ranks, TOP, depth=DEPTH).mean()) if len(ranks) else 0.0,
            share=float((best >= DEPTH)[taken].mean()) if taken.any() else 0.0,
            hr_cold=self._hr_of_pseudo_cold(step, filler),
        )

    def _hr_of_pseudo_cold(self, step: float, filler: Floats) -> float:
        """HR@10 of events with pseudo-cold items, among them and the known items."""
        pseudo = self.pseudo
        if pseudo is None or not len(pseudo.targets):
            return float("nan")
        moved = _unit_length(pseudo.vectors + step * self.direction, filler[pseudo.rows])
        scores = pseudo.users @ moved.T  # (q, h)
        own = scores[np.arange(len(scores)), pseudo.targets][:, None]
        return float(((scores > own).sum(1) + (self.pseudo_top > own).sum(1) < TOP).mean())


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
