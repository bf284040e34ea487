"""The two towers: models that map items and users to unit vectors of one space."""

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
"""Initial length of id, content and category vectors. AdamW takes steps of one size, so short rows rotate fast."""


class ItemTower(nn.Module):
    """Item vectors: id + popularity + projected content + numbers + mean of categories, normalised.

    A cold item has neither the id nor the popularity term, because these are learned from events. Id dropout trains
    that case. `recsys.towers.cold_start` replaces the vectors of cold items by better ones after training.
    """

    def __init__(self, catalog: Catalog, statistics: ItemStatistics, config: TowerConfig) -> None:
        """New parameters for the n items of the catalogue. statistics: counts of their positive events."""
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
        for table in (self.id, self.project, self.category):  # inputs are unit rows: outputs have INITIAL_LENGTH
            nn.init.normal_(table.weight, std=INITIAL_LENGTH * d**-0.5)
        for table in (self.popularity, self.number):
            nn.init.normal_(table.weight, std=0.3 * INITIAL_LENGTH * d**-0.5)

    def forward(self) -> Tensor:
        """Vectors of all items: (n, d) float32 unit rows."""
        mask = self.known  # (n,) 1 for items with positive events, 0 for cold ones
        if self.training and self.config.id_dropout:
            mask = mask * (torch.rand_like(mask) >= self.config.id_dropout)
        behaviour = self.popularity(self.counts)  # (n, d)
        x = (behaviour + self.id.weight if self.config.id else behaviour) * mask[:, None]
        if self.config.content:
            x = x + self.project(self.content) + self.number(self.numbers) + self.category(self.categories + 1)
        return functional.normalize(x, dim=-1)


def numeric_features(catalog: Catalog) -> Floats:
    """(n, 4) float32: log price, whether it is known, publication time, whether it is known.

    Price and time are standardised over the items where they are known, and 0 elsewhere.
    """
    published = np.where(catalog.dated, catalog.published.astype(np.float64), np.nan)
    out = np.zeros((len(catalog), 4), dtype=np.float32)
    for number, values in enumerate((np.log1p(catalog.price.astype(np.float64)), published)):
        known = np.isfinite(values)
        if known.any():
            out[known, 2 * number] = (values[known] - values[known].mean()) / max(values[known].std(), 1e-6)
            out[known, 2 * number + 1] = 1.0
    return out


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

    def newest(self, x: Tensor, last: Tensor) -> Tensor:
        """The output at one position of each history, last (b,): (b, 1, d). Equals `forward` there, without dropout.

        All positions have a key and a value; only one has a query and the layers behind the attention.
        """
        b, t, d = x.shape
        own, normed = at_positions(x, last), self.norm1(x)  # (b, 1, d), (b, t, d)
        weight, bias = self.qkv.weight, self.qkv.bias
        k, v = (  # (b, heads, t, d / heads) each
            functional.linear(normed, weight[d:], bias[d:]).view(b, t, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        q = functional.linear(at_positions(normed, last), weight[:d], bias[:d]).view(b, 1, self.heads, -1)
        is_past = torch.arange(t, device=x.device) <= last[:, None]  # (b, t)
        y = functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=is_past[:, None, None, :])
        return self._rest(own, y.transpose(1, 2).reshape(b, 1, d))

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

    def newest(self, vectors: Tensor, history: History[Tensor], last: Tensor) -> Tensor:
        """The user vector after one event of each history, last (b,): (b, d). Equals `forward` without dropout.

        It takes half of the time: in the last block, only one position has a query and the layers behind it.
        """
        x = self._inputs(vectors, history)
        for block in self.blocks[:-1]:
            x = block(x)
        top: Block = self.blocks[-1]  # type: ignore[assignment]
        recent = self._recent(vectors, history.positive, last[:, None, None])
        return self._outputs(top.newest(x, last), recent, history.hours.gather(1, last[:, None]))[:, 0]

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


def at_positions(x: Tensor, position: Tensor) -> Tensor:
    """The rows of x (b, t, d) at position (b,): (b, 1, d)."""
    return x[torch.arange(len(x), device=x.device), position][:, None]


MAX_SAMPLED_USERS = 2000
"""Maximum number of users whose vectors are sampled to fit the rotation and to lift cold items."""


class TwoTowers(nn.Module):
    """Both towers and the learned temperature: score(user, item) = <user, item> * exp(log_scale).

    Both outputs are multiplied by the same `rotation` (d, d), which leaves every product unchanged: see `rotate`.
    """

    def __init__(self, catalog: Catalog, statistics: ItemStatistics, config: TowerConfig, n_types: int = 1) -> None:
        """New parameters from torch's global generator: seed it first. n_types: see `Interactions`."""
        super().__init__()
        self.config = config
        self.items = ItemTower(catalog, statistics, config)
        self.users = UserTower(config, n_types)
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
        self.rotation: Tensor
        self.register_buffer("rotation", torch.eye(config.dimension))

    @torch.inference_mode()
    def item_vectors(self) -> Floats:
        """Rotated vectors of all items: (n, d) float32 unit rows. Sets evaluation mode."""
        self.eval()
        vectors: Floats = (self.items() @ self.rotation).cpu().numpy()
        return vectors

    def rotate(self, events: Interactions, *, seed: int) -> None:
        """Fits the rotation that orders the coordinates by the second moment of the user vectors, largest first.

        The rotation is onto the principal components of sampled users, without centring, because scores are products
        without a mean. Vectors can then be cut to any m first coordinates (as in Matryoshka representations): no
        other m coordinates keep more of the user vectors.
        """
        _, users = self.newest_users(self.item_vectors(), events, seed=seed)  # (b, d)
        _, directions = np.linalg.eigh(users.T.astype(np.float64) @ users)  # (d, d) columns, ascending eigenvalues
        self.rotation = self.rotation @ torch.from_numpy(directions[:, ::-1].astype(np.float32).copy()).to(
            self.rotation.device
        )

    def newest_users(self, item_vectors: Floats, events: Interactions, *, seed: int) -> tuple[UserStates, Floats]:
        """(states, vectors (b, d)) after all events, of b <= MAX_SAMPLED_USERS users drawn by the seed.

        Only users with a positive event are drawn. If config.calendar, each state is moved to a random hour of the
        following week, so that the vectors cover all hours.
        """
        rng = np.random.default_rng(seed)
        users = np.sort(rng.permutation(np.unique(events.positives().users))[:MAX_SAMPLED_USERS])
        delay = rng.integers(WEEK, size=len(users)) * HOUR if self.config.calendar else np.zeros(len(users), np.int64)
        states = events.states(users, events.latest + 1 + delay)
        return states, self.user_vectors(states, item_vectors)

    @torch.inference_mode()
    def user_vectors(self, states: UserStates, item_vectors: Floats) -> Floats:
        """Rotated user vectors (b, d) float32: unit rows, or a zero row for a user without positive events."""
        if self.training:
            self.eval()
        history = self.config.history
        lengths = np.minimum(states.items.lengths, history)
        out = np.zeros((len(states), self.config.dimension), dtype=np.float32)
        device = self.log_scale.device
        table = torch.from_numpy(item_vectors).to(device)
        order = np.flatnonzero(states.positives().lengths > 0)
        order = order[np.argsort(lengths[order], kind="stable")]  # similar lengths in one batch: less padding
        for start in range(0, len(order), 256):
            part = order[start : start + 256]
            events = History.newest(states[part], int(lengths[part].max())).on(device)  # (256, t)
            last = torch.from_numpy(lengths[part] - 1).to(device)
            users = self.users.newest(table[events.items] @ self.rotation.T, events, last)  # (256, d), not rotated
            out[part] = (users @ self.rotation).cpu().numpy()
        return out
