"""Pool of encoders for search queries and for new items, with limits on encoding and on request bodies.

All requests share the pool. A local encoder encodes one query at a time, in a thread; a remote one up to MAX_REMOTE.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import TypeVar

import polars as pl
from fastapi import Request

from features.content.encoder_config import TEXT_CHANNEL, EncoderConfig, open_encoders
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Limits, Modality, Text
from features.content.spaces import Embedded, Encoder
from features.errors import RecsysError
from recsys.content.content_space import ContentSpace
from recsys.content.item_encoding import ItemVectors, embed_items
from recsys.content.query_encoding import EncoderSetup, QueryEncoder
from serving.errors import ApiError
from serving.schemas.body import MAX_BODY_BYTES, bounded_body
from serving.servable import ServableBundle
from serving.settings import ServeSettings
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot

logger = logging.getLogger("recsys.serving")

MAX_LARGE_BODIES = 4
"""Largest number of bodies above MAX_BODY_BYTES in memory at once."""

BODY_SECONDS = 60.0
"""Seconds for a body to arrive: a slow sender would keep the place of other requests."""

FILE_SECONDS = 10.0
"""Seconds to fetch and decode one file of a query. `recsys embed` allows more."""

CLOSE_SECONDS = 5.0
"""Seconds that the end of the service waits for a local encoding, or for a model that is being loaded."""

MAX_REMOTE = 8
"""Largest number of queries that a remote encoder encodes at once; they use no local core."""

ITEMS_PER_TURN = 4
"""Items encoded in one turn. A search waits for at most one turn."""

T = TypeVar("T")

OpenEncoders = Callable[[EncoderConfig, DecoderPool, Limits, Path], dict[str, Encoder]]
"""Encoder configuration, decoders, limits of media and folder of models -> encoders by channel."""


class EncoderPool:
    """Encodes queries and new items. Encoders are opened on first use and kept while bundles have the same encoder
    setup."""

    def __init__(self, settings: ServeSettings, open_: OpenEncoders = open_encoders) -> None:
        self._settings = settings
        self._open = open_
        self._decoders = DecoderPool(seconds=FILE_SECONDS)
        self._opening = Lock()
        self._opened: tuple[EncoderSetup, Mapping[str, Encoder]] | None = None
        # one at a time: tokenizers are not thread-safe, and encoding a query takes a whole core
        self._local = asyncio.Semaphore(1)
        self._remote = asyncio.Semaphore(MAX_REMOTE)
        self._large_bodies = asyncio.Semaphore(MAX_LARGE_BODIES)
        self.encodes = False
        self.waiting = 0
        """Queries and bodies that wait for their turn."""

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a search or an item. At most MAX_LARGE_BODIES large ones are in memory at once.

        Raises ApiError 408 when it arrives too slowly, 413 when it is too large, 503 when too many are in memory.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) <= MAX_BODY_BYTES:
            yield await self._read_body(request)
            return
        await self._acquire(self._large_bodies)
        try:
            yield await self._read_body(request)
        finally:
            self._large_bodies.release()

    async def embed(self, snapshot: ServingSnapshot, content: Content) -> Embedded:
        """The query as a vector (1, D) of the bundle's content space. Waits for a turn.

        Raises ApiError 503 when no turn is free within `search_wait`, 504 when encoding exceeds `search_seconds`.
        """
        encoding, space = encoding_of(snapshot.bundle)
        turn = self._remote if encoding.remote else self._local
        await self._acquire(turn)
        work = run_in_thread(lambda: QueryEncoder(space, self._encoders(encoding)).embed(content), turn)
        try:
            async with asyncio.timeout(self._settings.search_seconds):
                return await asyncio.shield(work)
        except TimeoutError:
            raise ApiError(
                "slow",
                f"not encoded within {self._settings.search_seconds:g} s; try again in a moment",
                "",
            ) from None

    async def embed_items(self, bundle: ServableBundle, items: pl.DataFrame) -> ItemVectors:
        """Vectors of checked items by the bundle's encoders; no channels when the bundle has no content space.

        Encodes ITEMS_PER_TURN items in a turn, so that searches run in between.
        """
        if bundle.content is None:
            return ItemVectors({}, [[] for _ in range(len(items))])
        encoding, space = encoding_of(bundle)
        turn, parts = self._remote if encoding.remote else self._local, []
        for batch in items.iter_slices(ITEMS_PER_TURN):
            await turn.acquire()
            work = partial(self._embed_items, encoding, space, batch, Path(bundle.data.path))
            parts.append(await asyncio.shield(run_in_thread(work, turn)))
        return ItemVectors.together(parts)

    async def keep_ready(self, service: ServiceState) -> None:
        """Load the text encoder of each bundle when it is first served, until cancelled."""
        ready = ""
        while True:
            if (snapshot := service.snapshot) is not None and snapshot.bundle.fingerprint != ready:
                ready = snapshot.bundle.fingerprint
                await self.prepare(snapshot)
            await asyncio.sleep(self._settings.follow_seconds)

    async def close(self) -> None:
        """Stop the decoder workers, and wait CLOSE_SECONDS for the local encoding that is running.

        `encodes` says then whether it still runs. A thread inside a model must not outlive the interpreter: the
        process ends without it (os._exit).
        """
        await asyncio.to_thread(self._decoders.close)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._local.acquire()
        except TimeoutError:
            self.encodes = True

    async def prepare(self, snapshot: ServingSnapshot) -> None:
        """Load the text encoder of a snapshot's bundle and encode one word with it. Logs errors."""
        if snapshot.bundle.content is None:
            return
        try:
            encoding, _ = encoding_of(snapshot.bundle)
            await self._local.acquire()
            await asyncio.shield(run_in_thread(lambda: self._warm(encoding), self._local))
        except (ApiError, RecsysError) as error:
            logger.warning("search is not available: %s", error)
        except Exception:  # no request waits for this task; a search reports the error
            logger.exception("the text encoder could not be loaded")

    async def _read_body(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await bounded_body(request, self._settings.search_bytes)
        except TimeoutError:
            raise ApiError("slow_body", f"the body did not arrive within {BODY_SECONDS:g} s", "body") from None

    async def _acquire(self, semaphore: asyncio.Semaphore) -> None:
        """Acquire the semaphore. Raises ApiError 503 after `search_wait` seconds."""
        self.waiting += 1
        try:
            async with asyncio.timeout(self._settings.search_wait):
                await semaphore.acquire()
        except TimeoutError:
            message = "too many searches at once; try again in a moment"
            raise ApiError("busy", message, "", {"Retry-After": "1"}) from None
        finally:
            self.waiting -= 1

    def _encoders(self, encoding: EncoderSetup) -> Mapping[str, Encoder]:
        with self._opening:
            if self._opened is None or self._opened[0] != encoding:
                encoders = self._open(encoding.config, self._decoders, encoding.limits, encoding.models)
                self._opened = encoding, encoders
            return self._opened[1]

    def _embed_items(
        self, encoding: EncoderSetup, space: ContentSpace, items: pl.DataFrame, root: Path
    ) -> ItemVectors:
        return embed_items(space, self._encoders(encoding), items, root)

    def _warm(self, encoding: EncoderSetup) -> None:
        if (encoder := self._encoders(encoding).get(TEXT_CHANNEL)) is not None:
            encoder.encode([Content.of(Text("ready"))], task="query")


def run_in_thread(work: Callable[[], T], turn: asyncio.Semaphore) -> "asyncio.Future[T]":
    """Run work in a new daemon thread. Returns a future of its result.

    turn: an acquired semaphore. It is released when the work ends, even if the caller has stopped waiting. The
    process does not wait for the thread when it exits.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        Thread(target=run, name="search", daemon=True).start()
    except RuntimeError as error:  # no more threads can be started
        future.set_exception(error)
    done = asyncio.wrap_future(future)
    done.add_done_callback(lambda _: turn.release())
    return done


def encoding_of(bundle: ServableBundle) -> tuple[EncoderSetup, ContentSpace]:
    """The encoder setup and the content space of a bundle. Raises ApiError 503 when it has none."""
    encoding = None if bundle.content is None else EncoderSetup.of(bundle.manifest)
    if encoding is None or bundle.content is None:
        raise ApiError("no_content", "the served bundle has no content space: train with an encoder", "bundle")
    return encoding, bundle.content


def query_modalities(bundle: ServableBundle) -> tuple[Modality, ...]:
    """What a search can read: text, image, audio, video; empty when the bundle cannot be searched."""
    try:
        encoding, space = encoding_of(bundle)
    except (ApiError, RecsysError):
        return ()
    return encoding.modalities(space.channels)
