"""Training of the two towers: every position of every history predicts what its user does next."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from features.arrays import Floats
from features.catalog import Catalog
from features.interactions import Interactions
from features.progress import StartProgress
from recsys.config import TowerConfig, TrainingConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers import distributed
from recsys.towers.losses import MAX_SCALE, Loss, Pairs, gbce_loss, in_batch_loss, nested_loss, softmax_loss
from recsys.towers.model import INITIAL_LENGTH, TwoTowers
from recsys.towers.training_batches import Batch, TrainingSequences

Report = Callable[[dict[str, float]], Any]
"""Gets a line of figures an epoch."""


def svd_item_vectors(events: Interactions, dimension: int, seed: int) -> Floats:
    """Where id embeddings start: item vectors (n, dimension) float32 of a truncated SVD of who took what.

    PureSVD (Cremonesi, Koren & Turrin 2010) on rows and columns scaled by the square root of their counts. Rows are
    of unit length, items without events zero. Training from here needs a fraction of the passes.
    """
    from sklearn.preprocessing import normalize  # a second to import, which every command would pay
    from sklearn.utils.extmath import randomized_svd

    log = events.positives()
    pairs = np.unique(log.users * log.n_items + log.items)
    users, items = np.divmod(pairs, log.n_items)
    active, popular = np.bincount(users, minlength=log.n_users), np.bincount(items, minlength=log.n_items)
    weights = (active[users] * popular[items]) ** -0.5
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
    """Trained towers and how they came to be.

    fitted_until: µs of the latest event seen; epochs: passes that made these weights; history: one dict for each pass
    that was made (loss, seconds, and what `validate` returned).
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
    report: Report | None = None,
    progress: StartProgress | None = None,
    start: TwoTowers | None = None,
    since: int | None = None,
) -> FittedTowers:
    """Fit on events. With `validate` (its "ndcg_at_10" decides) stop early and keep the best epoch's weights.

    What is validated and kept are weights averaged exponentially over about the last pass (Polyak & Juditsky 1992).
    Without `validate`, make exactly `epochs` passes (or training.epochs). start: towers to go on from, which are
    changed; since (µs): predict only events after it. Several processes (`recsys.towers.distributed`) each take
    their share of every step, which is so many times larger. On a GPU the towers compute in bfloat16 (not run on
    one yet); what is returned is on the CPU. Raises DataError when there is nothing to learn from.
    """
    windows = TrainingSequences.build(events, since)
    fit = partial(fit_towers, catalog, events, towers, training, seed=seed, epochs=epochs, start=start, since=since)
    distributed.broadcast_call(partial(fit, validate=validate and _validate_nothing))
    torch.manual_seed(seed)
    rng, own = np.random.default_rng(seed), np.random.default_rng([seed, distributed.rank()])
    model = (start or _new_towers(catalog, events, towers, seed)).to(distributed.device())
    share = distributed.data_parallel(ProcessLoss(model, _loss(training, windows, len(catalog))))
    optimizer = _optimizer(model, training)
    average: AveragedModel | None = None
    best, chosen, kept, history = -np.inf, 0, dict[str, Tensor](), list[dict[str, float]]()
    for epoch in range(1, (epochs or training.epochs) + 1):
        started, losses = time.perf_counter(), []
        model.train()
        batches = list(_batches(windows, towers, training, rng))
        done = progress(f"pass {epoch}", sum(len(batch.target) for batch in batches)) if progress else None
        if average is None:  # over about one pass, whatever the size of the data
            average = _averaged_model(model, steps=len(batches))
        for step, batch in enumerate(batches, 1):
            rate = training.learning_rate * learning_rate_factor(training, epoch - 1 + step / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["boost"]
            loss = share(batch, int(own.integers(2**62)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():  # here, since beyond a bound in the loss it would have no gradient to come back by
                model.log_scale.clamp_(max=math.log(MAX_SCALE))
            average.update_parameters(model)
            losses.append(loss.detach())
            if done:
                done(len(batch.target))
        loss_of_pass = float(distributed.mean(torch.stack(losses).mean()))
        line = {"epoch": float(epoch), "loss": loss_of_pass, "seconds": time.perf_counter() - started}
        line |= distributed.broadcast_value(validate(cast(TwoTowers, average.module))) if validate else {}
        history.append(line)
        if report:
            report(line)
        if validate is None or line["ndcg_at_10"] > best:
            best, chosen = line.get("ndcg_at_10", best), epoch
            kept = {name: values.clone() for name, values in average.module.state_dict().items()}
        elif epoch - chosen >= training.patience:
            break
    model.load_state_dict(kept)
    model.cpu().eval()
    model.rotate(events, seed=seed)
    return FittedTowers(model, events.latest, chosen, history)


class ProcessLoss(nn.Module):
    """This process's share of the loss of a step, such that the mean over the processes is that over all pairs."""

    def __init__(self, towers: TwoTowers, loss: Loss) -> None:
        """Around towers whose parameters it shares."""
        super().__init__()
        self.towers, self.loss = towers, loss

    def forward(self, batch: Batch, seed: int) -> Tensor:
        """Scalar. seed: of dropout alone; which ids are hidden and which negatives are drawn all processes share
        (in-batch ones are each process's own)."""
        device = self.towers.log_scale.device

        def on(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            items = self.towers.items()
            with distributed.process_rng(seed):
                history = batch.history.on(device)
                hidden = self.towers.users(items[history.items], history)
        queries, scale = hidden[on(batch.row), on(batch.column)], self.towers.log_scale.exp()
        pairs = Pairs(on(batch.pair_to_query), on(batch.target), on(batch.weight))
        loss = nested_loss(self.loss, queries.float(), items.float(), scale, pairs, self.towers.config.nested)
        return loss * (batch.share * distributed.size())


def _loss(training: TrainingConfig, windows: TrainingSequences, n: int) -> Loss:
    if training.loss == "in-batch":
        counts = np.bincount(windows.target, minlength=n).astype(np.float32)
        frequency = torch.from_numpy(counts / counts.sum()).to(distributed.device())
        return partial(in_batch_loss, frequency=frequency)
    return partial(gbce_loss if training.loss == "gbce" else softmax_loss, negatives=training.negatives)


def learning_rate_factor(training: TrainingConfig, passes: float) -> float:
    """Of the learning rate, after so many passes: linear in the first, then as configured."""
    if passes <= 1 or training.schedule == "constant":
        return min(1.0, passes)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (passes - 1) / max(1, training.epochs - 1)))


def _validate_nothing(_: TwoTowers) -> dict[str, float]:
    """What helping processes validate with: the first one's figures hold."""
    return {}


def _new_towers(catalog: Catalog, events: Interactions, towers: TowerConfig, seed: int) -> TwoTowers:
    model = TwoTowers(catalog, ItemStatistics.of(events), towers, events.n_types)
    with torch.no_grad():
        model.items.id.weight.copy_(
            torch.from_numpy(INITIAL_LENGTH * svd_item_vectors(events, towers.dimension, seed))
        )
    return model


def _batches(
    windows: TrainingSequences, towers: TowerConfig, training: TrainingConfig, rng: np.random.Generator
) -> Iterator[Batch]:
    rank, size = distributed.rank(), distributed.size()
    return windows.batches(towers.history, training.batch_events * size, rng, part=rank, parts=size)


def _averaged_model(model: TwoTowers, steps: int) -> AveragedModel:
    smooth = get_ema_multi_avg_fn(1 - 1 / (1 + steps))  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=smooth)


def _optimizer(model: TwoTowers, training: TrainingConfig) -> torch.optim.Optimizer:
    ids, numbers = model.items.id.weight, [p for p in model.parameters() if p.ndim == 0]
    tables = [p for p in model.parameters() if p.ndim >= 2 and p is not ids]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": tables, "weight_decay": training.weight_decay, "boost": 1.0},
        {"params": [ids], "weight_decay": training.weight_decay, "boost": training.id_rate},
        {"params": biases, "weight_decay": 0.0, "boost": 1.0},
        {"params": numbers, "weight_decay": 0.0, "boost": 10.0},  # slow at the common rate
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
