"""A warm start: fitted towers go on from where they are, over a catalogue that has grown since."""

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
"""Over the new events."""

FIXED_SETTINGS = ("dimension", "nested", "layers", "heads", "history", "id", "content", "times", "calendar")
"""What fitted weights do not allow to change."""


def extend_catalog(old: Catalog, new: Catalog) -> Catalog:
    """The items of a new catalogue in the rows that the old one gave them; those that it lacks come after.

    What the new one no longer has keeps its row and is not available. Contents are zeros until they are encoded anew.
    """
    ids = IdMap((*old.ids.ids, *(name for name in new.ids.ids if name not in old.ids)))
    gone = old.frame.filter(~pl.col(ITEM).is_in(new.ids.ids)).with_columns(pl.lit(False).alias(AVAILABLE))
    shared = [name for name in new.frame.columns if name in gone.columns]
    frame = pl.concat([new.frame, gone.select(shared)], how="diagonal_relaxed")
    return Catalog.of(frame, ids, np.zeros((len(ids), 1), np.float32), np.zeros(len(ids), np.bool_))


def transfer_weights(
    towers: TwoTowers, old: Catalog, catalog: Catalog, events: Interactions, config: TowerConfig
) -> TwoTowers:
    """Towers of a catalogue that begins with the rows of the old one, with what the fitted ones have learned.

    New items begin where an item without events stands, categories by their names. Raises ConfigError where the
    configuration is of towers of another shape.
    """
    for field in FIXED_SETTINGS:
        mine, its = getattr(config, field), getattr(towers.config, field)
        if mine != its:
            raise ConfigError(f"towers.{field} is {mine} and that of the bundle {its}: set it back, or train anew")
    if (mine := catalog.content.shape[1]) != (its := towers.items.content.shape[1]):
        raise ConfigError(f"contents have {mine} dimensions and those of the bundle {its}: train anew")
    weights = towers.state_dict()
    model = TwoTowers(catalog, ItemStatistics.of(events), config, len(weights["users.event.weight"]))
    ids = torch.zeros_like(model.items.id.weight)
    ids[: len(old)] = weights["items.id.weight"]
    known = {name: at + 1 for at, name in enumerate(old.category_names)}
    categories = model.items.category.weight.detach().clone()
    for at, name in enumerate(catalog.category_names, 1):
        if name in known:
            categories[at] = weights["items.category.weight"][known[name]]
    model.load_state_dict(weights | {"items.id.weight": ids, "items.category.weight": categories})
    return model
