"""Training of the two towers: each event of a history predicts the next positive items of its user."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from features.arrays import Bools, Floats
from features.catalog import Catalog
from features.errors import ConfigError
from features.interactions import Interactions
from features.progress import StartProgress, Step
from recsys.config import TowerConfig, TrainingConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers import distributed
from recsys.towers.losses import MAX_SCALE, Loss, Pairs, gbce_loss, in_batch_loss, nested_loss, softmax_loss
from recsys.towers.model import INITIAL_LENGTH, TwoTowers
from recsys.towers.training_batches import Batch, TrainingSequences

Report = Callable[[dict[str, float]], Any]
"""Called with the figures of each epoch: a line of `FittedTowers.history`."""


def svd_item_vectors(events: Interactions, dimension: int, seed: int) -> Floats:
    """Initial id embeddings (n, dimension) float32: item factors of a truncated SVD of the user-item matrix.

    PureSVD (Cremonesi, Koren & Turrin 2010) of the binary matrix of positive events, with rows and columns divided by
    the square root of their counts. Rows have unit length. Rows of cold items, and columns beyond the rank, are zero.
    Training needs a fraction of the epochs that it needs from random embeddings.
    """
    from sklearn.preprocessing import normalize  # imported late, because it takes a second
    from sklearn.utils.extmath import randomized_svd

    log = events.positives()
    pairs = np.unique(log.users * log.n_items + log.items)
    users, items = np.divmod(pairs, log.n_items)  # (m,), (m,) distinct pairs
    user_counts, item_counts = np.bincount(users, minlength=log.n_users), np.bincount(items, minlength=log.n_items)
    weights = (user_counts[users] * item_counts[items]) ** -0.5  # (m,)
    matrix = sparse.csr_array((weights.astype(np.float32), (users, items)), shape=(log.n_users, log.n_items))
    rank = min(dimension, min(matrix.shape) - 1)
    out = np.zeros((log.n_items, dimension), dtype=np.float32)
    if rank > 0:
        _, values, factors = randomized_svd(matrix, rank, random_state=seed)
        out[:, :rank] = factors.T * values
    unit: Floats = normalize(out)
    return unit


@dataclass(frozen=True)
class FittedTowers:
    """Trained towers and the record of their training.

    fitted_until: time (µs) of the latest training event; epochs: number of the epoch that the weights are from;
    history: for each epoch a dict of "epoch", "loss", "seconds" and the figures that `validate` returned.
    """

    model: TwoTowers
    fitted_until: int
    epochs: int
    history: list[dict[str, float]]


LARGEST_WEIGHT = 1e18
"""Larger weights are a sign of diverged training: their squares are no longer finite in float32."""


def fit_towers(
    catalog: Catalog,
    events: Interactions,
    towers: TowerConfig,
    training: TrainingConfig,
    *,
    seed: int,
    validate: Callable[[TwoTowers], dict[str, float]] | None = None,
    epochs: int | None = None,
    report: Report | None = None,
    progress: StartProgress | None = None,
    start: TwoTowers | None = None,
    only: Bools | None = None,
) -> FittedTowers:
    """Towers fitted on events. With `validate`, training stops early and keeps the epoch of the best "ndcg_at_10".

    The weights that are validated and kept are an exponential average over about one epoch (Polyak & Juditsky 1992).
    Without `validate`, exactly `epochs` (default: training.epochs) epochs are run.

    start: towers to continue from; they are modified. only (n,): the events that are predicted, all by default.
    With n processes (`recsys.towers.distributed`) a step is n times as large, and each process computes its share.
    On a GPU the towers compute in bfloat16 (not run on one yet). The returned towers are on the CPU. Raises DataError
    when no positive event follows another event of its user.
    """
    sequences = TrainingSequences.build(events, only)
    fit = partial(fit_towers, catalog, events, towers, training, seed=seed, epochs=epochs, start=start, only=only)
    distributed.broadcast_call(partial(fit, validate=validate and _validate_nothing))
    torch.manual_seed(seed)
    rng, process_rng = np.random.default_rng(seed), np.random.default_rng([seed, distributed.rank()])
    model = (start or _new_towers(catalog, events, towers, seed)).to(distributed.device())
    loss = distributed.data_parallel(ProcessLoss(model, _loss(training, sequences, len(catalog))))
    trainer = _Trainer(model, loss, _optimizer(model, training), training, process_rng)
    average: AveragedModel | None = None
    best, best_epoch, best_weights, history = -np.inf, 0, dict[str, Tensor](), list[dict[str, float]]()
    for epoch in range(1, (epochs or training.epochs) + 1):
        started = time.perf_counter()
        model.train()
        batches = list(_batches(sequences, towers, training, rng))
        advance = progress(f"pass {epoch}", sum(len(batch.target) for batch in batches)) if progress else None
        if average is None:  # over about one epoch, however many steps it has
            average = _averaged_model(model, steps=len(batches))
        with _naming_settings_of_memory():
            epoch_loss = trainer.run_epoch(epoch, batches, average, advance)
        line = {"epoch": float(epoch), "loss": epoch_loss, "seconds": time.perf_counter() - started}
        line |= distributed.broadcast_value(validate(cast(TwoTowers, average.module))) if validate else {}
        history.append(line)
        if report:
            report(line)
        if validate is None or line["ndcg_at_10"] > best:
            best, best_epoch = line.get("ndcg_at_10", best), epoch
            best_weights = {name: values.clone() for name, values in average.module.state_dict().items()}
        elif epoch - best_epoch >= training.patience:
            break
    model.load_state_dict(best_weights)
    model.cpu().eval()
    model.rotate(events, seed=seed)
    return FittedTowers(model, events.latest, best_epoch, history)


@dataclass(frozen=True)
class _Trainer:
    """Takes the optimiser steps of one process.

    loss: `ProcessLoss` of the model, data-parallel if there are several processes. rng: of this process alone; it
    seeds the dropout of each step.
    """

    model: TwoTowers
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    training: TrainingConfig
    rng: np.random.Generator

    def run_epoch(self, epoch: int, batches: list[Batch], average: AveragedModel, advance: Step | None) -> float:
        """Takes one step for each batch and updates `average` after it; returns the mean loss of all processes.

        advance: called with the number of pairs of each batch. Raises ConfigError when training diverged.
        """
        losses = []
        for step, batch in enumerate(batches, 1):
            epochs_done = epoch - 1 + step / len(batches)
            rate = self.training.learning_rate * learning_rate_factor(self.training, epochs_done)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["boost"]
            loss = self.loss(batch, int(self.rng.integers(2**62)))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            with torch.no_grad():  # not clamped in the loss, where the gradient would be 0 beyond the bound
                self.model.log_scale.clamp_(max=math.log(MAX_SCALE))
            average.update_parameters(self.model)
            losses.append(loss.detach())
            if advance:
                advance(len(batch.target))
        mean = float(distributed.mean(torch.stack(losses).mean()))
        if not all(bool((values.abs() < LARGEST_WEIGHT).all()) for values in self.model.parameters()):
            raise ConfigError(
                f"training diverged in pass {epoch} (loss {mean:.4g}): lower training.learning_rate, which is "
                f"{self.training.learning_rate}, or data.events.weights"
            )
        return mean


class ProcessLoss(nn.Module):
    """Loss of this process in a step. Its mean over the processes is the mean over all pairs of the step."""

    def __init__(self, towers: TwoTowers, loss: Loss) -> None:
        """The parameters are those of `towers`."""
        super().__init__()
        self.towers, self.loss = towers, loss

    def forward(self, batch: Batch, seed: int) -> Tensor:
        """The loss, a scalar. seed: of dropout, which differs between processes.

        All processes draw the same id dropout and the same negatives. In-batch negatives are those of the process.
        """
        device = self.towers.log_scale.device

        def on(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            items = self.towers.items()  # (n, d)
            with distributed.process_rng(seed):
                history = batch.history.on(device)
                hidden = self.towers.users(items[history.items], history)  # (b, t, d)
        # (q, d), scalar
        queries, scale = hidden[on(batch.row), on(batch.column)], self.towers.log_scale.exp()
        pairs = Pairs(on(batch.pair_to_query), on(batch.target), on(batch.weight))
        loss = nested_loss(self.loss, queries.float(), items.float(), scale, pairs, self.towers.config.nested)
        return loss * (batch.share * distributed.size())


@contextmanager
def _naming_settings_of_memory() -> Iterator[None]:
    """Turn torch's RuntimeError, where memory is used up, into a MemoryError that names the settings to lower."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("can't allocate memory", "out of memory")):
            raise
        settings = "training.batch_events, training.negatives or towers.history"
        raise MemoryError(f"a training step does not fit; lower {settings}") from error


def _loss(training: TrainingConfig, sequences: TrainingSequences, n: int) -> Loss:
    if training.loss == "in-batch":
        counts = np.bincount(sequences.target, minlength=n).astype(np.float32)  # (n,)
        frequency = torch.from_numpy(counts / counts.sum()).to(distributed.device())
        return partial(in_batch_loss, frequency=frequency)
    return partial(gbce_loss if training.loss == "gbce" else softmax_loss, negatives=training.negatives)


def learning_rate_factor(training: TrainingConfig, passes: float) -> float:
    """Factor of the learning rate after so many epochs: linear warm-up in the first one, then training.schedule."""
    if passes <= 1 or training.schedule == "constant":
        return min(1.0, passes)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (passes - 1) / max(1, training.epochs - 1)))


def _validate_nothing(_: TwoTowers) -> dict[str, float]:
    """Stands for `validate` in all processes but rank 0, which broadcasts its figures."""
    return {}


def _new_towers(catalog: Catalog, events: Interactions, towers: TowerConfig, seed: int) -> TwoTowers:
    """Towers with random parameters, except for the id embeddings (`svd_item_vectors`)."""
    model = TwoTowers(catalog, ItemStatistics.of(events), towers, events.n_types)
    with torch.no_grad():
        model.items.id.weight.copy_(
            torch.from_numpy(INITIAL_LENGTH * svd_item_vectors(events, towers.dimension, seed))
        )
    return model


def _batches(
    sequences: TrainingSequences, towers: TowerConfig, training: TrainingConfig, rng: np.random.Generator
) -> Iterator[Batch]:
    rank, size = distributed.rank(), distributed.size()
    return sequences.batches(towers.history, training.batch_events * size, rng, part=rank, parts=size)


def _averaged_model(model: TwoTowers, steps: int) -> AveragedModel:
    """Exponential moving average of the weights over about `steps` steps."""
    update = get_ema_multi_avg_fn(1 - 1 / (1 + steps))  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=update)


def _optimizer(model: TwoTowers, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW; "boost" of a parameter group is its multiple of the learning rate."""
    ids, scalars = model.items.id.weight, [p for p in model.parameters() if p.ndim == 0]
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p is not ids]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay, "boost": 1.0},
        {"params": [ids], "weight_decay": training.weight_decay, "boost": training.id_rate},
        {"params": biases, "weight_decay": 0.0, "boost": 1.0},
        {"params": scalars, "weight_decay": 0.0, "boost": 10.0},  # they change slowly at the common rate
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
