"""Training losses over the cosines of queries and items, divided by a temperature.

The towers are trained with the softmax over all items or over a uniform sample. docs/results.md compares it with the
two other losses: the in-batch softmax with logQ correction, and gBCE.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

QUERIES_AT_ONCE = 512
"""Queries whose logits are in memory at a time: 25 MB with 12,000 items."""

MAX_SCALE = 40.0
"""Maximum of 1 / temperature: exp(-2 * MAX_SCALE), the smallest term of a softmax of cosines, is a normal float32."""

CALIBRATION = 0.75
"""t of gBCE: with 1 scores are calibrated like those of a softmax, 0 is plain binary cross-entropy."""


@dataclass(frozen=True)
class Pairs:
    """p pairs (query, item), each item a target of its query.

    pair_to_query (p,) int64: query of each pair, ascending; target (p,) int64: item of each pair; weight (p,)
    float32: weight of each pair in the loss, with mean 1 over the training events.
    """

    pair_to_query: Tensor
    target: Tensor
    weight: Tensor


Loss = Callable[[Tensor, Tensor, Tensor, Pairs], Tensor]
"""(queries (q, d), items (n, d), scale, pairs) -> weighted mean over the pairs, a scalar.

Rows of queries and items have unit length; scale is a scalar in (0, MAX_SCALE]. A score is scale * <query, item>:
s+ is the score of a target, s- the score of another item.
"""


def softmax_loss(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, negatives: int = 0) -> Tensor:
    """Softmax cross-entropy log Z - s+ over all items or over a sample of them; see `Loss`.

    Targets of one query share its normaliser Z: ten targets cost one row of the softmax.

    negatives: 0 for all items; else this many items are drawn uniformly without replacement. m of them are not
    targets of the query, and Z = exp(s+) + (n - 1) / m * sum exp(s-) over those m (sampled softmax with a uniform
    proposal, Jean et al. 2015). Drawn targets are left out, because they would count twice.
    """
    n = len(items)
    if not negatives or negatives >= n:
        loss: Tensor = _FullSoftmax.apply(queries, items, scale, pairs.pair_to_query, pairs.target, pairs.weight)  # type: ignore[no-untyped-call]
        return loss
    positive = _positive(queries, items, scale, pairs)  # (p,) s+
    drawn, hit_query, hit_column = _draw_negatives(n, pairs, negatives)  # (negatives,), (h,), (h,)
    m = (negatives - torch.bincount(hit_query, minlength=len(queries))).clamp(min=1)  # (q,)
    log_sum: Tensor = _LogSum.apply(queries, items[drawn], scale, 1.0, hit_query, hit_column)  # type: ignore[no-untyped-call]
    return _cross_entropy(positive, log_sum + torch.log((n - 1) / m), pairs)


def in_batch_loss(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, frequency: Tensor) -> Tensor:
    """Softmax cross-entropy log Z - s+ over the targets of the batch, with logQ correction; see `Loss`.

    frequency (n,): share of all training pairs whose target is the item. An item that is the target of c of the p
    pairs stands for c / (p * frequency) items: Z = exp(s+) + sum c / (p * frequency) * exp(s-), over the items that
    are not targets of the query (logQ correction, Yi et al. 2019). s+ is not corrected, because it is not sampled.
    """
    positive = _positive(queries, items, scale, pairs)  # (p,) s+
    drawn, column, count = torch.unique(pairs.target, return_inverse=True, return_counts=True)  # (m,), (p,), (m,)
    factor = count / (len(pairs.target) * frequency[drawn])  # (m,) c / (p * frequency)
    log_sum: Tensor = _LogSum.apply(queries, items[drawn], scale, factor, pairs.pair_to_query, column)  # type: ignore[no-untyped-call]
    return _cross_entropy(positive, log_sum, pairs)


def gbce_loss(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, negatives: int) -> Tensor:
    """gBCE: binary cross-entropy of targets and uniformly drawn negatives, calibrated for their number; see `Loss`.

    -b * log sigmoid(s+) - sum log(1 - sigmoid(s-)), where b = a * (t * (1 - 1 / a) + 1 / a), t = CALIBRATION and
    a = negatives / (n - 1), at most 1 (Petrov & Macdonald 2023, gSASRec). negatives: 0 for all items.
    """
    drawn, hit_query, hit_column = _draw_negatives(len(items), pairs, negatives or len(items))  # (m,), (h,), (h,)
    # (q, m) s-, and -inf, which adds 0 to the loss, at targets of the query
    logits = (queries @ items[drawn].T * scale).index_put((hit_query, hit_column), queries.new_tensor(-torch.inf))
    a = min(1.0, len(drawn) / (len(items) - 1))
    b = (a - 1) * CALIBRATION + 1
    positive = _positive(queries, items, scale, pairs)  # (p,) s+
    losses = b * functional.softplus(-positive) + functional.softplus(logits).sum(1)[pairs.pair_to_query]  # (p,)
    return (losses * pairs.weight).mean()


def nested_loss(
    loss: Loss, queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, nested: Sequence[int]
) -> Tensor:
    """Mean of a loss over full vectors and over their first m coordinates, normalised, for each m of `nested`.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147).
    """
    total = loss(queries, items, scale, pairs)
    for m in nested:
        cut, table = functional.normalize(queries[:, :m], dim=-1), functional.normalize(items[:, :m], dim=-1)
        total = total + loss(cut, table, scale, pairs)
    return total / (1 + len(nested))


def _draw_negatives(n: int, pairs: Pairs, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """(drawn (m,), query (h,), column (h,)): item rows drawn uniformly without replacement, m = min(n, negatives).

    Each of the h hits is a pair whose target was drawn: item drawn[column] is a target of the query.
    """
    device = pairs.pair_to_query.device
    drawn = torch.randperm(n, device=device)[:negatives]
    column = torch.full((n,), -1, device=device)  # (n,) index of each item in drawn, -1: not drawn
    column[drawn] = torch.arange(len(drawn), device=device)
    hit = column[pairs.target] >= 0  # (p,)
    return drawn, pairs.pair_to_query[hit], column[pairs.target[hit]]


def _positive(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
    """Scores s+ of the targets (p,)."""
    return (queries[pairs.pair_to_query] * items[pairs.target]).sum(-1) * scale


def _cross_entropy(positive: Tensor, negatives: Tensor, pairs: Pairs) -> Tensor:
    """Weighted mean of log(exp(s+) + exp(s-)) - s+; negatives (q,): s-, log of the sum over a query's negatives."""
    return ((torch.logaddexp(positive, negatives[pairs.pair_to_query]) - positive) * pairs.weight).mean()


class _LogSum(torch.autograd.Function):
    """log sum_j factor_j * exp(scale * <query, item_j>) over items (m, d), without the targets of the query: (q,).

    As in `_FullSoftmax` no maximum is needed. The terms are the only (q, m) tensor that is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        scale: Tensor,
        factor: Tensor | float,
        hit_query: Tensor,
        hit_column: Tensor,
    ) -> Tensor:
        """factor: 1, or (m,); hit_query, hit_column (h,): the (query, item) terms that are left out."""
        s = float(scale)
        terms = ((queries * s) @ items.T).sub_(s).exp_().mul_(factor)  # (q, m) factor * exp(s * (cosine - 1))
        terms[hit_query, hit_column] = 0.0
        z = terms.sum(1)  # (q,)
        ctx.save_for_backward(terms, z, queries, items)
        ctx.scale = s
        return z.log() + s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Gradients by queries Q (q, d), items I (m, d), scale s: s P I, s P' Q, sum(Q * P I) for P = terms / z."""
        terms, z, queries, items = ctx.saved_tensors
        # (q, 1) gradient / z; the terms are 0 where every item of a query is left out
        weight = (gradient / z.clamp(min=torch.finfo(z.dtype).tiny))[:, None]
        to_queries = (terms @ items) * weight  # (q, d)
        to_items = terms.T @ (queries * (weight * ctx.scale))  # (m, d)
        return to_queries * ctx.scale, to_items, (to_queries * queries).sum(), None, None, None


class _FullSoftmax(torch.autograd.Function):
    """Weighted mean over the pairs of log Z - s+, Z = sum_j exp(scale * <query, item_j>) over all items (n, d).

    `forward` computes the gradients too, QUERIES_AT_ONCE queries at a time, so that no (q, n) tensor is in memory.
    Cosines are bounded, so no maximum is needed: exp(scale * (cosine - 1)) neither overflows nor underflows.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, items: Tensor, scale: Tensor, pair_to_query: Tensor, target: Tensor, weight: Tensor
    ) -> Tensor:
        """The loss. Saves the gradients for `backward`. pair_to_query, target, weight (p,): see `Pairs`."""
        s, p = float(scale), len(pair_to_query)
        scaled, table = queries * s, items.T.contiguous()  # (q, d), (d, n)
        query_weight = torch.bincount(pair_to_query, weight, minlength=len(queries))[:, None]  # (q, 1) sum over pairs
        to_queries, to_items, total = torch.empty_like(queries), torch.zeros_like(items), 0.0
        for at in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(at, at + QUERIES_AT_ONCE)
            terms = torch.exp_((scaled[part] @ table).sub_(s))  # (QUERIES_AT_ONCE, n) exp(s * (cosine - 1))
            z = terms.sum(1, keepdim=True)  # (QUERIES_AT_ONCE, 1)
            share = query_weight[part] / z
            total += float((query_weight[part] * (z.log() + s)).sum())  # sum w * log Z
            to_queries[part] = (terms @ items) * share
            to_items.addmm_(terms.T, scaled[part] * share)
        targets, pair_queries = items[target] * weight[:, None], queries[pair_to_query]  # (p, d), (p, d)
        to_queries.index_add_(0, pair_to_query, targets, alpha=-1)
        to_items.index_add_(0, target, pair_queries * weight[:, None], alpha=-s)
        total -= s * float((targets * pair_queries).sum())  # sum w * s+
        ctx.save_for_backward(to_queries * (s / p), to_items / p, (to_queries * queries).sum() / p)
        return scale.new_tensor(total / p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Gradients by queries (q, d), items (n, d) and scale."""
        to_queries, to_items, to_scale = ctx.saved_tensors
        return to_queries * gradient, to_items * gradient, to_scale * gradient, None, None, None
