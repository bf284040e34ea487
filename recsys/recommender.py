"""The real recommender: user tower, index and own items, reranker."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Floats
from features.content.spaces import unit
from features.interactions import Ragged, UserStates
from recsys.histories import profile
from recsys.interfaces import Candidates, Retriever, Scorer, first_occurrences, sort_candidates
from recsys.ranking.user_item_counts import UserItemCounts
from recsys.retrieval.popular import Popular
from recsys.towers.model import TwoTowers

PROFILE_SHARE = 0.3
"""Share of the candidates that are near to all a user ever liked. Of MovieLens's next events, .600 are among 500
candidates then, .586 without."""


@dataclass(frozen=True)
class TwoStageRecommender:
    """Candidates by the towers and of the user's own, order by the reranker; without one, the towers' order stands.

    vectors (n, d): the items by the towers, and index: what finds them. fallback answers states with no positive
    event.
    candidates: how many items the reranker is given. fitted_until: µs of the latest event that any part has seen.
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
        """The best k items for each of b states; see `Recommender`."""
        stranger = states.positives().lengths == 0
        if not stranger.any():
            return self._personal(states, k, allow, exclude)
        rows = np.full((len(states), k), -1, dtype=np.int64)
        scores = np.full((len(states), k), -np.inf, dtype=np.float32)
        for part, answer in ((stranger, self._popular), (~stranger, self._personal)):
            at = np.flatnonzero(part)
            if len(at):
                found = answer(states[at], k, allow, None if exclude is None else exclude[at])
                rows[at], scores[at] = found.rows, found.scores
        return Candidates(rows, scores)

    def retrieve(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k items that the reranker is given, by nearness: a user's own, at most half; those near to all that
        the user ever liked; and those near to what comes next, the rest.

        What someone takes again and again is often far from the one point that stands for what they take next, and
        so is what they always liked.
        """
        n = len(self.vectors)
        users = self.towers.user_vectors(states, self.vectors)
        always = unit(profile(states.positives(), n, 1.0) @ self.vectors)
        own = UserItemCounts.of(states, n).favourites(len(states), k // 2, allow=allow, exclude=exclude)
        old = self.index.search(always, int(PROFILE_SHARE * k), allow=allow, exclude=exclude).rows
        new = self.index.search(users, k, allow=allow, exclude=exclude).rows
        rows = np.concatenate([own, old, new], axis=1)  # (b, w)
        ranks = [np.zeros(own.shape[1]), np.arange(old.shape[1]) / PROFILE_SHARE, np.arange(k) / (1 - PROFILE_SHARE)]
        rows = rows[:, np.argsort(np.concatenate(ranks), kind="stable")]  # own ones, then the two in turn
        first = first_occurrences(rows)
        kept = first & (np.cumsum(first, axis=1) <= k)
        scores = np.einsum("bd,bwd->bw", users, self.vectors[np.maximum(rows, 0)], optimize=True)
        return sort_candidates(rows, np.where(kept, scores, -np.inf), k)

    def _personal(self, states: UserStates, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
        if self.reranker is None:
            users = self.towers.user_vectors(states, self.vectors)
            return self.index.search(users, k, allow=allow, exclude=exclude)
        found = self.retrieve(states, max(k, self.candidates), allow=allow, exclude=exclude)
        return sort_candidates(found.rows, self.reranker.score(states, found), k)

    def _popular(self, states: UserStates, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
        return self.fallback.recommend(states, k, allow=allow, exclude=exclude)
