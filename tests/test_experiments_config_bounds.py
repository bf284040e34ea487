"""Bounds and defaults of the settings of a run."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from experiments.config import RunConfig
from experiments.splits import SplitConfig

NEEDED: dict[Any, dict[str, Any]] = {
    RunConfig: {"name": "n", "data": {"source": "folder", "path": "x", "events": {"positive": {"click": None}}}},
}

BOUNDS: list[tuple[type[BaseModel], str, list[Any], list[Any]]] = [
    (RunConfig, "seed", [0, 2**31 - 1], [-1, 2**31]),
    (RunConfig, "baselines", [{"popular": {}}], [{}]),
    (SplitConfig, "test", [0.01, 0.99], [0, 1]),
    (SplitConfig, "validation", [0.01, 0.99], [0, 1]),
    (SplitConfig, "windows", [1], [0, 1.5]),
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
    assert SplitConfig().model_dump() == {
        "kind": "time",
        "history": "prequential",
        "test": 0.1,
        "validation": 0.1,
        "windows": 1,
    }
    config = RunConfig.model_validate(NEEDED[RunConfig]).model_dump()
    assert {name: config[name] for name in ("baselines", "seed", "bundles", "cache")} == {
        "baselines": {"popular": {}},
        "seed": 0,
        "bundles": "bundles",
        "cache": "data/cache",
    }
    assert config["encoder"]["kind"] == "builtin"
    assert config["reranker"] is not None
