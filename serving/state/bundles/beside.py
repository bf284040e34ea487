"""The bundles of variants, served beside the current one. Each follows the items that are put and deleted."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock

from features.errors import BundleError, LogError, RecsysError
from features.store.base import FeatureStore
from recsys.content.query_encoding import EncoderSetup
from serving.servable import ServableBundle
from serving.settings import ServeSettings
from serving.state.bundles.loader import BundleLoader, same_problem
from serving.state.catalog_updater import CatalogUpdater, Embed, Upsert
from serving.state.snapshot import ServingSnapshot

logger = logging.getLogger("recsys.serving")


@dataclass(eq=False)
class _Beside:
    """A bundle beside the current one. updater: None until it is loaded; notes: of the updater."""

    loader: BundleLoader
    notes: dict[str, str] = field(default_factory=dict)
    updater: CatalogUpdater | None = None


class VariantBundles:
    """Loads the bundles that variants name, and lets them go when no variant names them.

    `step` runs in the thread of the service's loop; requests read `served`, which is replaced as a whole.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        load: Callable[[Path], ServableBundle],
        find: Callable[[Path, str], Path],
        upsert: Upsert,
        merge: Callable[[ServableBundle], None],
        now: Callable[[], int],
    ) -> None:
        """find: folder of bundles and a name -> the folder of the bundle, raises BundleError; the others: see
        `ServiceState`."""
        self._settings, self._find, self._now = settings, find, now
        self._loader = partial(BundleLoader, load, now)
        self._updater = partial(CatalogUpdater, settings.log, upsert=upsert, merge=merge)
        self.served: Mapping[str, CatalogUpdater | None] = {}
        """Name -> the updater that holds its snapshot; None where the current bundle has this name."""
        self.faults: list[str] = []
        """Why bundles are not served, or not as they should be."""
        self._beside: dict[Path, _Beside] = {}
        self._following = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._path: Path | None = None  # of the current bundle at the last step

    def step(self, names: Sequence[str], current: ServingSnapshot | None, path: Path | None) -> None:
        """Load what is named and not loaded yet, and follow the items. path: of the current bundle."""
        if path != self._path:  # a variant with the bundle that was current has none until it is loaded
            self.served = {name: updater for name, updater in self.served.items() if updater is not None}
            self._path = path
        if not names and not self._beside:
            self.served, self.faults = {}, []
            return
        served, faults, kept = dict[str, CatalogUpdater | None](), list[str](), dict[Path, _Beside]()
        for name in names:
            try:
                folder = self._find(self._settings.bundles, name)
                if folder == path:
                    served[name] = None
                    continue
                kept[folder] = kept.get(folder) or self._beside.get(folder) or _Beside(self._loader())
                served[name] = self._loaded(folder, kept[folder], current)
            except RecsysError as error:
                faults.append(f"bundle {name} of a variant is not served: {error}")
        for fault in faults:
            if not any(same_problem(fault, known) for known in self.faults):
                logger.error("%s", fault)
        notes = [f"{folder.name}: {note}" for folder, beside in kept.items() for note in beside.notes.values()]
        self.faults, self._beside = [*faults, *notes], kept
        self.follow_items()
        self.served = served
        self._wake()

    def _loaded(self, folder: Path, beside: _Beside, current: ServingSnapshot | None) -> CatalogUpdater:
        """The updater of a bundle, which is loaded where it is not. Raises BundleError, and LogError."""
        if current is None:
            raise BundleError("there is no current bundle")
        if beside.updater is None:
            snapshot = beside.loader.snapshot(folder, partial(_store_of, current))
            if snapshot is None:
                raise BundleError(beside.loader.reason)
            updater = self._updater(notes=beside.notes)
            updater.replay(self._now(), sweep=False)
            updater.swap_bundle(snapshot)
            beside.updater = updater
            logger.info("serving bundle %s of a variant from %s", snapshot.bundle.fingerprint, folder)
        elif beside.updater.snapshot is not None:
            _store_of(current, beside.updater.snapshot.bundle)  # another bundle may be current since
        return beside.updater

    def snapshot(self, name: str, current: ServingSnapshot) -> ServingSnapshot:
        """The snapshot of a bundle that is served, with the store of the current one."""
        updater = self.served.get(name)
        if updater is None or updater.snapshot is None:
            return current
        return replace(updater.snapshot, store=current.store)

    def follow_items(self) -> None:
        """Apply the item changes that were logged since the last call, by this process too."""
        with self._following:
            for beside in self._beside.values():
                if beside.updater is not None:
                    try:
                        beside.updater.follow(None)
                    except LogError as error:  # the next step tries again; the service itself notes the log
                        logger.warning("the bundle of a variant does not follow the items: %s", error)

    async def run(self, embed: Embed) -> None:
        """Add the items that are put to the bundles, until cancelled."""
        self._loop = asyncio.get_running_loop()
        tasks = dict[CatalogUpdater, asyncio.Task[None]]()
        try:
            while True:
                self._changed.clear()
                updaters = {updater for updater in self.served.values() if updater is not None}
                tasks |= {updater: asyncio.create_task(updater.run(embed)) for updater in updaters - tasks.keys()}
                for updater in tasks.keys() - updaters:
                    tasks.pop(updater).cancel()
                await self._changed.wait()
        finally:
            for task in tasks.values():
                task.cancel()

    def _wake(self) -> None:
        """Wake `run`, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, so `run` has ended
                self._loop.call_soon_threadsafe(self._changed.set)

    def close(self) -> None:
        """End the use of the bundles; no request follows."""
        for beside in self._beside.values():
            if beside.updater is not None and beside.updater.snapshot is not None:
                beside.updater.snapshot.bundle.close()


def _store_of(current: ServingSnapshot, bundle: ServableBundle) -> FeatureStore:
    """The store of the current bundle, for one beside it. Raises BundleError where it cannot be served beside it."""
    data, own = current.bundle.data, bundle.data
    remedy = "train it with the same ones, or publish it"
    if own.events != data.events:
        raise BundleError(f"its event rules (data.events) are not those of the current bundle: {remedy}")
    if missing := [name for name in data.placements if name not in own.placements]:
        raise BundleError(f"it has no placement {', '.join(missing)}, which the current bundle has: {remedy}")
    setups = [EncoderSetup.of(each.manifest) for each in (current.bundle, bundle) if each.content is not None]
    if len(setups) == 2 and setups[0] != setups[1]:
        raise BundleError(f"its encoders (encoder, limits, cache) are not those of the current bundle: {remedy}")
    return current.store
