"""Interleaving by team draft: one list from two, so that what people do with it says which of the two is better.

The two lists take turns in choosing their best item that is not chosen yet; a coin decides who is first in each round
(Radlinski, Kurup & Joachims 2008, "How does clickthrough data reflect retrieval quality?", algorithm 2). A click
counts for the list that chose the item. Both lists have the same chance at every position, so a list that is no
better gets half of the clicks. Every user compares both lists, which shows a difference with far fewer answers than a
test of two groups of users (Chapelle, Joachims, Radlinski & Yue 2012).
"""

import numpy as np

from features.arrays import Bools, Ints

FIRST, SECOND = 0, 1
"""The two teams."""


def team_draft(first: Ints, second: Ints, coins: Bools) -> tuple[Ints, Ints]:
    """(rows, teams), both (b, k): the interleaved list of each line, and which list chose each item.

    first, second (b, w): item rows, best first, no row twice in a line, then padding of -1; coins (b, k): whether
    `second` begins a round. The padding of both outputs is -1. A list without an item left leaves its turns to the
    other.
    """
    b, k = coins.shape
    rows, teams = np.full((b, k), -1, dtype=np.int64), np.full((b, k), -1, dtype=np.int64)
    left = [first >= 0, second >= 0]  # (b, w) each: what may still be chosen
    chosen = np.zeros((2, b), dtype=np.int64)  # number of items of each team
    lines = np.arange(b)
    for at in range(k):
        is_even = chosen[FIRST] == chosen[SECOND]
        rounds = np.minimum(chosen[FIRST], chosen[SECOND])  # of this pick, less than k
        turn = np.where(is_even, coins[lines, rounds], chosen[FIRST] > chosen[SECOND]).astype(np.int64)
        has_item = np.stack([mask.any(axis=1) for mask in left])  # (2, b)
        turn = np.where(has_item[turn, lines], turn, 1 - turn)
        can_pick = has_item[turn, lines]
        best = [given[lines, mask.argmax(axis=1)] for given, mask in zip((first, second), left, strict=True)]
        picked = np.where(can_pick, np.where(turn == FIRST, *best), -1)  # (b,)
        rows[:, at], teams[:, at] = picked, np.where(can_pick, turn, -1)
        chosen[turn, lines] += can_pick
        left = [mask & (given != picked[:, None]) for given, mask in zip((first, second), left, strict=True)]
    return rows, teams
