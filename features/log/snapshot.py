"""The snapshot of the item changes: the changes of ended segments that still count, in one file.

    items/01730000000000000000.snapshot    a line that describes the snapshot, then one line for each change

The number is larger than the times (ns) of the last writes to all segments that the snapshot replaces. Of several
snapshots the one with the largest number counts; the others, and the replaced segments, are left of an interrupted
deletion. `features.log.upkeep.compaction` writes snapshots.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from features.errors import LogError, describe_os_error
from features.files import put_new_file
from features.log.records import ITEMS, VERSION, line_of
from features.log.segments import SNAPSHOT_SUFFIX, scan, segment_paths


@dataclass(frozen=True)
class Snapshot:
    """What the first line of a snapshot says.

    folded: names of the replaced segments, which may still be there; ended: (time after the last write in ns, latest
    time of a change in µs) of replaced segments: a segment with a larger number began after them; start: offset of
    the first change.
    """

    path: Path
    folded: frozenset[str]
    ended: tuple[tuple[int, int], ...]
    start: int


def newest_snapshot(folder: Path) -> Snapshot | None:
    """The snapshot of a log that counts; None when there is none. Raises LogError when it cannot be read."""
    try:
        while paths := segment_paths(folder / ITEMS, SNAPSHOT_SUFFIX):
            with suppress(FileNotFoundError):  # a newer one has replaced it
                return _header(paths[-1])
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {describe_os_error(error)}") from error
    return None


def _header(path: Path) -> Snapshot:
    with path.open("rb") as file:
        lines, end, _ = scan(file.readline())
    if not lines:
        raise LogError(f"{path}: the first line is damaged: restore the file from a backup of the log")
    header = orjson.loads(lines[0][1])
    if header["v"] > VERSION:
        raise LogError(f"{path}: is of version {header['v']}: install the version that wrote it")
    return Snapshot(path, frozenset(header["folded"]), tuple((w, last) for w, last in header["ended"]), end)


def write_snapshot(
    folder: Path, number: int, folded: Iterable[str], ended: Iterable[tuple[int, int]], changes: Iterable[bytes]
) -> Path:
    """Write a snapshot, complete and on disk, or none at all. changes: JSON of each. Raises OSError."""
    path = folder / ITEMS / f"{number:020d}{SNAPSHOT_SUFFIX}"
    header = {"v": VERSION, "kind": "snapshot", "folded": sorted(folded), "ended": list(ended)}

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(line_of(orjson.dumps(header)))
            file.writelines(map(line_of, changes))

    put_new_file(path, write)
    return path
