"""`recsys doctor`: checks of all that a service needs, each with what to do where something is wrong."""

import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Text
from features.errors import ConfigError, RecsysError, StoreError, describe_url
from features.files import check_writable
from features.instants import DAY, now_micros
from features.log.segments import is_log
from features.log.status import log_status
from features.schema import EventRules
from features.store.redis import RedisStore
from features.store.redis_server import server_binary
from recsys.assignment import load_experiments
from recsys.bundle.io import load_bundle
from recsys.bundle.model import Bundle
from recsys.bundle.registry import current_bundle
from recsys.content.query_encoding import EncoderSetup, QueryEncoder
from recsys.ranking.rules import load_rules
from recsys.retrieval.kinds import check_faiss
from serving.access.key_file import load_keys
from serving.settings import ServeSettings

Status = Literal["ok", "warning", "failed"]

LEAST_FREE = 1 << 30
"""Bytes that a disk should have free: the log grows with every answer."""

MAX_SKEW = 1_000_000
"""µs by which the clock of the store's server may differ from this one."""

SLOW_STORE = 5.0
"""Milliseconds from which on an answer of the store is slow: every request waits for one."""

PROBES = 100
"""Items that are searched for in the index."""

LEAST_FOUND = 0.9
"""Share of PROBES that an approximate index should find by their own vectors."""

SOON = 14 * DAY
"""µs before the expiry of a key from which on it is named."""

OLD_DAYS = 30
"""Age in days of a bundle's newest event from which on it is old."""

OF_BUNDLE = {"index", "encoders"}
"""Checks that need a bundle."""


@dataclass(frozen=True)
class Check:
    """name: what was checked; text: what was found, with the remedy where something is wrong."""

    name: str
    status: Status
    text: str


Found = tuple[Status, str]


class Doctor:
    """Checks what a service with these settings would use. Nothing is changed, and nothing is published."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings

    def run(self) -> Iterator[Check]:
        """All checks, one after another. An error of the product fails its check, not the others."""
        checks: dict[str, Callable[[], Found]] = {
            "versions": self._versions,
            "bundle": self._bundle_facts,
            "index": self._index,
            "encoders": self._encoders,
            "store": self._store,
            "clock": self._clock,
            "log": self._log,
            "disk": self._disk,
            "keys": self._keys,
            "rules": self._rules,
            "experiments": self._experiments,
        }
        missing = set[str]()
        for name, check in checks.items():
            if name in missing:
                continue
            try:
                yield Check(name, *check())
            except RecsysError as error:
                yield Check(name, "failed", str(error))
                missing |= OF_BUNDLE if name == "bundle" else set()

    def _versions(self) -> Found:
        check_faiss()
        named = ("onespace-recsys", "torch", "polars", "lightgbm", "fastapi", "redis")
        shown = ", ".join(f"{name} {metadata.version(name)}" for name in named)
        return "ok", f"Python {platform.python_version()}, {shown}"

    @cached_property
    def _bundle(self) -> Bundle:
        return load_bundle(current_bundle(self._settings.bundles))

    def _bundle_facts(self) -> Found:
        bundle = self._bundle
        until = datetime.fromtimestamp(bundle.recommender.fitted_until / 1e6, UTC)
        days = (datetime.now(UTC) - until).days
        text = f"{bundle.fingerprint}: {len(bundle.catalog):,} items, trained on events until {until:%Y-%m-%d}"
        if days > OLD_DAYS:
            return "warning", f"{text}, {days:,} days ago; train again, every night with `recsys nightly`"
        return ("warning", f"{text}; {bundle.note}") if bundle.note else ("ok", text)

    def _index(self) -> Found:
        bundle = self._bundle
        rows = np.unique(np.linspace(0, len(bundle.catalog) - 1, PROBES).astype(np.int64))
        found = bundle.recommender.index.search(bundle.vectors[rows], 10)
        share = float((found.rows == rows[:, None]).any(axis=1).mean())
        text = f"{share:.0%} of {len(rows)} items are found by their own vectors"
        return ("ok", text) if share >= LEAST_FOUND else ("warning", f"{text}: raise `retriever.effort`, train again")

    def _encoders(self) -> Found:
        bundle, setup = self._bundle, EncoderSetup.of(self._bundle.manifest)
        if setup is None or bundle.content is None:
            return "ok", "none: the bundle has no contents, and search is not offered"
        reads = setup.modalities([*bundle.content.channels])
        if setup.remote:
            return "ok", f"a remote service for {', '.join(reads)}; it is not asked here"
        if "text" not in reads:
            return "ok", f"{', '.join(reads)}; not tried"
        started = time.perf_counter()
        with DecoderPool() as decoders:
            query = QueryEncoder(bundle.content, setup.open(decoders)).embed(Content((Text("a test"),)))
        seconds = time.perf_counter() - started
        if not query.present[0]:
            reason = "; ".join(failure.reason for failure in query.failures) or "no vector came back"
            return "failed", f"a text cannot be encoded: {reason}"
        return "ok", f"{', '.join(reads)}; a text was encoded in {seconds:.1f} s, loading included"

    def _store(self) -> Found:
        if (url := self._settings.redis_url) is None:
            text = f"a private server, {server_binary()}: for one service; several share one with REDIS_URL"
            return "ok", text
        store = RedisStore(url, EventRules(positive={}), timeout=1.0)
        try:
            facts = store.for_request().facts()
            started = time.perf_counter()
            store.ping()
            milliseconds = (time.perf_counter() - started) * 1e3
        finally:
            store.close()
        limit = f" of {facts.limit >> 20:,} MiB" if facts.limit else ", without a limit"
        text = f"{describe_url(url)}: answers in {milliseconds:.1f} ms, uses {facts.used >> 20:,} MiB{limit}"
        if facts.warning:
            return "warning", f"{text}; {facts.warning}"
        if facts.evicted:
            return "warning", f"{text}; it has deleted {facts.evicted:,} keys to make room: give it more memory"
        if milliseconds > SLOW_STORE:
            return "warning", f"{text}: every request waits for it; put it nearer, or look for what keeps it busy"
        return "ok", text

    def _clock(self) -> Found:
        now, texts = now_micros(), [f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"]
        if (url := self._settings.redis_url) is not None:
            store = RedisStore(url, EventRules(positive={}), timeout=1.0)
            try:
                theirs = store.for_request().facts().time
            except StoreError:  # another check says so
                theirs = 0
            finally:
                store.close()
            if theirs and abs(theirs - now) > MAX_SKEW:
                skew = (theirs - now) / 1e6
                return "failed", f"that of the store's server differs by {skew:+.1f} s: set both by NTP"
            texts += ["that of the store's server agrees"] if theirs else []
        if _has_log(self._settings.log):
            newest = max((s.newest or 0 for s in log_status(self._settings.log).streams), default=0)
            if newest > now + MAX_SKEW:
                at = datetime.fromtimestamp(newest / 1e6, UTC)
                return (
                    "warning",
                    f"the log has a record of {at:%Y-%m-%d %H:%M:%S} UTC, which is to come: set the clock",
                )
        return "ok", "; ".join(texts)

    def _log(self) -> Found:
        folder = self._settings.log
        check_writable(_existing(folder), "the event log")
        if not _has_log(folder):
            return "ok", f"{folder}: can be written; there is no log yet"
        status = log_status(folder)
        text = ", ".join(f"{s.records:,} {s.stream}" for s in status.streams)
        if damaged := sum((s.damaged or 0) for s in status.streams):
            return (
                "warning",
                f"{folder}: {text}; {damaged:,} lines are damaged: `recsys data check CONFIG` names them",
            )
        return "ok", f"{folder}: {text}"

    def _disk(self) -> Found:
        folders = {"bundles": self._settings.bundles, "the log": self._settings.log}
        free = {name: shutil.disk_usage(_existing(folder)).free for name, folder in folders.items()}
        text = ", ".join(f"{size / 2**30:.1f} GiB free for {name}" for name, size in free.items())
        if min(free.values()) < LEAST_FREE:
            return "warning", f"{text}: make room, or let the log keep less (`recsys log prune`, exposures_days)"
        return "ok", text

    def _keys(self) -> Found:
        if (path := self._settings.keys) is None:
            return "ok", "none: no call needs a key"
        keys, now = load_keys(path), now_micros()
        late = [key.name for key in keys if (key.expires_at or now + SOON) < now + SOON]
        text = f"{path}: {len(keys)} keys"
        if late:
            return "warning", f"{text}; {', '.join(late)} expired, or will within 14 days: `recsys keys create`"
        return ("ok", text) if keys else ("warning", f"{text}: every call is refused; `recsys keys create`")

    def _rules(self) -> Found:
        path = self._settings.rules
        return ("ok", "none") if path is None else ("ok", f"{path}: {len(load_rules(path).rules)} rules")

    def _experiments(self) -> Found:
        if (path := self._settings.experiments) is None:
            return "ok", "none"
        return "ok", f"{path}: {len(load_experiments(path).experiments)} experiments"


def _has_log(folder: Path) -> bool:
    return folder.is_dir() and is_log(folder)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists. Raises ConfigError where none does."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.exists():
            return path
    raise ConfigError(f"{folder}: no such folder")
