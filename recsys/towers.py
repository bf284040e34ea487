"""The two towers: items and users as unit vectors of one space."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.catalog import Catalog
from features.interactions import UserStates
from recsys.candidates import Floats
from recsys.settings import TowerConfig
from recsys.statistics import ItemStatistics


class ItemTower(nn.Module):
    """Items to unit vectors: id embedding + popularity + projected content + mean of category embeddings, normalised.

    Id and popularity come from events. An item without any has neither, so that new items are placed by content
    alone, in the same space and on the same scale; id dropout teaches that case.
    """

    def __init__(self, catalog: Catalog, statistics: ItemStatistics, config: TowerConfig) -> None:
        """Parameters for the n items of the catalogue, of which the statistics say what events told."""
        super().__init__()
        d = config.dimension
        self.config = config
        self.known: Tensor
        self.counts: Tensor
        self.content: Tensor
        self.categories: Tensor
        self.register_buffer("known", torch.from_numpy((statistics.total > 0).astype(np.float32)), persistent=False)
        self.register_buffer("counts", torch.from_numpy(statistics.logs()), persistent=False)
        self.register_buffer("content", torch.from_numpy(catalog.content), persistent=False)
        self.register_buffer("categories", torch.from_numpy(catalog.categories.astype(np.int64)), persistent=False)
        self.id = nn.Embedding(len(catalog), d)
        self.popularity = nn.Linear(self.counts.shape[1], d, bias=False)
        self.project = nn.Linear(catalog.content.shape[1], d, bias=False)
        self.category = nn.EmbeddingBag(len(catalog.category_names) + 1, d, mode="mean", padding_idx=0)
        nn.init.normal_(self.id.weight, std=d**-0.5)
        nn.init.normal_(self.popularity.weight, std=0.3 * d**-0.5)
        nn.init.normal_(
            self.project.weight, std=0.5 * d**-0.5
        )  # content vectors are unit rows: this makes their norm .5
        nn.init.normal_(self.category.weight, std=0.5 * d**-0.5)
        nn.init.zeros_(self.category.weight[0])

    def forward(self) -> Tensor:
        """All items: (n, d) float32 unit rows."""
        mask = self.known
        if self.training and self.config.id_dropout:
            mask = mask * (torch.rand_like(mask) >= self.config.id_dropout)
        x = (self.id.weight + self.popularity(self.counts)) * mask[:, None]  # (n, d)
        if self.config.content:
            x = x + self.project(self.content) + self.category(self.categories + 1)
        return functional.normalize(x, dim=-1)


class Block(nn.Module):
    """Pre-norm transformer layer, causal."""

    def __init__(self, config: TowerConfig) -> None:
        """One layer of the configured width."""
        super().__init__()
        d = config.dimension
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d); position i reads positions 0..i."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # (b, heads, t, d / heads)
        x = x + functional.dropout(self.out(y.transpose(1, 2).reshape(b, t, d)), rate, self.training)
        return x + functional.dropout(self.down(functional.gelu(self.up(self.norm2(x)))), rate, self.training)


GAPS = 16
"""Buckets of the time between an event and the one before it: bucket i holds gaps under 2^i minutes."""


class UserTower(nn.Module):
    """A history of item vectors to a unit vector after each event: a causal transformer (Kang & McAuley 2018)."""

    def __init__(self, config: TowerConfig) -> None:
        """Parameters for histories up to config.history."""
        super().__init__()
        d = config.dimension
        self.config = config
        self.position = nn.Embedding(config.history, d)
        self.gap = nn.Embedding(GAPS + 1, d)
        for table in (self.position, self.gap):
            nn.init.normal_(table.weight, std=0.1 * d**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)
        nn.init.constant_(self.norm.weight, 0.1)  # the mean of the history speaks first, attention refines it
        self.profile = nn.Linear(d, d, bias=False)
        nn.init.eye_(self.profile.weight)

    def forward(self, vectors: Tensor, gaps: Tensor) -> Tensor:
        """vectors (b, t, d) unit rows, gaps (b, t) int64 buckets -> (b, t, d) unit rows, one after each event."""
        t, d = vectors.shape[1:]
        x = vectors * d**0.5 + (self.position.weight[:t] + self.gap(gaps)) * d**0.5
        x = functional.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        so_far = torch.arange(1, t + 1)[:, None]
        profile = self.profile(vectors.cumsum(1) / so_far) * d**0.5
        return functional.normalize(self.norm(x) + profile, dim=-1)


class TwoTowers(nn.Module):
    """Both towers and the learned temperature: score(user, item) = <user, item> * exp(log_scale)."""

    def __init__(self, catalog: Catalog, statistics: ItemStatistics, config: TowerConfig) -> None:
        """Fresh parameters from torch's global generator: seed it first."""
        super().__init__()
        self.config = config
        self.items = ItemTower(catalog, statistics, config)
        self.users = UserTower(config)
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))

    @torch.inference_mode()
    def item_vectors(self) -> Floats:
        """(n, d) float32 unit rows."""
        self.eval()
        vectors: Floats = self.items().numpy()
        return vectors

    @torch.inference_mode()
    def user_vectors(self, states: UserStates, item_vectors: Floats) -> Floats:
        """(b, d) float32: unit rows, or a zero row for a user without positive events."""
        self.eval()
        liked, times = states.liked(), states.liked_times()
        lengths = np.minimum(liked.lengths, self.config.history)
        out = np.zeros((len(states), self.config.dimension), dtype=np.float32)
        table = torch.from_numpy(item_vectors)
        order = np.flatnonzero(lengths > 0)
        order = order[np.argsort(lengths[order], kind="stable")]  # like lengths together: less padding
        for start in range(0, len(order), 256):
            part = order[start : start + 256]
            size = lengths[part]
            rows = left_aligned(liked[part].tail(int(size.max())), size)
            gaps = gap_buckets(left_aligned(times[part].tail(int(size.max())), size))
            vectors = table[torch.from_numpy(np.maximum(rows, 0))]
            hidden = self.users(vectors, torch.from_numpy(gaps))
            out[part] = hidden[torch.arange(len(part)), torch.from_numpy(size - 1)].numpy()
        return out


def left_aligned(tail: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Shift right-aligned rows (b, t) to the left: padding comes last, where causal attention never sees it."""
    t = tail.shape[1]
    at = np.arange(t)[None, :] + (t - lengths)[:, None]
    return np.where(at < t, np.take_along_axis(tail, np.minimum(at, t - 1), axis=1), -1)


def gap_buckets(times: np.ndarray) -> np.ndarray:
    """Buckets (b, t) int64 of the time since the event before, from left-aligned times (b, t) µs; 0 for the first."""
    minutes = np.diff(times, axis=1, prepend=times[:, :1]).clip(min=0) / 60e6
    buckets = np.ceil(np.log2(1 + minutes)).astype(np.int64)
    return buckets.clip(0, GAPS)
