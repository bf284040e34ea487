"""What training minimises: one item above the others, over unit vectors at a temperature.

The softmax over all items or a uniform sample of them is what the towers are trained with. The two others are what it
was compared with (docs/results.md): in-batch negatives corrected for how often they are drawn, and gBCE.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

QUERIES_AT_ONCE = 512
"""Queries whose logits are in memory at once: with 12,000 items 25 MB."""

MAX_SCALE = 40.0
"""Bound of 1 / temperature: exp(-2 * MAX_SCALE), the smallest term of a softmax of cosines, is a normal float32."""

CALIBRATION = 0.75
"""t of gBCE: 1 scores as a softmax would, 0 is plain binary cross-entropy."""


@dataclass(frozen=True)
class Pairs:
    """p pairs (query, item), each item a target of its query.

    pair_to_query (p,) int64, ascending: the query; target (p,) int64: the item; weight (p,) float32: how much
    the pair counts, 1 on average over a training.
    """

    pair_to_query: Tensor
    target: Tensor
    weight: Tensor


Loss = Callable[[Tensor, Tensor, Tensor, Pairs], Tensor]
"""queries (q, d), items (n, d): unit rows; scale: scalar in (0, MAX_SCALE]; pairs -> the mean over the pairs."""


def softmax_loss(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, negatives: int = 0) -> Tensor:
    """Cross-entropy over all items or over a sample of them; see `Loss`.

    Targets of one query share its normaliser, so that a basket of ten costs one row of the softmax. negatives: 0 for
    all items; else so many are drawn uniformly without replacement, m of them no target of the query:
    Z = exp(s+) + (n - 1) / m * sum exp(s-)  (sampled softmax of a uniform proposal, Jean et al. 2015; a target drawn
    as its own negative would count twice).
    """
    n = len(items)
    if not negatives or negatives >= n:
        loss: Tensor = _FullSoftmax.apply(queries, items, scale, pairs.pair_to_query, pairs.target, pairs.weight)  # type: ignore[no-untyped-call]
        return loss
    positive = _positive(queries, items, scale, pairs)
    drawn, out_of, left = _draw_negatives(n, pairs, negatives)
    others = (negatives - torch.bincount(out_of, minlength=len(queries))).clamp(min=1)
    among: Tensor = _LogSum.apply(queries, items[drawn], scale, 1.0, out_of, left)  # type: ignore[no-untyped-call]
    return _cross_entropy(positive, among + torch.log((n - 1) / others), pairs)


def in_batch_loss(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, frequency: Tensor) -> Tensor:
    """Softmax over the targets of the batch, each as heavy as it is rare; see `Loss`.

    frequency (n,): share of all training pairs that each item is the target of. An item that is c of the p targets
    stands for c / (p * frequency) items: Z = exp(s+) + sum of that times exp(s-), over items that are no targets of
    the query (logQ correction, Yi et al. 2019; the positive without, as it was not drawn).
    """
    positive = _positive(queries, items, scale, pairs)
    drawn, place, count = torch.unique(pairs.target, return_inverse=True, return_counts=True)
    times = count / (len(pairs.target) * frequency[drawn])
    among: Tensor = _LogSum.apply(queries, items[drawn], scale, times, pairs.pair_to_query, place)  # type: ignore[no-untyped-call]
    return _cross_entropy(positive, among, pairs)


def gbce_loss(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, negatives: int) -> Tensor:
    """Binary cross-entropy of each target against uniformly drawn negatives, calibrated for their number; see `Loss`.

    -b * log sigmoid(s+) - sum of log(1 - sigmoid(s-)), where b = a * (t * (1 - 1 / a) + 1 / a), t = CALIBRATION and
    a = negatives / (n - 1), at most 1 (Petrov & Macdonald 2023, gSASRec). negatives: 0 for all items.
    """
    drawn, out_of, left = _draw_negatives(len(items), pairs, negatives or len(items))
    logits = (queries @ items[drawn].T * scale).index_put((out_of, left), queries.new_tensor(-torch.inf))
    sampled = min(1.0, len(drawn) / (len(items) - 1))
    raised = (sampled - 1) * CALIBRATION + 1
    positive = _positive(queries, items, scale, pairs)
    losses = raised * functional.softplus(-positive) + functional.softplus(logits).sum(1)[pairs.pair_to_query]
    return (losses * pairs.weight).mean()


def nested_loss(
    loss: Loss, queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs, nested: Sequence[int]
) -> Tensor:
    """Mean of a loss over whole vectors and over their first `nested` coordinates, made unit again.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147).
    """
    total = loss(queries, items, scale, pairs)
    for m in nested:
        cut, table = functional.normalize(queries[:, :m], dim=-1), functional.normalize(items[:, :m], dim=-1)
        total = total + loss(cut, table, scale, pairs)
    return total / (1 + len(nested))


def _draw_negatives(n: int, pairs: Pairs, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (m,) of items drawn uniformly; which queries (h,) have which of them (h,) as targets."""
    device = pairs.pair_to_query.device
    drawn = torch.randperm(n, device=device)[:negatives]
    place = torch.full((n,), -1, device=device)
    place[drawn] = torch.arange(len(drawn), device=device)
    hit = place[pairs.target] >= 0
    return drawn, pairs.pair_to_query[hit], place[pairs.target[hit]]


def _positive(queries: Tensor, items: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
    """Scores s+ of the targets (p,)."""
    return (queries[pairs.pair_to_query] * items[pairs.target]).sum(-1) * scale


def _cross_entropy(positive: Tensor, rest: Tensor, pairs: Pairs) -> Tensor:
    """Mean of log(exp(s+) + exp(rest)) - s+, where rest (q,) is what the others of each query come to."""
    return ((torch.logaddexp(positive, rest[pairs.pair_to_query]) - positive) * pairs.weight).mean()


class _LogSum(torch.autograd.Function):
    """Of queries and items (m, d), log sum times * exp(scale * cosine): (q,). A query's targets are left out.

    As in `_FullSoftmax` no maximum is sought, and nothing of (q, m) is kept but the terms.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        scale: Tensor,
        times: Tensor | float,
        out_of: Tensor,
        left: Tensor,
    ) -> Tensor:
        """times: 1, or (m,); out_of (h,), left (h,): the query that each of h items is left out of, and its row."""
        s = float(scale)
        terms = ((queries * s) @ items.T).sub_(s).exp_().mul_(times)
        terms[out_of, left] = 0.0
        z = terms.sum(1)
        ctx.save_for_backward(terms, z, queries, items)
        ctx.scale = s
        return z.log() + s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Derivatives by queries, items and scale."""
        terms, z, queries, items = ctx.saved_tensors
        weight = (gradient / z.clamp(min=torch.finfo(z.dtype).tiny))[:, None]  # 0 where every item is left out
        to_queries = (terms @ items) * weight
        to_items = terms.T @ (queries * (weight * ctx.scale))
        return to_queries * ctx.scale, to_items, (to_queries * queries).sum(), None, None, None


class _FullSoftmax(torch.autograd.Function):
    """The softmax over all items, with its gradient in the same sweep: (q, n) is never in memory.

    Cosines are bounded, so no maximum is sought: exp(scale * (cosine - 1)) neither overflows nor vanishes.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, items: Tensor, scale: Tensor, of: Tensor, target: Tensor, counts: Tensor
    ) -> Tensor:
        """The loss; its derivatives wait for `backward`. counts (p,): how much each pair does."""
        s = float(scale)
        scaled, table = queries * s, items.T.contiguous()
        weight = torch.bincount(of, counts, minlength=len(queries))[:, None]  # of each query's pairs
        to_queries, to_items, total = torch.empty_like(queries), torch.zeros_like(items), 0.0
        for at in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(at, at + QUERIES_AT_ONCE)
            terms = torch.exp_((scaled[part] @ table).sub_(s))  # (CHUNK, n)
            z = terms.sum(1, keepdim=True)
            share = weight[part] / z
            total += float((weight[part] * (z.log() + s)).sum())
            to_queries[part] = (terms @ items) * share
            to_items.addmm_(terms.T, scaled[part] * share)
        chosen, asked = items[target] * counts[:, None], queries[of]
        to_queries.index_add_(0, of, chosen, alpha=-1)
        to_items.index_add_(0, target, asked * counts[:, None], alpha=-s)
        total -= s * float((chosen * asked).sum())
        ctx.save_for_backward(to_queries * (s / len(of)), to_items / len(of), (to_queries * queries).sum() / len(of))
        return scale.new_tensor(total / len(of))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Derivatives by queries, items and scale."""
        to_queries, to_items, to_scale = ctx.saved_tensors
        return to_queries * gradient, to_items * gradient, to_scale * gradient, None, None, None
