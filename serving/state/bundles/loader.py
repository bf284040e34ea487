"""Loads bundles to serve. A bundle that is refused is tried again after growing pauses, or when its files change."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from features.errors import BundleError, RecsysError, detail
from features.log.records import Event
from features.store.base import FeatureStore
from features.store.user_state import UserState
from serving.servable import ServableBundle
from serving.state.snapshot import ServingSnapshot

logger = logging.getLogger("recsys.serving")

RETRY_SECONDS = 1.0
"""Seconds before a refused bundle is tried again; doubled after each further refusal, up to MAX_RETRY_SECONDS."""

MAX_RETRY_SECONDS = 300.0


@dataclass(frozen=True)
class _Refusal:
    """A bundle that was refused. files: its files as they were then; until: end of the pause (monotonic s)."""

    path: Path
    files: tuple[object, ...]
    times: int
    until: float


class BundleLoader:
    """Loads bundles from their folders, and answers a first request with each."""

    def __init__(self, load: Callable[[Path], ServableBundle], now: Callable[[], int]) -> None:
        """load: folder of a bundle -> the bundle, raises BundleError; now: returns the time (µs)."""
        self._load, self._now = load, now
        self._refusal: _Refusal | None = None
        self.reason = ""
        """Why the last bundle was refused; "" when it was not."""

    def reset(self) -> None:
        """Forget what was refused."""
        self._refusal, self.reason = None, ""

    def snapshot(self, path: Path, store_of: Callable[[ServableBundle], FeatureStore]) -> ServingSnapshot | None:
        """The snapshot of a bundle, None while a refused one is not tried again. store_of: may refuse the bundle.

        Raises BundleError with the reason.
        """
        last = self._refusal
        if last and last.path == path and time.monotonic() < last.until and last.files == _files(path):
            return None
        try:
            bundle = self._load(path)
            snapshot = ServingSnapshot.of(bundle, store_of(bundle), self._now)
            snapshot.popular(snapshot.rows(()), 1, {})
            example = snapshot.states([self._example(snapshot)], self._now())
            snapshot.recommend(example, snapshot.rows(()), 20, {})  # warm up
        except RecsysError as error:
            raise self._refused(path, str(error)) from None
        except Exception as error:  # a bundle whose models fail must not replace a working one
            if last is None:
                logger.exception("bundle %s failed its first request", path)
            reason = f"{path} failed its first request: its models do not work; train again{detail(error)}"
            raise self._refused(path, reason) from None
        self.reset()
        return snapshot

    def _refused(self, path: Path, reason: str) -> BundleError:
        """The error of a refused bundle, which is tried again after a growing pause."""
        times = self._refusal.times + 1 if self._refusal and self._refusal.path == path else 1
        pause = min(RETRY_SECONDS * 2 ** min(times - 1, 30), MAX_RETRY_SECONDS)
        self._refusal = _Refusal(path, _files(path), times, time.monotonic() + pause)
        self.reason = f"{reason}; tried again after {pause:g} s, and when its files change"
        return BundleError(self.reason)

    def _example(self, snapshot: ServingSnapshot) -> UserState:
        """A user with one positive event, to warm up the models before the first request."""
        rules = snapshot.bundle.data.events
        if not rules.positive or not len(snapshot.bundle.popular):
            return UserState()
        kind, minimum = next(iter(rules.positive.items()))
        item = snapshot.bundle.catalog.ids.ids[int(snapshot.bundle.popular[0])]
        event = Event(user_id="", item_id=item, event=kind, timestamp=self._now() - 1, value=minimum or 1.0)
        return UserState.of([event], rules)


def same_problem(one: str, other: str) -> bool:
    """Whether two reasons differ in the pause alone."""
    return one.partition("; tried again")[0] == other.partition("; tried again")[0]


def _files(folder: Path) -> tuple[object, ...]:
    """Name, inode, size and time of the last change of each file in a folder; empty when it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            stats = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return ()
    return tuple(sorted((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in stats))
