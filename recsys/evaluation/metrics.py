"""Ranking metrics over arrays, each with its formula and source.

The unit is an event: one item that a user took next, to be found in the list that was recommended just before.
`target_ranks` turns lists and targets into ranks; every accuracy metric is a function of ranks, so each rank is
computed once. Headline figures are `per_user(metric(ranks, k, depth=K), users)`, then the mean over users: every user
has the same weight. List metrics read the (b, k) item rows of the lists, -1 = padding.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from features.arrays import Doubles, Floats, Ints
from features.errors import ConfigError, DataError
from recsys.interfaces import Candidates

_CHUNK = 1 << 21
"""Elements of an intermediate array: 16 MiB in float64, to make good use of the CPU cache."""


def target_ranks(candidates: Candidates, state: Ints, item: Ints) -> Doubles:
    """Ranks (m,) float64 of targets, 1-based, ties at mid-rank, inf where the target was not found.

    state (m,): the row of `candidates` that each target belongs to; item (m,): its item row, -1 if unknown (inf).

    Mid-rank: a target whose score is tied from rank s to rank e has rank (s + e) / 2, the mean over all orders of the
    tie (Krichene & Rendle 2020, "On sampled metrics", count ties the same way). A tie at the end of a *full* list of
    K may continue beyond the list. Its mid-rank is then at least (1 + K) / 2 > K / 2, so it is returned as inf and
    every cutoff k <= K / 2 is exact; the metrics reject larger cutoffs. A list with padding is complete, and all its
    ranks are exact.
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
        position = match.argmax(axis=1)  # (c,)
        found = match[np.arange(len(s)), position] & (t >= 0)
        list_scores = scores[s]  # (c, K)
        own = list_scores[np.arange(len(s)), position][:, None]  # (c, 1)
        above, up_to = (list_scores > own).sum(axis=1), (list_scores >= own).sum(axis=1)
        cut_off = (up_to == rows.shape[1]) & (rows[s, -1] >= 0)
        out[part] = np.where(found & ~cut_off, (above + 1 + up_to) / 2, np.inf)
    return out


def _check(k: int, depth: int) -> None:
    """Raises ConfigError when ranks up to k are not exact in lists of `depth` candidates."""
    if not 1 <= k <= depth / 2:
        raise ConfigError(
            f"cutoff k = {k} with lists of {depth} candidates: tied ranks are exact only for 1 <= k <= {depth // 2}; "
            f"request lists of at least {2 * max(k, 1)}"
        )


def hit(ranks: Doubles, k: int, *, depth: int) -> Doubles:
    """HR@k = Recall@k of single events: 1 where rank <= k, else 0; (m,) float64.

    depth: the number of candidates K that was requested for each list. Raises ConfigError when k > K / 2 (see
    `target_ranks`).
    """
    _check(k, depth)
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Doubles, k: int, *, depth: int) -> Doubles:
    """NDCG@k of single events: 1 / log2(rank + 1) where rank <= k, else 0; the ideal DCG of one target is 1.

    Järvelin & Kekäläinen 2002. A mid-rank such as 1.5 is used as it is.
    """
    _check(k, depth)
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def reciprocal_rank(ranks: Doubles, k: int, *, depth: int) -> Doubles:
    """RR@k of single events: 1 / rank where rank <= k, else 0; its mean is MRR@k (Voorhees 1999).

    With one target, average precision is the same number, so this is MAP@k of single events, too.
    """
    _check(k, depth)
    return np.where(ranks <= k, 1 / ranks, 0.0)


def basket_metrics(ranks: Doubles, state: Ints, k: int, *, depth: int) -> tuple[dict[str, Doubles], Ints]:
    """Metrics of states with several targets: (name -> (u,) float64), states (u,) in ascending order.

    The R targets of a state are distinct items. Relevance is binary, as in ranx (Bassani 2022):
    hit_rate = 1 if any rank <= k; recall = hits / R; ndcg = sum of 1 / log2(rank + 1) over hits, divided by the sum
    of 1 / log2(j + 1) for j = 1..min(R, k); mrr = 1 / smallest rank; map = (sum over hits of j / rank_j) / R, where
    rank_j is the j-th smallest rank (the order of tied targets does not change the sum).
    """
    _check(k, depth)
    order = np.lexsort((ranks, state))  # by state, then rank
    states, first, group, size = np.unique(state[order], return_index=True, return_inverse=True, return_counts=True)
    rank = ranks[order]
    inside = rank <= k  # hits
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
    """Mean of values (m,) of each user: (means (u,), users (u,) ascending).

    Raises DataError when a value is not finite or a user is unknown (-1): the mean would be wrong without an error.
    """
    if len(values) != len(users):
        raise DataError(f"{len(values)} values for {len(users)} users; each value belongs to one user")
    invalid = ~np.isfinite(values) | (users < 0)
    if invalid.any():
        i = int(invalid.argmax())
        raise DataError(f"value {values[i]} of user {users[i]} at position {i} cannot be averaged; leave it out")
    distinct, group, size = np.unique(users, return_inverse=True, return_counts=True)
    return np.bincount(group, weights=values, minlength=len(distinct)) / size, distinct


def coverage(rows: Ints, n_items: int) -> float:
    """Catalogue coverage: the share of items that occur in at least one list (Ge, Delgado & Jannach 2010)."""
    shown = np.zeros(n_items + 1, dtype=np.bool_)
    shown[rows] = True  # -1 marks the extra element at the end
    return float(shown[:-1].mean())


def _list_mean(rows: Ints, item_values: Doubles) -> Doubles:
    """Mean of item_values (n,) over each list (b, k): (b,), NaN for an empty list."""
    size = (rows >= 0).sum(axis=1)
    total = np.append(item_values, 0.0)[rows].sum(axis=1)  # -1 reads the appended zero
    return _divide(total, size)


def _divide(total: Doubles, count: Ints) -> Doubles:
    """total / count, NaN where count is 0."""
    out = np.full(len(total), np.nan)
    np.divide(total, count, out=out, where=count > 0)
    return out


def novelty(rows: Ints, counts: npt.NDArray[np.number]) -> Doubles:
    """Mean self-information of each list, in bits: -log2(count / sum of counts); (b,) float64, NaN for an empty list.

    Zhou et al. 2010 (PNAS 107), Castells, Vargas & Wang 2011. counts (n,): training events of each item. A count of 0
    is replaced by 1, to keep the result finite.
    """
    c = np.maximum(counts.astype(np.float64), 1.0)
    return _list_mean(rows, -np.log2(c / max(float(counts.sum()), 1.0)))


def average_popularity(rows: Ints, counts: npt.NDArray[np.number]) -> Doubles:
    """ARP: mean training count of the items of each list (Yin et al. 2012, VLDB); (b,), NaN for an empty list."""
    return _list_mean(rows, counts.astype(np.float64))


def popularity_percentile(rows: Ints, counts: npt.NDArray[np.number]) -> Doubles:
    """Mean popularity percentile of each list in 0..1, .5 = no popularity bias; (b,), NaN for an empty list.

    An item's percentile is (less popular items + half of the equally popular ones, itself included) / n, so the mean
    of a random list is .5. The rank form of ARP (popularity bias as in Abdollahpouri, Burke & Mobasher 2019).
    """
    _, group, size = np.unique(counts, return_inverse=True, return_counts=True)
    below = np.cumsum(size) - size
    return _list_mean(rows, ((below + size / 2) / len(counts))[group])


def diversity(rows: Ints, vectors: Floats) -> Doubles:
    """Intra-list diversity: mean of 1 - cosine over the pairs of each list; (b,) float64.

    1 - intra-list similarity of Ziegler et al. 2005. vectors (n, d) may have any length. Items with a zero vector
    form no pairs; NaN where a list has fewer than two other items.
    For the m unit vectors v of a list: sum over i != j of <v_i, v_j> = |sum v|^2 - m, and there are m (m - 1) pairs.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    usable = (rows >= 0) & np.append(length[:, 0] > 0, False)[rows]  # (b, k)
    size = usable.sum(axis=1)  # (b,): m
    squared = np.empty(len(rows))  # (b,): |sum v|^2
    step = max(1, _CHUNK // max(1, vectors.shape[1]))
    for at in range(0, len(rows), step):
        part = slice(at, at + step)
        mask = usable[part]  # (c, k)
        starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
        ones = np.ones(starts[-1], dtype=unit.dtype)
        lists = sp.csr_array((ones, rows[part][mask], starts), shape=(len(mask), len(vectors)))  # (c, n)
        squared[part] = np.square(lists @ unit, dtype=np.float64).sum(axis=1)
    return 1 - _divide(squared - size, size * (size - 1))
