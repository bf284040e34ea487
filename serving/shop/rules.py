"""The rules of a shop in a service: the file is read again when it changes, and compiled for what is served."""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from features.catalog import Catalog
from features.errors import ConfigError
from features.instants import MINUTE
from recsys.ranking.rules import Rule, Rules, load_rules
from recsys.ranking.slate_rules import SlateRules, compile_rules, misfit
from serving.servable import ServableBundle

logger = logging.getLogger("recsys.serving")


class ShopRules:
    """The rules of a file; none without a file.

    A file that cannot be used later leaves the rules as they were: `fault` says why, "" when the file is in use.
    """

    def __init__(self, path: Path | None, bundle: ServableBundle | None = None, now: int = 0) -> None:
        """bundle, now: see `follow`. Raises ConfigError when the file cannot be used."""
        self.fault = ""
        self._path = path
        self._version = file_version(path)
        self._rules = Rules() if path is None else load_rules(path, _check(bundle, now))
        self._compiled: dict[str, _Compiled] = {}

    def follow(self, bundle: ServableBundle | None, now: int) -> None:
        """Read the file again if it has changed. bundle: what is served, which the rules must fit; now: time (µs)."""
        if self._path is None or (version := file_version(self._path)) == self._version:
            return
        self._version = version
        try:
            self._rules, self.fault = load_rules(self._path, _check(bundle, now)), ""
            logger.info("rules: %d were read from %s", len(self._rules.rules), self._path)
        except ConfigError as error:
            self.fault = f"{error}; the rules of before stay in use"
            logger.error("rules: %s", self.fault)

    @property
    def shown_days(self) -> float:
        """For how many days the rules must know what users were shown; 0 where no rule asks."""
        return max((rule.rotation.days for rule in self._rules.rules if rule.rotation), default=0)

    def ask_for_shown(self, placement: str) -> bool:
        """Whether a rule of a placement depends on what the user was shown."""
        return any(rule.rotation for cold in (False, True) for rule in self._rules.of(placement, cold=cold))

    def of(self, bundle: ServableBundle, placement: str, *, cold: bool, now: int) -> SlateRules | None:
        """The rules of a recommendation by a bundle, None where the file has none. now: time (µs)."""
        return self._compile(bundle, (placement, cold), now, partial(self._rules.of, placement, cold=cold))

    def of_list(
        self, bundle: ServableBundle, name: Literal["similar", "search"], *, cold: bool, now: int
    ) -> SlateRules | None:
        """The rules of similar items or of a search; see `of` and `Rules.of_list`. cold: also where no user asks."""
        return self._compile(bundle, (name, cold, "list"), now, partial(self._rules.of_list, name, cold=cold))

    def _compile(
        self, bundle: ServableBundle, key: tuple[Hashable, ...], now: int, rules: Callable[[], Sequence[Rule]]
    ) -> SlateRules | None:
        """The rules compiled, once for each catalogue and minute: new items become old."""
        if not self._rules.rules:
            return None
        catalog, minute = bundle.catalog, now // MINUTE
        compiled = self._compiled.get(bundle.fingerprint)
        if compiled is None or not compiled.is_of(catalog, minute, self._rules):
            compiled = _Compiled(catalog, minute, self._rules)
            others = {name: other for name, other in self._compiled.items() if other.minute == minute}
            self._compiled = others | {bundle.fingerprint: compiled}
        if (known := compiled.by_key.get(key)) is None:
            known = compiled.by_key[key] = compile_rules(rules(), catalog, bundle.vectors, now)
        return known


class _Compiled:
    """The rules compiled for one catalogue, by placement and kind of user."""

    def __init__(self, catalog: Catalog, minute: int, rules: Rules) -> None:
        self.catalog, self.minute, self.rules = catalog, minute, rules
        self.by_key: dict[tuple[Hashable, ...], SlateRules] = {}

    def is_of(self, catalog: Catalog, minute: int, rules: Rules) -> bool:
        """Whether they are those of a catalogue, a minute and rules."""
        return self.catalog is catalog and self.minute == minute and self.rules is rules


def _check(bundle: ServableBundle | None, now: int) -> Callable[[Rule], str] | None:
    """Why a rule does not fit what is served; None where nothing is."""
    return None if bundle is None else partial(misfit, catalog=bundle.catalog, vectors=bundle.vectors, now=now)


def file_version(path: Path | None) -> object:
    """Changes when the file does; None when it cannot be reached."""
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return status and (status.st_ino, status.st_size, status.st_mtime_ns)
