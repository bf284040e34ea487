"""The rules of a shop in a service: the file is read again when it changes, and compiled for what is served."""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from features.arrays import Floats
from features.catalog import Catalog
from features.errors import ConfigError
from features.instants import MINUTE
from recsys.ranking.rules import Rule, Rules, load_rules
from recsys.ranking.slate_rules import SlateRules, compile_rules, misfit

logger = logging.getLogger("recsys.serving")


class ShopRules:
    """The rules of a file; none without a file.

    A file that cannot be used later leaves the rules as they were: `fault` says why, "" when the file is in use.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises ConfigError when the file cannot be used."""
        self.fault = ""
        self._path = path
        self._version = _version(path)
        self._rules = Rules() if path is None else load_rules(path)
        self._of: tuple[Catalog | None, int, Rules] = (None, 0, self._rules)
        self._compiled: dict[tuple[Hashable, ...], SlateRules] = {}

    def follow(self, catalog: Catalog | None, vectors: Floats | None, now: int) -> None:
        """Read the file again if it has changed. catalog: what is served, which the rules must fit; see `of`."""
        if self._path is None or (version := _version(self._path)) == self._version:
            return
        self._version = version
        check = None if catalog is None else partial(misfit, catalog=catalog, vectors=vectors, now=now)
        try:
            self._rules, self.fault = load_rules(self._path, check), ""
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

    def of(
        self, catalog: Catalog, vectors: Floats | None, placement: str, *, cold: bool, now: int
    ) -> SlateRules | None:
        """The rules of a recommendation, None where the file has none. vectors: of behaviour, (n, d), or None; now:
        time (µs).
        """
        return self._compile(catalog, vectors, (placement, cold), now, partial(self._rules.of, placement, cold=cold))

    def of_list(
        self, catalog: Catalog, name: Literal["similar", "search"], *, cold: bool, now: int
    ) -> SlateRules | None:
        """The rules of similar items or of a search; see `of` and `Rules.of_list`. cold: also where no user asks."""
        return self._compile(catalog, None, (name, cold, "list"), now, partial(self._rules.of_list, name, cold=cold))

    def _compile(
        self,
        catalog: Catalog,
        vectors: Floats | None,
        key: tuple[Hashable, ...],
        now: int,
        rules: Callable[[], Sequence[Rule]],
    ) -> SlateRules | None:
        """The rules compiled, once for each catalogue and minute: new items become old."""
        if not self._rules.rules:
            return None
        of = (catalog, now // MINUTE, self._rules)
        if of[0] is not self._of[0] or of[1] != self._of[1] or of[2] is not self._of[2]:
            self._of, self._compiled = of, {}
        compiled = self._compiled
        if (known := compiled.get(key)) is None:
            known = compiled[key] = compile_rules(rules(), catalog, vectors, now)
        return known


def _version(path: Path | None) -> object:
    """Changes when the file does; None when it cannot be reached."""
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return status and (status.st_ino, status.st_size, status.st_mtime_ns)
