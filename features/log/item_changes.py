"""Item changes of the event log: the newest change of each item, the items as a table, and their media files.

<log>/media/<SHA-256 of the bytes>    an uploaded picture, sound or video: on disk before a record names it, deleted
                                      when no item has used it for a day
"""

import errno
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

from features.errors import LogError, describe_os_error
from features.files import put_file, sync
from features.instants import DAY
from features.log.item_feed import item_changes
from features.log.records import ItemDeleted, ItemPut
from features.schema import AUDIO, AVAILABLE, CATEGORIES, IMAGE, ITEM, PRICE, VIDEO

MEDIA_FOLDER = "media"
_MEDIA_NAME = re.compile(r"(\.writing-\d+-\d+-)?[0-9a-f]{64}")
"""Names of the files that `store_media` writes into it: media, and temporary files that a crash left."""

RETENTION = DAY
"""How long (µs) unused media are kept.

A request may have written media and not yet logged the record that names them; a training may have read the log and
not yet the media. A training that reads the media even later gets the item without them, as the next training does.
"""

_TYPES: dict[str, pl.DataType] = {
    PRICE: pl.Float64(),
    AVAILABLE: pl.Boolean(),
    CATEGORIES: pl.List(pl.String()),
}
"""Types of the columns that are not text."""


@dataclass(frozen=True)
class ItemChanges:
    """The newest state of each item in the log.

    puts: item -> its newest put, the oldest put first; deleted items are included, without their stored media;
    deleted: the items whose newest change is a deletion.
    """

    puts: dict[str, ItemPut]
    deleted: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> "ItemChanges":
        """From the log in a folder; empty when the folder does not exist. Raises LogError."""
        return cls.of_changes(item_changes(folder))

    @classmethod
    def of_changes(cls, changes: Iterable[ItemPut | ItemDeleted]) -> "ItemChanges":
        """From item changes, the oldest first."""
        puts: dict[str, ItemPut] = {}
        deleted: set[str] = set()
        for change in changes:
            if isinstance(change, ItemPut):
                puts.pop(change.item_id, None)
                puts[change.item_id] = change
                deleted.discard(change.item_id)
            else:
                deleted.add(change.item_id)
                if put := puts.get(change.item_id):
                    media = _media(put)
                    fields = {name: value for name, value in put.fields.items() if name not in media}
                    puts[change.item_id] = replace(put, fields=fields)
        return cls(puts, frozenset(deleted))


def media_fault(log: Path) -> str:
    """Why no media can be stored under the log's folder, with the remedy; "" where they can."""
    folder = log / MEDIA_FOLDER
    if not os.path.lexists(folder) or (folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
        return ""
    number = errno.EACCES if folder.is_dir() else errno.ENOTDIR
    reason = describe_os_error(OSError(number, os.strerror(number), str(folder)))
    return f"pictures, sounds and videos of items cannot be stored: {reason}"


def store_media(log: Path, data: bytes) -> str:
    """Write bytes under the log's folder, named by their hash, and return that name relative to the log.

    The file is on disk when this returns, and no sweep deletes it for a day. Raises LogError.
    """
    folder, name = log / MEDIA_FOLDER, hashlib.sha256(data).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _refreshed(folder / name):  # an existing file is complete: it was renamed into place
            put_file(folder / name, lambda part: part.write_bytes(data))
        sync(folder)  # another request may have renamed it just now
        sync(log)
    except OSError as error:
        raise LogError(
            f"{folder}: media cannot be written: {describe_os_error(error)}; nothing was accepted"
        ) from error
    return f"{MEDIA_FOLDER}/{name}"


def media_in_use(changes: Sequence[ItemPut | ItemDeleted], now: int) -> frozenset[str]:
    """Names, as `store_media` returns them, of the media that any item used at some time in the day before now (µs).

    changes: all item changes of the log, the oldest first.
    """
    before = ItemChanges.of_changes(change for change in changes if change.timestamp < now - RETENTION)
    recent_puts = (put for put in changes if isinstance(put, ItemPut) and put.timestamp >= now - RETENTION)
    return frozenset(name for put in (*before.puts.values(), *recent_puts) for name in _media(put).values())


def delete_unused_media(log: Path, in_use: Collection[str], now: int) -> int:
    """Delete the media that are not in use and were last written a day before now (µs) or earlier.

    Returns the number of deleted files. in_use: the names that the log used when it was read, at `now` or later.
    Safe while other services and trainings use the folder, however long ago `now` was: a request that puts existing
    media updates the file's modification time, under a lock of the file, before it logs the record that names them.
    Raises LogError when some files could not be deleted; the others are deleted.
    """
    folder, before, deleted = log / MEDIA_FOLDER, (now - RETENTION) / 1e6, 0
    errors: list[OSError] = []
    try:
        paths = [path for path in folder.iterdir() if _MEDIA_NAME.fullmatch(path.name)] if folder.is_dir() else []
    except OSError as error:
        raise LogError(f"{folder}: media cannot be listed: {describe_os_error(error)}; unused media stay") from error
    for path in paths:
        if f"{MEDIA_FOLDER}/{path.name}" in in_use:
            continue
        try:
            deleted += _delete_if_older(path, before)
        except FileNotFoundError:  # another service deleted it
            continue
        except OSError as error:
            errors.append(error)
    if errors:
        reason = f"{len(errors)} media of no item cannot be deleted: {describe_os_error(errors[0])}"
        raise LogError(f"{folder}: {reason}; give the service write permission; the next start tries again")
    return deleted


def item_put_table(puts: Sequence[ItemPut], log: Path, extra: Sequence[str]) -> pl.DataFrame:
    """The items as they were put, one row each, not yet validated. Media are absolute paths or URLs.

    extra: columns besides those of the data contract.
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
    """Column -> name of the media file, for the columns whose value `store_media` returned."""
    values = {name: put.fields.get(name) or "" for name in (IMAGE, AUDIO, VIDEO)}
    return {name: value for name, value in values.items() if value.startswith(f"{MEDIA_FOLDER}/")}


def _refreshed(path: Path) -> bool:
    """Whether the file exists; then its modification time is now. Raises OSError."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(file.fileno())
            return os.path.samestat(os.fstat(file.fileno()), path.stat())  # False: a sweep deleted it before the lock
    except (FileNotFoundError, PermissionError):  # a file of another user is replaced by one of our own
        return False


def _delete_if_older(path: Path, before: float) -> bool:
    """Delete a file that was last written before that time (s); whether it was deleted. Raises OSError."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_mtime >= before:
        return False
    with path.open("r+b") as file:  # over a network, only a writable file can be locked
        fcntl.flock(file, fcntl.LOCK_EX)
        current = path.stat()  # read again under the lock
        old = current.st_mtime < before and os.path.samestat(os.fstat(file.fileno()), current)
        if old:
            path.unlink()
        return old
