"""One run's configuration: a complete YAML file, overridden by RECSYS__A__B in the environment."""

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from experiments.splits import SplitConfig
from features.content.encoder_config import BuiltinConfig, EncoderConfig
from features.content.parts import Limits
from features.errors import ConfigError
from features.schema import DataConfig, Strict
from recsys.baselines import check_baseline
from recsys.config import AlignmentConfig, RerankerConfig, RetrieverConfig, TowerConfig, TrainingConfig

PREFIX = "RECSYS__"


class RunConfig(Strict):
    """Everything a run depends on besides the data and the code."""

    name: str
    """Name of the MLflow experiment and of the run's tables."""

    data: DataConfig
    split: SplitConfig = SplitConfig()
    encoder: EncoderConfig | None = BuiltinConfig()
    """What items are read, seen and heard with; null: ids and categories alone."""

    limits: Limits = Limits()
    """What is accepted of one content."""

    alignment: AlignmentConfig = AlignmentConfig()
    """How encoders of several spaces come to one."""

    towers: TowerConfig = TowerConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    training: TrainingConfig = TrainingConfig()
    reranker: RerankerConfig | None = RerankerConfig()
    """null: the order of retrieval is served."""

    baselines: dict[str, dict[str, int | float]] = Field(default={"popular": {}}, min_length=1)
    """Name -> arguments of its fit function; a name may carry a suffix after a space to occur twice."""

    seed: int = 0
    bundles: str = "bundles"
    """Folder that bundles are written to."""

    cache: str = "data/cache"
    """Folder of encoded contents and exported models."""

    def changed(self, settings: Mapping[str, Any]) -> "RunConfig":
        """With other settings, as {"towers.dropout": 0.3}. Raises ValidationError when they do not go together."""
        sections: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            section, name = key.split(".")
            sections.setdefault(section, getattr(self, section).model_dump(exclude_unset=True))[name] = value
        update = {name: type(getattr(self, name)).model_validate(values) for name, values in sections.items()}
        return self.model_copy(update=update)

    @field_validator("baselines")
    @classmethod
    def _known(cls, baselines: dict[str, dict[str, int | float]]) -> dict[str, dict[str, int | float]]:
        for name, arguments in baselines.items():
            check_baseline(name, arguments)
        return baselines


def load_config(path: Path | str, environ: Mapping[str, str] = os.environ) -> RunConfig:
    """Read a YAML file; `$NAME` in its strings and RECSYS__SECTION__KEY come from the environment.

    A key of the file's own, as the baseline `item-knn`, is ITEM_KNN there: capitals, and _ for any other sign.
    Raises ConfigError naming the file, the key and, for an unknown key, its nearest neighbour.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected, not {type(raw).__name__}")
    raw = _expand(raw, environ, path)
    for name in sorted(environ):
        if name.startswith(PREFIX):
            _override(raw, name, environ[name])
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = "; ".join(_explain(problem) for problem in error.errors())
        raise ConfigError(f"{path}: {lines}") from None


def _expand(value: Any, environ: Mapping[str, str], path: Path) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, environ, path) for k, v in value.items()}
    if not isinstance(value, str):
        return value

    def look(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environ:
            raise ConfigError(f"{path}: {value!r} needs the environment variable {name}, which is not set")
        return environ[name]

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", look, value)


def _override(raw: dict[str, Any], name: str, text: str) -> None:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"environment variable {name}: {text!r} is not YAML: {error}") from error
    *sections, key = name.removeprefix(PREFIX).lower().split("__")
    for section in sections:
        raw = raw.setdefault(_own(raw, section), {})
        if not isinstance(raw, dict):
            raise ConfigError(f"environment variable {name}: {section!r} holds a value, not a section")
    raw[_own(raw, key)] = value


def _own(section: dict[str, Any], name: str) -> str:
    """The key of the section that the environment can only spell as `name`."""
    return next((key for key in section if re.sub(r"\W", "_", str(key)).lower() == name), name)


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _keys(problem["loc"][:-1]), n=1, cutoff=0.0)
        return f"unknown key {place!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{place}: {problem['msg']} (got {problem['input']!r})"


def _keys(place: tuple[str | int, ...]) -> list[str]:
    """Keys that the section at this place has."""
    model: Any = RunConfig
    named = False  # whether the next part is a name of the user's own, as of a placement
    for part in place:
        if named:
            named = False
            continue
        field = getattr(model, "model_fields", {}).get(part)
        options = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((o for o in options if inspect.isclass(o) and issubclass(o, BaseModel)), None)
        named = get_origin(field.annotation) is dict if field else False
    return list(model.model_fields) if model else []
