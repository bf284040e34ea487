"""Encoders of queries and new items, shared by all requests."""

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
from features.content.parts import Content, Limits, Text
from features.content.spaces import Embedded, Encoder
from features.errors import RecsysError
from recsys.content.content_space import ContentSpace
from recsys.content.item_encoding import ItemVectors, embed_items
from recsys.content.query_encoding import EncoderSetup, QueryEncoder
from serving.errors import ApiError
from serving.schemas import MAX_BODY_BYTES, bounded_body
from serving.settings import ServeSettings
from serving.state.service import ServiceState
from serving.state.snapshot import ServableBundle, ServingSnapshot

logger = logging.getLogger("recsys.serving")


MAX_LARGE_BODIES = 4
"""Bodies larger than MAX_BODY_BYTES that are held at once."""


BODY_SECONDS = 60.0
"""In which a body has to arrive: a slow sender would keep the others' place."""


FILE_SECONDS = 10.0
"""In which one file of a query has to be fetched and decoded: longer ones are for `recsys embed`."""


MAX_REMOTE = 8
"""Queries that another machine encodes at once: they wait for it, and take no core here."""


ITEMS_PER_TURN = 4
"""Items put that are encoded in one turn: a search waits for no more of them."""


T = TypeVar("T")


OpenEncoders = Callable[[EncoderConfig, DecoderPool, Limits, Path], dict[str, Encoder]]


class EncoderPool:
    """Where queries and items put are encoded. Encoders are opened when they are first needed, and kept from bundle
    to bundle as long as these were encoded alike."""

    def __init__(self, settings: ServeSettings, open_: OpenEncoders = open_encoders) -> None:
        self._settings = settings
        self._open = open_
        self._decoders = DecoderPool(seconds=FILE_SECONDS)
        self._opening = Lock()
        self._opened: tuple[EncoderSetup, Mapping[str, Encoder]] | None = None
        # one at a time: tokenizers cannot be shared by threads, and a query takes a core while it is encoded
        self._here = asyncio.Semaphore(1)
        self._remote = asyncio.Semaphore(MAX_REMOTE)
        self._large = asyncio.Semaphore(MAX_LARGE_BODIES)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body; few large ones are held at once. Raises ApiError 408, 413 and 503."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) <= MAX_BODY_BYTES:
            yield await self._arrived(request)
            return
        await self._enter(self._large)
        try:
            yield await self._arrived(request)
        finally:
            self._large.release()

    async def embed(self, live: ServingSnapshot, content: Content) -> Embedded:
        """The query in the space of the bundle, when its turn has come.

        Raises ApiError 503 when others take too long, 504 when it does itself.
        """
        encoding, space = encoding_of(live.bundle)
        turn = self._remote if encoding.remote else self._here
        await self._enter(turn)
        work = run_in_thread(lambda: QueryEncoder(space, self._encoders(encoding)).embed(content), turn)
        try:
            async with asyncio.timeout(self._settings.search_seconds):
                return await asyncio.shield(work)
        except TimeoutError:
            raise ApiError(
                504, "slow", f"not encoded within {self._settings.search_seconds:g} s; try again in a moment", ""
            ) from None

    async def embed_items(self, bundle: ServableBundle, items: pl.DataFrame) -> ItemVectors:
        """Checked items by the bundle's encoders, a few at a turn between searches; no channels where it has none."""
        if bundle.content is None:
            return ItemVectors({}, [[] for _ in range(len(items))])
        encoding, space = encoding_of(bundle)
        turn, parts = self._remote if encoding.remote else self._here, []
        for piece in items.iter_slices(ITEMS_PER_TURN):
            await turn.acquire()
            work = partial(self._embed_items, encoding, space, piece)
            parts.append(await asyncio.shield(run_in_thread(work, turn)))
        return ItemVectors.together(parts)

    async def keep_ready(self, service: ServiceState) -> None:
        """Load what the queries of each bundle need, as it comes, until cancelled."""
        ready = ""
        while True:
            if (live := service.live) is not None and live.bundle.fingerprint != ready:
                ready = live.bundle.fingerprint
                await self._prepare(live)
            await asyncio.sleep(self._settings.follow_seconds)

    async def close(self) -> None:
        """End the workers that decode, and what is being encoded on this machine."""
        await asyncio.to_thread(self._decoders.close)
        await self._here.acquire()  # a thread inside a model must not outlive the interpreter

    async def _prepare(self, live: ServingSnapshot) -> None:
        """An encoder that reads words reads one."""
        if live.bundle.content is None:
            return
        try:
            encoding, _ = encoding_of(live.bundle)
            await self._here.acquire()
            await asyncio.shield(run_in_thread(lambda: self._warm(encoding), self._here))
        except (ApiError, RecsysError) as error:
            logger.warning("search will not work: %s", error)
        except Exception:  # nobody waits for this, and whoever searches will be told
            logger.exception("what reads queries could not be loaded")

    async def _arrived(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await bounded_body(request, self._settings.search_bytes)
        except TimeoutError:
            raise ApiError(408, "slow_body", f"the body did not arrive within {BODY_SECONDS:g} s", "body") from None

    async def _enter(self, gate: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self._settings.search_wait):
                await gate.acquire()
        except TimeoutError:
            raise ApiError(503, "busy", "too many searches at once; try again in a moment", "") from None

    def _encoders(self, encoding: EncoderSetup) -> Mapping[str, Encoder]:
        with self._opening:
            if self._opened is None or self._opened[0] != encoding:
                made = self._open(encoding.config, self._decoders, encoding.limits, encoding.models)
                self._opened = encoding, made
            return self._opened[1]

    def _embed_items(self, encoding: EncoderSetup, space: ContentSpace, items: pl.DataFrame) -> ItemVectors:
        return embed_items(space, self._encoders(encoding), items)

    def _warm(self, encoding: EncoderSetup) -> None:
        if (words := self._encoders(encoding).get(TEXT_CHANNEL)) is not None:
            words.encode([Content.of(Text("ready"))], task="query")


def run_in_thread(work: Callable[[], T], turn: asyncio.Semaphore) -> "asyncio.Future[T]":
    """The work in a thread of its own, whose turn ends when the work does, though nobody may wait for it by then.

    The process ends without it.
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
    except RuntimeError as error:  # there are too many
        future.set_exception(error)
    done = asyncio.wrap_future(future)
    done.add_done_callback(lambda _: turn.release())
    return done


def encoding_of(bundle: ServableBundle) -> tuple[EncoderSetup, ContentSpace]:
    """How a bundle's contents were encoded, and where they lie. Raises ApiError 503 where it has none."""
    encoding = None if bundle.content is None else EncoderSetup.of(bundle.manifest)
    if encoding is None or bundle.content is None:
        raise ApiError(503, "no_content", "the served bundle knows of no contents: train with an encoder", "bundle")
    return encoding, bundle.content
