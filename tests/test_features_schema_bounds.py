"""Bounds and defaults of the settings of data, contents and encoders."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from features.content.encoder_config import GeminiConfig, HubConfig, OpenAICompatibleConfig
from features.content.parts import Limits
from features.schema import DataConfig, EventRules, Placement

NEEDED: dict[Any, dict[str, Any]] = {
    HubConfig: {"kind": "clip", "model": "m"},
    GeminiConfig: {"kind": "gemini"},
    OpenAICompatibleConfig: {"kind": "openai-compatible", "base_url": "http://host/v1", "model": "m"},
    EventRules: {"positive": {"click": None}},
    DataConfig: {"source": "folder", "path": "x", "events": {"positive": {"click": None}}},
}

BOUNDS: list[tuple[type[BaseModel], str, list[Any], list[Any]]] = [
    (Limits, "parts", [1], [0, 1.5]),
    (Limits, "text_bytes", [1], [0, 1.5]),
    (Limits, "media_bytes", [1], [0, 1.5]),
    (Limits, "pixels", [1], [0, 1.5]),
    (Limits, "frames", [1], [0, 1.5]),
    (Limits, "seconds", [1e-9], [0]),
    (Limits, "fetch_seconds", [1e-9], [0]),
    (HubConfig, "dimension", [None, 1], [0]),
    (GeminiConfig, "dimension", [128, 3072], [127, 3073]),
    (GeminiConfig, "spend_at_most", [0], [-0.01]),
    (OpenAICompatibleConfig, "dimension", [None, 1], [0]),
    (EventRules, "history", [2, 100_000], [1, 100_001]),
    (EventRules, "seen_items", [1, 1_000_000], [0, 1_000_001]),
    (EventRules, "history_days", [1, 36_500], [0, 36_501]),
    (EventRules, "weights", [{"click": 1e-9}, {"click": 1e6}], [{"click": 9e-10}, {"click": 1_000_001}, {"view": 1}]),
    (DataConfig, "min_train_events", [0, 1], [-1]),
    (
        DataConfig,
        "placements",
        [{"x" * 100: Placement()}],
        [{}, {"x" * 101: Placement()}, {" ": Placement()}, {"a\n": Placement()}],
    ),
]
"""Model, setting, values that it takes, values that it does not take."""


@pytest.mark.parametrize(
    ("model", "setting", "fit", "unfit"),
    BOUNDS,
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_bounds(model: type[BaseModel], setting: str, fit: list[Any], unfit: list[Any]) -> None:
    needed = NEEDED.get(model, {})
    for value in fit:
        assert getattr(model.model_validate({**needed, setting: value}), setting) == value
    for value in unfit:
        with pytest.raises(ValidationError):
            model.model_validate({**needed, setting: value})


def test_defaults() -> None:
    assert Limits().model_dump() == {
        "parts": 32,
        "text_bytes": 200_000,
        "media_bytes": 67_108_864,
        "pixels": 40_000_000,
        "frames": 1000,
        "seconds": 3600.0,
        "hosts": (),
        "fetch_seconds": 10.0,
    }
    assert GeminiConfig.model_validate(NEEDED[GeminiConfig]).model_dump() == {
        "kind": "gemini",
        "model": "gemini-embedding-2",
        "dimension": 768,
        "spend_at_most": 1.0,
    }
    assert DataConfig.model_validate(NEEDED[DataConfig]).model_dump() == {
        "source": "folder",
        "path": "x",
        "origin": None,
        "events": {
            "positive": {"click": None},
            "seen": None,
            "weights": {},
            "history": 512,
            "seen_items": 8000,
            "history_days": None,
        },
        "placements": {"home": {"repeats": False}},
        "min_train_events": 0,
        "extra_columns": (),
        "log": None,
    }
