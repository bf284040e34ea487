"""The configuration of a run: a YAML file, overridden by environment variables RECSYS__SECTION__KEY."""

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from sysconfig import get_path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from experiments.splits import SplitConfig
from features.content.encoder_config import BuiltinConfig, EncoderConfig
from features.content.parts import Limits
from features.errors import ConfigError, Invalid, describe_invalid, describe_read_error, describe_url
from features.files import not_a_file
from features.schema import DataConfig, StrictModel
from features.tables.sources import source_fault
from recsys.baselines import check_baseline
from recsys.config import AlignmentConfig, RerankerConfig, RetrieverConfig, TowerConfig, TrainingConfig
from recsys.yaml_text import parse_yaml

PREFIX = "RECSYS__"
SHOWN = 100
"""Characters of a value that a message shows."""

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class RunConfig(StrictModel):
    """Every setting of a run. A run depends on the configuration, the data and the code, and on nothing else."""

    name: str
    """Name of the MLflow experiment and of the run's tables."""

    data: DataConfig
    split: SplitConfig = SplitConfig()
    encoder: EncoderConfig | None = BuiltinConfig()
    """Encoder of item contents (text, image, audio, video); null: items have ids and categories only."""

    limits: Limits = Limits()
    """Size limits of one content."""

    alignment: AlignmentConfig = AlignmentConfig()
    """How the vectors of several encoders are aligned in one space."""

    towers: TowerConfig = TowerConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    training: TrainingConfig = TrainingConfig()
    reranker: RerankerConfig | None = RerankerConfig()
    """null: items are served in the order of the retrieval scores."""

    discovery: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much accuracy lists may lose so that cold items are found: a share of NDCG@10. null: .01 of the reranker's
    lists; .15 of known items in lists of retrieval alone."""

    baselines: dict[str, dict[str, int | float]] = Field(default={"popular": {}}, min_length=1)
    """Name -> settings that are fixed; the others are chosen on the validation window (`recsys/baselines/grids.py`).

    A suffix distinguishes two of one kind: `popular 7 days`.
    """

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    bundles: str = "bundles"
    """Folder of the bundles that a run writes."""

    cache: str = "data/cache"
    """Folder of encoded contents, exported models, and the chosen settings of baselines."""

    def changed(self, settings: Mapping[str, Any]) -> "RunConfig":
        """A copy with other settings, e.g. {"towers.dropout": 0.3}. Raises ValidationError for invalid settings."""
        sections: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            section, name = key.split(".")
            sections.setdefault(section, getattr(self, section).model_dump(exclude_unset=True))[name] = value
        update = {name: type(getattr(self, name)).model_validate(values) for name, values in sections.items()}
        return self.model_copy(update=update)

    def recorded(self) -> dict[str, Any]:
        """All settings, for bundles and trackers, which other people read: URLs are without password and query."""
        return {key: _without_secrets(value) for key, value in self.model_dump().items()}

    @field_validator("data")
    @classmethod
    def _source_is_known(cls, data: DataConfig) -> DataConfig:
        if fault := source_fault(data.source):
            raise ValueError(fault.removeprefix("data."))
        return data

    @field_validator("baselines")
    @classmethod
    def _check_baselines(cls, baselines: dict[str, dict[str, int | float]]) -> dict[str, dict[str, int | float]]:
        for name, arguments in baselines.items():
            check_baseline(name, arguments)
        return baselines

    @model_validator(mode="after")
    def _check_objectives(self) -> "RunConfig":
        named, known = {} if self.reranker is None else self.reranker.objectives, self.data.placements
        if unknown := sorted({*named} - {*known}):
            raise ValueError(
                f"reranker.objectives names {', '.join(unknown)}: data.placements has {', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _check_history(self) -> "RunConfig":
        kept = self.data.events.history // 2
        if self.towers.history > kept:
            raise ValueError(
                f"towers.history is {self.towers.history}, but of a user's events only the newest {kept} are kept "
                f"whatever they are: set data.events.history to {2 * self.towers.history} or more"
            )
        return self


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_secrets, value))
    return describe_url(value) if isinstance(value, str) and "://" in value else value


def load_config(path: Path | str, environ: Mapping[str, str] = os.environ) -> RunConfig:
    """Read a configuration from a YAML file and the environment.

    `$NAME` in a string is replaced by the environment variable NAME. RECSYS__SECTION__KEY overrides a value of the
    file. The variable spells a key in capitals, with _ for every character that is not a letter or a digit: the
    baseline `item-knn` is ITEM_KNN. Raises ConfigError that names the file and the key, and for an unknown key the
    most similar known one.
    """
    path = Path(path)
    if wrong := not_a_file(path):
        raise ConfigError(f"{path}: {wrong}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {describe_read_error(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8 text") from error
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: sections of named values are needed (got {_kind(raw)})")
    try:
        raw = _expand(raw, environ)
    except RecursionError:  # an alias of YAML that contains itself
        raise ConfigError(f"{path}: an alias contains itself") from None
    origins = _Origins(str(path))
    for name in sorted(environ):
        if name.startswith(PREFIX):
            origins.variables[_override(raw, name, environ[name])] = name
    _check_strings(raw, (), origins)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines: dict[str, list[str]] = {}  # by what they are about
        for invalid in describe_invalid(error.errors()):
            text = _explain(invalid)
            lines.setdefault(origins.of(_keys(invalid), text), []).append(text)
        raise ConfigError("; ".join(f"{origin}: {'; '.join(texts)}" for origin, texts in lines.items())) from None


class _Origins:
    """Where the values of a configuration come from: its file, or variables, each with the keys that lead to it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.variables: dict[tuple[str, ...], str] = {}

    def of(self, keys: tuple[str, ...], text: str = "") -> str:
        """What to name in a message about the value at some keys: the file, or the variable that overrides it.

        text: the message. One about a whole section is about the file, and about the variables whose keys it names.
        """
        if name := next((name for place, name in self.variables.items() if keys[: len(place)] == place), None):
            return f"environment variable {name}"
        below = (name for place, name in self.variables.items() if place[: len(keys)] == keys and place[-1] in text)
        return " with ".join((self.file, *below))


def _kind(raw: object) -> str:
    """What a YAML file holds that is no mapping."""
    return "an empty file" if raw is None else "a list" if isinstance(raw, list) else f"the value {_shown(raw)}"


class _Unexpanded(str):
    """A string of the file that names an environment variable that is not set."""

    variable: str


class _Expanded(str):
    """A string with values of environment variables in it, which may be secret."""

    written: str
    """What the file has: the names of the variables."""


def _expand(value: Any, environ: Mapping[str, str]) -> Any:
    """The value with environment variables in place of their names; _Unexpanded where one is not set."""
    if isinstance(value, dict):
        return {k: _expand(v, environ) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, environ) for v in value]
    if not isinstance(value, str):
        return value
    names = [match[1] or match[2] for match in VARIABLE.finditer(value)]
    if unset := [name for name in names if name not in environ]:
        unexpanded = _Unexpanded(value)
        unexpanded.variable = unset[0]
        return unexpanded
    if not names:
        return value
    expanded = _Expanded(VARIABLE.sub(lambda match: environ[match[1] or match[2]], value))
    expanded.written = value
    return expanded


def _shown(value: Any) -> str:
    """A value for messages: the names of variables in place of their values, a URL without its password."""
    value = value.written if isinstance(value, _Expanded) else value
    if isinstance(value, str):
        text = describe_url(value) if "://" in value else value
        return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _check_strings(value: Any, keys: tuple[str, ...], origins: _Origins) -> None:
    """Raises ConfigError for a string that no setting may have, with its place.

    It needs a variable that is not set, has a null character, or is empty: an empty path is the working folder.
    Strings of the file that the environment overrides are not looked at: they are no longer there.
    """
    place = f"{origins.of(keys)}: {'.'.join(keys)}"
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_strings(part, (*keys, str(key)), origins)
    elif isinstance(value, _Unexpanded):
        raise ConfigError(
            f"{place}: {_shown(str(value))} needs the environment variable {value.variable}, which is not set: set it"
        )
    elif isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{place}: {_shown(value)} has a null character, which no path or name may have: remove it")
    elif isinstance(value, str) and not value.strip():
        raise ConfigError(f"{place}: empty: give a value, or remove the key")


def _override(raw: dict[str, Any], name: str, text: str) -> tuple[str, ...]:
    """Put the value of an environment variable into the configuration; the keys that lead to it."""
    try:
        value = parse_yaml(text, f"environment variable {name}")
    except ConfigError as error:  # its text quotes the value, which may be secret
        raise ConfigError(f"{str(error).partition(': not ')[0]}: not YAML: put a text in quotes") from None
    *sections, last = name.removeprefix(PREFIX).lower().split("__")
    keys = list[str]()
    for section in sections:
        keys.append(_matching_key(raw, section))
        raw = raw.setdefault(keys[-1], {})
        if not isinstance(raw, dict):
            raise ConfigError(f"environment variable {name}: {section!r} holds a value, not a section")
    keys.append(_matching_key(raw, last))
    raw[keys[-1]] = value
    return tuple(keys)


def _matching_key(section: dict[str, Any], name: str) -> str:
    """The key of the section that environment variables spell as `name`; `name` itself where there is none."""
    return next((key for key in section if re.sub(r"\W", "_", str(key)).lower() == name), name)


def _keys(invalid: Invalid) -> tuple[str, ...]:
    """The keys that lead to an invalid value, without the kinds of unions."""
    place = invalid.place[:-2] if invalid.place[-1:] == ("[key]",) else invalid.place  # of a key: its mapping
    return (*_section(place[:-1])[1], *map(str, place[-1:]))


def _explain(invalid: Invalid) -> str:
    """One line: the place, what is wrong there, and the value where it is no section, which may hold secrets."""
    models = _section(invalid.place[:-1])[0]
    place, value, reason = ".".join(_keys(invalid)), invalid.problem["input"], invalid.reason
    kind = invalid.problem["type"]
    if kind == "extra_forbidden":
        keys = [key for model in models for key in model.model_fields]
        similar = difflib.get_close_matches(str(invalid.place[-1]), keys, n=1, cutoff=0.0)
        return f"unknown key {place!r}" + (f"; did you mean {similar[0]!r}?" if similar else "")
    if kind == "union_tag_invalid":
        tag = invalid.problem["ctx"]["discriminator"].strip("'")
        return f"{place}.{tag}: {reason} (got {_shown(value[tag])})"
    if kind == "missing" or isinstance(value, dict | list | tuple | BaseModel):
        return f"{place}: {reason}" if place else reason  # a reason of several sections names them
    if isinstance(value, _Expanded):
        reason = reason.replace(value, value.written)
    hint = "; put it in quotes" if kind == "string_type" and value is not None else ""
    return f"{place}: {reason} (got {_shown(value)}{hint})"


def _section(place: tuple[str | int, ...]) -> tuple[list[type[BaseModel]], list[str]]:
    """The model of the section at a place of pydantic, and the place without the kinds of unions."""
    models: list[type[BaseModel]] = [RunConfig]
    parts: list[str] = []
    in_mapping = False  # whether the next part is a key that the user chose, e.g. the name of a placement
    for part in place:
        if len(models) > 1:
            models = [model for model in models if part in get_args(model.model_fields["kind"].annotation)]
            continue
        parts.append(str(part))
        if in_mapping:
            in_mapping = False
            continue
        field = models[0].model_fields.get(str(part)) if models else None
        models = _models(field.annotation) if field else []
        in_mapping = get_origin(field.annotation) is dict if field else False
    return models, parts


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type admits: several in a union that the key `kind` decides."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def find_config(name: str) -> Path:
    """The file of a configuration, which is given as a path or as the name of a configuration in configs/.

    Raises ConfigError that lists the shipped configurations.
    """
    checkout = Path(__file__).resolve().parents[1] / "configs"
    shipped = checkout if checkout.is_dir() else Path(get_path("data")) / "share" / "onespace-recsys" / "configs"
    candidates = (Path(name), Path("configs") / f"{name}.yaml", shipped / f"{name}.yaml")
    if found := next((path for path in candidates if path.is_file()), None):
        return found
    if name and os.path.lexists(name):
        raise ConfigError(f"{name}: {not_a_file(Path(name))}")
    names = {path.stem: path for path in sorted(shipped.glob("*.yaml"))}
    nearby = [str(path) for path in (Path(name).parent.glob("*.y*ml"))]
    using = [stem for stem, path in names.items() if f"\n  source: {name}\n" in path.read_text(encoding="utf-8")]
    similar = difflib.get_close_matches(name, [*names, *nearby], n=1, cutoff=0.6)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    if using:
        hint = f"; {name} is the source of {', '.join(using)}"
    known = ", ".join(names) or "none"
    raise ConfigError(f"no configuration {name!r}: not a file, and not among the shipped ones: {known}{hint}")
