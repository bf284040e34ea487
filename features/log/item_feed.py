"""The item changes of the log in the order in which they were accepted, as far as it can be known.

Changes of one segment are in its order, and those of a segment that began after another had ended come after it,
whatever their times say: the clock may have stepped back. Segments that two services wrote at the same time are
merged by time.
"""

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from features.errors import LogError, describe_os_error
from features.log.reader import LogLine, read_lines
from features.log.records import ITEMS, ItemDeleted, ItemPut, record_of
from features.log.segments import CLOCK_TICK, segment_number
from features.log.snapshot import Snapshot, newest_snapshot

ItemChange = ItemPut | ItemDeleted


@dataclass(frozen=True, order=True)
class PlacedChange:
    """An item change and its place in the order of all changes.

    latest: the latest time (µs) so far in the order of its segment; segment: name of the segment; offset: of its line
    there; payload: the JSON of these and the change.
    """

    latest: int
    segment: str
    offset: int
    change: ItemChange = field(compare=False)
    payload: bytes = field(compare=False, repr=False)


class ItemFeed:
    """Reads the item changes of a log, and then those that any process has added since the last read.

    damaged: keys of the segments that hold damaged lines.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._restart(None)

    def _restart(self, snapshot: Snapshot | None) -> None:
        self.snapshot = snapshot
        self.damaged: set[str] = set()
        self._position: dict[str, int] = {}
        self._latest: dict[str, int] = {}  # segment -> latest time (µs) in its order

    def read(self) -> list[PlacedChange]:
        """The changes that are new, in order. Raises LogError when a segment cannot be read.

        After a process has compacted the log, all changes that still count are returned once more, in the same
        places.
        """
        while True:
            if (snapshot := newest_snapshot(self._folder)) != self.snapshot:
                self._restart(snapshot)
            changes = self._read_on()
            if newest_snapshot(self._folder) == snapshot:  # else segments may have been deleted before they were read
                return sorted(changes)

    def has_read(self, segment: str, end: int) -> bool:
        """Whether the changes in the first bytes of a segment were read, or the segment was compacted."""
        key = f"{ITEMS}/{segment}"
        return self._position.get(key, 0) >= end or not (self._folder / key).exists()

    def ended(self, names: Container[str] | None = None) -> list[tuple[int, int]]:
        """(time after the last write in ns, latest time of a change in µs) of segments, in no order.

        names: the segments; None: all. Those that a snapshot has replaced are always among them.
        """
        pairs = [] if self.snapshot is None else list(self.snapshot.ended)
        read = ((name, latest) for name, latest in self._latest.items() if names is None or name in names)
        return [*pairs, *((self._written(name), latest) for name, latest in read)]

    def _read_on(self) -> list[PlacedChange]:
        changes = []
        while (part := read_lines(self._folder, self._position, stream=ITEMS)).position != self._position:
            self._position = part.position
            self.damaged |= {damaged.segment for damaged in part.damaged}
            changes += [placed for line in part.lines if (placed := self._place(line)) is not None]
        return changes

    def _place(self, line: LogLine) -> PlacedChange | None:
        values: dict[str, Any] = orjson.loads(line.payload)
        change = record_of(values)
        if not isinstance(change, ItemPut | ItemDeleted):
            return None
        if "latest" in values:  # from a snapshot
            return PlacedChange(values["latest"], values["segment"], values["at"], change, line.payload)
        name = line.segment.rpartition("/")[2]
        if name not in self._latest:
            began = segment_number(Path(name))
            self._latest[name] = max((latest for written, latest in self.ended() if written <= began), default=0)
        latest = self._latest[name] = max(self._latest[name], change.timestamp)
        at = values.get("at", line.offset)
        place = b',"latest":%d,"segment":"%s","at":%d}' % (latest, name.encode(), at)
        return PlacedChange(latest, name, at, change, line.payload.removesuffix(b"}") + place)

    def _written(self, name: str) -> int:
        """The time (ns) after the last write to a segment; the largest of all once it was deleted."""
        for path in (self._folder / name, self._folder / ITEMS / name):
            try:
                return path.stat().st_mtime_ns + CLOCK_TICK
            except FileNotFoundError:
                continue
            except OSError as error:
                reason = describe_os_error(error)
                raise LogError(f"the event log in {self._folder} cannot be read: {reason}") from error
        return 1 << 62


def item_changes(folder: Path) -> list[ItemChange]:
    """All item changes that still count, the oldest first. Raises LogError when a segment cannot be read."""
    return [placed.change for placed in ItemFeed(folder).read()]
