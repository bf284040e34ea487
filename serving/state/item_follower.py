"""Decides which item changes in the log a process must still apply: those of other processes, each once.

A process applies its own changes when it accepts them. Where another process has changed the same item, the order of
the log decides, as it does at a restart: so all processes come to the same state. An item waits while a change of it
is on its way to the log, or is there and was not read yet.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from features.log.item_feed import ItemFeed, PlacedChange

End = tuple[str, int]
"""A segment and the number of bytes written to it."""


class ItemFollower:
    """Reads the item changes of a log. The caller's lock guards all methods but `read`."""

    def __init__(self, log: Path) -> None:
        self._feed = ItemFeed(log)
        self._newest: dict[str, PlacedChange] = {}  # by item, of those that were read
        self._unsettled: set[str] = set()  # items whose newest change may have to be applied
        self._accepting: Counter[str] = Counter()  # changes on their way to the log, by item
        self._accepted: dict[str, End] = {}  # where the log ended after the last accepted change of an item

    def read(self) -> list[PlacedChange]:
        """The changes that are new in the log, in order; first all that there are. Raises LogError."""
        return self._feed.read()

    def replay(self, placed: Sequence[PlacedChange]) -> None:
        """Take the changes before the start as applied."""
        self._newest = {change.change.item_id: change for change in placed}

    def begin(self, item_id: str) -> None:
        """A change of an item goes to the log."""
        self._accepting[item_id] += 1

    def end(self, item_id: str, accepted: End | None) -> None:
        """The change is in the log, which ended at `accepted` afterwards, or it was not accepted (None)."""
        self._accepting[item_id] -= 1
        if not self._accepting[item_id]:
            del self._accepting[item_id]
        if accepted is not None:
            self._accepted[item_id] = max(accepted, self._accepted.get(item_id, accepted))

    def to_apply(self, placed: Sequence[PlacedChange], own: Collection[str]) -> list[PlacedChange]:
        """The changes to apply after `placed` was read, one for an item.

        own: names of the segments of this process. Asked for after the read: a segment is named before it is written.
        """
        for change in placed:
            name = change.change.item_id
            if name not in self._newest or self._newest[name] < change:
                self._newest[name] = change
                self._unsettled.add(name)
        settled = [name for name in self._unsettled if self._has_settled(name)]
        self._unsettled.difference_update(settled)
        return [self._newest[name] for name in settled if not self._is_applied(name, own)]

    def _has_settled(self, item_id: str) -> bool:
        """Whether all changes of an item that this process accepts or has accepted were read."""
        end = self._accepted.get(item_id)
        return item_id not in self._accepting and (end is None or self._feed.has_read(*end))

    def _is_applied(self, item_id: str, own: Collection[str]) -> bool:
        """Whether the newest change of an item is the last that this process has accepted."""
        newest, end = self._newest[item_id], self._accepted.get(item_id)
        return newest.segment in own and end is not None and (newest.segment, newest.offset) < end
