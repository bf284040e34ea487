"""Bounds and defaults of the settings of the models."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from recsys.config import AlignmentConfig, RerankerConfig, RetrieverConfig, TowerConfig, TrainingConfig

NEEDED: dict[Any, dict[str, Any]] = {TowerConfig: {"heads": 1}}

BOUNDS: list[tuple[type[BaseModel], str, list[Any], list[Any]]] = [
    (TowerConfig, "dimension", [8, 64, 68], [4, 7, 66, 10]),
    (TowerConfig, "layers", [1], [0, 1.5]),
    (TowerConfig, "heads", [1, 4], [0]),
    (TowerConfig, "history", [1], [0, 1.5]),
    (TowerConfig, "dropout", [0, 0.99], [-0.01, 1]),
    (TowerConfig, "id_dropout", [0, 0.99], [-0.01, 1]),
    (TowerConfig, "newcomers", [0, 1], [-0.01, 1.01]),
    (TowerConfig, "nested", [(), (1, 63)], [(0,), (64,), (32, 64)]),
    (RetrieverConfig, "effort", [None, 1], [0]),
    (RetrieverConfig, "dimensions", [None, 1], [0]),
    (RetrieverConfig, "refine", [1], [0, 1.5]),
    (TrainingConfig, "epochs", [1], [0, 1.5]),
    (TrainingConfig, "patience", [1], [0, 1.5]),
    (TrainingConfig, "validation_states", [1], [0, 1.5]),
    (TrainingConfig, "batch_events", [1], [0, 1.5]),
    (TrainingConfig, "learning_rate", [1e-9], [0, -1]),
    (TrainingConfig, "id_rate", [1e-9], [0, -1]),
    (TrainingConfig, "weight_decay", [0], [-0.01]),
    (TrainingConfig, "negatives", [0], [-1]),
    (RerankerConfig, "candidates", [10], [9]),
    (RerankerConfig, "trees", [1], [0, 1.5]),
    (RerankerConfig, "leaves", [2, 131072], [1, 131073]),
    (RerankerConfig, "learning_rate", [1e-9], [0]),
    (RerankerConfig, "groups", [1], [0, 1.5]),
    (AlignmentConfig, "steps", [0], [-1]),
    (AlignmentConfig, "passes", [0], [-1]),
    (AlignmentConfig, "batch", [2], [1]),
    (AlignmentConfig, "learning_rate", [1e-9], [0]),
    (AlignmentConfig, "dropout", [0, 0.99], [-0.01, 1]),
    (AlignmentConfig, "nested", [(1,), (1, 2)], [(), (0, 1), (2, 1), (2, 2)]),
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
    assert TowerConfig().model_dump() == {
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
        "newcomers": 0.05,
    }
    assert RetrieverConfig().model_dump() == {"kind": "exact", "effort": None, "dimensions": None, "refine": 10}
    assert TrainingConfig().model_dump() == {
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
    }
    assert RerankerConfig().model_dump() == {
        "candidates": 500,
        "trees": 100,
        "leaves": 7,
        "learning_rate": 0.03,
        "groups": 5000,
    }
    assert AlignmentConfig().model_dump() == {
        "nested": (32, 64, 128, 256),
        "shrinkage": (1.0, 3.0, 10.0, 30.0),
        "power": (0.5, 1.0),
        "within": (0.3, 1.0),
        "steps": 40,
        "passes": 4,
        "batch": 1024,
        "learning_rate": 0.0003,
        "dropout": 0.1,
    }


def test_the_heads_divide_the_dimension() -> None:
    assert TowerConfig(dimension=12, heads=3).heads == 3
    with pytest.raises(ValidationError, match="heads 5: the number of heads must divide the dimension 12"):
        TowerConfig(dimension=12, heads=5)
