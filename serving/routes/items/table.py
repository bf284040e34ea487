"""The items that exist at one moment, in the order of their ids: what the list, the export and the import read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from features.log.records import ItemPut
from features.schema import ITEM
from serving.routes.items.fields import as_sent, fields_of_rows
from serving.routes.responses import snapshot_of
from serving.servable import ServableBundle
from serving.state.service import ServiceState


@dataclass(frozen=True)
class ItemTable:
    """The items of a bundle with the changes since its training.

    changes: item -> its last put, None for a deleted one; log: folder of the event log.
    """

    bundle: ServableBundle
    changes: Mapping[str, ItemPut | None]
    log: Path

    @classmethod
    def of(cls, service: ServiceState) -> "ItemTable":
        """The items of a service now. Raises ApiError 503 when no bundle is served."""
        snapshot, changes = service.catalog_updater.states()
        return cls((snapshot or snapshot_of(service)).bundle, changes, service.settings.log)

    def ids(self, after: str = "", first: int | None = None) -> pl.Series:
        """The ids after an id, ascending by code points. first: at most so many."""
        trained = self.bundle.catalog.frame.get_column(ITEM)
        put = pl.Series(ITEM, [name for name, put in self.changes.items() if put is not None], dtype=pl.String)
        changed = pl.Series([*self.changes], dtype=pl.String)
        ids = pl.concat([trained.filter(~trained.is_in(changed.implode())), put])
        ids = ids.filter(ids > after)
        return (ids if first is None else ids.bottom_k(first)).sort()

    def fields(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The fields of items as the log has them; {} for an item that does not exist."""
        puts = [self.changes.get(item) for item in ids]
        trained = [item for item in ids if item not in self.changes and item in self.bundle.catalog.ids]
        rows = self.bundle.catalog.ids.rows(trained).tolist()
        of_bundle = dict(zip(trained, fields_of_rows(self.bundle, rows, self.log), strict=True))
        return [
            of_bundle.get(item, {})
            if put is None
            else {name: value for name, value in put.fields.items() if value is not None}
            for item, put in zip(ids, puts, strict=True)
        ]

    def entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Items with their fields, each as a line of an import; fields without a value are left out."""
        return [{"item_id": item, **as_sent(fields)} for item, fields in zip(ids, self.fields(ids), strict=True)]
