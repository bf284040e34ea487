"""Sets the gauges of the metrics: what the service is now, not what it has done."""

import asyncio
import logging
import os
import time
from contextlib import suppress
from importlib.metadata import version
from threading import Lock

from features.log.records import EVENTS
from features.log.status import bytes_after
from serving.state.encoder_pool import EncoderPool
from serving.state.service import ServiceState
from serving.telemetry import metrics

logger = logging.getLogger("recsys.serving")

EVERY_SECONDS = 5.0
"""Seconds between two updates."""

COMPONENTS = ("bundle", "tables", "store", "items", "media", "retriever", "rules", "experiments", "log", "keys")
"""Components that may have a problem."""


class Gauges:
    """The gauges of a service."""

    def __init__(self, service: ServiceState, encoder_pool: EncoderPool) -> None:
        self._service, self._encoder_pool = service, encoder_pool
        self._version = version("onespace-recsys")
        self._bundle = ""  # fingerprint of the one that was last served
        self._started = time.monotonic()
        self._lock = Lock()

    async def run(self) -> None:
        """Set them again and again, until cancelled: another process may answer for this one."""
        while True:
            try:
                await asyncio.to_thread(self.update)
            except Exception:  # an error in this loop must not end it
                logger.exception("the gauges of the metrics cannot be set")
            await asyncio.sleep(EVERY_SECONDS)

    def update(self) -> None:
        """Set them."""
        with self._lock:  # two calls at once would count CPU time twice
            self._update()

    def _update(self) -> None:
        service, problems = self._service, self._service.problems
        metrics.PROCESSES.set(1)
        metrics.READY.set(service.snapshot is not None and not service.log.fault)
        for component in {*COMPONENTS, *problems}:
            metrics.PROBLEMS.labels(component).set(component in problems)
        self._set_bundle()
        self._set_log()
        metrics.STORE_AWAY.set(service.keeper.away)
        since = self._started if service.keeper.caught_up is None else service.keeper.caught_up
        metrics.STORE_LAG.set(time.monotonic() - since)
        metrics.WAITING.labels("threads").set(service.turns.waiting)
        metrics.WAITING.labels("encoder").set(self._encoder_pool.waiting)
        metrics.measure_process()

    def _set_bundle(self) -> None:
        bundle = None if self._service.snapshot is None else self._service.snapshot.bundle
        fingerprint = "" if bundle is None else bundle.fingerprint
        if self._bundle not in ("", fingerprint):
            metrics.BUNDLE.labels(self._version, self._bundle).set(0)
        self._bundle = fingerprint
        if bundle is not None:
            metrics.BUNDLE.labels(self._version, fingerprint).set(1)
            metrics.BUNDLE_AGE.set((self._service.now() - bundle.explainer.fitted_until) / 1e6)

    def _set_log(self) -> None:
        folder, log = self._service.settings.log, self._service.log
        metrics.LOG_UNWRITABLE.set(bool(log.fault))
        writes, waiting = log.waiting
        metrics.LOG_WAITING.set(writes)
        metrics.LOG_WAITING_BYTES.set(waiting)
        with suppress(OSError):  # a note of /readyz says already that the log is gone
            disk = os.statvfs(folder)
            metrics.LOG_DISK.set(1 - disk.f_bavail / max(disk.f_blocks, 1))
            metrics.STORE_LAG_BYTES.set(bytes_after(folder, EVENTS, self._service.keeper.position))
