"""The experiments of a shop in a service: the file is read again when it changes; a request gets its variants."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.errors import ConfigError
from recsys.assignment import CONTROL, Experiments, Variant, load_experiments
from serving.servable import ServableBundle
from serving.shop.rules import ShopRules, file_version

logger = logging.getLogger("recsys.serving")


@dataclass(frozen=True)
class Choice:
    """What a request is answered with.

    variants: experiment -> variant, of those in force; rules: of the shop; bundle: the name of the bundle of a
    variant, None for the current one; missed: whether a variant cannot be served.
    """

    variants: Mapping[str, str]
    rules: ShopRules
    bundle: str | None = None
    missed: bool = False


@dataclass(frozen=True)
class _Read:
    """The experiments of a file, and the rules that their variants name."""

    experiments: Experiments = field(default_factory=Experiments)
    rules: dict[Path, ShopRules] = field(default_factory=dict)

    def variant(self, experiment: str, name: str) -> Variant:
        """A variant by its names; control changes nothing."""
        variants = next(e.variants for e in self.experiments.experiments if e.name == experiment)
        return Variant(share=0) if name == CONTROL else variants[name]


class ShopExperiments:
    """The experiments of a file; none without a file.

    A file that cannot be used later leaves the experiments as they were: `faults` says why.
    """

    def __init__(self, path: Path | None, rules: ShopRules) -> None:
        """rules: of the service, which control follows. Raises ConfigError when a file cannot be used."""
        self._path, self._rules, self._read = path, rules, _Read()
        self._fault, self._version = "", file_version(path)
        if path is not None:
            self._read = self._load(path, None, 0)

    def _load(self, path: Path, bundle: ServableBundle | None, now: int) -> _Read:
        """The file as it is; rules that are in use go on. Raises ConfigError."""
        known, rules = self._read.rules, dict[Path, ShopRules]()

        def misfit(variant: Variant) -> str:
            if variant.rules is None:
                return ""
            try:
                rules[variant.rules] = known.get(variant.rules) or ShopRules(path.parent / variant.rules, bundle, now)
            except ConfigError as error:
                return str(error)
            return ""

        return _Read(load_experiments(path, misfit), rules)

    def follow(self, bundle: ServableBundle | None, now: int) -> None:
        """Read the files again that have changed. bundle: what is served, which rules must fit; now: time (µs)."""
        if self._path is None:
            return
        for rules in self._read.rules.values():
            rules.follow(bundle, now)
        if (version := file_version(self._path)) == self._version:
            return
        self._version = version
        try:
            self._read, self._fault = self._load(self._path, bundle, now), ""
            logger.info("experiments: %d were read from %s", len(self._read.experiments.experiments), self._path)
        except ConfigError as error:
            self._fault = f"{error}; the experiments of before stay in use"
            logger.error("experiments: %s", self._fault)

    @property
    def faults(self) -> list[str]:
        """Why files are not in use as they are now."""
        return [text for text in (self._fault, *(rules.fault for rules in self._read.rules.values())) if text]

    @property
    def bundles(self) -> list[str]:
        """The names of the bundles of variants, each once."""
        named = (variant.bundle for _, variant in self._read.experiments.places())
        return [*dict.fromkeys(name for name in named if name is not None)]

    @property
    def shown_days(self) -> float:
        """For how many days the rules of service and variants must know what users were shown; 0 for not at all."""
        return max(rules.shown_days for rules in (self._rules, *self._read.rules.values()))

    def choose(self, user: str, placement: str, kept: Mapping[str, str] | None, bundles: Collection[str]) -> Choice:
        """The variants of a request.

        user: "" for a request without a user, which is in no experiment; kept: variants of the first page of a list,
        None on that page; bundles: names of those that are served. The variants of others fall out, and the user has
        what control has.
        """
        read = self._read
        if not user or not read.experiments.experiments:
            return Choice({}, self._rules)
        of = read.experiments
        assigned = of.variants(user, placement) if kept is None else of.still(kept, placement)
        return self._choice(read, assigned, bundles)

    def forced(self, variants: Mapping[str, str], bundles: Collection[str]) -> Choice:
        """The same for variants of the caller's choice, whoever asks, where and how many have them. Empty: control.

        variants: experiment -> variant. Raises KeyError for one that is not in the file.
        """
        read = self._read
        known = {of.name: {CONTROL, *of.variants} for of in read.experiments.experiments}
        for experiment, variant in variants.items():
            if variant not in known.get(experiment, ()):
                raise KeyError(experiment)
        return self._choice(read, variants, bundles)

    def _choice(self, read: _Read, assigned: Mapping[str, str], bundles: Collection[str]) -> Choice:
        variants = {name: read.variant(name, variant) for name, variant in assigned.items()}
        served = {name: variant for name, variant in variants.items() if _is_served(variant, bundles)}
        rules = next((read.rules[variant.rules] for variant in served.values() if variant.rules), self._rules)
        bundle = next((variant.bundle for variant in served.values() if variant.bundle), None)
        named = {name: assigned[name] for name in served}
        return Choice(named, rules, bundle, len(served) < len(variants))

    def describe(self, bundles: Collection[str]) -> list[dict[str, Any]]:
        """The experiments as `/v1/about` lists them. bundles: as in `choose`."""
        read = self._read
        return [
            {
                "name": experiment.name,
                "layer": experiment.layer,
                "placements": experiment.placements,
                "share": experiment.share,
                "variants": {
                    name: {
                        "share": share,
                        "rules": None if variant.rules is None else str(variant.rules),
                        "bundle": variant.bundle,
                        "served": _is_served(variant, bundles),
                    }
                    for name, share in experiment.shares.items()
                    for variant in [read.variant(experiment.name, name)]
                },
            }
            for experiment in read.experiments.experiments
        ]


def _is_served(variant: Variant, bundles: Collection[str]) -> bool:
    return variant.bundle is None or variant.bundle in bundles
