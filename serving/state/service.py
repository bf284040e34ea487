"""The running service: its log, its store, the bundle it serves now, and the loop that keeps them together."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from features.errors import LogError, RecsysError, StoreError
from features.interactions import now_micros
from features.log.event_log import EventLog
from features.log.records import Event
from features.schema import DataConfig, EventRules
from features.store.base import FeatureStore, Status, UserState, Watermark
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.refresh import catch_up, refresh
from serving.settings import ServeSettings
from serving.state.catalog_updater import CatalogUpdater, Upsert
from serving.state.snapshot import ServableBundle, ServingSnapshot

logger = logging.getLogger("recsys.serving")


class ServiceState:
    """Opened by `start`, ended by `stop`. growth: what is served, with the items put and deleted since.

    load: folder of a bundle -> the bundle, raising BundleError; current: folder of bundles -> the one to serve;
    events: a bundle's data configuration -> its checked events table; upsert: adds items to a bundle; merge: builds
    the indexes of a bundle anew where too many items were added; connect: event rules -> the store.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        load: Callable[[Path], ServableBundle],
        current: Callable[[Path], Path],
        events: Callable[[DataConfig], pl.DataFrame],
        upsert: Upsert,
        merge: Callable[[ServableBundle], None],
        connect: Callable[[EventRules], FeatureStore] | None = None,
        now: Callable[[], int] = now_micros,
    ) -> None:
        self.settings = settings
        self.now = now
        self.behind = False
        """Whether the log has events that a store which did not answer has not got."""
        self._missed = False  # such an event since the store began to catch up
        self.notes: dict[str, str] = {}
        """What is wrong now, by part: bundle, tables, store, items, retriever."""
        self.catalog_updater = CatalogUpdater(settings.log, self.notes, upsert, merge)
        self._load, self._current, self._events, self._connect = load, current, events, connect
        self._server: RedisServer | None = None
        self._log: EventLog | None = None
        self._path: Path | None = None
        self._refused: Path | None = None
        self._stop = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @property
    def live(self) -> ServingSnapshot | None:
        """None until there is a bundle."""
        return self.catalog_updater.live

    @property
    def log(self) -> EventLog:
        """Raises LogError outside of `start` and `stop`."""
        if self._log is None:
            raise LogError("the event log is not open: the service is not running")
        return self._log

    async def start(self) -> None:
        """Open the log, launch or find the store, load the bundle, fill the store, begin to follow."""
        await asyncio.to_thread(self._open)
        await asyncio.to_thread(self.step)
        self._loop = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Finish what has begun, then close everything."""
        self._stop.set()
        if self._loop:
            await self._loop
        await asyncio.to_thread(self._close)

    def _open(self) -> None:
        self._log = EventLog(self.settings.log)
        for torn in self._log.torn:
            logger.warning("event log: %d half-written bytes of %s were set aside", torn.length, torn.segment)
        self.catalog_updater.replay(self.now())
        if self._connect is None:
            if self.settings.redis_url is None:
                self._server = RedisServer()
            url = self._server.url if self._server else str(self.settings.redis_url)
            self._connect = lambda rules: RedisStore(
                url, rules, timeout=self.settings.store_timeout, pause=self.settings.store_pause
            )

    def _close(self) -> None:
        if self._log:
            self._log.close()
        if self.live and isinstance(self.live.store, RedisStore):
            self.live.store.close()
        if self._server:
            self._server.stop()

    async def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), self.settings.follow_seconds)
            except TimeoutError:
                await asyncio.to_thread(self.step)

    def step(self) -> None:
        """Once: serve the current bundle if it is another one, and let the store catch up."""
        try:
            self._follow_bundle()
            self._follow_store()
        except Exception:  # whatever happens here, the service goes on with what it has
            logger.exception("following the bundle and the store failed; trying again")

    def _follow_bundle(self) -> None:
        path = None
        try:
            path = self._current(self.settings.bundles)
            if path == self._path:
                self._refused = None
                self.notes.pop("bundle", None)
            if path in (self._path, self._refused):
                return
            bundle = self._load(path)
            store = self._store_for(bundle)
            live = ServingSnapshot.of(bundle, store, self.now)
            live.popular(live.rows(()), 1, {})
            live.recommend(live.states(self._example(live), self.now()), live.rows(()), 20, {})  # warm up
        except RecsysError as error:
            if self.notes.get("bundle") != str(error):
                logger.error("bundle refused: %s", error)
            self._refuse(path, str(error))
            return
        except Exception as error:  # a bundle whose models fail must not replace one whose models work
            logger.exception("bundle %s failed its first request", path)
            self._refuse(path, f"{path} failed its first request: {error}")
            return
        self.behind = True  # what was pushed to the store of the previous rules meanwhile
        self.catalog_updater.serve(live)
        self._path, self._refused = path, None
        self.notes.pop("bundle", None)
        self.notes.pop("retriever", None)
        if bundle.note:
            self.notes["retriever"] = bundle.note
        logger.info("serving bundle %s from %s", bundle.fingerprint, path)
        trained_on = bundle.data.log
        if trained_on is None or Path(trained_on).resolve() != self.settings.log.resolve():
            logger.warning(
                "events accepted here will not be trained on: they go to %s, and data.log of bundle %s is %s; "
                "name the same folder in both",
                self.settings.log,
                bundle.fingerprint,
                trained_on,
            )

    def _refuse(self, path: Path | None, why: str) -> None:
        self._refused = path
        self.notes["bundle"] = why

    def _example(self, live: ServingSnapshot) -> UserState:
        """A user with a history, so that the first real one does not pay for the models' first call."""
        positive = live.bundle.data.events.positive
        if not positive or not len(live.bundle.popular):
            return UserState.unknown("")
        event, least = next(iter(positive.items()))
        item = live.bundle.catalog.ids.ids[int(live.bundle.popular[0])]
        times, values = np.array([self.now() - 1], dtype=np.int64), np.array([least or 1.0])
        return UserState("", (item,), (event,), times, values, frozenset(), Status.PRESENT)

    def _store_for(self, bundle: ServableBundle) -> FeatureStore:
        """The store under the bundle's rules, filled; a store that is away is filled when it is back."""
        rules = bundle.data.events
        if self._connect is None:
            raise StoreError("the feature store is not connected: the service is not running")
        store = self.live.store.with_rules(rules) if self.live else self._connect(rules)
        try:
            self._refresh(store, bundle.data)
        except StoreError as error:
            self.notes["store"] = str(error)
            logger.warning("the store is not filled yet: %s", error)
        return store

    def _refresh(self, store: FeatureStore, data: DataConfig) -> None:
        store.ping()  # tables are not read for a store that is away
        try:
            tables = self._events(data)
            self.notes.pop("tables", None)
        except RecsysError as error:
            # the log still holds what happened here, and the next bundle or start tries the tables again
            logger.error("the events table cannot be read, histories before this service are missing: %s", error)
            self.notes["tables"] = str(error)
            mark = store.watermark()
            store.move_watermark(mark or Watermark({}, "unreadable"))
            catch_up(store, self.settings.log)
            return
        report = refresh(store, tables, self.settings.log)
        logger.info("store filled: %s", report)

    def _follow_store(self) -> None:
        if self.live is None:
            return
        store = self.live.store
        try:
            if store.watermark() is None:
                self._refresh(store, self.live.bundle.data)
            if self.behind:
                self._missed = False
                catch_up(store, self.settings.log)
                self.behind = self._missed
            self.notes.pop("store", None)
        except StoreError as error:
            self._behind(error)

    def push(self, events: list[Event]) -> list[str]:
        """Tell the store of events that are in the log; the reasons why it could not be told."""
        live = self.live
        if live is None:
            return ["bundle"]
        try:
            live.store.push(events)
        except StoreError as error:
            self._behind(error)
            return ["store"]
        return []

    def _behind(self, error: StoreError) -> None:
        self._missed = self.behind = True
        self.notes["store"] = str(error)

    def read_user(self, live: ServingSnapshot, user_id: str) -> tuple[UserState, list[str]]:
        """What is known of a user, and the reasons why it may not be all."""
        try:
            state = live.store.read_users([user_id])[0]
        except StoreError as error:
            self.notes["store"] = str(error)
            return UserState.unknown(user_id), ["store"]
        return state, ["stale"] if self.behind or state.status is Status.STALE else []
