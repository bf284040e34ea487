"""Keeps the served snapshot up to date with the items that are put and deleted while the service runs.

A deleted item is hidden at once. An item that is put is embedded in the background and then added to the snapshot.
Changes that other processes have logged are followed by their position in the log. Each process comes to the state
that a restart would have.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from typing import Literal
from weakref import ref

import polars as pl

from features.arrays import Bools
from features.content.spaces import Embedded
from features.errors import LogError, RecsysError, detail
from features.ids import IdMap
from features.instants import parse_instant
from features.log.event_log import EventLog
from features.log.item_changes import ItemChanges, delete_unused_media, media_in_use
from features.log.records import ITEMS, ItemDeleted, ItemPut
from features.schema import AVAILABLE, ITEM, PUBLISHED
from features.tables.read import check_item_puts
from recsys.content.item_encoding import ItemVectors
from serving.servable import ServableBundle
from serving.state.bundles.changes import channels_of, has_changed, has_same_content
from serving.state.item_follower import ItemFollower
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import budget

logger = logging.getLogger("recsys.serving")

BATCH = 64
"""Largest number of items added in one update, the newest first. A new put waits for at most one batch."""

NOT_ADDED = "it cannot be added to the bundle; the log of the service says more"

RETRY_SECONDS = 30.0
"""Seconds before items that failed are tried again: a model or a network may have recovered."""

Status = Literal["live", "embedding", "failed"]
Embed = Callable[[ServableBundle, pl.DataFrame, Sequence[ItemPut]], Awaitable[ItemVectors]]
"""A bundle, m checked items and the put of each -> their vectors by its encoders; no channels when the bundle has no
content space."""

Upsert = Callable[[ServableBundle, pl.DataFrame, Mapping[str, Embedded]], ServableBundle]
"""A bundle, m checked items and their channels -> the bundle with these items added or replaced."""


@dataclass
class _ItemStatus:
    """State of one item that was put or deleted since its bundle was trained.

    order: of its newest change among those that this process knows; put: that change, None when the item is deleted;
    waiting: not added to the snapshot yet; paused: skipped until the next retry; alone: added in an update of its
    own; failed: (kind of part, reason) of each part that could not be read; again: so it was with the change before.
    """

    order: int
    put: ItemPut | None
    waiting: bool = True
    paused: bool = False
    alone: bool = False
    failed: list[tuple[str, str]] = field(default_factory=list)
    again: bool = False


class CatalogUpdater:
    """Holds the served snapshot and replaces it. A lock guards every change of the snapshot and of the item states.

    Requests read `snapshot` without the lock.
    """

    def __init__(
        self, log: Path, notes: dict[str, str], upsert: Upsert, merge: Callable[[ServableBundle], None]
    ) -> None:
        """log: folder of the event log; notes: of the service, whose entry "items" names an item that could not be
        added; upsert, merge: see `ServiceState`."""
        self._upsert, self._merge_indexes = upsert, merge
        self.snapshot: ServingSnapshot | None = None
        self._folder, self._notes = log, notes
        self._statuses: dict[str, _ItemStatus] = {}
        self._errors: dict[str, str] = {}
        self._sequence = count(1)
        self._latest = 0  # smallest time (µs) of the next change: those of earlier ones are not larger
        self._follower = ItemFollower(log)
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._merge_thread: Thread | None = None
        self._replaying = False  # items put before the start or the bundle are not added yet
        self._in_use: list[tuple[ref[IdMap], ref[Bools]]] = []  # ids and availability of snapshots that requests use
        self._retry: asyncio.TimerHandle | None = None
        self._sweep: Callable[[], int] | None = None

    def replay(self, now: int, *, sweep: bool = True) -> None:
        """Read the puts and deletes before this start from the log. now: time of the start (µs); sweep: delete unused
        media once. Raises LogError."""
        placed = self._follower.read()
        logged = [change.change for change in placed]
        if sweep:
            self._sweep = partial(delete_unused_media, self._folder, media_in_use(logged, now), now)
        changes = ItemChanges.of_changes(logged)
        self._latest = max((change.latest + 1 for change in placed), default=0)
        self._follower.replay(placed)
        self._statuses = {
            put.item_id: _ItemStatus(i - len(changes.puts), put) for i, put in enumerate(changes.puts.values())
        }
        self._statuses |= {name: _ItemStatus(0, None, waiting=False) for name in changes.deleted}

    def follow(self, log: EventLog | None) -> None:
        """Apply the changes that others have logged since the last call. log: of the changes that are accepted here,
        None where none are. Raises LogError."""
        placed = self._follower.read()
        own = {} if log is None else log.ends(ITEMS)
        with self._lock:
            foreign = [change.latest + 1 for change in placed if change.segment not in own]
            self._latest = max([self._latest, *foreign])  # what is accepted from now on comes after them
            changes = self._follower.to_apply(placed, own)
            for change in changes:
                self._apply(change.change, next(self._sequence))
            self._update_note()
        if changes:
            self._wake_loop()

    def swap_bundle(self, snapshot: ServingSnapshot) -> None:
        """Serve the snapshot of another bundle. Deleted items are hidden in it, and all puts are queued again."""
        with self._lock:
            for name, status in self._statuses.items():
                status.waiting, status.paused, status.alone, status.failed = status.put is not None, False, False, []
                if _is_hidden(status, snapshot.now()):
                    snapshot.hide(name)
            self._replaying = any(status.waiting for status in self._statuses.values())
            self._publish(snapshot)
            self._update_note()
        self._wake_loop()

    async def accept(self, log: EventLog, change: ItemPut | ItemDeleted) -> bool:
        """Log a change, then apply it; see `accept_all`. Returns whether the item was new."""
        return await self.accept_all(log, [change]) == 1

    async def accept_all(self, log: EventLog, changes: Sequence[ItemPut | ItemDeleted]) -> int:
        """Log changes of distinct items together, then apply them. Returns how many of the items were new.

        A change is not logged with a time before those of earlier changes, which a clock that has stepped back would
        give it. Raises LogError when they cannot be logged; nothing changes then.
        """
        with self._lock:
            self._latest = at = max([self._latest, *(change.timestamp for change in changes)])
            changes = [change if change.timestamp == at else replace(change, timestamp=at) for change in changes]
            for change in changes:
                self._follower.begin(change.item_id)
        orders = [next(self._sequence) for _ in changes]  # as in the log: no await separates this from its queue
        end = None
        try:
            await log.append(changes, budget().left())
            end = next(reversed(log.ends(ITEMS).items()), None)
        finally:
            with self._lock:
                n_new = sum(not self._has_item(change.item_id) for change in changes)
                for change, order in zip(changes, orders, strict=True):
                    self._follower.end(change.item_id, end)
                    if end is not None:
                        self._apply(change, order)
                self._update_note()
        self._wake.set()
        return n_new

    def _apply(self, change: ItemPut | ItemDeleted, order: int) -> None:
        """Take over a change, unless a newer one of the item is known. The caller updates the note."""
        previous = self._statuses.get(change.item_id)
        if previous is not None and previous.order > order:
            return
        put = change if isinstance(change, ItemPut) else None
        again = previous is not None and (previous.again if previous.waiting else bool(previous.failed))
        self._statuses[change.item_id] = status = _ItemStatus(order, put, waiting=put is not None, again=again)
        if self.snapshot is not None and _is_hidden(status, self.snapshot.now()):
            self._hide(change.item_id)
        self._errors.pop(change.item_id, None)

    def _publish(self, snapshot: ServingSnapshot) -> None:
        self.snapshot = snapshot
        self._in_use = [refs for refs in self._in_use if refs[1]() is not None]
        self._in_use.append((ref(snapshot.bundle.catalog.ids), ref(snapshot.available)))

    def _hide(self, item_id: str) -> None:
        """Hide an item in the current snapshot and in older snapshots that requests still use."""
        for ids, available in ((ids_ref(), available_ref()) for ids_ref, available_ref in self._in_use):
            if ids is not None and available is not None and (row := ids.row(item_id)) >= 0:
                available[row] = False

    def has_item(self, item_id: str) -> bool:
        """Whether the item was put or is in the bundle, and was not deleted since."""
        with self._lock:
            return self._has_item(item_id)

    def state(self, item_id: str) -> tuple[ItemPut | None, Status, list[tuple[str, str]]]:
        """The last put of an item (None when the item comes from the bundle), its status, and (part, reason) of each
        part that could not be read."""
        with self._lock:
            status = self._statuses.get(item_id)
            if status is None or status.put is None:
                return None, "live", []
            if item_id in self._errors:
                return status.put, "failed", [("item", self._errors[item_id])]
            return status.put, "embedding" if status.waiting else self._settled_status(item_id, status), status.failed

    def states(self) -> tuple[ServingSnapshot | None, dict[str, ItemPut | None]]:
        """The snapshot, and the last put of each item that has changed since its training; None: it is deleted."""
        with self._lock:
            snapshot, statuses = self.snapshot, self._statuses.copy()
        return snapshot, {name: status.put for name, status in statuses.items()}  # a put is never replaced in place

    async def run(self, embed: Embed) -> None:
        """Add the items that are put to the snapshot, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            with self._lock:
                snapshot = self.snapshot
                waiting = [status for status in self._statuses.values() if status.waiting and not status.paused]
                queue = sorted(waiting, key=lambda status: (status.alone, -status.order))
                n_batched = sum(not status.alone for status in queue[:BATCH])
                puts = [status.put for status in queue[: n_batched or 1] if status.put]
                self._replaying &= bool(waiting)
                self._update_note()
            if snapshot is None or not puts:
                if snapshot is not None and not self._errors:
                    self._sweep_once()
                await self._wake.wait()
                continue
            try:
                await self._upsert_puts(snapshot, puts, embed)
            except Exception as error:
                known = isinstance(error, RecsysError)
                self._requeue(puts, str(error) if known else f"{NOT_ADDED}{detail(error)}")

    async def _upsert_puts(self, snapshot: ServingSnapshot, puts: Sequence[ItemPut], embed: Embed) -> None:
        """Add the items that differ from the bundle to it, and serve the result. Those with other content are
        embedded; the others keep their vectors, unless a part of them could not be read before."""
        checked = await asyncio.to_thread(check_item_puts, puts, self._folder, snapshot.bundle.data)
        changed = await asyncio.to_thread(has_changed, snapshot.bundle, checked.kept)
        items = checked.kept.filter(changed)
        failed, bundle = dict[str, list[tuple[str, str]]](), snapshot.bundle
        if len(items):
            with self._lock:
                again = [put.item_id for put in puts if self._statuses[put.item_id].again]
            known = await asyncio.to_thread(has_same_content, bundle, items)
            known &= ~items.get_column(ITEM).is_in(again).to_numpy()
            if len(kept := items.filter(known)):
                bundle = await asyncio.to_thread(self._upsert, bundle, kept, channels_of(bundle, kept))
            if len(new := items.filter(~known)):
                put_of = {put.item_id: put for put in puts}
                vectors = await embed(bundle, new, [put_of[name] for name in new.get_column(ITEM)])
                failed = dict(zip(new.get_column(ITEM), vectors.failed, strict=True))
                bundle = await asyncio.to_thread(self._upsert, bundle, new, vectors.channels)
        upserted = await asyncio.to_thread(snapshot.with_upserts, bundle, items.get_column(ITEM).to_list())
        self._replace(snapshot, upserted, puts, failed)
        self._merge(bundle)

    def _replace(
        self,
        snapshot: ServingSnapshot,
        upserted: ServingSnapshot,
        puts: Sequence[ItemPut],
        failed: dict[str, list[tuple[str, str]]],
    ) -> None:
        """Serve `upserted` instead of `snapshot`.

        Does nothing when another bundle is served by now: `serve` has queued all puts for it.
        """
        with self._lock:
            if self.snapshot is not snapshot:
                return
            available = upserted.bundle.catalog.available.copy()
            available[: len(snapshot.available)] &= snapshot.available  # items hidden during the update stay hidden
            for put in puts:
                row, status = upserted.bundle.catalog.ids.row(put.item_id), self._statuses[put.item_id]
                if status.put is put:
                    status.waiting, status.failed = False, failed.get(put.item_id, [])
                    self._set_error(put.item_id)
                    if row >= 0:
                        available[row] = upserted.bundle.catalog.available[row]
                elif row >= len(snapshot.available) or (row >= 0 and _is_hidden(status, snapshot.now())):
                    available[row] = False  # put or deleted again during the update
            self._publish(replace(upserted, available=available))

    def _requeue(self, puts: Sequence[ItemPut], reason: str) -> None:
        """Requeue puts whose update failed. Called within an `except`.

        Several are tried again one at a time, after newer puts, because a single item may have failed the update.
        A single one is paused for RETRY_SECONDS.
        """
        with self._lock:
            tried = [status for put in puts if (status := self._statuses[put.item_id]).put is put]
            for status in tried:
                status.alone = True
            if len(puts) > 1 or not tried:
                return
            if self._errors.get(puts[0].item_id) != reason:
                logger.exception("item %r could not be added", puts[0].item_id)
            tried[0].paused = True
            self._set_error(puts[0].item_id, reason)
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._resume_paused)

    def _resume_paused(self) -> None:
        self._retry = None
        with self._lock:
            for status in self._statuses.values():
                status.paused = False
        self._wake.set()

    def _set_error(self, item_id: str, reason: str = "") -> None:
        """Record why an item could not be added; "" clears the error."""
        self._errors.pop(item_id, None)
        if reason:
            self._errors[item_id] = reason
        self._update_note()

    def _update_note(self) -> None:
        if first := next(iter(self._errors.items()), None):
            self._notes["items"] = f"{first[0]}: {first[1]}; retried every {RETRY_SECONDS:g} s"
        elif self._replaying:
            self._notes["items"] = "items that were put before this start or bundle are being embedded"
        else:
            self._notes.pop("items", None)

    def _merge(self, bundle: ServableBundle) -> None:
        """Merge the indexes of a bundle in a daemon thread, unless one is running.

        Building an index can take minutes, and the process may end before it is done.
        """
        if self._merge_thread is None or not self._merge_thread.is_alive():
            self._merge_thread = Thread(
                target=_run_merge, args=(self._merge_indexes, bundle), name="merge", daemon=True
            )
            self._merge_thread.start()

    def _sweep_once(self) -> None:
        """Delete unused media once after a start.

        Called when all puts are added, because the bundle may show an old image of an item until then.
        """
        sweep, self._sweep = self._sweep, None
        if sweep is not None:
            Thread(target=_run_sweep, args=(sweep,), name="sweep", daemon=True).start()

    def _has_item(self, item_id: str) -> bool:
        if status := self._statuses.get(item_id):
            return status.put is not None
        return self.snapshot is not None and item_id in self.snapshot.bundle.catalog.ids

    def _settled_status(self, item_id: str, status: _ItemStatus) -> Status:
        """Status of an item that is not waiting.

        failed: the snapshot lacks the item, or a part failed and the item has no content vector; live otherwise.
        """
        if self.snapshot is None or (row := self.snapshot.bundle.catalog.ids.row(item_id)) < 0:
            return "failed"
        return "failed" if status.failed and not self.snapshot.bundle.catalog.has_content[row] else "live"

    def _wake_loop(self) -> None:
        """Wake `run`, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, so `run` has ended
                self._loop.call_soon_threadsafe(self._wake.set)


def _is_hidden(status: _ItemStatus, now: int) -> bool:
    """Whether an item must be hidden at once: deleted, not available, or published after `now` (µs)."""
    if status.put is None or status.put.fields.get(AVAILABLE) is False:
        return True
    published = status.put.fields.get(PUBLISHED)
    return published is not None and parse_instant(published) > now


def _run_sweep(sweep: Callable[[], int]) -> None:
    """Run the sweep and log its result."""
    try:
        if deleted := sweep():
            logger.info("deleted %d media files that no item uses", deleted)
    except LogError as error:  # unused files only take disk space; the next start tries again
        logger.warning("%s", error)


def _run_merge(merge: Callable[[ServableBundle], None], bundle: ServableBundle) -> None:
    """Run the merge; log an error instead of raising it."""
    try:
        merge(bundle)
    except Exception:  # search still finds items that are not merged into the index
        logger.exception("the merge of the index failed")
