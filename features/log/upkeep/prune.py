"""One round of upkeep: earlier segments are taken over, item changes compacted, and old segments deleted.

A lock lets one process at a time do it. Each step is safe against a crash, and is simply run again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from features.errors import LogError, describe_os_error
from features.log.erasure.overwrite import finish
from features.log.readers import Reader, registered
from features.log.records import ITEMS, STREAMS, Stream
from features.log.segments import exclusive, recover, segment_paths
from features.log.upkeep.compaction import compact
from features.log.upkeep.retention import Deleted, Held, Limit, describe_reader, expire
from features.log.upkeep.takeover import take_over

LOCK = ".prune.lock"


@dataclass(frozen=True)
class PruneReport:
    """What one round did, or would do (dry_run).

    taken_over: segments of earlier versions that were copied into the streams; waiting: those that stay, as a process
    still writes one of them; compacted: segments of item changes that became a snapshot; deleted: by stream; held:
    what a limit would delete and a reader needs; damaged: segments of item changes that stay for their damaged lines.
    """

    dry_run: bool
    taken_over: int
    waiting: int
    compacted: int
    deleted: list[Deleted]
    held: list[Held]
    damaged: list[str]


def prune(folder: Path, limits: Mapping[Stream, Limit], *, dry_run: bool = False) -> PruneReport | None:
    """Run one round; None when another process is running one.

    limits: of the streams that are not kept for ever; dry_run: only say what retention would delete.
    Raises LogError when the log cannot be read or written.
    """
    try:
        with exclusive(folder / LOCK) as mine:
            return _prune(folder, limits, dry_run) if mine else None
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be pruned: {describe_os_error(error)}") from error


def _prune(folder: Path, limits: Mapping[Stream, Limit], dry_run: bool) -> PruneReport:
    readers = registered(folder)
    taken = compacted = 0
    held: list[Held] = []
    damaged: tuple[str, ...] = ()
    if not dry_run:
        finish(folder)
        recover(folder)
        delete_unfinished(folder)
        taken = take_over(folder)
        compaction = compact(folder, readers, time.time_ns() // 1000)
        compacted, damaged = compaction.folded, compaction.damaged
        held += [_held_items(size, reader) for _, size, reader in compaction.held]
    deleted, held_back = expire(folder, limits, readers, dry_run=dry_run)
    return PruneReport(
        dry_run, taken, len(segment_paths(folder)), compacted, deleted, [*held, *held_back], list(damaged)
    )


def _held_items(size: int, reader: Reader) -> Held:
    return Held(ITEMS, 1, size, describe_reader(reader, time.time()))


def delete_unfinished(folder: Path) -> None:
    """Delete the temporary files that an interrupted round has left; no other process writes such files there."""
    for stream in STREAMS:
        for path in (folder / stream).glob(".writing-*"):
            path.unlink()
