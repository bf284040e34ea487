"""The configuration of a run: a YAML file, overridden by environment variables RECSYS__SECTION__KEY."""

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from experiments.splits import SplitConfig
from features.content.encoder_config import BuiltinConfig, EncoderConfig
from features.content.parts import Limits
from features.errors import ConfigError, describe_url
from features.schema import DataConfig, StrictModel
from recsys.baselines import check_baseline
from recsys.config import AlignmentConfig, RerankerConfig, RetrieverConfig, TowerConfig, TrainingConfig

PREFIX = "RECSYS__"
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

    baselines: dict[str, dict[str, int | float]] = Field(default={"popular": {}}, min_length=1)
    """Name -> arguments of its fit function. A suffix distinguishes two of one kind: `popular 7 days`."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    bundles: str = "bundles"
    """Folder of the bundles that a run writes."""

    cache: str = "data/cache"
    """Folder of encoded contents and exported models."""

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

    @field_validator("baselines")
    @classmethod
    def _check_baselines(cls, baselines: dict[str, dict[str, int | float]]) -> dict[str, dict[str, int | float]]:
        for name, arguments in baselines.items():
            check_baseline(name, arguments)
        return baselines


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8 text") from error
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected, not {type(raw).__name__}")
    try:
        raw = _expand(raw, environ)
    except RecursionError:  # an alias of YAML that contains itself
        raise ConfigError(f"{path}: an alias contains itself") from None
    for name in sorted(environ):
        if name.startswith(PREFIX):
            _override(raw, name, environ[name])
    _check_strings(raw, path)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = "; ".join(_explain(problem) for problem in error.errors())
        raise ConfigError(f"{path}: {lines}") from None


class _Loader(yaml.SafeLoader):
    """YAML without two surprises: a key that stands twice, and a key that is not read as text, such as yes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises ConstructorError, with the place, for such a key."""
        known: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(name, str):
                given = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                problem = f"the key {given} is read as {name!r}, not as text: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if name in known:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            known.add(name)
        return super().construct_mapping(node, deep)


def _parse(text: str, place: str) -> Any:
    """The value of a YAML text. Raises ConfigError that names the place and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{place}{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date such as 2024-13-01
        raise ConfigError(f"{place}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise ConfigError(f"{place}: not a configuration: too many levels of nesting") from None


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
    return repr(describe_url(value) if isinstance(value, str) and "://" in value else value)


def _check_strings(value: Any, path: Path) -> None:
    """Raises ConfigError for a string that needs a variable that is not set, and for one with a null character.

    Strings of the file that the environment overrides are not looked at: they are no longer there.
    """
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_strings(part, path)
    elif isinstance(value, _Unexpanded):
        raise ConfigError(
            f"{path}: {_shown(str(value))} needs the environment variable {value.variable}, which is not set: set it"
        )
    elif isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{path}: {_shown(value)} has a null character, which no path or name may have: remove it")


def _override(raw: dict[str, Any], name: str, text: str) -> None:
    try:
        value = _parse(text, f"environment variable {name}")
    except ConfigError as error:  # its text quotes the value, which may be secret
        raise ConfigError(f"{str(error).partition(': not ')[0]}: not YAML: put a text in quotes") from None
    *sections, key = name.removeprefix(PREFIX).lower().split("__")
    for section in sections:
        raw = raw.setdefault(_matching_key(raw, section), {})
        if not isinstance(raw, dict):
            raise ConfigError(f"environment variable {name}: {section!r} holds a value, not a section")
    raw[_matching_key(raw, key)] = value


def _matching_key(section: dict[str, Any], name: str) -> str:
    """The key of the section that environment variables spell as `name`; `name` itself where there is none."""
    return next((key for key in section if re.sub(r"\W", "_", str(key)).lower() == name), name)


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        similar = difflib.get_close_matches(str(problem["loc"][-1]), _keys(problem["loc"][:-1]), n=1, cutoff=0.0)
        return f"unknown key {place!r}" + (f"; did you mean {similar[0]!r}?" if similar else "")
    value, message = problem["input"], problem["msg"]
    if problem["type"] == "union_tag_invalid":
        written = value[problem["ctx"]["discriminator"].strip("'")]
        message = f"{_shown(written)} is none of {problem['ctx']['expected_tags']}"
    if problem["type"] == "missing" or isinstance(value, dict | list | tuple | BaseModel):
        return f"{place}: {message}"  # a section: it may hold secrets
    if isinstance(value, _Expanded):
        message = message.replace(value, value.written)
    hint = "; put it in quotes" if problem["type"] == "string_type" and value is not None else ""
    return f"{place}: {message} (got {_shown(value)}{hint})"


def _keys(place: tuple[str | int, ...]) -> list[str]:
    """Keys of the section at this place."""
    model: Any = RunConfig
    in_mapping = False  # whether the next part is a key that the user chose, e.g. the name of a placement
    for part in place:
        if in_mapping:
            in_mapping = False
            continue
        field = getattr(model, "model_fields", {}).get(part)
        options = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((o for o in options if inspect.isclass(o) and issubclass(o, BaseModel)), None)
        in_mapping = get_origin(field.annotation) is dict if field else False
    return list(model.model_fields) if model else []
