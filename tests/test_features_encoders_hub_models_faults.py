"""Models of the hub that cannot be loaded, or return what is no vector; what a model gets of each kind of content."""

import sys
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.content.encoders import hub_models
from features.content.encoders.hub_models import HubEncoder, _load, _plain, _SentenceModel
from features.content.media.images import stretched
from features.errors import ConfigError, DependencyError, SpaceError


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls that silence the library; stand-ins of torch and transformers, whose import takes seconds."""
    calls: list[str] = []
    modules: dict[str, Any] = {
        "torch": SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: "gpu" in calls)),
        "transformers": SimpleNamespace(),
        "transformers.utils": SimpleNamespace(),
        "transformers.utils.logging": SimpleNamespace(disable_progress_bar=lambda: calls.append("quiet")),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ImportError("no", name="torchvision"),
            DependencyError,
            "gemma needs the package torchvision: install this project with the extra `native`",
        ),
        (
            ImportError("needs a newer timm " + "x" * 400 + "\nmore"),
            DependencyError,
            "gemma: it needs a package that is missing or of another version: install this project with the extra "
            "`native` (ImportError: needs a newer timm " + "x" * 181 + ")",
        ),
        (ConfigError("set family"), ConfigError, "set family"),
        (
            ValueError("bad header"),
            SpaceError,
            "/models/gemma: cannot be loaded as siglip: it has no config.json: name the folder of a model",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(hub_models, "_TwoTowerModel", fail)
    with pytest.raises(kind) as caught:
        _load(Path("/models/gemma"), "siglip", None)
    assert str(caught.value) == message


def test_each_family_has_its_class_and_runs_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch, quiet: list[str]
) -> None:
    monkeypatch.setattr(hub_models, "_SentenceModel", lambda *arguments: ("sentence", *arguments))
    monkeypatch.setattr(hub_models, "_TwoTowerModel", lambda *arguments: ("towers", *arguments))
    folder = Path("/models/gemma")
    assert _load(folder, "sentence-transformers", "meta") == ("sentence", folder, "meta")
    assert _load(folder, "clap", "meta") == ("towers", folder, "clap", "meta")
    assert _load(folder, "clap", None) == ("towers", folder, "clap", "cpu")
    assert quiet == ["quiet"] * 3
    quiet.append("gpu")
    assert _load(folder, "clap", None) == ("towers", folder, "clap", "cuda")


def test_vectors_that_are_not_finite() -> None:
    given: list[Any] = []

    def embed(kind: str, values: Any, prompt: str) -> Any:
        given.append((kind, list(values), prompt))
        return np.array([[3.0, values[0] if kind == "image" else 4.0, 5.0]])

    encoder = HubEncoder.__new__(HubEncoder)
    encoder._lock = Lock()
    encoder._model = SimpleNamespace(embed=embed, specials=["[SEP]", "x"])
    encoder._space = SimpleNamespace(model="gemma", dimension=2)  # type: ignore[assignment]
    assert encoder._forward("text", "query: ", ["a [SEP] x"]).tolist() == [[3.0, 4.0]]
    assert given == [("text", ["a [ SEP] x"], "query: ")]
    assert encoder._forward("image", "", [1.0]).tolist() == [[3.0, 1.0]]
    for value in (np.inf, np.nan):
        with pytest.raises(SpaceError, match=r"^gemma: returns vectors that are not finite; try another device$"):
            encoder._forward("image", "", [value])


def test_a_special_token_is_split() -> None:
    assert _plain("<image>[SEP] s <image>", ["<image>", "[SEP]", "s"]) == "< image>[ SEP] s < image>"


def test_what_a_sentence_model_gets() -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []

    def encode(inputs: Any, **options: Any) -> str:
        calls.append((inputs, options))
        return "vectors"

    model = _SentenceModel.__new__(_SentenceModel)
    model._model, model.rate = SimpleNamespace(encode=encode), 16_000
    for kind, values in (("text", ["https://a"]), ("image", ["pixels"]), ("audio", ["samples"])):
        assert model.embed(kind, values, "query: ") == "vectors"  # type: ignore[arg-type]
    assert [inputs for inputs, _ in calls] == [
        [{"text": "https://a"}],
        [{"image": "pixels"}],
        [{"audio": {"array": "samples", "sampling_rate": 16_000}}],
    ]
    assert [options["batch_size"] for _, options in calls] == [16, 1, 1]
    assert {(options["prompt"], options["show_progress_bar"]) for _, options in calls} == {("query: ", False)}


def test_a_frame_of_the_size_is_not_resized() -> None:
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert stretched(frame, 2) is frame
    assert stretched(frame, 4).shape == (4, 4, 3)
    assert stretched(np.zeros((2, 4, 3), np.uint8), 2).shape == (2, 2, 3)
