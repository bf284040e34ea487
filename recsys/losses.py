"""What training minimises: the softmax of one item among all, over unit vectors at a temperature."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 512
"""Queries whose logits are in memory at once: with 12,000 items 25 MB."""

MAX_SCALE = 40.0
"""Bound of 1 / temperature: exp(-2 * MAX_SCALE), the smallest term of a softmax of cosines, is a normal float32."""


def softmax_loss(queries: Tensor, items: Tensor, scale: Tensor, of: Tensor, target: Tensor, negatives: int) -> Tensor:
    """Mean cross-entropy of p pairs (query, item), over all items or over a sample of them.

    queries (q, d), items (n, d): unit rows; scale: scalar in (0, MAX_SCALE]; of (p,) ascending: the query of each
    pair, target (p,): its item. Targets of one query share its normaliser, so that a basket of ten costs one row of
    the softmax. negatives: 0 for all items; else so many are drawn uniformly without replacement, m of them no target
    of the query: Z = exp(s+) + (n - 1) / m * sum exp(s-)  (sampled softmax of a uniform proposal, Jean et al. 2015; a
    target drawn as its own negative would count twice).
    """
    if negatives and negatives < len(items):
        return _sampled(queries, items, scale, of, target, negatives)
    loss: Tensor = _Full.apply(queries, items, scale, of, target)  # type: ignore[no-untyped-call]
    return loss


def nested_loss(
    queries: Tensor, items: Tensor, scale: Tensor, of: Tensor, target: Tensor, negatives: int, nested: Sequence[int]
) -> Tensor:
    """Mean of `softmax_loss` over whole vectors and over their first `nested` coordinates, made unit again.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147).
    """
    total = softmax_loss(queries, items, scale, of, target, negatives)
    for m in nested:
        cut, table = functional.normalize(queries[:, :m], dim=-1), functional.normalize(items[:, :m], dim=-1)
        total = total + softmax_loss(cut, table, scale, of, target, negatives)
    return total / (1 + len(nested))


def _sampled(queries: Tensor, items: Tensor, scale: Tensor, of: Tensor, target: Tensor, negatives: int) -> Tensor:
    n = len(items)
    positive = (queries[of] * items[target]).sum(-1) * scale  # (p,)
    drawn = torch.randperm(n, device=items.device)[:negatives]
    place = torch.full((n,), -1, device=items.device)
    place[drawn] = torch.arange(negatives, device=items.device)
    hit = place[target] >= 0
    among: Tensor = _LogSum.apply(queries, items[drawn], scale, of[hit], place[target[hit]])  # type: ignore[no-untyped-call]
    others = (negatives - torch.bincount(of[hit], minlength=len(queries))).clamp(min=1)
    rest = among + torch.log((n - 1) / others)
    return (torch.logaddexp(positive, rest[of]) - positive).mean()


class _LogSum(torch.autograd.Function):
    """Of queries and items (m, d), log sum exp(scale * cosine): (q,). Items that are a query's targets are left out.

    As in `_Full` no maximum is sought, and nothing of (q, m) is kept but the terms.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, scale: Tensor, out_of: Tensor, left: Tensor) -> Tensor:
        """out_of (h,), left (h,): the query that each of h items is left out of, and its row among the m."""
        s = float(scale)
        terms = ((queries * s) @ items.T).sub_(s).exp_()
        terms[out_of, left] = 0.0
        z = terms.sum(1)
        ctx.save_for_backward(terms, z, queries, items)
        ctx.scale = s
        return z.log() + s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Derivatives by queries, items and scale."""
        terms, z, queries, items = ctx.saved_tensors
        weight = (gradient / z.clamp(min=torch.finfo(z.dtype).tiny))[:, None]  # 0 where every item is left out
        to_queries = (terms @ items) * weight
        to_items = terms.T @ (queries * (weight * ctx.scale))
        return to_queries * ctx.scale, to_items, (to_queries * queries).sum(), None, None


class _Full(torch.autograd.Function):
    """The softmax over all items, with its gradient in the same sweep: (q, n) is never in memory.

    Cosines are bounded, so no maximum is sought: exp(scale * (cosine - 1)) neither overflows nor vanishes.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, scale: Tensor, of: Tensor, target: Tensor) -> Tensor:
        """The loss; its derivatives wait for `backward`."""
        s = float(scale)
        scaled, table = queries * s, items.T.contiguous()
        weight = torch.bincount(of, minlength=len(queries))[:, None].to(queries.dtype)  # pairs of each query
        to_queries, to_items, total = torch.empty_like(queries), torch.zeros_like(items), 0.0
        for at in range(0, len(queries), CHUNK):
            part = slice(at, at + CHUNK)
            terms = torch.exp_((scaled[part] @ table).sub_(s))  # (CHUNK, n)
            z = terms.sum(1, keepdim=True)
            share = weight[part] / z
            total += float((weight[part] * (z.log() + s)).sum())
            to_queries[part] = (terms @ items) * share
            to_items.addmm_(terms.T, scaled[part] * share)
        chosen, asked = items[target], queries[of]
        to_queries.index_add_(0, of, chosen, alpha=-1)
        to_items.index_add_(0, target, asked, alpha=-s)
        total -= s * float((chosen * asked).sum())
        ctx.save_for_backward(to_queries * (s / len(of)), to_items / len(of), (to_queries * queries).sum() / len(of))
        return scale.new_tensor(total / len(of))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Derivatives by queries, items and scale."""
        to_queries, to_items, to_scale = ctx.saved_tensors
        return to_queries * gradient, to_items * gradient, to_scale * gradient, None, None
