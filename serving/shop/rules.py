"""The rules of a shop in a service: the file is read again when it changes, and compiled for what is served."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from pydantic import ValidationError

from features.catalog import Catalog
from features.errors import ConfigError, FileError, describe_invalid, describe_os_error
from features.files import replace_file
from features.instants import MINUTE
from recsys.ranking.rules import Rule, Rules, rules_of
from recsys.ranking.slate_rules import SlateRules, compile_rules, misfit
from recsys.yaml_text import YamlFile, yaml_text
from serving.servable import ServableBundle

logger = logging.getLogger("recsys.serving")


class RulesError(ConfigError):
    """Rules that cannot be used. place: of the error, as keys from the top."""

    def __init__(self, place: Sequence[str | int], reason: str) -> None:
        self.place = ".".join(map(str, place))
        super().__init__(f"{self.place}: {reason}" if place else reason)


class RulesChangedError(ConfigError):
    """The file is another one than its writer has read."""


class ShopRules:
    """The rules of a file; none without a file.

    A file that cannot be used later leaves the rules as they were: `fault` says why, "" when the file is in use.
    """

    def __init__(self, path: Path | None, bundle: ServableBundle | None = None, now: int = 0) -> None:
        """bundle, now: see `follow`. Raises ConfigError when the file cannot be used."""
        self.fault = ""
        self._path, self._digest = path, ""
        self._following = Lock()
        self._version = file_version(path)
        self._rules = Rules() if path is None else self._load(path, bundle, now)
        self._compiled: dict[str, _Compiled] = {}

    @classmethod
    def given(cls, rules: Rules) -> "ShopRules":
        """Rules that are in no file. They were checked."""
        shop = cls(None)
        shop._rules = rules
        return shop

    @property
    def path(self) -> Path | None:
        """The file."""
        return self._path

    def read(self, bundle: ServableBundle | None, now: int) -> tuple[Rules, str, str]:
        """The rules in use after a look at the file, the SHA-256 of its text, "" where it cannot be read, and
        `fault`. bundle, now: see `follow`."""
        self.follow(bundle, now)
        with self._following:
            return self._rules, self._digest, self.fault

    def _load(self, path: Path, bundle: ServableBundle | None, now: int) -> Rules:
        """The rules of the file as it is. Raises ConfigError."""
        self._digest = ""
        file = YamlFile(path, "rules")
        self._digest = _digest(file.text)
        return rules_of(file, _check(bundle, now))

    def follow(self, bundle: ServableBundle | None, now: int) -> None:
        """Read the file again if it has changed. bundle: what is served, which the rules must fit; now: time (µs)."""
        with self._following:
            if self._path is None or (version := file_version(self._path)) == self._version:
                return
            self._version = version
            try:
                self._rules, self.fault = self._load(self._path, bundle, now), ""
                logger.info("rules: %d were read from %s", len(self._rules.rules), self._path)
            except ConfigError as error:
                self.fault = f"{error}; the rules of before stay in use"
                logger.error("rules: %s", self.fault)

    def replace(self, given: Any, bundle: ServableBundle | None, now: int, may: Callable[[str], bool]) -> str:
        """Write checked rules to the file, and use them. All processes on the file do so at their next look.

        given: as `check_rules` takes them; bundle, now: see `follow`; may: whether a file whose text has this SHA-256
        may be replaced. Returns the SHA-256 of the new text. Raises RulesChangedError and FileError.
        """
        assert self._path is not None
        text = yaml_text(given)
        try:
            with _exclusive(self._path):
                if not may(self.read(bundle, now)[1]):
                    raise RulesChangedError(f"{self._path} has changed since it was read")
                replace_file(self._path, text.encode())
        except OSError as error:
            raise FileError(f"the rules cannot be written: {describe_os_error(error)}") from error
        self.follow(bundle, now)
        return _digest(text)

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


def check_rules(given: Any, bundle: ServableBundle | None, now: int) -> Rules:
    """The rules of a JSON value, which has the form of a file of rules; checked as a file is.

    bundle: what is served, which the rules must fit; now: time (µs). Raises RulesError.
    """
    try:
        rules = Rules.model_validate(given)
    except ValidationError as error:
        first = describe_invalid(error.errors())[0]
        raise RulesError(first.place, first.reason) from None
    if fault := rules.fault(_check(bundle, now)):
        number, why = fault
        raise RulesError(("rules", number), why)
    return rules


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of the folder of a file: no other process replaces the file meanwhile. Raises OSError."""
    descriptor = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
