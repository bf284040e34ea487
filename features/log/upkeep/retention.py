"""Retention: old segments of events and exposures are deleted, but none that a registered reader has not read.

Events are what training learns from. They are deleted only where a limit is set, and only once a registered reader
has exported them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from features.files import sync
from features.log.readers import Reader, holders
from features.log.records import EVENTS, Stream
from features.log.segments import has_ended, has_settled, segment_key, segment_paths

DAY_SECONDS = 86_400

STALE_SECONDS = 7 * DAY_SECONDS
"""A reader that has not advanced for so long, and has something to read, is named."""


@dataclass(frozen=True)
class Limit:
    """How much of a stream is kept. days: since the last write to a segment; bytes: of all segments; None: all."""

    days: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Deleted:
    """Segments of a stream that were deleted."""

    stream: Stream
    segments: int
    bytes: int


@dataclass(frozen=True)
class Held:
    """Segments that a limit would delete, and why they stay."""

    stream: Stream
    segments: int
    bytes: int
    why: str


def describe_reader(reader: Reader, now: float) -> str:
    """Name of a reader and when it was last registered. now: s."""
    at = datetime.fromtimestamp(reader.advanced / 1e6, UTC)
    stale = now - reader.advanced / 1e6 > STALE_SECONDS
    remedy = f"; run it, or delete readers/{reader.name}.json if it no longer exists" if stale else ""
    return f"the reader {reader.name!r}, which last advanced at {at:%Y-%m-%d %H:%M} UTC, needs them{remedy}"


def expire(
    folder: Path, limits: Mapping[Stream, Limit], readers: Sequence[Reader], *, dry_run: bool
) -> tuple[list[Deleted], list[Held]]:
    """Delete the segments of each stream that are over its limits. dry_run: only say which. Raises OSError."""
    deleted, held = [], []
    for stream, limit in limits.items():
        gone: list[int] = []
        waiting: dict[str, list[int]] = {}
        for path, size in _over(folder, stream, limit, dry_run):
            if why := _needed_by(folder, stream, path, size, readers):
                waiting.setdefault(why, []).append(size)
                continue
            gone.append(size)
            if not dry_run:
                path.unlink()
        if gone:
            deleted.append(Deleted(stream, len(gone), sum(gone)))
            if not dry_run:
                sync(folder / stream)
        held += [Held(stream, len(sizes), sum(sizes), why) for why, sizes in waiting.items()]
    return deleted, held


def _over(folder: Path, stream: Stream, limit: Limit, dry_run: bool) -> Iterator[tuple[Path, int]]:
    """The ended segments that are over the limit, with their bytes, the oldest first."""
    copied = {path.name for path in segment_paths(folder)}
    statuses = [(path, path.stat()) for path in segment_paths(folder / stream) if path.name not in copied]
    total = sum(status.st_size for _, status in statuses)
    oldest = float("-inf") if limit.days is None else time.time() - limit.days * DAY_SECONDS
    for path, status in statuses:
        too_many = limit.bytes is not None and total > limit.bytes
        if not status.st_size or not (too_many or status.st_mtime < oldest):
            continue
        if has_ended(path) if dry_run else has_settled(folder, path):
            total -= status.st_size
            yield path, status.st_size


def _needed_by(folder: Path, stream: Stream, path: Path, size: int, readers: Sequence[Reader]) -> str:
    """Why a segment must stay; "" when it need not."""
    key = segment_key(folder, path)
    if waiting := holders(readers, stream, key, size):
        return describe_reader(min(waiting, key=lambda reader: reader.advanced), time.time())
    exported = any(reader.exports and reader.position.get(key, 0) >= size for reader in readers)
    if stream == EVENTS and not exported:
        return "training needs them, and no reader has exported them: recsys log export events --reader NAME"
    return ""
