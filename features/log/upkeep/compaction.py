"""Compaction of the item changes: ended segments become one snapshot, without the changes that no longer count.

What counts: the newest put of each item and a deletion after it, and every change of the last day, for the media that
an item had within a day are kept. The order of all changes stays what it was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.files import sync
from features.log.item_changes import RETENTION
from features.log.item_feed import ItemFeed, PlacedChange
from features.log.readers import Reader, holders
from features.log.records import ITEMS, ItemPut
from features.log.segments import (
    CLOCK_TICK,
    SNAPSHOT_SUFFIX,
    has_settled,
    segment_key,
    segment_number,
    segment_paths,
)
from features.log.snapshot import Snapshot, newest_snapshot, write_snapshot


@dataclass(frozen=True)
class Compaction:
    """What a compaction did. folded: replaced segments; damaged: keys of those that stay because of damaged lines;
    held: (segment, bytes, reader) for each that stays because a reader has not read it."""

    folded: int
    damaged: tuple[str, ...]
    held: tuple[tuple[str, int, Reader], ...]


def compact(folder: Path, readers: Sequence[Reader], now: int) -> Compaction:
    """Replace the ended segments of item changes by a snapshot. now: µs.

    Only one process may call this at a time; others may read and append meanwhile. Raises OSError and LogError.
    """
    _delete_replaced(folder)
    legacy = {path.name for path in segment_paths(folder)}
    own = [path for path in segment_paths(folder / ITEMS) if path.name not in legacy]
    ended = [path for path in own if path.stat().st_size and has_settled(folder, path)]
    feed = ItemFeed(folder)
    changes = feed.read()
    if feed.snapshot is not None and (damaged := segment_key(folder, feed.snapshot.path)) in feed.damaged:
        return Compaction(0, (damaged,), ())
    held, fold, damaged_keys = [], [], []
    inside = _inside_snapshot(folder, feed.snapshot, readers)
    for path in ended:
        key, size = segment_key(folder, path), path.stat().st_size
        waiting = holders(readers, ITEMS, key, size) or inside
        held += [(key, size, reader) for reader in waiting]
        if key in feed.damaged:
            damaged_keys.append(key)
        elif not waiting:
            fold.append(path)
    if fold:
        names = {path.name for path in fold}
        stay = legacy | {path.name for path in segment_paths(folder / ITEMS)} - names
        written = [path.stat().st_mtime_ns + CLOCK_TICK for path in fold]
        previous = segment_number(feed.snapshot.path) + 1 if feed.snapshot else 0
        began = min((segment_number(Path(name)) for name in stay), default=None)
        write_snapshot(
            folder,
            max(previous, *written),
            names,
            _needed(feed.ended(names), began),
            (c.payload for c in still_counting([c for c in changes if c.segment not in stay], now)),
        )
        _delete_replaced(folder)
    return Compaction(len(fold), tuple(damaged_keys), tuple(held))


def _inside_snapshot(folder: Path, snapshot: Snapshot | None, readers: Sequence[Reader]) -> list[Reader]:
    """The readers that have read a part of the snapshot: they need the rest."""
    if snapshot is None:
        return []
    key, size = segment_key(folder, snapshot.path), snapshot.path.stat().st_size
    return [r for r in holders(readers, ITEMS, key, size) if key in r.position]


def still_counting(changes: Iterable[PlacedChange], now: int) -> list[PlacedChange]:
    """Those of changes in order that decide, now (µs) or later, which state an item has or which media are in use."""
    recent: list[PlacedChange] = []
    puts: dict[str, PlacedChange] = {}
    deletions: dict[str, PlacedChange] = {}
    for placed in changes:
        item = placed.change.item_id
        if placed.change.timestamp >= now - RETENTION:
            recent.append(placed)
        elif isinstance(placed.change, ItemPut):
            puts[item] = placed
            deletions.pop(item, None)
        else:
            deletions[item] = placed
    return sorted([*recent, *puts.values(), *deletions.values()])


def _needed(ended: Iterable[tuple[int, int]], began: int | None) -> list[tuple[int, int]]:
    """Those of (time after the last write, latest time) that decide the latest time before a segment.

    began: smallest number of the segments that stay; None: none stays. New segments have larger numbers than all.
    """
    needed: list[tuple[int, int]] = []
    for written, latest in sorted(ended):
        if not needed or latest > needed[-1][1]:
            if needed and (began is None or written <= began):
                needed.pop()  # every segment that comes after the earlier one comes after this one too
            needed.append((written, latest))
    return needed


def _delete_replaced(folder: Path) -> None:
    """Delete the segments and snapshots that the newest snapshot replaces."""
    if (snapshot := newest_snapshot(folder)) is None:
        return
    old = [path for path in segment_paths(folder / ITEMS, SNAPSHOT_SUFFIX) if path != snapshot.path]
    old += [path for path in segment_paths(folder / ITEMS) if path.name in snapshot.folded]
    for path in old:
        path.unlink()
    if old:
        sync(folder / ITEMS)
