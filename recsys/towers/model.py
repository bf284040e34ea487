"""The two towers: models that map items and users to unit vectors of one space."""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.arrays import Floats, Ints
from features.catalog import Catalog
from features.interactions import Interactions, UserStates
from recsys.config import TowerConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers.history import HOUR, WEEK, History
from recsys.towers.newest import Encode, NewestUserVectors, encode
from recsys.towers.user_tower import UserTower

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


GPU_EVENTS_AT_ONCE = 25_600
"""Events of the histories whose user vectors a GPU computes together."""

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

    def user_vectors(self, states: UserStates, item_vectors: Floats) -> Floats:
        """Rotated user vectors (b, d) float32: unit rows, or a zero row for a user without positive events."""
        return self.user_encoder()(states, item_vectors)

    def user_encoder(self) -> Encode:
        """`user_vectors` for many calls, of parameters that do not change meanwhile. Sets evaluation mode."""
        self.eval()
        if self.rotation.device.type == "cpu":
            return NewestUserVectors(self.users, self.rotation)
        return partial(encode, longest=self.config.history, events_at_once=GPU_EVENTS_AT_ONCE, newest=self._newest)

    @torch.inference_mode()
    def _newest(self, vectors: Floats, history: History[np.ndarray], last: Ints) -> Floats:
        """See `recsys.towers.newest.Newest`; on a GPU, where the outputs at all positions cost little more."""
        device = self.rotation.device
        given = torch.from_numpy(vectors).to(device) @ self.rotation.T
        users = self.users(given, history.on(device))[torch.arange(len(last)), torch.from_numpy(last)]  # (b, d)
        rotated: Floats = (users @ self.rotation).cpu().numpy()
        return rotated
