"""What is served, and the items put and deleted since its bundle was made: hidden at once, or taken in meanwhile."""

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

import numpy as np
import polars as pl

from features.arrays import Bools
from features.content.encoder_config import TEXT_CHANNEL, TITLE_CHANNEL
from features.content.spaces import Embedded
from features.errors import LogError
from features.ids import IdMap
from features.log.event_log import EventLog, item_changes
from features.log.item_changes import ItemChanges, media_in_use, sweep_media
from features.log.records import ItemGone, ItemPut
from features.schema import AUDIO, AVAILABLE, IMAGE, ITEM, PUBLISHED, VIDEO
from features.tables.read import check_item_puts
from recsys.content.item_encoding import ItemVectors
from serving.schemas import micros
from serving.state.snapshot import ServableBundle, ServingSnapshot

logger = logging.getLogger("recsys.serving")

BATCH = 64
"""Items taken in at once, the newest first: what is put next waits for no more."""

RETRY_SECONDS = 30.0
"""After which items that could not be taken in are tried again: a model or a network may be back."""

Status = Literal["live", "embedding", "failed"]
Embed = Callable[[ServableBundle, pl.DataFrame], Awaitable[ItemVectors]]
"""A bundle and m checked items -> their vectors by its encoders, none where it has no content."""

Upsert = Callable[[ServableBundle, pl.DataFrame, Mapping[str, Embedded]], ServableBundle]
"""A bundle, m checked items, their channels -> the bundle with these items added or replaced."""


@dataclass
class _ItemStatus:
    """One item that was put or deleted. order: of its newest change in the log; put: None where it is deleted;
    paused: not to be tried now; alone: to be tried by itself; failed: (kind of part, reason) of what was not read."""

    order: int
    put: ItemPut | None
    waiting: bool = True
    paused: bool = False
    alone: bool = False
    failed: list[tuple[str, str]] = field(default_factory=list)


class CatalogUpdater:
    """Swaps what is served. One lock guards every change of it and of what is known; searches take none.

    notes: of the service; "items" says what could not be taken in.
    """

    def __init__(
        self, log: Path, notes: dict[str, str], upsert: Upsert, merge: Callable[[ServableBundle], None]
    ) -> None:
        """log: folder of the event log; upsert, merge: see `Service`."""
        self._upsert, self._merge_large = upsert, merge
        self.live: ServingSnapshot | None = None
        self._folder, self._notes = log, notes
        self._known: dict[str, _ItemStatus] = {}
        self._broken: dict[str, str] = {}
        self._orders = count(1)
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._merging: Thread | None = None
        self._recalling = False  # items put before are missing yet
        self._shown: list[tuple[ref[IdMap], ref[Bools]]] = []  # what is served, and what requests still go on in
        self._retry: asyncio.TimerHandle | None = None
        self._sweep: Callable[[], int] | None = None

    def replay(self, now: int) -> None:
        """Read from the log what was put and deleted before this start, which is at `now` (µs). Raises LogError."""
        logged = item_changes(self._folder)
        self._sweep = partial(sweep_media, self._folder, media_in_use(logged, now), now)
        changes = ItemChanges.of_changes(logged)
        self._known = {
            put.item_id: _ItemStatus(at - len(changes.puts), put) for at, put in enumerate(changes.puts.values())
        }
        self._known |= {name: _ItemStatus(0, None, waiting=False) for name in changes.gone}

    def serve(self, live: ServingSnapshot) -> None:
        """Put another bundle in the place of what is served, without what is deleted; what was put is queued anew."""
        with self._lock:
            for name, known in self._known.items():
                known.waiting, known.paused, known.alone, known.failed = known.put is not None, False, False, []
                if _hidden(known, live.now()):
                    live.hide(name)
            self._recalling = any(known.waiting for known in self._known.values())
            self._show(live)
            self._note()
        self._rouse()

    async def accept(self, log: EventLog, change: ItemPut | ItemGone) -> bool:
        """Log a change, then apply it; whether the item was not known before. Raises LogError: nothing changed."""
        order = next(self._orders)  # as in the log: nothing else runs between this and its queue
        await log.append([change])
        put = change if isinstance(change, ItemPut) else None
        with self._lock:
            new = not self._has_item(change.item_id)
            before = self._known.get(change.item_id)
            if before is None or before.order < order:
                self._known[change.item_id] = known = _ItemStatus(order, put, waiting=put is not None)
                if self.live is not None and _hidden(known, self.live.now()):
                    self._hide(change.item_id)
                self._tell(change.item_id)
        self._wake.set()
        return new

    def _show(self, live: ServingSnapshot) -> None:
        self.live = live
        self._shown = [shown for shown in self._shown if shown[1]() is not None]
        self._shown.append((ref(live.bundle.catalog.ids), ref(live.available)))

    def _hide(self, item_id: str) -> None:
        """Also from requests that began before another bundle came, or this one grew."""
        for ids, available in ((one(), other()) for one, other in self._shown):
            if ids is not None and available is not None and (row := ids.row(item_id)) >= 0:
                available[row] = False

    def has_item(self, item_id: str) -> bool:
        """Whether the item was put, or is of the bundle, and was not deleted since."""
        with self._lock:
            return self._has_item(item_id)

    def state(self, item_id: str) -> tuple[ItemPut | None, Status, list[tuple[str, str]]]:
        """What was put last, None where the item is the bundle's own; how far it is, and (part, reason) of what could
        not be read."""
        with self._lock:
            known = self._known.get(item_id)
            if known is None or known.put is None:
                return None, "live", []
            if item_id in self._broken:
                return known.put, "failed", [("item", self._broken[item_id])]
            return known.put, "embedding" if known.waiting else self._reached(item_id, known), known.failed

    async def run(self, embed: Embed) -> None:
        """Take in what is put, as it comes, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            with self._lock:
                live = self.live
                waiting = [known for known in self._known.values() if known.waiting and not known.paused]
                newest = sorted(waiting, key=lambda known: (known.alone, -known.order))
                together = sum(not known.alone for known in newest[:BATCH])
                puts = [known.put for known in newest[: together or 1] if known.put]
                self._recalling &= bool(waiting)
                self._note()
            if live is None or not puts:
                if live is not None and not self._broken:
                    self._swept()
                await self._wake.wait()
                continue
            try:
                await self._grow(live, puts, embed)
            except Exception as error:
                self._postpone(puts, str(error) or repr(error))

    async def _grow(self, live: ServingSnapshot, puts: Sequence[ItemPut], embed: Embed) -> None:
        checked = await asyncio.to_thread(check_item_puts, puts, self._folder, live.bundle.data)
        changed = await asyncio.to_thread(_changed, live.bundle, checked.kept)
        items = checked.kept.filter(changed)
        failed, bundle = dict[str, list[tuple[str, str]]](), live.bundle
        if len(items):
            vectors = await embed(bundle, items)
            failed = dict(zip(items.get_column(ITEM), vectors.failed, strict=True))
            bundle = await asyncio.to_thread(self._upsert, bundle, items, vectors.channels)
        grown = await asyncio.to_thread(live.with_upserts, bundle, items.get_column(ITEM).to_list())
        self._replace(live, grown, puts, failed)
        self._merge(bundle)

    def _replace(
        self,
        live: ServingSnapshot,
        grown: ServingSnapshot,
        puts: Sequence[ItemPut],
        failed: dict[str, list[tuple[str, str]]],
    ) -> None:
        """Serve what has grown, unless another bundle came meanwhile: that one has everything queued again."""
        with self._lock:
            if self.live is not live:
                return
            available = grown.bundle.catalog.available.copy()
            available[: len(live.available)] &= live.available  # with what was hidden until now
            for put in puts:
                row, known = grown.bundle.catalog.ids.row(put.item_id), self._known[put.item_id]
                if known.put is put:
                    known.waiting, known.failed = False, failed.get(put.item_id, [])
                    self._tell(put.item_id)
                    if row >= 0:
                        available[row] = grown.bundle.catalog.available[row]
                elif row >= len(live.available) or (row >= 0 and _hidden(known, live.now())):
                    available[row] = False  # changed again meanwhile
            self._show(replace(grown, available=available))

    def _postpone(self, puts: Sequence[ItemPut], why: str) -> None:
        """Try several again one by one, after what is put meanwhile: one may have kept the others out. One alone
        waits a while. Within an `except`."""
        with self._lock:
            tried = [known for put in puts if (known := self._known[put.item_id]).put is put]
            for known in tried:
                known.alone = True
            if len(puts) > 1 or not tried:
                return
            if self._broken.get(puts[0].item_id) != why:
                logger.exception("item %r could not be taken in", puts[0].item_id)
            tried[0].paused = True
            self._tell(puts[0].item_id, why)
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._again)

    def _again(self) -> None:
        self._retry = None
        with self._lock:
            for known in self._known.values():
                known.paused = False
        self._wake.set()

    def _tell(self, item_id: str, why: str = "") -> None:
        """Note why an item could not be taken in, "" when it could or need not be any more."""
        self._broken.pop(item_id, None)
        if why:
            self._broken[item_id] = why
        self._note()

    def _note(self) -> None:
        if first := next(iter(self._broken.items()), None):
            self._notes["items"] = f"{first[0]}: {first[1]}; tried again every {RETRY_SECONDS:g} s"
        elif self._recalling:
            self._notes["items"] = "items put before this start or bundle are being embedded"
        else:
            self._notes.pop("items", None)

    def _merge(self, bundle: ServableBundle) -> None:
        """Beside what is put next: building an index can take minutes, and the process may end without it."""
        if self._merging is None or not self._merging.is_alive():
            self._merging = Thread(target=_merged, args=(self._merge_large, bundle), name="merge", daemon=True)
            self._merging.start()

    def _swept(self) -> None:
        """Once after a start, when all that was put is taken in: until then the bundle may show what was replaced."""
        sweep, self._sweep = self._sweep, None
        if sweep is not None:
            Thread(target=_delete, args=(sweep,), name="sweep", daemon=True).start()

    def _has_item(self, item_id: str) -> bool:
        if known := self._known.get(item_id):
            return known.put is not None
        return self.live is not None and item_id in self.live.bundle.catalog.ids

    def _reached(self, item_id: str, known: _ItemStatus) -> Status:
        """Live where it is shown; failed where nothing could be read of what there is to read."""
        if self.live is None or (row := self.live.bundle.catalog.ids.row(item_id)) < 0:
            return "failed"
        return "failed" if known.failed and not self.live.bundle.catalog.has_content[row] else "live"

    def _rouse(self) -> None:
        """From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is over: nobody is to be woken
                self._loop.call_soon_threadsafe(self._wake.set)


def _hidden(known: _ItemStatus, now: int) -> bool:
    """Whether it is not to be shown, even before it is taken in: deleted, not available, or published later (µs)."""
    if known.put is None or known.put.fields.get(AVAILABLE) is False:
        return True
    published = known.put.fields.get(PUBLISHED)
    return published is not None and micros(published) > now


def _changed(bundle: ServableBundle, items: pl.DataFrame) -> Bools:
    """(m,): which items the bundle does not have as they were put.

    Also those whose pictures, sounds and videos it knows nothing of, though it does of others': they were not
    embedded yet when it was trained.
    """
    catalog, rows = bundle.catalog, bundle.catalog.ids.rows(items.get_column(ITEM).to_list())
    known = np.flatnonzero(rows >= 0)
    changed = np.ones(len(items), dtype=np.bool_)
    if not len(known):
        return changed
    old = catalog.frame[rows[known]].select(name for name in catalog.frame.columns if name in items.columns)
    new = items[known].select(pl.col(name).cast(kind, strict=False) for name, kind in old.schema.items())
    same = pl.select(pl.all_horizontal(old[name].eq_missing(new[name]) for name in old.columns)).to_series()
    changed[known] = ~same.to_numpy()
    media = items.select(pl.any_horizontal(pl.col(IMAGE, AUDIO, VIDEO).is_not_null())).to_series().to_numpy()
    channels = {} if bundle.content is None else bundle.content.channels
    if others := [channel for name, channel in channels.items() if name not in (TEXT_CHANNEL, TITLE_CHANNEL)]:
        changed[known] |= media[known] & ~np.any([channel.present[rows[known]] for channel in others], axis=0)
    return changed


def _delete(sweep: Callable[[], int]) -> None:
    try:
        if deleted := sweep():
            logger.info("%d pictures, sounds and videos that no item has any more were deleted", deleted)
    except LogError as error:  # they take room, and nothing else: the next start tries again
        logger.warning("%s", error)


def _merged(merge: Callable[[ServableBundle], None], bundle: ServableBundle) -> None:
    try:
        merge(bundle)
    except Exception:  # what is beside the index is found all the same
        logger.exception("the index could not be built anew")
