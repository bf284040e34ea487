"""State of the running service: event log, feature store and served bundle, and the loop that keeps them in step."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from features.errors import LogError, RecsysError, StoreError
from features.instants import now_micros
from features.log.corrections import CorrectionFeed
from features.log.erasure.erased_users import ERASED_FILE
from features.log.event_log import EventLog
from features.log.item_changes import media_fault
from features.log.records import Correction, Event, ItemDeleted, ItemPut
from features.schema import EventRules
from features.store.base import FeatureStore
from features.store.redis import RedisStore, check_server
from features.store.redis_server import RedisServer
from recsys.bundle.formats import MANIFEST
from recsys.bundle.registry import find_bundle
from serving.access.keys import ApiKeys
from serving.servable import ServableBundle
from serving.settings import ServeSettings
from serving.shop.experiments import Choice, ShopExperiments
from serving.shop.rules import ShopRules, file_version
from serving.state.arms import MISSED, Arm
from serving.state.bundles.beside import VariantBundles
from serving.state.bundles.loader import BundleLoader, same_problem
from serving.state.catalog_updater import CatalogUpdater, Upsert
from serving.state.log_claim import claim
from serving.state.log_keeper import LogKeeper
from serving.state.snapshot import ServingSnapshot
from serving.state.store.filler import Filler, FillProcess
from serving.state.store.keeper import StoreKeeper, log_filling
from serving.state.thread_pool import Turns

logger = logging.getLogger("recsys.serving")

FILL_SECONDS = 600.0
"""Longest time that a start waits for its private store to be filled."""


class ServiceState:
    """State of the service, opened by `start` and closed by `stop`.

    load: folder of a bundle -> the bundle, raises BundleError; current: folder of bundles -> the folder of the bundle
    to serve; find: the same of a bundle by its name; upsert: adds items to a bundle; merge: rebuilds the indexes of a
    bundle to which many items were added; connect: event rules -> the store; private_url: of a private store that
    the parent process has started for all its workers; filler: fills the store; now: returns the time (µs).
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        load: Callable[[Path], ServableBundle],
        current: Callable[[Path], Path],
        find: Callable[[Path, str], Path] = find_bundle,
        upsert: Upsert,
        merge: Callable[[ServableBundle], None],
        connect: Callable[[EventRules], FeatureStore] | None = None,
        private_url: str | None = None,
        filler: Filler | None = None,
        now: Callable[[], int] = now_micros,
    ) -> None:
        self.settings = settings
        self.now = now
        self.notes: dict[str, str] = {}
        """Current problems by component: bundle, tables, store, items, media, retriever, rules,
        experiments."""
        self.keys = ApiKeys(settings.keys, now)
        self.unlogged = 0
        """Exposures since the start that the log could not take."""
        self.turns = Turns(settings.threads, settings.queue, settings.deadline)
        """Which requests compute."""
        self.catalog_updater = CatalogUpdater(settings.log, self.notes, upsert, merge)
        self.rules = ShopRules(settings.rules)
        self.experiments = ShopExperiments(settings.experiments, self.rules)
        self.corrections = CorrectionFeed(settings.log)
        self.log_keeper = LogKeeper(settings.log, settings.log_limits)
        self.keeper = StoreKeeper(
            settings.log, self.corrections, self.notes, filler or FillProcess(settings.log, log_filling)
        )
        self.variants = VariantBundles(settings, load=load, find=find, upsert=upsert, merge=merge, now=now)
        self._loader = BundleLoader(load, now)
        self._current, self._connect, self._private_url = current, connect, private_url
        self._server: RedisServer | None = None
        self._claim = -1
        self._log: EventLog | None = None
        self._path: Path | None = None
        self._manifest_bytes = -1
        self._erased: object = None
        self._stop = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @property
    def snapshot(self) -> ServingSnapshot | None:
        """The snapshot that is served; None until a bundle is loaded."""
        return self.catalog_updater.snapshot

    @property
    def _private(self) -> bool:
        """Whether the store is of this service alone: nobody else fills it."""
        return self._server is not None or self._private_url is not None

    @property
    def log(self) -> EventLog:
        """The event log. Raises LogError before `start`."""
        if self._log is None:
            raise LogError("the event log is not open: the service is not running")
        return self._log

    @property
    def problems(self) -> dict[str, str]:
        """`notes` with those of the log and of the keys."""
        log = "; ".join(text for text in (self.log.fault, self.log.loss) if text)
        more = {"log": log, "keys": self.keys.fault}
        return {**self.notes, **{component: problem for component, problem in more.items() if problem}}

    async def start(self) -> None:
        """Open the log, connect to the store (or start one), load the bundle, and start the loop.

        A private store is filled before this returns; a shared one may be filled later.
        """
        if self._log is None:
            await asyncio.to_thread(self.open)
        await asyncio.to_thread(self.step)
        until = time.monotonic() + FILL_SECONDS
        while self._private and self.keeper.filler.running and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self.step)
        self._loop = asyncio.create_task(self._poll_loop())

    async def stop(self) -> None:
        """Wait for the running step of the loop, then close everything."""
        self._stop.set()
        if self._loop:
            await self._loop
        await asyncio.to_thread(self._close)

    def open(self) -> None:
        """Open the log and connect to the store, or start one; before the server starts, its errors can be shown.

        Raises LogError, StoreError, DependencyError, and ConfigError for a server that cannot hold the store, or for
        a private store beside another service.
        """
        self._log = EventLog(self.settings.log)
        for torn in self._log.torn:
            logger.warning(
                "event log: %d half-written bytes of %s were moved to a .torn file", torn.length, torn.segment
            )
        self.catalog_updater.replay(self.now())
        self._erased = file_version(self.settings.log / ERASED_FILE)
        self.corrections.read()
        if self._connect is None:
            if self._private_url is None:  # else the parent has claimed the log
                self._claim = claim(self.settings.log, private=self.settings.redis_url is None)
                if self.settings.redis_url is None:
                    self._server = RedisServer()
            url = self._server.url if self._server else self._private_url or str(self.settings.redis_url)
            self._connect = lambda rules: RedisStore(
                url, rules, timeout=self.settings.store_timeout, pause=self.settings.store_pause
            )
            if not self._private:
                with suppress(StoreError):  # a server that is away now may answer later
                    check_server(url)

    def _close(self) -> None:
        self.log_keeper.stop()
        self.keeper.filler.stop()
        if self._log:
            self._log.close()
        self.variants.close()
        if self.snapshot:
            self.snapshot.bundle.close()
            if isinstance(self.snapshot.store, RedisStore):
                self.snapshot.store.close()
        if self._server:
            self._server.stop()
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    async def _poll_loop(self) -> None:
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), self.settings.follow_seconds)
            except TimeoutError:
                await asyncio.to_thread(self.step)

    def step(self) -> None:
        """One step of the loop: look at the log, serve the current bundle if it has changed, and let the store catch
        up."""
        try:
            self.keys.follow()  # before all that may fail: a revoked key must stop to work
            self.log.probe()
            self._check_media()
            self._follow_items()
            self.follow_erasures()
            self._swap_bundle()
            self._follow_shop()
            if self.snapshot is not None:
                self.keeper.step(self.snapshot.store, self.snapshot.bundle.data)
            self.log_keeper.step()
        except Exception:  # an error in this loop must not stop the service
            logger.exception("updating the bundle and the store failed; the next step tries again")

    def _check_media(self) -> None:
        """Note why the media of items cannot be stored."""
        fault = media_fault(self.settings.log)
        if not fault:
            self.notes.pop("media", None)
        elif self.notes.get("media") != fault:
            logger.error("%s", fault)
            self.notes["media"] = fault

    def _follow_shop(self) -> None:
        """Read rules and experiments again if their files have changed, load the bundles of variants; note faults."""
        bundle = self.snapshot.bundle if self.snapshot else None
        self.rules.follow(bundle, self.now())
        self.experiments.follow(bundle, self.now())
        self.variants.step(self.experiments.bundles, self.snapshot, self._path)
        faults = "; ".join([*self.experiments.faults, *self.variants.faults])
        for component, problem in (("rules", self.rules.fault), ("experiments", faults)):
            if problem:
                self.notes[component] = problem
            else:
                self.notes.pop(component, None)

    def follow_erasures(self) -> None:
        """Forget what was read of users whom any process has erased since the last call. Raises LogError."""
        if (version := file_version(self.settings.log / ERASED_FILE)) != self._erased:
            self.corrections.restart()
            self.keeper.last_known.forget_all()
            self._erased = version

    def _follow_items(self) -> None:
        try:
            self.catalog_updater.follow(self.log)
            self.notes.pop("log", None)
        except LogError as error:
            if "log" not in self.notes:
                logger.error("item changes of other processes are not followed: %s", error)
            self.notes["log"] = str(error)

    def _swap_bundle(self) -> None:
        try:
            path = self._current(self.settings.bundles)
            if path == self._path:
                self._loader.reset()
                self._check_served_files()
                return
            snapshot = self._loader.snapshot(path, self._store_for)
        except RecsysError as error:
            if not same_problem(self.notes.get("bundle", ""), str(error)):
                logger.error("bundle refused: %s", error)
            self.notes["bundle"] = str(error)
            return
        if snapshot is None:
            return
        bundle = snapshot.bundle
        self.keeper.expect_new_tables(private=self._private)
        self.catalog_updater.swap_bundle(snapshot)
        self._path, self._manifest_bytes = path, _size(path / MANIFEST)
        self.notes.pop("bundle", None)
        self.notes.pop("retriever", None)
        if bundle.note:
            self.notes["retriever"] = bundle.note
        logger.info("serving bundle %s from %s", bundle.fingerprint, path)
        trained_on = bundle.data.log
        if trained_on is None or Path(trained_on).resolve() != self.settings.log.resolve():
            logger.warning(
                "events accepted here will not be trained on: they go to %s, but data.log of bundle %s is %s; "
                "configure the same folder in both",
                self.settings.log,
                bundle.fingerprint,
                trained_on,
            )

    def _check_served_files(self) -> None:
        """Note files of the served bundle that a restart would not find as they were."""
        if self.snapshot is None or self._path is None:
            return
        files = self.snapshot.bundle.manifest.get("files", {})
        sizes = {MANIFEST: self._manifest_bytes, **{name: facts["bytes"] for name, facts in files.items()}}
        if not (lost := [name for name, size in sizes.items() if _size(self._path / name) != size]):
            self.notes.pop("bundle", None)
            return
        note = (
            f"{self._path}: {', '.join(lost)} missing or of another size; the bundle is served from its copy, but a "
            "restart would fail: restore the folder, or publish another bundle"
        )
        if self.notes.get("bundle") != note:
            logger.error("%s", note)
        self.notes["bundle"] = note

    def _store_for(self, bundle: ServableBundle) -> FeatureStore:
        """The store with the event rules of a bundle. The next step sees to it that it is filled."""
        rules = bundle.data.events
        if self._connect is None:
            raise StoreError("the feature store is not connected: the service is not running")
        return self.snapshot.store.with_rules(rules) if self.snapshot else self._connect(rules)

    def arm(
        self, snapshot: ServingSnapshot, user_id: str, placement: str, kept: Mapping[str, str] | None = None
    ) -> Arm:
        """What a request is answered from. snapshot: of the current bundle; user_id: "" for none; kept: the variants
        of the first page of a list, None on that page."""
        return self._arm(snapshot, self.experiments.choose(user_id, placement, kept, self.variants.served))

    def forced_arm(self, snapshot: ServingSnapshot, variants: Mapping[str, str]) -> Arm:
        """The same for variants of the caller's choice: experiment -> variant, empty for what control gets.

        Raises KeyError for a variant that there is not.
        """
        return self._arm(snapshot, self.experiments.forced(variants, self.variants.served))

    def _arm(self, snapshot: ServingSnapshot, choice: Choice) -> Arm:
        if choice.bundle is not None:
            snapshot = self.variants.snapshot(choice.bundle, snapshot)
        return Arm(snapshot, choice.rules, choice.variants, (MISSED,) if choice.missed else ())

    async def accept_item(self, change: ItemPut | ItemDeleted) -> bool:
        """Log a change of an item and apply it to all bundles. Returns whether the item was new."""
        return await self.accept_items([change]) == 1

    async def accept_items(self, changes: Sequence[ItemPut | ItemDeleted]) -> int:
        """Log changes of distinct items and apply them to all bundles; see `CatalogUpdater.accept_all`."""
        n_new = await self.catalog_updater.accept_all(self.log, changes)
        if self.variants.served:
            await asyncio.to_thread(self.variants.follow_items)
        return n_new

    def push(self, events: list[Event]) -> list[str]:
        """Push logged events to the store. Returns the components that failed (values of `degraded`)."""
        return ["bundle"] if self.snapshot is None else self.keeper.push(self.snapshot.store, events)

    def correct(self, correction: Correction) -> list[str]:
        """Apply a logged correction to the store. Returns the components that failed (values of `degraded`)."""
        return ["bundle"] if self.snapshot is None else self.keeper.correct(self.snapshot.store, correction)


def _size(file: Path) -> int:
    """Size of a file in bytes; -1 when it cannot be reached."""
    try:
        return file.stat().st_size
    except OSError:
        return -1
