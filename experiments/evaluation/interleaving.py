"""Interleaving by replay: two recommenders on the same held-out events, and which of them chose what users took."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng

from experiments.evaluation.ranking import rank_targets
from experiments.splits import Targets
from features.arrays import Doubles
from features.catalog import Catalog
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import Interval, bootstrap
from recsys.interfaces import Recommender
from recsys.interleaving import FIRST, SECOND, team_draft

DRAWS = 20
"""Interleaved lists of each pair: the mean over them has little of the chance of the coins."""


@dataclass(frozen=True)
class Preference:
    """wins, losses: share of the events whose item the second or the first recommender chose.

    difference: wins minus losses, mean over users, with its 95 % interval: above 0 the second is preferred.
    """

    users: int
    wins: float
    losses: float
    difference: Interval


def replay(
    first: Recommender, second: Recommender, targets: Targets, catalog: Catalog, *, repeats: bool, seed: int = 0
) -> Preference:
    """Interleave the first K items that two recommenders list for each state, and credit what the user took next.

    People saw other lists when they took it: a replay favours a recommender that is like the one they saw, which an
    interleaving in front of users does not.
    """
    lists = [rank_targets(model, targets, catalog, repeats=repeats)[1] for model in (first, second)]  # (b, K) each
    rng, credit = default_rng(seed), np.zeros((2, len(targets)))
    for _ in range(DRAWS):
        rows, teams = team_draft(lists[0], lists[1], rng.random(lists[0].shape) < 0.5)
        hit = rows[targets.state] == targets.item[:, None]  # (m, K)
        for team in (FIRST, SECOND):
            credit[team] += (hit & (teams[targets.state] == team)).any(axis=1) / DRAWS
    return preference(credit[SECOND], credit[FIRST], targets.users, seed=seed)


def preference(wins: Doubles, losses: Doubles, users: Sequence[int] | np.ndarray, *, seed: int = 0) -> Preference:
    """The preference of n answers or events. wins, losses (n,): credit of the second and the first; users (n,)."""
    owner = np.unique(users, return_inverse=True)[1]
    by_user = [metrics.per_user(values, owner)[0] for values in (wins, losses)]
    difference = bootstrap(by_user[0] - by_user[1], seed=seed)
    return Preference(len(by_user[0]), float(by_user[0].mean()), float(by_user[1].mean()), difference)
