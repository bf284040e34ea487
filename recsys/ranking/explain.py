"""Why an item is recommended: the near item of the history, the features that count most, and a sentence.

A sentence says only what the data show. It names an item of the history where both items are nearer to each other
than nearly all other items of the catalogue are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import numpy as np
import scipy.sparse as sp

from features.arrays import Bools, Doubles, Floats, Ints
from features.catalog import UNDATED, Catalog
from features.content.spaces import unit
from features.instants import DAY
from features.interactions import Ragged, UserStates
from features.schema import TITLE
from recsys.interfaces import Candidates, Recommender
from recsys.ranking.pair_features import FRESH_DAYS, PARTS

BEHAVIOUR = "behaviour"
"""The channel of the towers' vectors; the others are those of the content space."""

ALIKE = {
    "text": "similar description",
    "title": "similar title",
    "image": "similar pictures",
    "video": "similar video",
    "speech": "similar speech",
    "sound": "similar sound",
    "audio": "similar sound",
    BEHAVIOUR: "often chosen by the same people",
}
"""Channel -> what two items have in common that are near to each other in it."""

SAMPLE = 1000
"""Number of items, drawn at random, that cosines are compared with."""

NEAR, NEAR_PAIRS = 0.99, 0.95
"""Two items are near above this quantile of the cosines of each of them with the sample, and above this quantile of
those of all pairs of the sample. The second rule is for an item that all others are far from."""

ROUNDING = 1e-3
"""Least difference between cosines: content channels are stored in half precision."""

MIN_WEIGHT = 0.01
"""Least weight of local EASE between items that are often chosen together: about two users in common, at a
regularization of 200."""

STRONGEST = 3
"""Number of features that are named."""

POPULAR_FOR_DAYS = 2
"""What was popular in the days before a training is so for this many days."""


class Explainable(Recommender, Protocol):
    """A recommender that tells how one state with a positive event came to its list (b = 1)."""

    def ranked(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """All candidates that `recommend` takes the k best of, best first: (1, m), m >= k."""
        ...

    def rank(self, states: UserStates, rows: Ints) -> Candidates:
        """The items of rows (m,), best first: (1, m). Also for a state without a positive event, by popularity."""
        ...

    def probabilities(self, rows: Ints, scores: Floats) -> Doubles | None:
        """The probability that each item of rows (m,) is the user's next one, by its score (m,); None: not known."""
        ...

    def retrieval_scores(self, states: UserStates) -> Floats:
        """The score of the first stage of every item: (n,) float32."""
        ...

    def item_scores(self, states: UserStates, row: int) -> Floats:
        """The score of the first stage of one item for each of b states with a positive event: (b,) float32."""
        ...

    def contributions(
        self, states: UserStates, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Doubles | None:
        """Parts of the scores of rows (m,), which `recommend` returns for k: (m, len(PARTS) + 1).

        A column for each of PARTS, then the expected value; NaN for a row that a rule brought. None where the
        scores have no such parts.
        """
        ...

    def features(
        self, states: UserStates, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Floats | None:
        """What the reranker reads of rows (m,), which `recommend` returns for k: (m, len(FEATURES)).

        NaN where a feature is undefined, and for a row that a rule brought. None without a reranker.
        """
        ...


@dataclass(frozen=True)
class Nearest:
    """The item of a history that is nearest to a recommended item, and the channel in which it is clearest."""

    item_id: str
    title: str | None
    channel: str
    cosine: float


@dataclass(frozen=True)
class Feature:
    """A feature of the reranker, and what it adds to the score."""

    name: str
    contribution: float


@dataclass(frozen=True)
class Why:
    """Why one item is shown.

    source: see `SOURCES`; nearest: None where no item of the history is near; features: those that add most to the
    score, at most STRONGEST; loss: what a rule of rotation takes from the score, in standard deviations.
    """

    source: str
    nearest: Nearest | None
    features: tuple[Feature, ...]
    sentence: str
    loss: float = 0.0


@dataclass(frozen=True)
class Channel:
    """One kind of vectors of n items.

    vectors (n, d) float32: unit rows; present (n,) bool: items that have one; weights (n, n) sparse: row = item of
    the history; where they are given, only items with a weight of MIN_WEIGHT or more are near.
    """

    vectors: Floats
    present: Bools
    weights: sp.csr_array | None = None

    @cached_property
    def sample(self) -> Ints:
        """(s,) int64: rows of the SAMPLE items, or of all that are present."""
        return np.random.default_rng(0).permutation(np.flatnonzero(self.present))[:SAMPLE]

    @cached_property
    def pair_limit(self) -> float:
        """The quantile NEAR_PAIRS of the cosines of all pairs of the sample; 1 without a pair."""
        vectors = self.vectors[self.sample]
        pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        return float(np.quantile(pairs, NEAR_PAIRS)) if len(pairs) else 1.0

    def limits(self, rows: Ints) -> Doubles:
        """(m,): the quantile NEAR of the cosines of each item with the sample, in which it counts as far itself."""
        cosines = self.vectors[rows] @ self.vectors[self.sample].T  # (m, s)
        cosines[rows[:, None] == self.sample] = -1
        return np.asarray(np.quantile(cosines, NEAR, axis=1), dtype=np.float64)

    def compare(self, history: Ints, shown: Ints) -> tuple[Floats, Doubles]:
        """Cosines (h + 1, k) of a history with shown items, and above which they are near: (h + 1, k).

        history (h,): distinct rows that are present; the last line is that of their mean. shown (k,): rows; -inf
        where a shown item has no vector, where it is compared with itself, and where the weight is too small.
        """
        items = self.vectors[history]
        queries = np.concatenate((items, unit(items.mean(0, keepdims=True))))  # (h + 1, d)
        others = self.sample[~np.isin(self.sample, history)]  # the mean is near to its own items
        of_mean = np.quantile(self.vectors[others] @ queries[-1], NEAR) if len(others) else 1.0
        limits = np.maximum(np.append(self.limits(history), of_mean)[:, None], self.limits(shown))
        limits = limits.clip(min=self.pair_limit)  # (h + 1, k)
        cosines = queries @ self.vectors[shown].T
        cosines[:, ~self.present[shown]] = -np.inf
        cosines[:-1][history[:, None] == shown] = -np.inf
        if self.weights is not None:
            weights = self.weights[history][:, shown].toarray()
            cosines[:-1][weights < MIN_WEIGHT] = -np.inf
        return cosines, limits


@dataclass(frozen=True)
class Explainer:
    """Explains the recommendations of n items.

    channels: name -> vectors of the items; popularity (n,) float32: of `Popular`, 0 for an item without a positive
    event at training; trained: number of items that training knew, the first rows; popular_days: the period of the
    popularity before fitted_until (µs), None where it is not known.
    """

    catalog: Catalog
    channels: Mapping[str, Channel]
    popularity: Floats
    trained: int
    popular_days: float | None
    fitted_until: int

    def explain(
        self,
        states: UserStates,
        shown: Ints,
        sources: Sequence[str],
        contributions: Doubles | None,
        *,
        history: Ints | None = None,
        complete: bool = True,
    ) -> list[Why]:
        """Why each item of rows shown (k,) is shown to the user of one state (b = 1).

        sources: of each item; contributions (k, len(PARTS) + 1): see `Explainable`. history: rows of positive
        items that may be named, None for all; complete: whether the state has all events of the user.
        """
        taken = states.positives().pairs()[1]  # (e,)
        named = np.unique(taken) if history is None else np.intersect1d(taken, history)
        nearest, is_like = self.near(named, shown)
        out, now = [], int(states.as_of[0])
        for i, (row, source) in enumerate(zip(shown.tolist(), sources, strict=True)):
            # the history did not bring the items of these sources
            near = nearest[i] if source not in ("popular", "trending", "pinned") else None
            if source == "pinned":
                sentence = "Chosen by the shop"
            elif source == "trending" and self._is_recent(now):
                sentence = "Chosen by others in the last 7 days"
            elif source in ("popular", "trending"):
                sentence = self._popular(row, now)
            elif count := int((taken == row).sum()):
                sentence = _taken(count, complete)
            elif self._is_new(row, now) and (near or is_like[i] or source == "fresh"):
                sentence = "New, like what you chose before" if near or is_like[i] else "New"
            elif near:
                name = (near.title or "").strip() or near.item_id
                sentence = f"Because you chose {name}: {ALIKE.get(near.channel, 'similar content')}"
            else:
                sentence = "Like what you chose before" if is_like[i] else "Suggested for you"
            features = () if contributions is None else strongest(contributions[i])
            out.append(Why(source, near, features, sentence))
        return out

    def near(self, history: Ints, shown: Ints) -> tuple[list[Nearest | None], Bools]:
        """For each of rows shown (k,): the near item of the history (h,), and whether it is near to their mean.

        The nearest is that of the largest cosine in a channel, among those that are near. Of the channels, it is the
        one in which the cosine exceeds its limit by the largest part of what is possible.
        """
        found: list[Nearest | None] = [None] * len(shown)
        clearest, is_like = np.zeros(len(shown)), np.zeros(len(shown), dtype=np.bool_)
        columns = np.arange(len(shown))
        for name, channel in self.channels.items():
            known = history[channel.present[history]]
            if not len(known):
                continue
            cosines, limits = channel.compare(known, shown)
            is_near = cosines > limits + ROUNDING  # (h + 1, k)
            is_like |= is_near[-1]
            best = np.where(is_near[:-1], cosines[:-1], -np.inf).argmax(0)  # (k,)
            limit = limits[best, columns]  # (k,)
            clear = (cosines[best, columns] - limit) / (1 - limit).clip(min=ROUNDING)
            for i in np.flatnonzero(is_near[best, columns] & (clear > clearest)).tolist():
                found[i] = self._nearest(int(known[best[i]]), name, float(cosines[best[i], i]))
                clearest[i] = clear[i]
        return found, is_like

    def _nearest(self, row: int, channel: str, cosine: float) -> Nearest:
        frame = self.catalog.frame
        title = frame.get_column(TITLE)[row] if TITLE in frame.columns else None
        return Nearest(self.catalog.ids.ids[row], cast(str | None, title), channel, cosine)

    def _popular(self, row: int, now: int) -> str:
        """Popular is what has more positive events than the mean of the items."""
        count = self.popularity[row]
        if not count > self.popularity.mean():
            return "Suggested for you"
        if self.popular_days is None or count < 1 or not self._is_recent(now):
            return "Popular"
        return f"Popular in the last {self.popular_days:g} days"

    def _is_recent(self, now: int) -> bool:
        """Whether what was so in the days before the training is still so."""
        return now - self.fitted_until <= POPULAR_FOR_DAYS * DAY

    def _is_new(self, row: int, now: int) -> bool:
        """Whether no event is known of an item that was published, or else added, in the last FRESH_DAYS."""
        if self.popularity[row] > 0:
            return False
        published = int(self.catalog.published[row])
        if published == UNDATED:  # an item that was added after the training
            return row >= self.trained and now - self.fitted_until <= FRESH_DAYS * DAY
        return now - published <= FRESH_DAYS * DAY


def strongest(contributions: Doubles) -> tuple[Feature, ...]:
    """The features that add most to one score, at most STRONGEST, largest first.

    contributions: one row of `Explainable.contributions`, whose last column is the expected value.
    """
    best = np.argsort(-contributions[:-1], kind="stable")[:STRONGEST]
    return tuple(Feature(PARTS[at], float(contributions[at])) for at in best.tolist() if contributions[at] > 0)


def _taken(count: int, complete: bool) -> str:
    """How often an item was chosen; "at least" where older events may be missing."""
    if count == 1:
        return "You chose it once before" if complete else "You chose it before"
    return f"You chose it {count} times before" if complete else f"You chose it at least {count} times before"
