"""The two-stage recommender: candidates from the towers and the user's own items, then the reranker."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.arrays import Bools, Doubles, Floats, Ints
from features.content.spaces import unit
from features.interactions import Ragged, UserStates
from recsys.config import SourceQuotas
from recsys.histories import profile
from recsys.interfaces import Candidates, Retriever, Scorer, sort_candidates
from recsys.ranking.pair_features import FEATURES, PARTS, PairFeatures
from recsys.ranking.reranker import Reranker
from recsys.ranking.user_item_counts import UserItemCounts
from recsys.retrieval.popular import Popular
from recsys.sources import merge_sources, neighbour_items, popular_items
from recsys.towers.model import TwoTowers
from recsys.towers.newest import Encode


@dataclass(frozen=True)
class TwoStageRecommender:
    """Retrieves candidates and orders them with the reranker. Without a reranker the order of the towers is kept.

    vectors (n, d): item vectors of the towers; index: the retriever over them.
    fallback: recommends to states without a positive event (cold users).
    candidates: number of items that the reranker scores; quotas: the share of each source among them.
    fitted_until: time (µs) of the latest event that any part was fitted on.
    """

    towers: TwoTowers
    vectors: Floats
    index: Retriever
    fallback: Popular
    reranker: Scorer | None
    candidates: int
    quotas: SourceQuotas
    fitted_until: int

    def user_vectors(self, states: UserStates) -> Floats:
        """The vectors that retrieval searches with: (b, d); see `TwoTowers.user_vectors`."""
        return self._encode_users(states, self.vectors)

    @cached_property
    def _encode_users(self) -> Encode:
        return self.towers.user_encoder()

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
        self,
        states: UserStates,
        k: int,
        *,
        allow: Bools | None = None,
        exclude: Ragged | None = None,
        features: PairFeatures | None = None,
    ) -> Candidates:
        """The k candidates of the reranker, by the inner product with the user vector.

        At most k / 2 are items of the user's own history. The others come from the sources of `SourceQuotas` by their
        quotas: one user vector does not cover items that a user repeats, items of lasting interest, and what others
        choose with the items of the history. features: of a reranker that is being fitted, else those of the
        recommender's; without any, the sources neighbours, fresh and trending bring nothing.
        """
        if features is None and isinstance(self.reranker, Reranker):
            features = self.reranker.features
        n, limits = len(self.vectors), self.quotas.limits(k)
        users = self.user_vectors(states)  # (b, d)
        # name -> (b, m)
        found = {"own": UserItemCounts.of(states, n).favourites(len(states), k // 2, allow=allow, exclude=exclude)}
        found["recent"] = self.index.search(users, k, allow=allow, exclude=exclude).rows
        if m := limits["long_term"]:
            means = unit(profile(states.positives(), n, 1.0) @ self.vectors)  # (b, d)
            found["long_term"] = self.index.search(means, m, allow=allow, exclude=exclude).rows
        if m := limits["popular"]:
            found["popular"] = popular_items(self.fallback, states, m, allow=allow, exclude=exclude)
        if features is not None and (m := limits["neighbours"]):
            found["neighbours"] = neighbour_items(features, states.positives(), m, allow=allow, exclude=exclude)
        if features is not None and (m := limits["trending"]):
            found["trending"] = popular_items(features.trending, states, m, allow=allow, exclude=exclude)
        if features is not None and (m := limits["fresh"]):
            fresh = features.is_fresh if allow is None else features.is_fresh & allow  # (n,)
            if fresh.any():
                found["fresh"] = self.index.search(users, m, allow=fresh, exclude=exclude).rows
        merged = merge_sources(found, self.quotas, k)
        scores = (self.vectors[np.maximum(merged.rows, 0)] @ users[:, :, None])[:, :, 0]  # (b, k)
        return merged.sorted(scores, k)

    def ranked(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """See `Explainable`. Without a reranker the candidates are the k items that are returned."""
        return self._personal(states, k if self.reranker is None else max(k, self.candidates), allow, exclude)

    def rank(self, states: UserStates, rows: Ints) -> Candidates:
        """See `Explainable`. An item has the features that it would have among the candidates."""
        return self.rank_each(states, rows[None])

    def rank_each(self, states: UserStates, rows: Ints) -> Candidates:
        """`rank` of a list for each of b states: (b, m) of rows (b, m), where -1 is no item."""
        cold = states.positives().lengths == 0  # (b,)
        if cold.all():
            return sort_candidates(rows, self.fallback.popularity[rows], rows.shape[1])
        if cold.any():
            found = Candidates.empty(*rows.shape)
            for mask in (cold, ~cold):
                at = np.flatnonzero(mask)
                found.put(at, self.rank_each(states[at], rows[at]))
            return found
        if self.reranker is None:
            return self._by_towers(states, rows)
        everything = np.ones(len(self.vectors), dtype=np.bool_)  # the index may have got further rows meanwhile
        given, ranks = self.places(states, rows, self.retrieve(states, self.candidates, allow=everything))
        return given.sorted(self.reranker.score(states, given, ranks), rows.shape[1])

    def places(self, states: UserStates, rows: Ints, candidates: Candidates) -> tuple[Candidates, Ints]:
        """Items rows (b, m), best first by the towers, and the rank (b, m) of each among candidates (b, c).

        The rank of an item that is no candidate is the one that it would have.
        """
        given = self._by_towers(states, rows)
        is_it = candidates.rows[:, :, None] == given.rows[:, None, :]  # (b, c, m)
        above = (candidates.scores[:, :, None] > given.scores[:, None, :]).sum(1)  # (b, m)
        # products of two shapes may differ in the last bit
        return given, np.where(is_it.any(1), is_it.argmax(1), above)

    def _by_towers(self, states: UserStates, rows: Ints) -> Candidates:
        """Items rows (b, m), -1 for none, by the inner product with the user vector."""
        scores = (self.vectors[np.maximum(rows, 0)] @ self.user_vectors(states)[:, :, None])[:, :, 0]
        return sort_candidates(rows, scores, rows.shape[1])

    def probabilities(self, rows: Ints, scores: Floats) -> Doubles | None:
        """See `Explainable`."""
        return self.reranker.probabilities(rows, scores) if isinstance(self.reranker, Reranker) else None

    def retrieval_scores(self, states: UserStates) -> Floats:
        """See `Explainable`: the inner products with the user vector."""
        scores: Floats = self.vectors @ self.user_vectors(states)[0]
        return scores

    def item_scores(self, states: UserStates, row: int) -> Floats:
        """See `Explainable`: the inner products with the user vectors."""
        scores: Floats = self.user_vectors(states) @ self.vectors[row]
        return scores

    def contributions(
        self, states: UserStates, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Doubles | None:
        """See `Explainable`."""
        if not isinstance(self.reranker, Reranker) or not len(rows):
            return None
        candidates, at, place = self._among_candidates(states, rows, k, allow, exclude)
        parts = np.full((len(rows), len(PARTS) + 1), np.nan)
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
            users = self.user_vectors(states)
            return self.index.search(users, k, allow=allow, exclude=exclude).of_source("recent")
        candidates = self.retrieve(states, max(k, self.candidates), allow=allow, exclude=exclude)
        return candidates.sorted(self.reranker.score(states, candidates), k)

    def _popular(self, states: UserStates, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
        return self.fallback.recommend(states, k, allow=allow, exclude=exclude).of_source("popular")
