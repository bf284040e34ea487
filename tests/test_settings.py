"""Defaults and bounds of all settings. A changed default changes what every user trains and serves."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from experiments.config import RunConfig
from experiments.splits import SplitConfig
from features.content.encoder_config import GeminiConfig, HubConfig, OpenAICompatibleConfig
from features.content.parts import Limits
from features.log.upkeep.retention import Limit
from features.schema import DataConfig, EventRules
from recsys.config import AlignmentConfig, RerankerConfig, RetrieverConfig, SourceQuotas, TowerConfig, TrainingConfig
from serving.routes.search_query import SearchIn
from serving.schemas.events import EventIn
from serving.settings import ServeSettings

DATA = {"source": "folder", "path": "tables", "events": {"positive": {"buy": None}}}

DEFAULTS: dict[str, Any] = {
    "data": DATA
    | {
        "events": {
            "positive": {"buy": None},
            "seen": None,
            "weights": {},
            "history": 512,
            "seen_items": 8_000,
            "history_days": None,
        },
        "origin": None,
        "placements": {"home": {"repeats": False}},
        "min_train_events": 0,
        "extra_columns": (),
        "log": None,
    },
    "split": {"kind": "time", "history": "prequential", "test": 0.1, "validation": 0.1, "windows": 1},
    "encoder": {"kind": "builtin", "multilingual": False, "without": ()},
    "limits": {
        "parts": 32,
        "text_bytes": 200_000,
        "media_bytes": 67_108_864,
        "pixels": 40_000_000,
        "frames": 1000,
        "seconds": 3600.0,
        "hosts": (),
        "fetch_seconds": 10.0,
    },
    "alignment": {
        "nested": (32, 64, 128, 256),
        "shrinkage": (1.0, 3.0, 10.0, 30.0),
        "power": (0.5, 1.0),
        "within": (0.3, 1.0),
        "steps": 40,
        "passes": 4,
        "batch": 1024,
        "learning_rate": 0.0003,
        "dropout": 0.1,
    },
    "towers": {
        "dimension": 64,
        "nested": (),
        "layers": 2,
        "heads": 2,
        "history": 100,
        "dropout": 0.2,
        "id_dropout": 0.1,
        "id": True,
        "content": True,
        "times": True,
        "calendar": False,
        "cold_share": None,
    },
    "retriever": {"kind": "exact", "effort": None, "dimensions": None, "refine": 10},
    "training": {
        "epochs": 50,
        "patience": 3,
        "validation_states": 5000,
        "batch_events": 8192,
        "learning_rate": 0.001,
        "id_rate": 1.0,
        "weight_decay": 0.01,
        "schedule": "constant",
        "loss": "softmax",
        "negatives": 0,
    },
    "reranker": {
        "candidates": 500,
        "sources": {
            "recent": 0.7,
            "long_term": 0.3,
            "neighbours": 0,
            "fresh": 0,
            "trending": 0,
            "popular": 0,
        },
        "trees": 100,
        "leaves": 7,
        "learning_rate": 0.03,
        "groups": 5000,
        "objectives": {},
        "cold_share": None,
    },
    "discovery": None,
    "baselines": {"popular": {}},
    "seed": 0,
    "bundles": "bundles",
    "cache": "data/cache",
}

LEAST: dict[type[BaseModel], dict[str, int]] = {
    RunConfig: {"seed": 0, "discovery": 0},
    EventRules: {"history": 2, "seen_items": 1, "history_days": 1},
    EventIn: {"position": 1},
    SearchIn: {"limit": 1, "weight": 0},
    DataConfig: {"min_train_events": 0},
    SplitConfig: {"windows": 1},
    Limits: {"parts": 1, "text_bytes": 1, "media_bytes": 1, "pixels": 1, "frames": 1},
    TowerConfig: {"layers": 1, "heads": 1, "history": 1, "dropout": 0, "id_dropout": 0, "cold_share": 0},
    RetrieverConfig: {"effort": 1, "dimensions": 1, "refine": 1},
    TrainingConfig: {
        "epochs": 1,
        "patience": 1,
        "validation_states": 1,
        "batch_events": 1,
        "weight_decay": 0,
        "negatives": 0,
    },
    RerankerConfig: {"candidates": 10, "trees": 1, "leaves": 2, "groups": 1},
    SourceQuotas: dict.fromkeys(("long_term", "neighbours", "fresh", "trending", "popular"), 0),
    AlignmentConfig: {"steps": 0, "passes": 0, "batch": 2, "dropout": 0},
    GeminiConfig: {"dimension": 128, "spend_at_most": 0},
    HubConfig: {"dimension": 1},
    OpenAICompatibleConfig: {"dimension": 1},
    ServeSettings: {
        "port": 0,
        "store_pause": 0,
        "threads": 1,
        "search_bytes": 1,
        "connections": 1,
        "workers": 1,
        "queue": 1,
    },
}
"""Section -> setting -> its smallest value."""

GREATEST: dict[type[BaseModel], dict[str, int]] = {
    RunConfig: {"seed": 2**31 - 1, "discovery": 1},
    EventRules: {"history": 100_000, "seen_items": 1_000_000, "history_days": 36_500},
    RerankerConfig: {"leaves": 131_072},
    SourceQuotas: dict.fromkeys(("recent", "long_term", "neighbours", "fresh", "trending", "popular"), 1),
    EventIn: {"position": 10_000},
    SearchIn: {"limit": 100, "weight": 1},
    TowerConfig: {"cold_share": 1},
    GeminiConfig: {"dimension": 3072},
    ServeSettings: {
        "port": 65_535,
        "connections": 100_000,
        "threads": 1024,
        "workers": 64,
        "queue": 100_000,
        "deadline": 3600,
        "store_timeout": 3600,
        "store_pause": 3600,
        "follow_seconds": 3600,
        "search_wait": 3600,
        "search_seconds": 3600,
    },
}
"""Section -> setting -> its largest value."""

OUTSIDE: dict[type[BaseModel], dict[str, tuple[float, ...]]] = {
    SplitConfig: {"test": (0, 1), "validation": (0, 1)},
    Limits: {"seconds": (0,), "fetch_seconds": (0,)},
    TowerConfig: {"dropout": (1,), "id_dropout": (1,), "dimension": (4, 10)},
    TrainingConfig: {"learning_rate": (0,), "id_rate": (0,)},
    RerankerConfig: {"learning_rate": (0,)},
    SourceQuotas: {"recent": (0,)},
    AlignmentConfig: {"learning_rate": (0,), "dropout": (1,)},
    ServeSettings: {
        "store_timeout": (0, float("inf"), float("nan")),
        "follow_seconds": (0,),
        "deadline": (0,),
        "search_wait": (0,),
        "search_seconds": (0,),
        "events_days": (0,),
        "events_bytes": (0,),
        "exposures_days": (0,),
        "exposures_bytes": (0,),
    },
}
"""Section -> setting -> the nearest values that are refused."""

INSIDE: dict[type[BaseModel], dict[str, tuple[float, ...]]] = {
    SplitConfig: {"test": (1e-9, 1 - 1e-9), "validation": (1e-9, 1 - 1e-9)},
    Limits: {"seconds": (1e-9,), "fetch_seconds": (1e-9,)},
    TowerConfig: {"dropout": (1 - 1e-9,), "id_dropout": (1 - 1e-9,), "dimension": (8, 12)},
    TrainingConfig: {"learning_rate": (1e-9,), "id_rate": (1e-9,)},
    RerankerConfig: {"learning_rate": (1e-9,)},
    SourceQuotas: {"recent": (1e-9,)},
    AlignmentConfig: {"learning_rate": (1e-9,), "dropout": (1 - 1e-9,)},
    ServeSettings: {
        "store_timeout": (1e-9,),
        "follow_seconds": (1e-9,),
        "deadline": (1e-9,),
        "search_wait": (1e-9,),
        "search_seconds": (1e-9,),
        "events_days": (0.5,),
        "events_bytes": (1,),
        "exposures_days": (0.5, float("inf")),
        "exposures_bytes": (1,),
    },
}
"""Section -> setting -> the nearest values that are accepted."""

REQUIRED: dict[type[BaseModel], dict[str, Any]] = {
    DataConfig: DATA,
    RunConfig: {"name": "n", "data": DATA},
    EventRules: {"positive": {"buy": None}},
    EventIn: {"user_id": "u", "item_id": "i", "event": "buy"},
    GeminiConfig: {"kind": "gemini"},
    HubConfig: {"kind": "clip", "model": "m"},
    OpenAICompatibleConfig: {"kind": "openai-compatible", "base_url": "http://127.0.0.1/v1", "model": "m"},
}
"""Section -> settings without a default."""


def cases(table: dict[type[BaseModel], dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(section, name, value, id=f"{section.__name__}.{name}")
        for section, settings in table.items()
        for name, value in settings.items()
    ]


def accepts(section: type[BaseModel], name: str, value: float) -> bool:
    try:
        made = section.model_validate(REQUIRED.get(section, {}) | {name: value})
    except ValidationError as error:
        return [each["loc"] for each in error.errors()] != [(name,)]
    return bool(getattr(made, name) == value)


def test_the_defaults_of_a_run() -> None:
    assert RunConfig.model_validate({"name": "n", "data": DATA}).model_dump() == {"name": "n", **DEFAULTS}


def test_the_defaults_of_remote_encoders() -> None:
    gemini = GeminiConfig(kind="gemini")
    assert (gemini.model, gemini.dimension, gemini.spend_at_most) == ("gemini-embedding-2", 768, 1.0)
    assert OpenAICompatibleConfig.model_validate(REQUIRED[OpenAICompatibleConfig]).dimension is None
    hub = HubConfig.model_validate(REQUIRED[HubConfig])
    assert (hub.revision, hub.dimension) == (None, None)


def test_the_defaults_of_the_service_are_those_that_the_documentation_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", text, re.MULTILINE))
    defaults = {name.upper(): value for name, value in ServeSettings().model_dump().items()}
    spelled = {True: "`true`", False: "`false`", None: "none", (): "none"}
    assert documented == {
        name: spelled[value] if value in (None, ()) or isinstance(value, bool) else f"`{value}`"
        for name, value in defaults.items()
    }


def test_the_service_reads_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("RECSYS_SERVE__PORT", "9")
    monkeypatch.setenv("RECSYS_SERVE__HOST", "")  # empty: not set
    settings = ServeSettings()
    assert (settings.port, settings.host, settings.redis_url) == (9, "127.0.0.1", None)
    monkeypatch.setenv("REDIS_URL", "redis://a")
    assert ServeSettings().redis_url == "redis://a"
    monkeypatch.setenv("RECSYS_SERVE__REDIS_URL", "redis://b")
    assert ServeSettings().redis_url == "redis://b"  # the more specific name counts
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.setenv("RECSYS_SERVE__REDIS_URL", "redis://b")
    assert ServeSettings().redis_url == "redis://b"
    assert ServeSettings(redis_url="redis://c").redis_url == "redis://c"
    with pytest.raises(ValidationError, match="Extra inputs"):
        ServeSettings.model_validate({"prot": 9})


@pytest.mark.parametrize(("section", "name", "least"), cases(LEAST))
def test_the_smallest_value(section: type[BaseModel], name: str, least: int) -> None:
    assert accepts(section, name, least)
    assert not accepts(section, name, least - 1)


@pytest.mark.parametrize(("section", "name", "greatest"), cases(GREATEST))
def test_the_largest_value(section: type[BaseModel], name: str, greatest: int) -> None:
    assert accepts(section, name, greatest)
    assert not accepts(section, name, greatest + 1)


@pytest.mark.parametrize(("section", "name", "values"), cases(OUTSIDE))
def test_values_outside_of_open_bounds_are_refused(
    section: type[BaseModel], name: str, values: tuple[float, ...]
) -> None:
    assert not any(accepts(section, name, value) for value in values)
    assert all(accepts(section, name, value) for value in INSIDE[section][name])


def test_training_weights_are_positive_and_name_positive_events() -> None:
    positive = {"positive": {"buy": None}}
    assert EventRules.model_validate(positive | {"weights": {"buy": 1e-9}}).weights == {"buy": 1e-9}
    for weights in ({"buy": 0}, {"look": 1}):
        with pytest.raises(ValidationError, match="weights"):
            EventRules.model_validate(positive | {"weights": weights})


def test_a_data_set_and_a_run_have_at_least_one_placement_and_one_baseline() -> None:
    with pytest.raises(ValidationError, match="placements"):
        DataConfig.model_validate(DATA | {"placements": {}})
    with pytest.raises(ValidationError, match="baselines"):
        RunConfig.model_validate({"name": "n", "data": DATA, "baselines": {}})


@pytest.mark.parametrize("nested", [(), (64,), (8, 63), (1,)])
def test_shorter_dimensions_of_towers(nested: tuple[int, ...]) -> None:
    if nested == (64,):
        with pytest.raises(ValidationError, match="dimensions below 64"):
            TowerConfig(nested=nested)
    else:
        assert TowerConfig(nested=nested).nested == nested
    with pytest.raises(ValidationError, match="dimensions below 64"):
        TowerConfig(nested=(0, *nested))


@pytest.mark.parametrize(("nested", "valid"), [((1,), True), ((2, 3), True), ((), False), ((0, 1), False)])
def test_dimensions_of_a_shared_space(nested: tuple[int, ...], valid: bool) -> None:
    if valid:
        assert AlignmentConfig(nested=nested).nested == nested
    else:
        with pytest.raises(ValidationError, match="ascending"):
            AlignmentConfig(nested=nested)
    for wrong in ((2, 2), (3, 2)):
        with pytest.raises(ValidationError, match="ascending"):
            AlignmentConfig(nested=wrong)


def test_event_types_that_the_towers_tell_apart() -> None:
    assert EventRules(positive={"buy": None}).types == ()
    assert EventRules(positive={"buy": None, "ask": None}).types == ("ask", "buy")
    assert EventRules(positive={"buy": None}, seen=("look", "buy")).types == ("buy", "look")


def test_the_dimension_of_towers_is_a_multiple_of_4_and_of_the_heads() -> None:
    assert TowerConfig(dimension=12).dimension == 12
    for dimension in (10, 11, 13):
        with pytest.raises(ValidationError, match="multiple of 4"):
            TowerConfig(dimension=dimension, heads=1)
    with pytest.raises(ValidationError, match="heads 3: the number of heads must divide the dimension 64"):
        TowerConfig(heads=3)


def test_the_largest_weight_and_names_of_placements() -> None:
    positive = {"positive": {"buy": None}}
    assert EventRules.model_validate(positive | {"weights": {"buy": 1e6}}).weights == {"buy": 1e6}
    for weights in ({"buy": 1_000_001}, {"buy": 9e-10}):
        with pytest.raises(ValidationError, match="weights"):
            EventRules.model_validate(positive | {"weights": weights})
    assert list(DataConfig.model_validate(DATA | {"placements": {"x" * 100: {}}}).placements) == ["x" * 100]
    for name in ("x" * 101, " ", "a\n"):
        with pytest.raises(ValidationError, match="placement"):
            DataConfig.model_validate(DATA | {"placements": {name: {}}})


def test_the_defaults_of_searches_and_of_the_log() -> None:
    assert (SearchIn().limit, SearchIn().weight) == (20, 0.3)
    assert ServeSettings().log_limits == {"events": Limit(None, None), "exposures": Limit(30, None)}


def test_the_password_of_the_store_is_not_shown() -> None:
    settings = ServeSettings.model_validate({"redis_url": "redis://:s3cret@host:7"})
    assert settings.redis_url == "redis://:s3cret@host:7"
    assert "s3cret" not in f"{settings!r} {settings}"
