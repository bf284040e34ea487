"""Training of the two towers: every position of every history predicts what its user does next."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from features.catalog import Catalog
from features.interactions import Interactions
from features.progress import Begin
from recsys.candidates import Floats
from recsys.losses import MAX_SCALE, nested_loss
from recsys.settings import TowerConfig, TrainingConfig
from recsys.statistics import ItemStatistics
from recsys.towers import START, TwoTowers
from recsys.windows import Windows

Report = Callable[[dict[str, float]], Any]
"""Gets a line of figures an epoch."""


def behaviour_vectors(events: Interactions, dimension: int, seed: int) -> Floats:
    """Where id embeddings start: item vectors (n, dimension) float32 of a truncated SVD of who took what.

    PureSVD (Cremonesi, Koren & Turrin 2010) on rows and columns scaled by the square root of their counts. Rows are
    of unit length, items without events zero. Training from here needs a fraction of the passes.
    """
    from sklearn.preprocessing import normalize  # a second to import, which every command would pay
    from sklearn.utils.extmath import randomized_svd

    log = events.liked()
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
    report: Report | None = None,
    progress: Begin | None = None,
) -> FittedTowers:
    """Fit on events. With `validate` (its "ndcg_at_10" decides) stop early and keep the best epoch's weights.

    What is validated and kept are weights averaged exponentially over about the last pass (Polyak & Juditsky 1992).
    Without `validate`, make exactly `epochs` passes (or training.epochs). Raises DataError when there is
    nothing to learn from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    windows = Windows.build(events)
    model = TwoTowers(catalog, ItemStatistics.of(events), towers)
    with torch.no_grad():
        model.items.id.weight.copy_(torch.from_numpy(START * behaviour_vectors(events, towers.dimension, seed)))
    optimizer = _optimizer(model, training)
    average: AveragedModel | None = None
    best, best_state, history = -np.inf, model.state_dict(), []
    chosen = 0
    for epoch in range(1, (epochs or training.epochs) + 1):
        started, losses = time.perf_counter(), []
        model.train()
        batches = list(windows.batches(towers.history, training.batch_events, rng))
        done = progress(f"pass {epoch}", sum(len(batch.target) for batch in batches)) if progress else None
        if average is None:  # over about one pass, whatever the size of the data
            average = _averaged(model, steps=len(batches))
        for step, batch in enumerate(batches, 1):
            warm = step / len(batches) if epoch == 1 else 1.0
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * warm * group["boost"]
            items = model.items()
            hidden = model.users(
                items[torch.from_numpy(batch.items)], torch.from_numpy(batch.positive), torch.from_numpy(batch.waits)
            )
            queries = hidden[torch.from_numpy(batch.row), torch.from_numpy(batch.column)]
            of, target = torch.from_numpy(batch.of), torch.from_numpy(batch.target)
            scale = model.log_scale.exp().clamp(max=MAX_SCALE)
            loss = nested_loss(queries, items, scale, of, target, training.negatives, towers.nested)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)
            losses.append(float(loss.detach()))
            if done:
                done(len(batch.target))
        line = {"epoch": float(epoch), "loss": float(np.mean(losses)), "seconds": time.perf_counter() - started}
        line |= validate(cast(TwoTowers, average.module)) if validate else {}
        history.append(line)
        if report:
            report(line)
        if validate is None or line["ndcg_at_10"] > best:
            best, chosen = line.get("ndcg_at_10", best), epoch
            best_state = copy.deepcopy(average.module.state_dict())
        elif epoch - chosen >= training.patience:
            break
    model.load_state_dict(best_state)
    model.eval()
    return FittedTowers(model, events.latest, chosen or len(history), history)


def _averaged(model: TwoTowers, steps: int) -> AveragedModel:
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
