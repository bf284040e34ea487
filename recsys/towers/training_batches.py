"""Training sequences: slices of user histories, and the items that the user tower learns to predict in them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.errors import DataError
from features.interactions import NO_TARGET, Interactions
from recsys.towers.history import History


@dataclass(frozen=True)
class TrainingSequences:
    """The training log and its p (query, target) pairs.

    A query is a log position after which items are predicted. A target is the item of a positive event. The query of
    a target is the last event of the same user that is strictly earlier.

    history (n,): the events by user and time; gaps and hours lead to the same user's next event.
    offsets (n_users + 1,): events of user u are at offsets[u]..offsets[u + 1].
    query (q,) int64: log positions, ascending.
    pair_to_query (p,) int64: index into query, ascending; target (p,) int64: item rows; weight (p,) float32: weight
    of each pair in the loss, of mean 1.
    """

    history: History[np.ndarray]
    offsets: Ints
    query: Ints
    pair_to_query: Ints
    target: Ints
    weight: Floats

    @classmethod
    def build(cls, events: Interactions, only: Bools | None = None) -> "TrainingSequences":
        """The queries and targets of training events.

        An event with the timestamp of a target is never an input of that target. only (n,): the events that may be
        targets, all by default. Raises DataError when there is no target: no positive event (of `only`) follows an
        earlier event of its user.
        """
        log, n = events, len(events)
        is_first = np.ones(n, dtype=np.bool_)  # (n,) whether it is the first event of its user at its timestamp
        is_first[1:] = (log.users[1:] != log.users[:-1]) | (log.times[1:] != log.times[:-1])
        first = np.maximum.accumulate(np.where(is_first, np.arange(n), 0))  # (n,) first event at the timestamp
        offsets = log.offsets
        previous = np.where(first > offsets[log.users], first - 1, -1)  # (n,) last strictly earlier event, -1: none
        is_target = (previous >= 0) & log.positive  # (n,)
        if only is not None:
            is_target &= only
        events.check_targets()
        if not is_target.any():
            number = n if only is None else int(only.sum())
            raise DataError(
                f"{NO_TARGET} among the {number} new events: nothing to train on; "
                "add events, or check data.events.positive"
            )
        query, pair_to_query = np.unique(previous[is_target], return_inverse=True)  # (q,), (p,)
        following = log.times.copy()  # (n,) time of the user's next event; the last event has none and is no query
        following[:-1] = np.where(log.users[1:] == log.users[:-1], log.times[1:], log.times[:-1])
        if log.weights is None:
            weight = np.ones(len(pair_to_query), np.float32)
        else:
            weight = log.weights[is_target] / log.weights[is_target].mean()  # (p,)
        history = History.of(log.items, log.positive, log.types, log.times, following)
        return cls(history, offsets, query, pair_to_query.astype(np.int64), log.items[is_target], weight)

    def batches(
        self, length: int, batch_events: int, rng: np.random.Generator, *, part: int = 0, parts: int = 1
    ) -> Iterator["Batch"]:
        """Yields the batches of one epoch, in random order. Sequences of similar length share a batch.

        A history of more than `length` events is cut after every `length` events. The first cut is drawn for each
        user in each epoch. A batch holds about `batch_events` events, padding included.

        parts: number of processes that share each batch. Process `part` gets every parts-th sequence of the batch.
        """
        n = len(self.history.items)
        sizes = np.diff(self.offsets)  # (n_users,) events of each user
        user = np.repeat(np.arange(len(sizes)), sizes)  # (n,)
        phase: Ints = np.where(sizes > length, rng.integers(0, length, len(sizes)), 0)  # (n_users,)
        piece = (np.arange(n) - self.offsets[user] + phase[user]) // length  # (n,) sequence number within the user
        starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (piece[1:] != piece[:-1])])  # (s,) sequences
        ends = np.append(starts[1:], n)  # (s,)
        first = np.searchsorted(self.query, starts).astype(np.int64)  # (s,) first query of each sequence
        last = np.searchsorted(self.query, ends).astype(np.int64)  # (s,) one past its last query
        useful = np.flatnonzero(last > first)  # (u,) sequences with at least one query
        # (u,) by length plus uniform noise in [0, 4), so that batches differ between epochs
        order: Ints = useful[np.argsort((ends - starts)[useful] + rng.random(len(useful)) * 4, kind="stable")]
        widths = np.maximum.accumulate((ends - starts)[order])  # (u,) padded length of a batch that ends here
        groups, at = [], 0
        while at < len(order):  # a group holds about batch_events padded events
            size = max(1, batch_events // int(widths[min(at + batch_events // int(widths[at]), len(order) - 1)]))
            groups.append(order[at : at + size])
            at += size
        pair_start = np.searchsorted(self.pair_to_query, np.arange(len(self.query) + 1)).astype(np.int64)  # (q + 1,)
        n_pairs = pair_start[last] - pair_start[first]  # (s,) pairs of each sequence
        for g in rng.permutation(len(groups)):
            group = groups[int(g)]
            own = group[part::parts]
            share = float(n_pairs[own].sum() / n_pairs[group].sum())
            own = own if len(own) else group[:1]  # share 0, but not empty: every process must take the step
            yield self._batch(own, share, starts, ends, first, last, pair_start)

    def _batch(
        self, group: Ints, share: float, starts: Ints, ends: Ints, first: Ints, last: Ints, pair_start: Ints
    ) -> "Batch":
        """The b sequences of `group`, padded to t events, with their q queries and p pairs.

        starts, ends (s,): log positions of each sequence; first, last (s,): its queries; pair_start (q + 1,): the
        pairs of query i are pair_start[i]..pair_start[i + 1].
        """
        size = ends[group] - starts[group]  # (b,)
        at = starts[group][:, None] + np.arange(int(size.max()))[None, :]  # (b, t) log positions
        inside = at < ends[group][:, None]  # (b, t)
        at = np.minimum(at, len(self.history.items) - 1)
        counts = last[group] - first[group]  # (b,) queries of each sequence
        row = np.repeat(np.arange(len(group)), counts)  # (q,) sequence of each query
        # (q,) index into self.query: position within the sequence + first query of the sequence
        q = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[group][row]
        pairs = pair_start[q + 1] - pair_start[q]  # (q,) pairs of each query
        query_of_pair = np.repeat(np.arange(len(q)), pairs)  # (p,) query of each pair, counted within the batch
        # (p,) index into self.target: position within the query + first pair of the query
        pair = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs) + pair_start[q][query_of_pair]
        return Batch(
            history=self.history.map_arrays(lambda values: values[at]).padded(inside),
            row=row,
            column=self.query[q] - starts[group][row],
            pair_to_query=query_of_pair,
            target=self.target[pair],
            weight=self.weight[pair],
            share=share,
        )


@dataclass(frozen=True)
class Batch:
    """b sequences, padded to t events, with q queries and p (query, target) pairs.

    history (b, t); row, column (q,) int64: position of each query in history.
    pair_to_query (p,) int64: query of each pair; target (p,) int64: item rows; weight (p,) float32.
    share: share of the pairs of the training step: 1 unless several processes share the step.
    """

    history: History[np.ndarray]
    row: Ints
    column: Ints
    pair_to_query: Ints
    target: Ints
    weight: Floats
    share: float
