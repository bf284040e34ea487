"""The two-stage recommender: candidates from the towers and the user's own items, then the reranker."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Doubles, Floats, Ints
from features.content.spaces import unit
from features.interactions import Ragged, UserStates
from recsys.histories import profile
from recsys.interfaces import SOURCES, Candidates, Retriever, Scorer, first_occurrences, sort_candidates
from recsys.ranking.pair_features import FEATURES
from recsys.ranking.reranker import Reranker
from recsys.ranking.user_item_counts import UserItemCounts
from recsys.retrieval.popular import Popular
from recsys.towers.model import TwoTowers

PROFILE_SHARE = 0.3
"""Share of the candidates that are retrieved by the profile, the mean of a user's positive items.

On MovieLens it raises the recall of the next event at 500 candidates from .586 to .600.
"""

SHARES = {"own": np.inf, "long_term": PROFILE_SHARE, "recent": 1 - PROFILE_SHARE}
"""How often it is the turn of each source."""


@dataclass(frozen=True)
class TwoStageRecommender:
    """Retrieves candidates and orders them with the reranker. Without a reranker the order of the towers is kept.

    vectors (n, d): item vectors of the towers; index: the retriever over them.
    fallback: recommends to states without a positive event (cold users).
    candidates: number of items that the reranker scores.
    fitted_until: time (µs) of the latest event that any part was fitted on.
    """

    towers: TwoTowers
    vectors: Floats
    index: Retriever
    fallback: Popular
    reranker: Scorer | None
    candidates: int
    fitted_until: int

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k best items of each of b states; see `Recommender`."""
        cold = states.positives().lengths == 0  # (b,)
        if not cold.any():
            return self._personal(states, k, allow, exclude)
        found = Candidates.empty(len(states), k)
        for mask, recommend in ((cold, self._popular), (~cold, self._personal)):
            at = np.flatnonzero(mask)
            if len(at):
                found.put(at, recommend(states[at], k, allow, None if exclude is None else exclude[at]))
        return found

    def retrieve(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k candidates of the reranker, by the inner product with the user vector.

        They come from three sources: at most k / 2 items of the user's own history; items near the profile, the mean
        of all positive items of the user; and items near the user vector, which predicts the next event. Profile and
        user vector contribute PROFILE_SHARE and 1 - PROFILE_SHARE of the rest.

        One user vector does not cover the other two: items that a user repeats, and items of lasting interest, are
        often far from the vector of the next event.
        """
        n, b = len(self.vectors), len(states)
        users = self.towers.user_vectors(states, self.vectors)  # (b, d)
        profiles = unit(profile(states.positives(), n, 1.0) @ self.vectors)  # (b, d)
        # own (b, k // 2), by_profile (b, PROFILE_SHARE * k), by_user (b, k)
        own = UserItemCounts.of(states, n).favourites(b, k // 2, allow=allow, exclude=exclude)
        twice = None if exclude is None else exclude[np.tile(np.arange(b), 2)]
        near = self.index.search(np.concatenate((users, profiles)), k, allow=allow, exclude=twice).rows
        by_user, by_profile = near[:b], near[b:, : int(PROFILE_SHARE * k)]
        merged = merge_sources({"own": own, "long_term": by_profile, "recent": by_user}, k)
        scores = (self.vectors[np.maximum(merged.rows, 0)] @ users[:, :, None])[:, :, 0]  # (b, k)
        return merged.sorted(scores, k)

    def ranked(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """See `Explainable`. Without a reranker the candidates are the k items that are returned."""
        return self._personal(states, k if self.reranker is None else max(k, self.candidates), allow, exclude)

    def rank(self, states: UserStates, rows: Ints) -> Candidates:
        """See `Explainable`. An item has the features that it would have among the candidates."""
        if not states.positives().lengths[0]:
            return sort_candidates(rows[None], self.fallback.popularity[rows][None], len(rows))
        scores = self.retrieval_scores(states)[rows][None]  # (1, m)
        given = sort_candidates(rows[None], scores, len(rows))
        if self.reranker is None:
            return given
        candidates = self.retrieve(states, self.candidates)
        ranks = np.searchsorted(-candidates.scores[0], -given.scores[0])[None]  # (1, m)
        return given.sorted(self.reranker.score(states, given, ranks), len(rows))

    def probabilities(self, rows: Ints, scores: Floats) -> Doubles | None:
        """See `Explainable`."""
        return self.reranker.probabilities(rows, scores) if isinstance(self.reranker, Reranker) else None

    def retrieval_scores(self, states: UserStates) -> Floats:
        """See `Explainable`: the inner products with the user vector."""
        scores: Floats = self.vectors @ self.towers.user_vectors(states, self.vectors)[0]
        return scores

    def contributions(
        self, states: UserStates, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Doubles | None:
        """See `Explainable`."""
        if not isinstance(self.reranker, Reranker) or not len(rows):
            return None
        candidates, at, place = self._among_candidates(states, rows, k, allow, exclude)
        parts = np.full((len(rows), len(FEATURES) + 1), np.nan)
        parts[at] = self.reranker.contributions(states, candidates, place)
        return parts

    def features(
        self, states: UserStates, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Floats | None:
        """See `Explainable`."""
        if not isinstance(self.reranker, Reranker) or not len(rows):
            return None
        candidates, at, place = self._among_candidates(states, rows, k, allow, exclude)
        out = np.full((len(rows), len(FEATURES)), np.nan, dtype=np.float32)
        read = Candidates(candidates.rows[:, place], candidates.scores[:, place])
        out[at] = self.reranker.features.matrix(states, read, place[None])[0]
        return out

    def _among_candidates(
        self, states: UserStates, rows: Ints, k: int, allow: Bools | None, exclude: Ragged | None
    ) -> tuple[Candidates, Ints, Ints]:
        """The candidates of one state (1, w); which of rows (m,) are among them, and the place of each (c,)."""
        candidates = self.retrieve(states, max(k, self.candidates), allow=allow, exclude=exclude)
        at, place = np.nonzero(rows[:, None] == candidates.rows[0])
        return candidates, at, place

    def _personal(self, states: UserStates, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
        if self.reranker is None:
            users = self.towers.user_vectors(states, self.vectors)
            return self.index.search(users, k, allow=allow, exclude=exclude).of_source("recent")
        candidates = self.retrieve(states, max(k, self.candidates), allow=allow, exclude=exclude)
        return candidates.sorted(self.reranker.score(states, candidates), k)

    def _popular(self, states: UserStates, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
        return self.fallback.recommend(states, k, allow=allow, exclude=exclude).of_source("popular")


def merge_sources(found: Mapping[str, Ints], k: int) -> Candidates:
    """The candidates of several sources: (b, k) with scores of 0. found: name -> item rows (b, m), -1 = padding.

    Own items come first, then those of the others in turn, by their shares. An item that several sources bring is
    that of the first.
    """
    turns = [np.arange(rows.shape[1]) / SHARES[name] for name, rows in found.items()]
    order = np.argsort(np.concatenate(turns), kind="stable")  # (w,)
    rows = np.concatenate([*found.values()], axis=1)[:, order]  # (b, w)
    sources = np.concatenate([np.full(rows.shape[1], SOURCES.index(name)) for name, rows in found.items()])
    places = np.concatenate([np.arange(rows.shape[1]) for rows in found.values()])
    both = (np.broadcast_to(values[order].astype(np.int32), rows.shape) for values in (sources, places))
    return Candidates(rows, np.zeros(rows.shape, np.float32), *both).where(first_occurrences(rows), k)
