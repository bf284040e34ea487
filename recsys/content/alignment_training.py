"""Training of the alignment on a catalogue's own items: what an item looks, sounds and reads like is one thing.

In stages, as Gemini Embedding 2 describes its own (arXiv 2605.27295): a closed form to start from; contrastive
learning on pairs of channels; on random halves of all that items have, in batches of items that are alike; the mean
of the weights on the way.
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
    """Of the closed form: shrinkage of each space, power and within as in `fit_cca`."""

    shrinkage: dict[SpaceKey, float]
    power: float
    within: float


@dataclass(frozen=True)
class FittedAlignment:
    """alignment; the closed form's settings chosen on held-out items; mean loss of each stage's last quarter."""

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
    """Fit on the views of n items. Raises DataError when too few items have two channels to agree."""
    paired = sum(np.bincount(np.unique(v.items), minlength=n) for v in channels.values())
    if (found := int((np.asarray(paired) >= 2).sum())) < MIN_PAIRED_ITEMS:
        raise DataError(
            f"the alignment learns from items that have two of {', '.join(channels)}; {found} do, at least "
            f"{MIN_PAIRED_ITEMS} are needed: give items texts and pictures or sounds, or embed them first"
        )
    channels = {name: views for name, views in channels.items() if len(views.items)}
    chosen = _select_settings(channels, n, config, np.random.default_rng(seed))
    start = fit_cca(spectra(channels, n), chosen.shrinkage, chosen.power, chosen.within, config.nested)
    if config.steps == 0:
        return FittedAlignment(start, chosen, {})
    learner = _Trainer(start, channels, n, config, seed)
    losses = {stage: learner.learn(stage, progress) for stage in ("pairs", "halves")}
    return FittedAlignment(learner.alignment(), chosen, losses)


MIN_PAIRED_ITEMS = 20
"""Items with two channels that there must be."""

MAX_TUNING_ITEMS = 5000
"""Most items that settings are chosen on."""


def _select_settings(
    channels: Mapping[str, Views], n: int, config: AlignmentConfig, rng: np.random.Generator
) -> ClosedFormSettings:
    """Settings of the closed form by how well held-out items find themselves from one channel to another.

    A fifth of the items is held out, five times; one setting is changed at a time, spaces in turn.
    """
    use = rng.permutation(n)[:MAX_TUNING_ITEMS]
    folds = []
    for held in np.array_split(use, 5):
        fit, test = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        fit[use], test[held] = True, True
        fit[held] = False
        known = spectra(_restrict(channels, fit), int(fit.sum()))
        asked = {name: views for name, views in _restrict(channels, test).items() if views.space in known}
        folds.append((known, asked, len(held)))

    def quality(s: ClosedFormSettings) -> float:
        found = [
            cross_channel_mrr(fit_cca(known, s.shrinkage, s.power, s.within, config.nested), test, m)
            for known, test, m in folds
        ]
        return float(np.mean(found))

    def better(best: ClosedFormSettings, alternatives: list[ClosedFormSettings]) -> ClosedFormSettings:
        return max([best, *(s for s in alternatives if s != best)], key=quality)  # the first of equals

    keys = list(dict.fromkeys(v.space for v in channels.values()))
    middle = config.shrinkage[len(config.shrinkage) // 2]
    best = ClosedFormSettings(dict.fromkeys(keys, middle), config.power[0], config.within[0])
    for key in keys:
        best = better(best, [replace(best, shrinkage={**best.shrinkage, key: v}) for v in config.shrinkage])
    best = better(best, [replace(best, power=v) for v in config.power])
    best = better(best, [replace(best, within=v) for v in config.within])
    return best


def _restrict(channels: Mapping[str, Views], keep: Bools) -> dict[str, Views]:
    parts = {name: views.where(keep) for name, views in channels.items()}
    return {name: views for name, views in parts.items() if len(views.items)}


def cross_channel_mrr(alignment: Alignment, channels: Mapping[str, Views], n: int) -> float:
    """Mean reciprocal rank of an item by its channel b, asked with each of its views in channel a, over pairs (a, b).

    Ties are at mid-rank.
    """
    asked, found = {}, {}
    for name, views in channels.items():
        mapped = alignment.maps[views.space](views.vectors)
        sums = np.zeros((n, mapped.shape[1]), dtype=np.float32)
        np.add.at(sums, views.items, mapped)
        asked[name], found[name] = mapped, unit(sums)
    out = []
    for (a, one), (b, other) in itertools.permutations(channels.items(), 2):
        there = np.unique(other.items)
        both = np.isin(one.items, there)
        if len(there) > 1 and both.any():
            scores = asked[a][both] @ found[b][there].T
            own = scores[np.arange(len(scores)), np.searchsorted(there, one.items[both])][:, None]
            rank = (scores > own).sum(1) + ((scores == own).sum(1) + 1) / 2
            out.append(float((1 / rank).mean()))
    return float(np.mean(out)) if out else 0.0


class _Trainer:
    """The maps as parameters, and the views of each item as a table that a step draws from."""

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
        there = np.stack([table.count > 0 for table in self._tables])
        self._items: Ints = np.flatnonzero(there.sum(0) >= 2).astype(np.int64)
        self._torch = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)

    def alignment(self) -> Alignment:
        maps = {key: AffineMap(self._mean[key].numpy(), w.detach().numpy().copy()) for key, w in self._weight.items()}
        return Alignment(maps, self._nested)

    def learn(self, stage: Stage, progress: StartProgress | None) -> float:
        """One stage; its weights become the mean over its second half. The mean loss of the last quarter."""
        per_pass = max(1, len(self._items) // self._config.batch)
        steps = max(self._config.steps, self._config.passes * per_pass)
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
        """One pass over the items. In halves, items that lie on the same side of random planes come together: the
        others of a batch are then hard negatives."""
        order = self._rng.permutation(self._items)
        size = min(self._config.batch, len(order))
        if stage == "halves" and len(order) > size:
            with torch.no_grad():
                x, there = self._draw(order, dropout=0.0)
                fused = functional.normalize((x * there[..., None]).sum(1), dim=-1).numpy()
            planes = self._rng.standard_normal((fused.shape[1], 8))
            order = order[np.lexsort((fused @ planes > 0).T)]
        usable = len(order) // size * size
        batches = list(order[:usable].reshape(-1, size))
        self._rng.shuffle(batches)
        return batches

    def _draw(self, items: Ints, dropout: float) -> tuple[Tensor, Tensor]:
        """One view of each channel of each item: (b, c, D) not normalised, and whether there is one (b, c)."""
        out, there = [], []
        for views, table in zip(self._channels, self._tables, strict=True):
            count = table.count[items]
            pick = table.start[items] + (self._rng.random(len(items)) * np.maximum(count, 1)).astype(np.int64)
            x = torch.from_numpy(table.vectors[np.where(count > 0, pick, 0)]) - self._mean[views.space]
            if dropout:
                x = x * (torch.rand(x.shape, generator=self._torch) >= dropout) / (1 - dropout)
            out.append(x @ self._weight[views.space])
            there.append(torch.from_numpy(count > 0))
        return torch.stack(out, 1), torch.stack(there, 1)

    def _loss(self, items: Ints, stage: Stage) -> Tensor:
        """Symmetric cross-entropy between two parts of each item, at every nested dimension."""
        x, there = self._draw(items, self._config.dropout)
        order = torch.rand(there.shape, generator=self._torch).masked_fill(~there, 2.0).argsort(1).argsort(1)
        present = there.sum(1, keepdim=True)
        size = torch.ones_like(present)
        if stage == "halves":  # 1 to present - 1 channels on the one side, the others on the other
            drawn = torch.rand(present.shape, generator=self._torch)
            size = 1 + (drawn * (present - 1)).long()
        one = (order < size) & there
        other = (order == 1) & there if stage == "pairs" else (order >= size) & there
        target = torch.arange(len(items))
        loss = torch.zeros(())
        for dimension in self._nested:
            cut = functional.normalize(x[..., :dimension], dim=-1)
            a = functional.normalize((cut * one[..., None]).sum(1), dim=-1)
            b = functional.normalize((cut * other[..., None]).sum(1), dim=-1)
            logits = a @ b.T * self._log_scale.exp()
            loss = loss + functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        return loss / (2 * len(self._nested))


@dataclass(frozen=True)
class _Table:
    """A channel's views in the order of their items: start and count (n,), vectors (p, d)."""

    start: Ints
    count: Ints
    vectors: Floats

    @classmethod
    def of(cls, views: Views, n: int) -> "_Table":
        order = np.argsort(views.items, kind="stable")
        count = np.bincount(views.items, minlength=n)
        return cls(np.cumsum(count) - count, count, views.vectors[order])
