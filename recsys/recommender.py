"""The real recommender: user tower, index and own items, reranker."""

from dataclasses import dataclass

import numpy as np

from features.interactions import Bools, Ints, Ragged, UserStates
from recsys.baselines.popular import Popular
from recsys.candidates import Candidates, Floats, Retriever, Scorer
from recsys.tally import Tally
from recsys.towers import TwoTowers


@dataclass(frozen=True)
class TwoStage:
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
        stranger = states.liked().lengths == 0
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
        """The k items that the reranker is given: a user's own, at most half, and the nearest ones; by nearness.

        What someone takes again and again is often far from the one point that stands for all they take.
        """
        users = self.towers.user_vectors(states, self.vectors)
        found = self.index.search(users, k, allow=allow, exclude=exclude)
        own = Tally.of(states, len(self.vectors)).favourites(len(states), k // 2, allow=allow, exclude=exclude)
        if not (own >= 0).any():
            return found
        return self._joined(users, own, found)

    def _joined(self, users: Floats, own: Ints, found: Candidates) -> Candidates:
        """All of `own` (b, h), and of `found` as many others as there is room for beside them, by score."""
        k, n = found.rows.shape[1], len(self.vectors)
        near = np.einsum("bd,bhd->bh", users, self.vectors[np.maximum(own, 0)], optimize=True)
        at = np.arange(len(own))[:, None] * (n + 1)  # padding has the key of no item
        again = np.isin(at + found.rows + 1, (at + own + 1)[own >= 0])
        rows = np.concatenate([own, np.where(again, -1, found.rows)], axis=1)  # (b, h + k)
        scores = np.concatenate([near, found.scores], axis=1)
        room = np.cumsum(rows >= 0, axis=1) <= k  # own first, then the nearest
        scores[(rows < 0) | ~room] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        return Candidates(np.where(np.isneginf(scores), -1, rows), scores)

    def _personal(self, states: UserStates, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
        if self.reranker is None:
            users = self.towers.user_vectors(states, self.vectors)
            return self.index.search(users, k, allow=allow, exclude=exclude)
        found = self.retrieve(states, max(k, self.candidates), allow=allow, exclude=exclude)
        scores = self.reranker.score(states, found)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Candidates(np.take_along_axis(found.rows, order, 1), np.take_along_axis(scores, order, 1))

    def _popular(self, states: UserStates, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
        return self.fallback.recommend(states, k, allow=allow, exclude=exclude)
