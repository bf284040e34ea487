"""Training of the alignment on a catalogue's own items: the channels of one item should map to one vector.

The stages follow Gemini Embedding 2 (arXiv 2605.27295): start from a closed form (`fit_cca`); contrastive learning on
pairs of channels; then on random halves of the channels, in batches of similar items. Each stage ends with the mean
of the weights over its second half.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from features.arrays import Bools, Floats, Ints
from features.content.spaces import SpaceKey, unit
from features.errors import DataError
from features.progress import StartProgress
from recsys.config import AlignmentConfig
from recsys.content.alignment import AffineMap, Alignment, Views
from recsys.content.cca import fit_cca, spectra

Stage = Literal["pairs", "halves"]


@dataclass(frozen=True)
class ClosedFormSettings:
    """Settings of the closed form: shrinkage of each space; power and within as in `fit_cca`."""

    shrinkage: dict[SpaceKey, float]
    power: float
    within: float


@dataclass(frozen=True)
class FittedAlignment:
    """A fitted alignment.

    chosen: the settings of the closed form, selected on held-out items; losses: stage -> mean loss of its last
    quarter of steps.
    """

    alignment: Alignment
    chosen: ClosedFormSettings
    losses: dict[str, float]


def fit_alignment(
    channels: Mapping[str, Views],
    n: int,
    config: AlignmentConfig,
    *,
    seed: int,
    progress: StartProgress | None = None,
) -> FittedAlignment:
    """Fit on the views of n items. Raises DataError when fewer than MIN_PAIRED_ITEMS items have two channels."""
    n_channels = sum(np.bincount(np.unique(v.items), minlength=n) for v in channels.values())  # (n,)
    if (n_paired := int((np.asarray(n_channels) >= 2).sum())) < MIN_PAIRED_ITEMS:
        raise DataError(
            f"the alignment learns from items that have two of {', '.join(channels)}; {n_paired} do, at least "
            f"{MIN_PAIRED_ITEMS} are needed: give items texts and images or sounds, or embed them first"
        )
    channels = {name: views for name, views in channels.items() if len(views.items)}
    chosen = _select_settings(channels, n, config, np.random.default_rng(seed))
    start = fit_cca(spectra(channels, n), chosen.shrinkage, chosen.power, chosen.within, config.nested)
    if config.steps == 0:
        return FittedAlignment(start, chosen, {})
    trainer = _Trainer(start, channels, n, config, seed)
    losses = {stage: trainer.train(stage, progress) for stage in ("pairs", "halves")}
    return FittedAlignment(trainer.alignment(), chosen, losses)


MIN_PAIRED_ITEMS = 20
"""Minimum number of items with two channels."""

MAX_TUNING_ITEMS = 5000
"""Maximum number of items that the settings of the closed form are selected on."""


def _select_settings(
    channels: Mapping[str, Views], n: int, config: AlignmentConfig, rng: np.random.Generator
) -> ClosedFormSettings:
    """The settings of the closed form with the largest cross-channel MRR on held-out items.

    Five-fold cross-validation and coordinate search: the shrinkage of each space in turn, then power, then within.
    """
    sample = rng.permutation(n)[:MAX_TUNING_ITEMS]
    folds = []
    for held_out in np.array_split(sample, 5):
        fit, test = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        fit[sample], test[held_out] = True, True
        fit[held_out] = False
        fitted = spectra(_restrict(channels, fit), int(fit.sum()))
        queries = {name: views for name, views in _restrict(channels, test).items() if views.space in fitted}
        folds.append((fitted, queries, len(held_out)))

    def quality(s: ClosedFormSettings) -> float:
        mrr = [
            cross_channel_mrr(fit_cca(fitted, s.shrinkage, s.power, s.within, config.nested), test, m)
            for fitted, test, m in folds
        ]
        return float(np.mean(mrr))

    def better(best: ClosedFormSettings, alternatives: list[ClosedFormSettings]) -> ClosedFormSettings:
        return max([best, *(s for s in alternatives if s != best)], key=quality)  # of equals the first

    keys = list(dict.fromkeys(v.space for v in channels.values()))
    middle = config.shrinkage[len(config.shrinkage) // 2]
    best = ClosedFormSettings(dict.fromkeys(keys, middle), config.power[0], config.within[0])
    for key in keys:
        best = better(best, [replace(best, shrinkage={**best.shrinkage, key: v}) for v in config.shrinkage])
    best = better(best, [replace(best, power=v) for v in config.power])
    best = better(best, [replace(best, within=v) for v in config.within])
    return best


def _restrict(channels: Mapping[str, Views], keep: Bools) -> dict[str, Views]:
    """The channels of the items that keep (n,) selects, without empty channels."""
    kept = {name: views.where(keep) for name, views in channels.items()}
    return {name: views for name, views in kept.items() if len(views.items)}


def cross_channel_mrr(alignment: Alignment, channels: Mapping[str, Views], n: int) -> float:
    """MRR of n items, each searched by every view in a channel a among the items with a channel b; mean over (a, b).

    a and b are different channels. An item's vector in b is the normalised sum of its views. Ties: mid-rank.
    """
    queries, items = {}, {}
    for name, views in channels.items():
        mapped = alignment.maps[views.space](views.vectors)  # (p, D)
        sums = np.zeros((n, mapped.shape[1]), dtype=np.float32)
        np.add.at(sums, views.items, mapped)
        queries[name], items[name] = mapped, unit(sums)
    out = []
    for (a, views_a), (b, views_b) in itertools.permutations(channels.items(), 2):
        rows = np.unique(views_b.items)  # (m,): the items with channel b
        usable = np.isin(views_a.items, rows)  # (p_a,)
        if len(rows) > 1 and usable.any():
            scores = queries[a][usable] @ items[b][rows].T  # (q, m)
            own = scores[np.arange(len(scores)), np.searchsorted(rows, views_a.items[usable])][:, None]  # (q, 1)
            rank = (scores > own).sum(1) + ((scores == own).sum(1) + 1) / 2  # (q,)
            out.append(float((1 / rank).mean()))
    return float(np.mean(out)) if out else 0.0


class _Trainer:
    """Trains the weights of the maps; their means stay. Each step draws one view of each channel of its items."""

    def __init__(
        self, start: Alignment, channels: Mapping[str, Views], n: int, config: AlignmentConfig, seed: int
    ) -> None:
        self._nested, self._config = start.nested, config
        self._keys = list(start.maps)
        self._mean = {key: torch.from_numpy(m.mean) for key, m in start.maps.items()}
        self._weight = {key: torch.from_numpy(m.weight.copy()).requires_grad_() for key, m in start.maps.items()}
        self._log_scale = torch.tensor(float(np.log(1 / 0.07)), requires_grad=True)
        self._channels = list(channels.values())
        self._tables = [_Table.of(views, n) for views in self._channels]
        present = np.stack([table.count > 0 for table in self._tables])  # (c, n)
        self._items: Ints = np.flatnonzero(present.sum(0) >= 2).astype(np.int64)  # items with two channels
        self._torch = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)

    def alignment(self) -> Alignment:
        maps = {key: AffineMap(self._mean[key].numpy(), w.detach().numpy().copy()) for key, w in self._weight.items()}
        return Alignment(maps, self._nested)

    def train(self, stage: Stage, progress: StartProgress | None) -> float:
        """Train one stage and return the mean loss of its last quarter.

        The weights become their mean over the second half of the steps.
        """
        steps_per_pass = max(1, len(self._items) // self._config.batch)
        steps = max(self._config.steps, self._config.passes * steps_per_pass)
        done = progress(f"alignment, {stage}", steps) if progress else None
        weights = list(self._weight.values())
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": [self._log_scale], "lr": 1e-2}]
        optimizer = torch.optim.AdamW(groups, lr=self._config.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        batches = itertools.chain.from_iterable(self._batches(stage) for _ in itertools.count())
        sums = [torch.zeros_like(w) for w in weights]
        losses = []
        for step, batch in enumerate(itertools.islice(batches, steps)):
            loss = self._loss(batch, stage)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if step >= steps // 2:
                for total, weight in zip(sums, weights, strict=True):
                    total += weight.detach()
            if done:
                done(1)
        with torch.no_grad():
            for total, weight in zip(sums, weights, strict=True):
                weight.copy_(total / (steps - steps // 2))
        return float(np.mean(losses[-max(1, steps // 4) :]))

    def _batches(self, stage: Stage) -> list[Ints]:
        """Batches of item rows (b,) for one pass over the items.

        In the stage of halves, items on the same side of random hyperplanes share a batch: the other items of a batch
        are then hard negatives.
        """
        order = self._rng.permutation(self._items)
        size = min(self._config.batch, len(order))
        if stage == "halves" and len(order) > size:
            with torch.no_grad():
                x, present = self._draw(order, dropout=0.0)
                fused = functional.normalize((x * present[..., None]).sum(1), dim=-1).numpy()  # (items, D)
            planes = self._rng.standard_normal((fused.shape[1], 8))
            order = order[np.lexsort((fused @ planes > 0).T)]
        usable = len(order) // size * size
        batches = list(order[:usable].reshape(-1, size))
        self._rng.shuffle(batches)
        return batches

    def _draw(self, items: Ints, dropout: float) -> tuple[Tensor, Tensor]:
        """One random view of each channel of items (b,): mapped (b, c, D), not normalised, and present (b, c)."""
        mapped, present = [], []
        for views, table in zip(self._channels, self._tables, strict=True):
            count = table.count[items]  # (b,)
            pick = table.start[items] + (self._rng.random(len(items)) * np.maximum(count, 1)).astype(np.int64)
            x = torch.from_numpy(table.vectors[np.where(count > 0, pick, 0)]) - self._mean[views.space]  # (b, d)
            if dropout:
                x = x * (torch.rand(x.shape, generator=self._torch) >= dropout) / (1 - dropout)
            mapped.append(x @ self._weight[views.space])
            present.append(torch.from_numpy(count > 0))
        return torch.stack(mapped, 1), torch.stack(present, 1)

    def _loss(self, items: Ints, stage: Stage) -> Tensor:
        """Symmetric cross-entropy between two disjoint sets of channels of each item; mean over nested dimensions."""
        x, present = self._draw(items, self._config.dropout)
        # (b, c): rank of each channel in a random order, absent channels last
        order = torch.rand(present.shape, generator=self._torch).masked_fill(~present, 2.0).argsort(1).argsort(1)
        count = present.sum(1, keepdim=True)  # (b, 1)
        size = torch.ones_like(count)
        if stage == "halves":  # the first set has 1 to count - 1 channels, the second set the rest
            drawn = torch.rand(count.shape, generator=self._torch)
            size = 1 + (drawn * (count - 1)).long()
        first = (order < size) & present  # (b, c)
        second = (order == 1) & present if stage == "pairs" else (order >= size) & present
        target = torch.arange(len(items))
        loss = torch.zeros(())
        for dimension in self._nested:
            cut = functional.normalize(x[..., :dimension], dim=-1)  # (b, c, dimension)
            a = functional.normalize((cut * first[..., None]).sum(1), dim=-1)  # (b, dimension)
            b = functional.normalize((cut * second[..., None]).sum(1), dim=-1)
            logits = a @ b.T * self._log_scale.exp()  # (b, b)
            loss = loss + functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        return loss / (2 * len(self._nested))


@dataclass(frozen=True)
class _Table:
    """A channel's views sorted by item: those of item i are vectors[start[i]:start[i] + count[i]].

    start, count (n,); vectors (p, d).
    """

    start: Ints
    count: Ints
    vectors: Floats

    @classmethod
    def of(cls, views: Views, n: int) -> "_Table":
        order = np.argsort(views.items, kind="stable")
        count = np.bincount(views.items, minlength=n)
        return cls(np.cumsum(count) - count, count, views.vectors[order])
