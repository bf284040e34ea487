"""Messages of configurations, whole: their place, what is needed there, and the value."""

from pathlib import Path
from typing import Any

import pytest
from toy_data import toy_config

from experiments.config import load_config
from features.errors import ConfigError

EVENTS = {"positive": {"take": None}}


def message(folder: Path, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(toy_config(folder, **sections), {})
    return str(caught.value).replace(f"{folder}/", "")


def data(**events: Any) -> dict[str, Any]:
    return {"source": "folder", "path": ".", "events": EVENTS | events}


def test_a_problem_of_two_sections_has_no_empty_place(tmp_path: Path) -> None:
    assert message(tmp_path, data=data(history=20), towers={"history": 20}) == (
        "toy.yaml: towers.history is 20, but of a user's events only the newest 10 are kept whatever they are: "
        "set data.events.history to 40 or more"
    )


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"data": data(positive={"purchase": True})},
            "data.events.positive.purchase: must be a number or null (got true)",
        ),
        ({"data": data(weights={"take": True})}, "data.events.weights.take: must be a number (got true)"),
        ({"data": data(history=True)}, "data.events.history: must be 2 or more (got true)"),
        ({"data": data(seen_items=True)}, "data.events.seen_items: must be a whole number (got true)"),
        ({"training": {"epochs": True}}, "training.epochs: must be a whole number (got true)"),
        ({"training": {"learning_rate": True}}, "training.learning_rate: must be a number (got true)"),
        ({"retriever": {"effort": True}}, "retriever.effort: must be a whole number or null (got true)"),
        ({"towers": {"nested": [True, 4]}}, "towers.nested.0: must be a whole number (got true)"),
        ({"alignment": {"shrinkage": [1, False]}}, "alignment.shrinkage.1: must be a number (got false)"),
        ({"baselines": {"item-knn": {"k": True}}}, "baselines.item-knn.k: must be a number (got true)"),
        ({"seed": True}, "seed: must be a whole number (got true)"),
        (
            {"data": data() | {"source": "movielense"}},
            "data: source 'movielense' is none of movielens, complete-journey, sequences, amazon-2023, "
            "microlens, stamps, folder; "
            "is 'movielens' meant?",
        ),
        ({"limits": {"seconds": True}}, "limits.seconds: must be a number (got true)"),
    ],
)
def test_a_boolean_is_no_number(tmp_path: Path, sections: dict[str, Any], expected: str) -> None:
    assert message(tmp_path, **sections) == f"toy.yaml: {expected}"


def test_booleans_and_numbers_in_their_places(tmp_path: Path) -> None:
    path = toy_config(tmp_path, data=data(positive={"take": 1, "like": None}), towers={"id": False, "dimension": "8"})
    config = load_config(path, {})
    assert config.data.events.positive == {"take": 1.0, "like": None}
    assert (config.towers.id, config.towers.dimension) == (False, 8)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"RECSYS__TRAINING__EPOCHS": "abc"},
            "environment variable RECSYS__TRAINING__EPOCHS: training.epochs: must be a whole number (got 'abc')",
        ),
        (
            {"RECSYS__TRAINING__EPOCH": "3"},
            "environment variable RECSYS__TRAINING__EPOCH: unknown key 'training.epoch'; did you mean 'epochs'?",
        ),
        (
            {"RECSYS__ENCODER": "{kind: gemini, dimension: x}"},
            "environment variable RECSYS__ENCODER: encoder.dimension: must be a whole number (got 'x')",
        ),
        (
            {"RECSYS__BUNDLES": "''"},
            "environment variable RECSYS__BUNDLES: bundles: empty: give a value, or remove the key",
        ),
        (
            {"RECSYS__TOWERS__HEADS": "3", "RECSYS__TOWERS__LAYERS": "1"},
            "toy.yaml with RECSYS__TOWERS__HEADS: towers: heads 3: the number of heads must divide the dimension 8",
        ),
        (
            {"RECSYS__SEED": "many", "RECSYS__TOWERS__LAYERS": "few"},
            "environment variable RECSYS__TOWERS__LAYERS: towers.layers: must be a whole number (got 'few'); "
            "environment variable RECSYS__SEED: seed: must be a whole number (got 'many')",
        ),
    ],
)
def test_a_value_of_the_environment_is_told_at_its_variable(
    tmp_path: Path, environ: dict[str, str], expected: str
) -> None:
    path = toy_config(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ)
    assert str(caught.value).replace(f"{tmp_path}/", "") == expected


def test_values_of_both_are_told_each_at_its_place(tmp_path: Path) -> None:
    path = toy_config(tmp_path, training={"epochs": 0, "patience": 0})
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"RECSYS__SEED": "many"})
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "toy.yaml: training.epochs: must be 1 or more (got 0); training.patience: must be 1 or more (got 0); "
        "environment variable RECSYS__SEED: seed: must be a whole number (got 'many')"
    )


def test_a_file_of_another_kind_is_not_repeated_whole(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "i1,Tea\n" * 1000)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "items.csv", {})
    assert "sections of named values are needed (got the value 'item_id,title i1,Tea i1,Tea" in str(caught.value)
    assert str(caught.value).endswith("…')")
    assert len(str(caught.value)) < 300
