"""The user tower: a causal transformer over the item vectors of a history."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.config import TowerConfig
from recsys.towers.history import WAIT_BUCKETS, History


class Block(nn.Module):
    """A causal LiGR layer: pre-norm attention and SwiGLU, each multiplied by a sigmoid gate of its input.

    Borisyuk et al. 2025 (arXiv 2502.03417); as in eSASRec (Tikhonovich et al. 2025, arXiv 2508.06450).
    """

    def __init__(self, config: TowerConfig) -> None:
        """One layer of the configured width."""
        super().__init__()
        d = config.dimension
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 8 * d), nn.Linear(4 * d, d)
        self.gate1, self.gate2 = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d). Position i reads positions 0..i."""
        b, t, d = x.shape
        # (b, heads, t, d / heads) each
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # (b, heads, t, d / heads)
        return self._rest(x, y.transpose(1, 2).reshape(b, t, d))

    def _rest(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows the attention. x: inputs of the layer; y: outputs of the attention, before `out`."""
        x = x + self._drop(self.out(y)) * torch.sigmoid(self.gate1(x))
        value, swish = self.up(self.norm2(x)).chunk(2, dim=-1)  # (b, t, 4 d) each
        return x + self._drop(self.down(functional.silu(swish) * value)) * torch.sigmoid(self.gate2(x))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class UserTower(nn.Module):
    """User vectors, one after each event of a history of item vectors: a causal transformer (Kang & McAuley 2018).

    The transformer's output is added to the projected mean of the positive items, whose weights decay with age at a
    learned rate, and, if config.calendar, to a vector of the hour and a vector of the weekday.
    """

    def __init__(self, config: TowerConfig, n_types: int = 1) -> None:
        """New parameters for histories of up to config.history events. n_types: event types; type 0 is unknown."""
        super().__init__()
        d = config.dimension
        self.config = config
        self.position = nn.Embedding(config.history, d)
        self.wait = nn.Embedding(WAIT_BUCKETS + 1, d)
        self.kind = nn.Embedding(2, d)
        for table in (self.position, self.wait, self.kind):
            nn.init.normal_(table.weight, std=0.1 * d**-0.5)
        # zeros, so that a type or an hour without training events has no effect
        self.event = nn.Embedding(n_types, d, padding_idx=0, _weight=torch.zeros(n_types, d))
        self.hour, self.day = (nn.Embedding(n, d, _weight=torch.zeros(n, d)) for n in (24, 7))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)
        nn.init.constant_(self.norm.weight, 0.1)  # small: at first the mean of the history dominates
        self.profile = nn.Linear(d, d, bias=False)
        nn.init.eye_(self.profile.weight)
        self.forget = nn.Parameter(torch.tensor(0.0))

    def forward(self, vectors: Tensor, history: History[Tensor]) -> Tensor:
        """vectors (b, t, d): unit rows of the items of a history (b, t) -> user vectors (b, t, d), unit rows.

        User vector i predicts the item after event i, given that it follows after gaps[i] at hours[i].
        """
        x = self._inputs(vectors, history)
        for block in self.blocks:
            x = block(x)
        position = torch.arange(vectors.shape[1], device=vectors.device)
        return self._outputs(x, self._recent(vectors, history.positive, position[:, None]), history.hours)

    def _inputs(self, vectors: Tensor, history: History[Tensor]) -> Tensor:
        """Inputs of the first block: (b, t, d)."""
        t, d = vectors.shape[1:]
        x = vectors + self.position.weight[:t] + self.kind(history.positive.long()) + self.event(history.types)
        if self.config.times:
            x = x + self.wait(history.gaps)
        return dropout(x * d**0.5, self.config.dropout, self.training)

    def _recent(self, vectors: Tensor, positive: Tensor, position: Tensor) -> Tensor:
        """Weighted means of the positive items up to s events of each history, weights sigmoid(forget) ** age.

        position: index of these events, (s, 1) or (b, 1, 1). Returns (b, s, d).
        """
        age = position - torch.arange(vectors.shape[1], device=vectors.device)  # (s, t) or (b, 1, t)
        weights = torch.exp(functional.logsigmoid(self.forget) * age.clamp(min=0)) * (age >= 0)
        weights = weights * positive[:, None, :]  # (b, s, t)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6) @ vectors

    def _outputs(self, x: Tensor, recent: Tensor, hours: Tensor) -> Tensor:
        """User vectors of the outputs x of the blocks, the means of `_recent`, and hours of the week: (b, s, d)."""
        profile = dropout(recent * self.config.dimension**0.5, self.config.dropout, self.training)
        out = self.norm(x) + self.profile(profile)
        if self.config.calendar:
            out = out + self.hour(hours % 24) + self.day(hours // 24)
        return functional.normalize(out, dim=-1)


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """x with a share `rate` of its coordinates zero and the others divided by 1 - rate; x itself outside training.

    Faster on a CPU than torch's own, which draws its random numbers one by one, a tenth of a training step. Same
    contract as `torch.nn.functional.dropout`. Each call seeds a numpy stream (SFC64) from torch's global generator;
    each coordinate takes 16 bits of the stream.
    """
    if x.is_cuda or not training or rate == 0:
        return functional.dropout(x, rate, training)
    stream = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    draws = stream.random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]  # (x.numel(),)
    scale = (draws >= round(rate * 2**16)).astype(np.float32) * np.float32(1 / (1 - rate))
    return x * torch.from_numpy(scale).view(x.shape)
