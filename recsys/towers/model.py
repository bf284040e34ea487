"""The two towers: items and users as unit vectors of one space."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.arrays import Floats
from features.catalog import Catalog
from features.interactions import Interactions, UserStates
from recsys.config import TowerConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers.dropout import dropout
from recsys.towers.history import HOUR, WAIT_BUCKETS, WEEK, History

INITIAL_LENGTH = 0.2
"""Length of what ids, contents and categories begin as: short rows turn fast under AdamW's steps of one size."""


class ItemTower(nn.Module):
    """Items to unit vectors: id + popularity + projected content + numbers + mean of categories, normalised.

    Id and popularity come from events. An item without any has neither; id dropout teaches that case, and
    `recsys.towers.cold_start` places such items better still when the towers are fitted.
    """

    def __init__(self, catalog: Catalog, statistics: ItemStatistics, config: TowerConfig) -> None:
        """Parameters for the n items of the catalogue, of which the statistics say what events told."""
        super().__init__()
        d = config.dimension
        self.config = config
        self.known: Tensor
        self.counts: Tensor
        self.content: Tensor
        self.numbers: Tensor
        self.categories: Tensor
        self.register_buffer("known", torch.from_numpy((statistics.total > 0).astype(np.float32)), persistent=False)
        self.register_buffer("counts", torch.from_numpy(statistics.logs()), persistent=False)
        self.register_buffer("content", torch.from_numpy(catalog.content), persistent=False)
        self.register_buffer("numbers", torch.from_numpy(numeric_features(catalog)), persistent=False)
        self.register_buffer("categories", torch.from_numpy(catalog.categories.astype(np.int64)), persistent=False)
        self.id = nn.Embedding(len(catalog), d)
        self.popularity = nn.Linear(self.counts.shape[1], d, bias=False)
        self.project = nn.Linear(catalog.content.shape[1], d, bias=False)
        self.number = nn.Linear(self.numbers.shape[1], d, bias=False)
        self.category = nn.EmbeddingBag(len(catalog.category_names) + 1, d, mode="mean", padding_idx=0)
        for table in (self.id, self.project, self.category):  # of unit rows, so that each begins as long as START
            nn.init.normal_(table.weight, std=INITIAL_LENGTH * d**-0.5)
        for table in (self.popularity, self.number):
            nn.init.normal_(table.weight, std=0.3 * INITIAL_LENGTH * d**-0.5)
        nn.init.zeros_(self.category.weight[0])

    def forward(self) -> Tensor:
        """All items: (n, d) float32 unit rows."""
        mask = self.known
        if self.training and self.config.id_dropout:
            mask = mask * (torch.rand_like(mask) >= self.config.id_dropout)
        told = self.popularity(self.counts)  # (n, d)
        x = (told + self.id.weight if self.config.id else told) * mask[:, None]
        if self.config.content:
            x = x + self.project(self.content) + self.number(self.numbers) + self.category(self.categories + 1)
        return functional.normalize(x, dim=-1)


def numeric_features(catalog: Catalog) -> Floats:
    """(n, 4) float32: log price and time of publication, each standardised and 0 where unknown, and whether known."""
    published = np.where(catalog.dated, catalog.published.astype(np.float64), np.nan)
    out = np.zeros((len(catalog), 4), dtype=np.float32)
    for at, values in enumerate((np.log1p(catalog.price.astype(np.float64)), published)):
        known = np.isfinite(values)
        if known.any():
            out[known, 2 * at] = (values[known] - values[known].mean()) / max(values[known].std(), 1e-6)
            out[known, 2 * at + 1] = 1.0
    return out


class Block(nn.Module):
    """A causal LiGR layer: pre-norm attention and SwiGLU, each let through by a gate of its input.

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
        """(b, t, d) -> (b, t, d); position i reads positions 0..i."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # (b, heads, t, d / heads)
        x = x + self._drop(self.out(y.transpose(1, 2).reshape(b, t, d))) * torch.sigmoid(self.gate1(x))
        value, swish = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self._drop(self.down(functional.silu(swish) * value)) * torch.sigmoid(self.gate2(x))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class UserTower(nn.Module):
    """A history of item vectors to a unit vector after each event: a causal transformer (Kang & McAuley 2018).

    What it makes is added to a mean of the positive items in which the newer weigh more, at a learned rate, and to
    what everybody wants at that hour and on that weekday, where the calendar is read.
    """

    def __init__(self, config: TowerConfig, n_types: int = 1) -> None:
        """Parameters for histories up to config.history, of events of n_types: 0, not told apart, and the others."""
        super().__init__()
        d = config.dimension
        self.config = config
        self.position = nn.Embedding(config.history, d)
        self.wait = nn.Embedding(WAIT_BUCKETS + 1, d)
        self.kind = nn.Embedding(2, d)
        for table in (self.position, self.wait, self.kind):
            nn.init.normal_(table.weight, std=0.1 * d**-0.5)
        # zero until it is learned, so that nothing is made of a type or an hour that has not been seen
        self.event = nn.Embedding(n_types, d, padding_idx=0, _weight=torch.zeros(n_types, d))
        self.hour, self.day = (nn.Embedding(n, d, _weight=torch.zeros(n, d)) for n in (24, 7))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)
        nn.init.constant_(self.norm.weight, 0.1)  # the mean of the history speaks first, attention refines it
        self.profile = nn.Linear(d, d, bias=False)
        nn.init.eye_(self.profile.weight)
        self.forget = nn.Parameter(torch.tensor(0.0))

    def forward(self, vectors: Tensor, history: History[Tensor]) -> Tensor:
        """Vectors (b, t, d), unit rows of the items of a history (b, t) -> (b, t, d) unit rows.

        Row i says what follows event i, when it follows after waits[i] at hours[i].
        """
        t, d = vectors.shape[1:]
        x = vectors + self.position.weight[:t] + self.kind(history.positive.long()) + self.event(history.types)
        if self.config.times:
            x = x + self.wait(history.waits)
        x = dropout(x * d**0.5, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        profile = dropout(self._recent(vectors, history.positive) * d**0.5, self.config.dropout, self.training)
        out = self.norm(x) + self.profile(profile)
        if self.config.calendar:
            out = out + self.hour(history.hours % 24) + self.day(history.hours // 24)
        return functional.normalize(out, dim=-1)

    def _recent(self, vectors: Tensor, positive: Tensor) -> Tensor:
        """Means of the positive items so far (b, t, d), each weighing sigmoid(forget) as much as the next newer."""
        t = vectors.shape[1]
        at = torch.arange(t, device=vectors.device)
        age = at[:, None] - at  # (t, t)
        weights = torch.exp(functional.logsigmoid(self.forget) * age.clamp(min=0)).tril()
        weights = weights * positive[:, None, :]  # (b, t, t)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6) @ vectors


MAX_SAMPLED_USERS = 2000
"""At most this many users are looked at where it matters what users have in common."""


class TwoTowers(nn.Module):
    """Both towers and the learned temperature: score(user, item) = <user, item> * exp(log_scale).

    What both make is turned by `rotation` (d, d), the same for both, so that no product changes; see `rotate`.
    """

    def __init__(self, catalog: Catalog, statistics: ItemStatistics, config: TowerConfig, n_types: int = 1) -> None:
        """Fresh parameters from torch's global generator: seed it first. n_types: of events, see `Interactions`."""
        super().__init__()
        self.config = config
        self.items = ItemTower(catalog, statistics, config)
        self.users = UserTower(config, n_types)
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
        self.rotation: Tensor
        self.register_buffer("rotation", torch.eye(config.dimension))

    @torch.inference_mode()
    def item_vectors(self) -> Floats:
        """(n, d) float32 unit rows."""
        self.eval()
        vectors: Floats = (self.items() @ self.rotation).cpu().numpy()
        return vectors

    def rotate(self, events: Interactions, *, seed: int) -> None:
        """Turn the space so that users vary most in its first coordinates, and ever less in the later ones.

        Vectors may then be cut anywhere (Matryoshka): of all ways to keep m coordinates this one loses least of the
        users (principal components, without a mean: products have none).
        """
        _, users = self.newest_users(self.item_vectors(), events, seed=seed)
        _, directions = np.linalg.eigh(users.T.astype(np.float64) @ users)  # ascending
        self.rotation = self.rotation @ torch.from_numpy(directions[:, ::-1].astype(np.float32).copy()).to(
            self.rotation.device
        )

    def newest_users(self, item_vectors: Floats, events: Interactions, *, seed: int) -> tuple[UserStates, Floats]:
        """States after all events of USERS with a positive one, drawn by the seed, and their vectors (b, d).

        Where the calendar is read each is asked at some hour of the week that follows, so that all hours have a say.
        """
        rng = np.random.default_rng(seed)
        users = np.sort(rng.permutation(np.unique(events.positives().users))[:MAX_SAMPLED_USERS])
        later = rng.integers(WEEK, size=len(users)) * HOUR if self.config.calendar else np.zeros(len(users), np.int64)
        states = events.states(users, events.latest + 1 + later)
        return states, self.user_vectors(states, item_vectors)

    @torch.inference_mode()
    def user_vectors(self, states: UserStates, item_vectors: Floats) -> Floats:
        """(b, d) float32: unit rows, or a zero row for a user without positive events."""
        self.eval()
        history = self.config.history
        lengths = np.minimum(states.items.lengths, history)
        out = np.zeros((len(states), self.config.dimension), dtype=np.float32)
        device = self.log_scale.device
        table = torch.from_numpy(item_vectors).to(device)
        order = np.flatnonzero(states.positives().lengths > 0)
        order = order[np.argsort(lengths[order], kind="stable")]  # like lengths together: less padding
        for start in range(0, len(order), 256):
            part = order[start : start + 256]
            read = History.newest(states[part], int(lengths[part].max())).on(device)
            hidden = self.users(table[read.items] @ self.rotation.T, read)
            last = hidden[torch.arange(len(part)), torch.from_numpy(lengths[part] - 1)]
            out[part] = (last @ self.rotation).cpu().numpy()
        return out
