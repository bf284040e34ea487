"""The file of an experiment: its variants, its seeds, and the rule by which it is decided."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from experiments.config import PREFIX, RunConfig, find_config, load_config
from experiments.evaluation.verdict import Rule
from experiments.pipelines.fit import RERANKED, TOWERS
from features.errors import ConfigError, describe_invalid
from features.files import not_a_file
from features.schema import StrictModel
from recsys import baselines
from recsys.bundle.registry import find_bundle
from recsys.ranking.rules import load_rules
from recsys.yaml_text import parse_yaml

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\s./\\:,][^/\\:,]*$")]


class Variant(StrictModel):
    """What differs from the configuration of the experiment."""

    model: str = RERANKED
    """`two towers + reranker`; `two towers`, as they are served without a reranker, with cold items lifted; or a
    baseline, whose settings are chosen on validation."""

    set: dict[str, Any] = Field(default={})
    """Settings of the configuration by their path, such as `towers.dimension: 64`."""

    rules: str | None = None
    """File of a shop's rules that the slates follow, relative to the file of the experiment."""

    bundle: Annotated[str, Field(min_length=1)] | None = None
    """A bundle that is evaluated as it is: its fingerprint or the beginning of it, or `current`. It may not have seen
    an event of the test windows."""

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str) -> str:
        known = (RERANKED, TOWERS, *baselines.KINDS)
        if model not in known:
            raise ValueError(f"one of {', '.join(known)} is needed")
        return model

    @model_validator(mode="after")
    def _check_bundle(self) -> "Variant":
        if self.bundle is not None and (self.set or self.rules or self.model != RERANKED):
            raise ValueError("a bundle is evaluated as it is: remove `model`, `set` and `rules`, or `bundle`")
        return self

    @model_validator(mode="after")
    def _check_rules(self) -> "Variant":
        if self.rules is not None and self.model != RERANKED:
            raise ValueError(f"rules are applied to the model {RERANKED!r} only: remove `rules` or `model`")
        return self


class ExperimentFile(StrictModel):
    """Every setting of an experiment."""

    name: Name
    config: str
    """The configuration: a path relative to this file, or the name of a shipped one."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = Field(default=[0])
    control: Name | None = None
    """The variant that the others are compared with; null: the first."""

    variants: Annotated[dict[Name, Variant], Field(min_length=2)]
    decision: Rule = Rule()

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed may stand there once")
        return seeds

    @model_validator(mode="after")
    def _check_control(self) -> "ExperimentFile":
        if self.control is not None and self.control not in self.variants:
            raise ValueError(f"control: {self.control!r} is none of the variants {', '.join(self.variants)}")
        return self


@dataclass(frozen=True)
class Experiment:
    """A file of an experiment, read.

    configs: of each variant, without a seed of its own; rules: files of rules; bundles: folders of bundles.
    """

    definition: ExperimentFile
    configs: dict[str, RunConfig]
    rules: dict[str, Path]
    bundles: dict[str, Path]

    @property
    def control(self) -> str:
        """The variant that the others are compared with."""
        return self.definition.control or next(iter(self.definition.variants))


def load_experiment(path: Path, environ: Mapping[str, str] = os.environ) -> Experiment:
    """Read the file of an experiment and the configurations of its variants.

    All variants must read the same data and split them in the same way, because they are compared event by event.
    Raises ConfigError with the key, and BundleError.
    """
    if wrong := not_a_file(path):
        raise ConfigError(f"{path}: {wrong}")
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: named values are needed: name, config, variants; see docs/experiments.md")
    try:
        definition = ExperimentFile.model_validate(raw)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, wrong.place))}: {wrong.reason}" for wrong in describe_invalid(error.errors()))
        raise ConfigError(f"{path}: {'; '.join(lines)}") from None
    beside = path.parent / definition.config
    base = beside if beside.is_file() else find_config(definition.config)
    configs = {name: _config(path, base, name, variant, environ) for name, variant in definition.variants.items()}
    first = next(iter(configs.values()))
    for name, config in configs.items():
        if (config.data, config.split, config.seed) != (first.data, first.split, first.seed):
            raise ConfigError(
                f"{path}: variants.{name}: data, split and seed must be those of the others: seeds are given once, "
                "for all, and other data are another experiment"
            )
    at, placements = definition.decision.placement, first.data.placements
    if at is not None and at not in placements:
        raise ConfigError(f"{path}: decision.placement: {at!r} is none of {', '.join(placements)}")
    rules = {
        name: path.parent / variant.rules
        for name, variant in definition.variants.items()
        if variant.rules is not None
    }
    for file in rules.values():
        load_rules(file)  # hours before it is needed
    bundles = {
        name: find_bundle(Path(first.bundles), variant.bundle)
        for name, variant in definition.variants.items()
        if variant.bundle is not None
    }
    return Experiment(definition, configs, rules, bundles)


def _config(path: Path, base: Path, name: str, variant: Variant, environ: Mapping[str, str]) -> RunConfig:
    """The configuration of a variant. Its settings override the file as variables of the environment do."""
    given = {f"{PREFIX}{key.upper().replace('.', '__')}": key for key in variant.set}
    try:
        settings = {variable: json.dumps(variant.set[key]) for variable, key in given.items()}
    except TypeError:
        raise ConfigError(f"{path}: variants.{name}.set: a date is no setting: put it in quotes") from None
    try:
        config = load_config(base, {**environ, **settings})
    except ConfigError as error:
        text = str(error)
        for variable, key in given.items():
            text = text.replace(f"environment variable {variable}", f"{path}: variants.{name}.set.{key}")
        raise ConfigError(text) from None
    if variant.bundle is None and variant.model == RERANKED and config.reranker is None:
        raise ConfigError(f"{path}: variants.{name}: {base} has no reranker: write `model: {TOWERS}`")
    if variant.model in baselines.KINDS:
        fixed = config.baselines.get(variant.model, {})
        return config.model_copy(update={"baselines": {variant.model: fixed}})
    return config.model_copy(update={"baselines": {"popular": {}}})  # none of them is fitted
