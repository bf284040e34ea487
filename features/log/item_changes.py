"""What the service's event log says of items: the newest change of each, as a table, and the media they came with.

<log>/media/<SHA-256 of the bytes>    a picture, sound or video that was sent; on disk before the record names it, and
                                      swept when no item has had it for a day
"""

import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import LogError
from features.files import put_file, sync
from features.interactions import DAY
from features.log.event_log import item_changes
from features.log.records import ItemGone, ItemPut
from features.schema import AUDIO, AVAILABLE, CATEGORIES, IMAGE, ITEM, PRICE, VIDEO

MEDIA_FOLDER = "media"
_WRITTEN = re.compile(r"(\.writing-\d+-\d+-)?[0-9a-f]{64}")
"""Names of files in it that are ours: whole, or left of a write that a crash ended."""

RETENTION = DAY
"""For so long (µs) media stay that no item has any more: a request has kept them and is yet to log its record, or a
training has read the log and is yet to read them; one that comes to them later does without, as the next will."""

_TYPES: dict[str, pl.DataType] = {
    PRICE: pl.Float64(),
    AVAILABLE: pl.Boolean(),
    CATEGORIES: pl.List(pl.String()),
}
"""Of columns whose values are no text."""


@dataclass(frozen=True)
class ItemChanges:
    """puts: the newest one of each item that was ever put, the oldest first, also of those deleted since, but without
    the media that we keep; gone: items deleted last."""

    puts: dict[str, ItemPut]
    gone: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> "ItemChanges":
        """From the log in a folder, which may not be there. Raises LogError."""
        return cls.of_changes(item_changes(folder))

    @classmethod
    def of_changes(cls, changes: Iterable[ItemPut | ItemGone]) -> "ItemChanges":
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
                if put := puts.get(change.item_id):
                    media = _media(put)
                    fields = {name: value for name, value in put.fields.items() if name not in media}
                    puts[change.item_id] = replace(put, fields=fields)
        return cls(puts, frozenset(gone))


def keep_media(log: Path, data: bytes) -> str:
    """Write bytes below the log's folder, named by what they are, and return that name relative to the log.

    They are on disk when this returns, and no sweep takes them for a day. Raises LogError.
    """
    folder, name = log / MEDIA_FOLDER, hashlib.sha256(data).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _refreshed(folder / name):  # whole, since it was renamed
            put_file(folder / name, lambda part: part.write_bytes(data))
        sync(folder)  # another request may just have renamed it
        sync(log)
    except OSError as error:
        raise LogError(f"{folder}: media cannot be written: {error}; nothing was accepted") from error
    return f"{MEDIA_FOLDER}/{name}"


def media_in_use(changes: Sequence[ItemPut | ItemGone], now: int) -> frozenset[str]:
    """Names, as `keep_media` gives them, of what any item had at some time in the day before now (µs).

    changes: all of the log, the oldest first.
    """
    before = ItemChanges.of_changes(change for change in changes if change.timestamp < now - RETENTION)
    since = (put for put in changes if isinstance(put, ItemPut) and put.timestamp >= now - RETENTION)
    return frozenset(name for put in (*before.puts.values(), *since) for name in _media(put).values())


def sweep_media(log: Path, in_use: Collection[str], now: int) -> int:
    """Delete the media that are not in use, and were last kept a day before now (µs) or earlier; how many files.

    in_use: by the log as it was read at `now`, or later. Safe beside other services and trainings of the folder,
    however long ago `now` was: whoever puts what is there already makes it young, under a lock of the file, before
    the record that names it is logged. Raises LogError where some could not be deleted; the others were.
    """
    folder, before, done = log / MEDIA_FOLDER, (now - RETENTION) / 1e6, 0
    faults: list[OSError] = []
    try:
        ours = [path for path in folder.iterdir() if _WRITTEN.fullmatch(path.name)] if folder.is_dir() else []
    except OSError as error:
        raise LogError(f"{folder}: media cannot be listed: {error}; those of no item stay") from error
    for path in ours:
        if f"{MEDIA_FOLDER}/{path.name}" in in_use:
            continue
        try:
            done += _deleted(path, before)
        except FileNotFoundError:  # another service was first
            continue
        except OSError as error:
            faults.append(error)
    if faults:
        why = f"{len(faults)} media of no item cannot be deleted: {faults[0]}"
        raise LogError(f"{folder}: {why}; let the service write there, the next start tries again")
    return done


def item_put_table(puts: Sequence[ItemPut], log: Path, extra: Sequence[str]) -> pl.DataFrame:
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


def _media(put: ItemPut) -> dict[str, str]:
    """Column -> name of each of its media that `keep_media` has written."""
    named = {name: put.fields.get(name) or "" for name in (IMAGE, AUDIO, VIDEO)}
    return {name: value for name, value in named.items() if value.startswith(f"{MEDIA_FOLDER}/")}


def _refreshed(path: Path) -> bool:
    """Whether media are there, which are young from now on. Raises OSError."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(file.fileno())
            return os.path.samestat(os.fstat(file.fileno()), path.stat())  # not deleted just before
    except (FileNotFoundError, PermissionError):  # of another user: written anew it is our own
        return False


def _deleted(path: Path, before: float) -> bool:
    """Whether a file was last kept before that time (s), and is deleted therefore. Raises OSError."""
    seen = path.lstat()
    if not stat.S_ISREG(seen.st_mode) or seen.st_mtime >= before:
        return False
    with path.open("r+b") as file:  # over a network only what can be written can be locked
        fcntl.flock(file, fcntl.LOCK_EX)
        found = path.stat()
        old = found.st_mtime < before and os.path.samestat(os.fstat(file.fileno()), found)
        if old:
            path.unlink()
        return old
