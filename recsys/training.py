"""Training of the two towers: every position of every history predicts what its user does next."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from features.catalog import Catalog
from features.errors import DataError
from features.interactions import Interactions, Ints
from features.schema import Strict
from recsys.towers import TowerConfig, TwoTowers, gap_buckets


class TrainingConfig(Strict):
    """How the towers are fitted."""

    epochs: Annotated[int, Field(ge=1)] = 50
    """At most this many passes over the events."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Validations without a better NDCG@10 before stopping."""

    validation_states: Annotated[int, Field(ge=1)] = 5000
    """At most this many states of the validation window are ranked after each pass, drawn by the seed."""

    batch_events: Annotated[int, Field(ge=1)] = 8192
    """History events in a step."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of AdamW, after a warm-up over the first epoch."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW."""

    negatives: Annotated[int, Field(ge=0)] = 0
    """0: softmax over the full catalogue; else over this many uniformly drawn items, shared by a step."""

    half_life_days: Annotated[float, Field(gt=0)] | None = None
    """Events this much older than the newest weigh half in the loss; null: all alike."""

    new_items_only: bool = False
    """Whether only a user's first event with an item is a target (where no placement shows items again)."""


@dataclass(frozen=True)
class Windows:
    """Training material: windows of user histories, and what is to be predicted after which event.

    items, times (n,) positive events by user and time; offsets (n_users + 1,);
    query (q,) int64 positions in the log after which something is predicted: the last event strictly before a target;
    of (p,) ascending index into query, target (p,) item rows and weight (p,) float32: the p pairs.
    """

    items: Ints
    times: Ints
    offsets: Ints
    query: Ints
    of: Ints
    target: Ints
    weight: np.ndarray

    @classmethod
    def build(cls, events: Interactions, config: TrainingConfig) -> "Windows":
        """From training events. An event at the same moment as its target is never its input.

        Raises DataError when no user has two positive events at different times.
        """
        log = events.liked()
        n = len(log)
        moment = np.ones(n, dtype=np.bool_)
        moment[1:] = (log.users[1:] != log.users[:-1]) | (log.times[1:] != log.times[:-1])
        start = np.maximum.accumulate(np.where(moment, np.arange(n), 0))  # first event of each moment
        before = np.where(start > log.offsets[log.users], start - 1, -1)
        use = before >= 0
        if config.new_items_only:
            order = np.lexsort((np.arange(n), log.items, log.users))
            first = np.ones(n, dtype=np.bool_)
            again = (log.users[order][1:] == log.users[order][:-1]) & (log.items[order][1:] == log.items[order][:-1])
            first[order[1:]] = ~again
            use &= first
        if not use.any():
            raise DataError(f"no user has two positive events at different times among {n}: nothing to train on")
        query, of = np.unique(before[use], return_inverse=True)
        weight = np.ones(int(use.sum()), dtype=np.float32)
        if config.half_life_days:
            weight = np.exp2((log.times[use] - log.latest) / (config.half_life_days * 86400e6)).astype(np.float32)
        return cls(log.items, log.times, log.offsets, query, of.astype(np.int64), log.items[use], weight)

    def batches(self, length: int, batch_events: int, rng: np.random.Generator) -> Iterator["Batch"]:
        """One epoch: windows with a fresh random phase for each user, of like length, in random order."""
        n = len(self.items)
        sizes = np.diff(self.offsets)
        user = np.repeat(np.arange(len(sizes)), sizes)
        phase = np.where(sizes > length, rng.integers(0, length, len(sizes)), 0)
        piece = (np.arange(n) - self.offsets[user] + phase[user]) // length
        starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (piece[1:] != piece[:-1])])
        ends = np.r_[starts[1:], n]
        first = np.searchsorted(self.query, starts).astype(np.int64)
        last = np.searchsorted(self.query, ends).astype(np.int64)
        useful = np.flatnonzero(last > first)
        order = useful[np.argsort((ends - starts)[useful] + rng.random(len(useful)) * 4, kind="stable")]
        widths = np.maximum.accumulate((ends - starts)[order])
        groups, at = [], 0
        while at < len(order):  # a group holds about batch_events padded events
            size = max(1, batch_events // int(widths[min(at + batch_events // int(widths[at]), len(order) - 1)]))
            groups.append(order[at : at + size])
            at += size
        pair_start = np.searchsorted(self.of, np.arange(len(self.query) + 1)).astype(np.int64)
        for g in rng.permutation(len(groups)):
            yield self._batch(groups[g], starts, ends, first, last, pair_start)

    def _batch(self, group: Ints, starts: Ints, ends: Ints, first: Ints, last: Ints, pair_start: Ints) -> "Batch":
        size = ends[group] - starts[group]
        at = starts[group][:, None] + np.arange(int(size.max()))[None, :]  # (b, t)
        inside = at < ends[group][:, None]
        at = np.minimum(at, len(self.items) - 1)
        counts = last[group] - first[group]
        row = np.repeat(np.arange(len(group)), counts)
        q = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[group][row]
        pairs = pair_start[q + 1] - pair_start[q]
        of = np.repeat(np.arange(len(q)), pairs)
        pair = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs) + pair_start[q][of]
        return Batch(
            items=np.where(inside, self.items[at], 0),
            gaps=gap_buckets(self.times[at]),
            row=row,
            column=self.query[q] - starts[group][row],
            of=of,
            target=self.target[pair],
            weight=self.weight[pair],
        )


@dataclass(frozen=True)
class Batch:
    """b windows of up to t events, q queries in them, p pairs.

    items, gaps (b, t) int64; row, column (q,) place of each query; of (p,) its pairs; target (p,); weight (p,).
    """

    items: Ints
    gaps: Ints
    row: Ints
    column: Ints
    of: Ints
    target: Ints
    weight: np.ndarray


def softmax_loss(queries: Tensor, items: Tensor, scale: Tensor, batch: Batch, negatives: int) -> Tensor:
    """Weighted mean cross-entropy of the pairs.

    queries (q, d) and items (n, d) unit rows. Targets of one query share its normaliser, so that a basket of ten
    costs one row of the softmax. With `negatives`, the normaliser is estimated from that many uniform draws:
    Z = exp(s+) + (n - 1) / m * sum exp(s-)  (sampled softmax with logQ of a uniform proposal, Jean et al. 2015).
    """
    of, target, weight = (torch.from_numpy(x) for x in (batch.of, batch.target, batch.weight))
    positive = (queries[of] * items[target]).sum(-1) * scale  # (p,)
    if negatives:
        drawn = torch.randint(len(items), (negatives,))
        rest = torch.logsumexp(queries @ items[drawn].T * scale, dim=-1) + np.log((len(items) - 1) / negatives)
        normaliser = torch.logaddexp(positive, rest[of])
    else:
        normaliser = torch.logsumexp(queries @ items.T * scale, dim=-1)[of]
    return ((normaliser - positive) * weight).sum() / weight.sum()


@dataclass(frozen=True)
class FittedTowers:
    """Trained towers and how they came to be.

    fitted_until: µs of the latest event seen; epochs: passes made; history: one dict an epoch (loss, seconds, and
    what `validate` returned).
    """

    model: TwoTowers
    fitted_until: int
    epochs: int
    history: list[dict[str, float]]


def fit_towers(
    catalog: Catalog,
    events: Interactions,
    towers: TowerConfig,
    training: TrainingConfig,
    *,
    seed: int,
    validate: Callable[[TwoTowers], dict[str, float]] | None = None,
    epochs: int | None = None,
    report: Callable[[dict[str, float]], Any] | None = None,
) -> FittedTowers:
    """Fit on events. With `validate` (its "ndcg_at_10" decides) stop early and keep the best epoch's weights.

    Without, make exactly `epochs` passes (or training.epochs). Raises DataError when there is nothing to learn from.
    """
    import time

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    windows = Windows.build(events, training)
    known = np.bincount(events.liked().items, minlength=len(catalog)) > 0
    model = TwoTowers(catalog, known, towers)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": training.weight_decay},
            {"params": rest, "weight_decay": 0.0},
            {"params": [model.log_scale], "weight_decay": 0.0, "boost": 10.0},  # one number: slow at the common rate
        ],
        lr=training.learning_rate,
        fused=True,
    )
    best, best_state, best_epoch, history = -np.inf, None, 0, []
    step = 0
    for epoch in range(1, (epochs or training.epochs) + 1):
        started, losses = time.perf_counter(), []
        model.train()
        batches = list(windows.batches(towers.history, training.batch_events, rng))
        for batch in batches:
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * min(1.0, step / len(batches)) * group.get("boost", 1.0)
            items = model.items()
            hidden = model.users(items[torch.from_numpy(batch.items)], torch.from_numpy(batch.gaps))
            queries = hidden[torch.from_numpy(batch.row), torch.from_numpy(batch.column)]
            loss = softmax_loss(queries, items, model.log_scale.exp(), batch, training.negatives)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        line = {"epoch": float(epoch), "loss": float(np.mean(losses)), "seconds": time.perf_counter() - started}
        line |= validate(model) if validate else {}
        history.append(line)
        if report:
            report(line)
        if validate:
            if line["ndcg_at_10"] > best:
                best, best_epoch, best_state = line["ndcg_at_10"], epoch, copy.deepcopy(model.state_dict())
            elif epoch - best_epoch >= training.patience:
                break
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
    return FittedTowers(model, events.latest, best_epoch or len(history), history)
