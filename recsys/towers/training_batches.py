"""Histories as training material: windows, and what is to be predicted after which event."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.arrays import Floats, Ints
from features.errors import DataError
from features.interactions import Interactions
from recsys.towers.history import History


@dataclass(frozen=True)
class TrainingSequences:
    """Training material: windows of user histories, and what is to be predicted after which event.

    history: the n events by user and time, each followed by the same user's next; offsets (n_users + 1,);
    query (q,) int64 positions in the log after which something is predicted: the last event strictly before a target;
    pair_to_query (p,) ascending index into query, target (p,) item rows of positive events, weight (p,) float32 of
    mean 1, how much each counts: the p pairs.
    """

    history: History[np.ndarray]
    offsets: Ints
    query: Ints
    pair_to_query: Ints
    target: Ints
    weight: Floats

    @classmethod
    def build(cls, events: Interactions, since: int | None = None) -> "TrainingSequences":
        """From training events. An event at the same moment as its target is never its input.

        since (µs): only events after it are targets. Raises DataError when no user has a positive event, after that,
        after another event.
        """
        log, n = events, len(events)
        moment = np.ones(n, dtype=np.bool_)
        moment[1:] = (log.users[1:] != log.users[:-1]) | (log.times[1:] != log.times[:-1])
        start = np.maximum.accumulate(np.where(moment, np.arange(n), 0))  # first event of each moment
        offsets = log.offsets
        before = np.where(start > offsets[log.users], start - 1, -1)
        use = (before >= 0) & log.positive
        if since is not None:
            use &= log.times > since
        if not use.any():
            when = "" if since is None else f" since {np.datetime64(since, 'us')} UTC"
            raise DataError(f"no user has a positive event after an earlier one among {n}{when}: nothing to train on")
        query, of = np.unique(before[use], return_inverse=True)
        following = log.times.copy()  # of its user's last event nothing is predicted
        following[:-1] = np.where(log.users[1:] == log.users[:-1], log.times[1:], log.times[:-1])
        weight = np.ones(len(of), np.float32) if log.weights is None else log.weights[use] / log.weights[use].mean()
        pairs = of.astype(np.int64), log.items[use], weight
        history = History.of(log.items, log.positive, log.types, log.times, following)
        return cls(history, offsets, query, *pairs)

    def batches(
        self, length: int, batch_events: int, rng: np.random.Generator, *, part: int = 0, parts: int = 1
    ) -> Iterator["Batch"]:
        """One epoch: windows with a fresh random phase for each user, of like length, in random order.

        parts: processes that share each batch; the part-th of them gets every parts-th window of it.
        """
        n = len(self.history.items)
        sizes = np.diff(self.offsets)
        user = np.repeat(np.arange(len(sizes)), sizes)
        phase: Ints = np.where(sizes > length, rng.integers(0, length, len(sizes)), 0)
        piece = (np.arange(n) - self.offsets[user] + phase[user]) // length
        starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (piece[1:] != piece[:-1])])
        ends = np.append(starts[1:], n)
        first = np.searchsorted(self.query, starts).astype(np.int64)
        last = np.searchsorted(self.query, ends).astype(np.int64)
        useful = np.flatnonzero(last > first)
        order: Ints = useful[np.argsort((ends - starts)[useful] + rng.random(len(useful)) * 4, kind="stable")]
        widths = np.maximum.accumulate((ends - starts)[order])
        groups, at = [], 0
        while at < len(order):  # a group holds about batch_events padded events
            size = max(1, batch_events // int(widths[min(at + batch_events // int(widths[at]), len(order) - 1)]))
            groups.append(order[at : at + size])
            at += size
        pair_start = np.searchsorted(self.pair_to_query, np.arange(len(self.query) + 1)).astype(np.int64)
        pairs = pair_start[last] - pair_start[first]  # of each window
        for g in rng.permutation(len(groups)):
            group = groups[int(g)]
            mine = group[part::parts]
            share = float(pairs[mine].sum() / pairs[group].sum())
            mine = mine if len(mine) else group[:1]  # a share of 0, but a batch: all processes must take the step
            yield self._batch(mine, share, starts, ends, first, last, pair_start)

    def _batch(
        self, group: Ints, share: float, starts: Ints, ends: Ints, first: Ints, last: Ints, pair_start: Ints
    ) -> "Batch":
        size = ends[group] - starts[group]
        at = starts[group][:, None] + np.arange(int(size.max()))[None, :]  # (b, t)
        inside = at < ends[group][:, None]
        at = np.minimum(at, len(self.history.items) - 1)
        counts = last[group] - first[group]
        row = np.repeat(np.arange(len(group)), counts)
        q = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[group][row]
        pairs = pair_start[q + 1] - pair_start[q]
        of = np.repeat(np.arange(len(q)), pairs)
        pair = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs) + pair_start[q][of]
        return Batch(
            history=self.history.map_arrays(lambda values: values[at]).padded(inside),
            row=row,
            column=self.query[q] - starts[group][row],
            pair_to_query=of,
            target=self.target[pair],
            weight=self.weight[pair],
            share=share,
        )


@dataclass(frozen=True)
class Batch:
    """b windows of up to t events, q queries in them, p pairs.

    history (b, t); row, column (q,) place of each query; pair_to_query (p,) the query of each pair; target,
    weight (p,).
    share: of all pairs of the step, 1 unless several processes share it.
    """

    history: History[np.ndarray]
    row: Ints
    column: Ints
    pair_to_query: Ints
    target: Ints
    weight: Floats
    share: float
