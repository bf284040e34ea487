"""Ranking metrics over arrays: formula and source beside the code.

The unit is the *event*: one item that a user took next, to be found in the list made just before. `target_ranks`
turns lists and targets into ranks; every accuracy metric is a function of ranks, so that a rank is computed once.
Headline figures are `per_user(metric(ranks, k, depth=K), users)`, then the mean over users: a heavy user weighs no
more than another. List metrics read the (b, k) rows of what would be shown, -1 = padding.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from features.arrays import Doubles, Floats, Ints
from features.errors import ConfigError, DataError
from recsys.interfaces import Candidates

_CHUNK = 1 << 21
"""Elements of an intermediate array: 16 MiB in float64, so that a chunk stays near the cache."""


def target_ranks(candidates: Candidates, state: Ints, item: Ints) -> Doubles:
    """Ranks (m,) float64 of targets, 1-based, ties at mid-rank, inf where the target was not found.

    state (m,) is the row of `candidates` that target i belongs to, item (m,) its item row (-1, unknown: inf).

    Mid-rank: a target that shares its score with others from rank s to rank e stands at (s + e) / 2, the mean over
    all orders of the tie (Krichene & Rendle 2020, "On sampled metrics", count ties the same way). A group that
    touches the end of a *full* list of K may go on past it, unseen. Its mid-rank is at least (1 + K) / 2 > K / 2
    whatever lies beyond, so it comes back as inf and every cutoff k <= K / 2 is exact; the metrics refuse larger
    ones. A list with padding holds all there is, and its ranks are exact to the end.
    """
    rows, scores = candidates.rows, candidates.scores
    out = np.full(len(item), np.inf)
    if rows.shape[1] == 0:
        return out
    step = max(1, _CHUNK // rows.shape[1])
    for at in range(0, len(item), step):
        part = slice(at, at + step)
        s, t = state[part], item[part]
        match = rows[s] == t[:, None]  # (c, K)
        where = match.argmax(axis=1)
        found = match[np.arange(len(s)), where] & (t >= 0)
        listed = scores[s]  # (c, K)
        own = listed[np.arange(len(s)), where][:, None]
        above, upto = (listed > own).sum(axis=1), (listed >= own).sum(axis=1)
        cut_off = (upto == rows.shape[1]) & (rows[s, -1] >= 0)
        out[part] = np.where(found & ~cut_off, (above + 1 + upto) / 2, np.inf)
    return out


def _check(k: int, depth: int) -> None:
    if not 1 <= k <= depth / 2:
        raise ConfigError(
            f"cutoff k = {k} with lists of {depth} candidates: tied ranks are exact only for 1 <= k <= {depth // 2}; "
            f"ask the recommender for at least {2 * max(k, 1)}"
        )


def hit(ranks: Doubles, k: int, *, depth: int) -> Doubles:
    """HR@k = Recall@k of single events: 1 where rank <= k, else 0; (m,) float64.

    depth is the number of candidates K that each list was asked for; ConfigError when k > K / 2 (see `target_ranks`).
    """
    _check(k, depth)
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Doubles, k: int, *, depth: int) -> Doubles:
    """NDCG@k of single events: 1 / log2(rank + 1) where rank <= k, else 0; the ideal DCG of one target is 1.

    Järvelin & Kekäläinen 2002. A mid-rank such as 1.5 enters as it is.
    """
    _check(k, depth)
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def reciprocal_rank(ranks: Doubles, k: int, *, depth: int) -> Doubles:
    """RR@k of single events: 1 / rank where rank <= k, else 0; its mean is MRR@k (Voorhees 1999).

    With one target average precision is the same number, so this is MAP@k of single events as well.
    """
    _check(k, depth)
    return np.where(ranks <= k, 1 / ranks, 0.0)


def basket_metrics(ranks: Doubles, state: Ints, k: int, *, depth: int) -> tuple[dict[str, Doubles], Ints]:
    """Metrics of states with several targets: (name -> (u,) float64), states (u,) in ascending order.

    The targets of one state are distinct items, R of them; binary relevance, as in ranx (Bassani 2022):
    hit_rate 1 when any rank <= k; recall = hits / R; ndcg = sum of 1 / log2(rank + 1) over hits, divided by the sum
    of 1 / log2(j + 1) for j = 1..min(R, k); mrr = 1 / smallest rank; map = (sum over hits of j / rank_j) / R, where
    j counts the targets from the best on (targets tied with each other give one sum in any order).
    """
    _check(k, depth)
    order = np.lexsort((ranks, state))
    states, first, group, size = np.unique(state[order], return_index=True, return_inverse=True, return_counts=True)
    rank = ranks[order]
    inside = rank <= k
    position = np.arange(len(rank)) - first[group] + 1

    def total(values: Doubles) -> Doubles:
        return np.bincount(group, weights=np.where(inside, values, 0.0), minlength=len(states)).astype(np.float64)

    hits = total(np.ones(len(rank)))
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return {
        "hit_rate": (hits > 0).astype(np.float64),
        "recall": hits / size,
        "ndcg": total(1 / np.log2(rank + 1)) / ideal[np.minimum(size, k)],
        "mrr": np.where(rank[first] <= k, 1 / rank[first], 0.0),
        "map": total(position / rank) / size,
    }, states


def per_user(values: Doubles, users: Ints) -> tuple[Doubles, Ints]:
    """Mean of values (m,) for each user: (values (u,), users (u,) ascending).

    DataError when a value is not finite or a user is unknown (-1): either would spoil the mean without a word.
    """
    if len(values) != len(users):
        raise DataError(f"{len(values)} values for {len(users)} users; each value belongs to one user")
    bad = ~np.isfinite(values) | (users < 0)
    if bad.any():
        i = int(bad.argmax())
        raise DataError(f"value {values[i]} of user {users[i]} at position {i} cannot be averaged; leave it out")
    who, group, size = np.unique(users, return_inverse=True, return_counts=True)
    return np.bincount(group, weights=values, minlength=len(who)) / size, who


def coverage(rows: Ints, n_items: int) -> float:
    """Share of the catalogue that occurs in at least one list (Ge, Delgado & Jannach 2010, catalogue coverage)."""
    shown = np.zeros(n_items + 1, dtype=np.bool_)
    shown[rows] = True  # -1 lands in the extra place at the end
    return float(shown[:-1].mean())


def _list_mean(rows: Ints, of_item: Doubles) -> Doubles:
    """Mean of of_item (n,) over each list (b, k); NaN for an empty list."""
    real = rows >= 0
    size = real.sum(axis=1)
    total = np.append(of_item, 0.0)[rows].sum(axis=1)  # -1 reads the appended zero
    return _divide(total, size)


def _divide(total: Doubles, by: Ints) -> Doubles:
    """total / by, NaN where by is 0."""
    out = np.full(len(total), np.nan)
    np.divide(total, by, out=out, where=by > 0)
    return out


def novelty(rows: Ints, counts: npt.NDArray[np.number]) -> Doubles:
    """Mean self-information of each list, in bits: -log2(count / sum of counts); (b,) float64, NaN for an empty list.

    Zhou et al. 2010 (PNAS 107), Castells, Vargas & Wang 2011. counts (n,) are training events; an item with none is
    taken as seen once, the least that keeps the figure finite.
    """
    c = np.maximum(counts.astype(np.float64), 1.0)
    return _list_mean(rows, -np.log2(c / max(float(counts.sum()), 1.0)))


def average_popularity(rows: Ints, counts: npt.NDArray[np.number]) -> Doubles:
    """ARP: mean training count of the items of each list (Yin et al. 2012, VLDB); (b,), NaN for an empty list."""
    return _list_mean(rows, counts.astype(np.float64))


def popularity_percentile(rows: Ints, counts: npt.NDArray[np.number]) -> Doubles:
    """Mean popularity percentile of each list in 0..1, .5 = no popularity bias; (b,), NaN for an empty list.

    An item's percentile is (items less popular + half of those as popular, itself among them) / n, so a list drawn
    at random has mean .5. The rank form of ARP (popularity bias as in Abdollahpouri, Burke & Mobasher 2019).
    """
    _, group, size = np.unique(counts, return_inverse=True, return_counts=True)
    below = np.cumsum(size) - size
    return _list_mean(rows, ((below + size / 2) / len(counts))[group])


def diversity(rows: Ints, vectors: Floats) -> Doubles:
    """Intra-list diversity: mean of 1 - cosine over the pairs of each list; (b,) float64.

    One minus the intra-list similarity of Ziegler et al. 2005. vectors (n, d) need not be unit; an item whose vector
    is zero has no direction and forms no pair; NaN where a list has fewer than two others.
    With unit vectors v the pairs need no loop: sum over i != j of <v_i, v_j> = |sum v|^2 - m.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    real = (rows >= 0) & np.append(length[:, 0] > 0, False)[rows]
    size = real.sum(axis=1)  # m of each list
    squared = np.empty(len(rows))
    step = max(1, _CHUNK // max(1, vectors.shape[1]))
    for at in range(0, len(rows), step):
        part = slice(at, at + step)
        chosen = real[part]
        starts = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))])
        lists = sp.csr_array(
            (np.ones(starts[-1], dtype=unit.dtype), rows[part][chosen], starts), shape=(len(chosen), len(vectors))
        )
        squared[part] = np.square(lists @ unit, dtype=np.float64).sum(axis=1)
    return 1 - _divide(squared - size, size * (size - 1))
