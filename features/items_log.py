"""What the service's event log says of items: the newest change of each, as a table, and the media they came with.

<log>/media/<SHA-256 of the bytes>    a picture, sound or video that was sent; on disk before the record names it
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import LogError
from features.event_log import item_changes
from features.files import put_file, sync
from features.records import ItemGone, ItemPut
from features.schema import AUDIO, AVAILABLE, CATEGORIES, IMAGE, ITEM, PRICE, VIDEO

MEDIA_FOLDER = "media"

_TYPES: dict[str, pl.DataType] = {
    PRICE: pl.Float64(),
    AVAILABLE: pl.Boolean(),
    CATEGORIES: pl.List(pl.String()),
}
"""Of columns whose values are no text."""


@dataclass(frozen=True)
class ItemChanges:
    """puts: the newest one of each item that was ever put, also of those deleted since, the oldest first; gone: items
    deleted last."""

    puts: dict[str, ItemPut]
    gone: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> "ItemChanges":
        """From the log in a folder, which may not be there. Raises LogError."""
        return cls.among(item_changes(folder))

    @classmethod
    def among(cls, changes: Iterable[ItemPut | ItemGone]) -> "ItemChanges":
        """From changes, the oldest first."""
        puts: dict[str, ItemPut] = {}
        gone: set[str] = set()
        for change in changes:
            if isinstance(change, ItemPut):
                puts.pop(change.item_id, None)
                puts[change.item_id] = change
                gone.discard(change.item_id)
            else:
                gone.add(change.item_id)
        return cls(puts, frozenset(gone))


def keep_media(log: Path, data: bytes) -> str:
    """Write bytes below the log's folder, named by what they are, and return that name relative to the log.

    They are on disk when this returns. Raises LogError.
    """
    folder, name = log / MEDIA_FOLDER, hashlib.sha256(data).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():  # whole, since it was renamed
            put_file(folder / name, lambda part: part.write_bytes(data))
        sync(folder)  # another request may just have renamed it
        sync(log)
    except OSError as error:
        raise LogError(f"{folder}: media cannot be written: {error}; nothing was accepted") from error
    return f"{MEDIA_FOLDER}/{name}"


def put_table(puts: Sequence[ItemPut], log: Path, extra: Sequence[str]) -> pl.DataFrame:
    """The items as they were put, media as absolute paths or URLs: a table that is still to be checked.

    extra: columns besides those of the contract.
    """
    root = log.resolve()
    columns: dict[str, list[Any]] = {ITEM: [put.item_id for put in puts]}
    for name in dict.fromkeys((*(name for put in puts for name in put.fields), *_TYPES, *extra)):
        values = [put.fields.get(name) for put in puts]
        if name in (IMAGE, AUDIO, VIDEO):
            values = [str(root / v) if v and v.startswith(f"{MEDIA_FOLDER}/") else v for v in values]
        columns[name] = values
    return pl.DataFrame(
        [
            pl.Series(name, values, dtype=None if name in extra else _TYPES.get(name, pl.String()), strict=False)
            for name, values in columns.items()
        ]
    )
