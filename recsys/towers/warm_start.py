"""Warm start: weights of fitted towers for a catalogue with new items."""

import numpy as np
import polars as pl
import torch

from features.catalog import Catalog
from features.errors import ConfigError
from features.ids import IdMap
from features.interactions import Interactions
from features.schema import AVAILABLE, ITEM
from recsys.config import TowerConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers.model import TwoTowers

PASSES = 1
"""Epochs over the new events."""

FIXED_SETTINGS = ("dimension", "nested", "layers", "heads", "history", "id", "content", "times", "calendar")
"""Settings of `TowerConfig` that fitted weights depend on: a warm start cannot change them."""


def extend_catalog(old: Catalog, new: Catalog) -> Catalog:
    """The new catalogue with each item of the old one in its old row; new items come after.

    An item that the new catalogue lacks keeps its row and becomes unavailable. Content vectors are zeros until they
    are encoded again.
    """
    ids = IdMap((*old.ids.ids, *(name for name in new.ids.ids if name not in old.ids)))
    removed = old.frame.filter(~pl.col(ITEM).is_in(new.ids.ids)).with_columns(pl.lit(False).alias(AVAILABLE))
    shared = [name for name in new.frame.columns if name in removed.columns]
    frame = pl.concat([new.frame, removed.select(shared)], how="diagonal_relaxed")
    return Catalog.of(frame, ids, np.zeros((len(ids), 1), np.float32), np.zeros(len(ids), np.bool_))


def transfer_weights(
    towers: TwoTowers, old: Catalog, catalog: Catalog, events: Interactions, config: TowerConfig
) -> TwoTowers:
    """Towers for `catalog`, whose first rows are those of `old`, with the weights of fitted towers of `old`.

    New items get zero id embeddings, as cold items have. Category weights are matched by category name; new
    categories keep their random initial weights. Raises ConfigError when `config` or the content vectors have
    another shape than the fitted towers.
    """
    for field in FIXED_SETTINGS:
        configured, fitted = getattr(config, field), getattr(towers.config, field)
        if configured != fitted:
            raise ConfigError(
                f"towers.{field} is {configured} and that of the bundle {fitted}: set it back, or train from scratch"
            )
    if (dimensions := catalog.content.shape[1]) != (fitted := towers.items.content.shape[1]):
        raise ConfigError(
            f"contents have {dimensions} dimensions and those of the bundle {fitted}: "
            "use the encoder of the bundle, or train from scratch"
        )
    weights = towers.state_dict()
    model = TwoTowers(catalog, ItemStatistics.of(events), config, len(weights["users.event.weight"]))
    ids = torch.zeros_like(model.items.id.weight)
    ids[: len(old)] = weights["items.id.weight"]
    old_rows = {name: row for row, name in enumerate(old.category_names, 1)}  # row 0 is padding
    categories = model.items.category.weight.detach().clone()
    for row, name in enumerate(catalog.category_names, 1):
        if name in old_rows:
            categories[row] = weights["items.category.weight"][old_rows[name]]
    model.load_state_dict(weights | {"items.id.weight": ids, "items.category.weight": categories})
    return model
