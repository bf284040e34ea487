"""Vectors of items that a bundle lacks: of those that are put, and of those that a request describes.

The vectors of puts are shared by the services on one log: each content is embedded by one of them, once.

<log>/vectors/<SHA-256>.npz    the vectors of one content by one encoder setup; written by the service that embedded
                               it, read by the others and after a restart
<log>/vectors/lock             held by the service that is embedding

The files are a cache: whichever is missing is computed again. Those of a put of which a part could not be read are
not kept, because another service may be able to read it.
"""

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from features.content.embed import CONTENT_COLUMNS
from features.content.spaces import Embedded, SpaceKey
from features.errors import describe_os_error
from features.files import put_file
from features.log.records import ItemPut
from features.tables.read import check_item_puts
from recsys.content.item_encoding import ItemVectors
from serving.servable import ServableBundle
from serving.state.catalog_updater import Upsert
from serving.state.encoder_pool import ITEMS_PER_TURN, encoding_of

logger = logging.getLogger("recsys.serving")

FOLDER = "vectors"

KEPT_SECONDS = 30 * 86_400.0
"""Seconds after which a file is deleted. Bundles that were trained since then contain the item."""

WAIT_SECONDS = 60.0
"""Seconds to wait for another service that is embedding. A stopped one must not hold up all others."""

POLL_SECONDS = 0.02

Compute = Callable[[ServableBundle, pl.DataFrame], Awaitable[ItemVectors]]
"""A bundle and m checked items -> their vectors by its encoders."""


class DescribedItems:
    """Places items in a bundle by what a request says of them, for one answer. No other request finds them.

    embed: their vectors; place: adds them to a bundle without its indexes; seconds: for both.
    """

    def __init__(self, log: Path, embed: Compute, place: Upsert, seconds: float) -> None:
        """log: folder of the event log."""
        self._log, self._embed, self._place, self._seconds = log, embed, place, seconds

    async def add(
        self, bundle: ServableBundle, fields: Mapping[str, Mapping[str, Any]], now: int
    ) -> tuple[ServableBundle, set[str], list[str]]:
        """The bundle with the items, those whose content could be read, and the components that failed.

        fields: item -> what the request says of it, as in the log; now: µs.
        """
        puts = [ItemPut(item_id=item, timestamp=now, fields=dict(of)) for item, of in fields.items()]
        try:
            async with asyncio.timeout(self._seconds):
                items = (await asyncio.to_thread(check_item_puts, puts, self._log, bundle.data)).kept
                vectors = await self._embed(bundle, items)
                placed = await asyncio.to_thread(self._place, bundle, items, vectors.channels)
        except Exception as error:  # an encoder that fails must not fail the request
            logger.warning("%d described items were not placed: %s", len(puts), str(error) or repr(error))
            return bundle, set(), ["encoder"]
        has_content = placed.catalog.has_content[placed.catalog.ids.rows([*fields])]
        return placed, {item for item, has in zip(fields, has_content.tolist(), strict=True) if has}, []


class SharedVectors:
    """Embeds items that are put, unless another service on the log has done so."""

    def __init__(self, log: Path, compute: Compute) -> None:
        """log: folder of the event log."""
        self._folder, self._compute = log / FOLDER, compute
        self._swept = False

    async def embed(self, bundle: ServableBundle, items: pl.DataFrame, puts: Sequence[ItemPut]) -> ItemVectors:
        """The vectors of m checked items; puts: the put of each."""
        if bundle.content is None or not len(items):
            return await self._compute(bundle, items)
        if not self._swept:
            self._swept = True
            await asyncio.to_thread(self._sweep)
        setup = _setup(bundle)
        starts = range(0, len(items), ITEMS_PER_TURN)
        parts = [
            await self._turn(bundle, items.slice(start, ITEMS_PER_TURN), puts[start : start + ITEMS_PER_TURN], setup)
            for start in starts
        ]
        return ItemVectors.together(parts)

    async def _turn(
        self, bundle: ServableBundle, items: pl.DataFrame, puts: Sequence[ItemPut], setup: bytes
    ) -> ItemVectors:
        """The vectors of a few items: those that are there, then the others."""
        names = [hashlib.sha256(setup + _content(put)).hexdigest() for put in puts]
        found = await asyncio.to_thread(self._read, names, bundle)
        if None in found:
            async with self._lock():
                found = await asyncio.to_thread(self._read, names, bundle)
                if missing := [i for i, vectors in enumerate(found) if vectors is None]:
                    computed = await self._compute(bundle, items[missing])
                    for i, vectors in zip(missing, computed.apart(), strict=True):
                        found[i] = vectors
                    await asyncio.to_thread(self._write, {names[i]: found[i] for i in missing})
        return ItemVectors.together([vectors for vectors in found if vectors is not None])

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        """Held while items are embedded; without it after WAIT_SECONDS, and where the folder cannot be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            logger.warning("vectors of items are not shared with other services: %s", describe_os_error(error))
            yield
            return
        try:
            until = time.monotonic() + WAIT_SECONDS
            while not _locked(descriptor) and time.monotonic() < until:
                await asyncio.sleep(POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _read(self, names: Sequence[str], bundle: ServableBundle) -> list[ItemVectors | None]:
        """The vectors in these files; None for one that is missing, damaged or of encoders that have changed."""
        return [self._read_one(name, bundle) for name in names]

    def _read_one(self, name: str, bundle: ServableBundle) -> ItemVectors | None:
        channels = {}
        try:
            data = BytesIO((self._folder / f"{name}.npz").read_bytes())
            with np.load(data, allow_pickle=False) as file:
                for channel, facts in json.loads(str(file["channels"])).items():
                    space = SpaceKey(**facts["space"])
                    if bundle.content is None or not bundle.content.accepts(channel, space):
                        return None
                    channels[channel] = Embedded(space, file[f"vector-{channel}"], np.array([facts["present"]]))
        except Exception as error:  # numpy and its zip reader raise many classes; the vectors can be computed
            if not isinstance(error, FileNotFoundError):
                logger.warning("%s cannot be read and is computed again", self._folder / f"{name}.npz")
            return None
        return ItemVectors(channels, [[]])

    def _write(self, computed: dict[str, ItemVectors | None]) -> None:
        """Keep the vectors of items without a failure."""
        for name, vectors in computed.items():
            if vectors is None or vectors.failed[0]:
                continue
            channels = {
                channel: {"space": asdict(embedded.space), "present": bool(embedded.present[0])}
                for channel, embedded in vectors.channels.items()
            }
            arrays = {f"vector-{channel}": embedded.vectors for channel, embedded in vectors.channels.items()}
            try:
                put_file(self._folder / f"{name}.npz", partial(_save, json.dumps(channels), arrays))
            except OSError as error:
                logger.warning("vectors of items are not shared with other services: %s", describe_os_error(error))
                return

    def _sweep(self) -> None:
        """Delete old files."""
        try:
            for path in self._folder.glob("*.npz"):
                if path.stat().st_mtime < time.time() - KEPT_SECONDS:
                    path.unlink(missing_ok=True)
        except OSError as error:  # another service may be deleting them; the next start tries again
            logger.info("old vectors of items stay: %s", describe_os_error(error))


def _setup(bundle: ServableBundle) -> bytes:
    """What the vectors of an item depend on besides its put: the encoders of a bundle, and the channels they fill."""
    encoding, space = encoding_of(bundle)
    return f"{encoding.config!r} {encoding.limits!r} {sorted(space.channels)}".encode()


def _content(put: ItemPut) -> bytes:
    """What the encoders read of a put."""
    return orjson.dumps([put.fields.get(name) for name in CONTENT_COLUMNS])


def _save(channels: str, arrays: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, channels=np.array(channels), **arrays)


def _locked(descriptor: int) -> bool:
    """Whether the lock of an open file is held now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
