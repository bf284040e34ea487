"""The benchmark of the encoding pipeline, with encoders that count."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.bench import encode as bench
from features.content.parts import Audio, Image, Text


class Model:
    """A text model. prepared: captions of each batch; run: batches that were run, and whether gradients were off."""

    def __init__(self) -> None:
        self.prepared: list[list[str]] = []
        self.run: list[tuple[list[str], bool]] = []

    def preprocess(self, captions: Sequence[str]) -> dict[str, Any]:
        self.prepared.append(list(captions))
        return {"captions": list(captions)}

    def forward(self, batch: dict[str, Any]) -> None:
        import torch

        self.run.append((batch.pop("captions"), torch.is_inference_mode_enabled()))


def test_the_bare_text_model_gets_captions_of_similar_length() -> None:
    captions = ["a" * (1 + n % 40) for n in range(70)]
    words: list[Sequence[str]] = []
    text: Any = SimpleNamespace(_model=Model(), words=words.append)
    work = bench._bare_text(text, captions)
    assert words == [["a"]]  # loads the model
    assert [len(batch) for batch in text._model.prepared] == [32, 32, 6]
    assert [len(c) for batch in text._model.prepared for c in batch] == sorted(map(len, captions), reverse=True)
    for _ in range(2):
        work()
    assert text._model.run == [(batch, True) for batch in text._model.prepared] * 2


@pytest.mark.parametrize(("short", "numbers"), [(True, (256, 64, 8)), (False, (1024, 256, 32))])
def test_each_modality_is_encoded_in_the_pipeline_and_bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool, numbers: tuple[int, int, int]
) -> None:
    names = [f"p{n}.jpg" for n in range(300)]
    lines = [f"{name},caption {k} of {name}" for name in names for k in range(5)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    for folder, suffix in (("images", ".jpg"), ("audio", ".ogg")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).with_suffix(suffix).write_bytes(name.encode())
    given: dict[str, Any] = {}
    seconds = {"text": (2.0, 1.0), "image": (4.0, 4.0), "speech": (1.0, 0.5), "sound": (5.0, 4.0)}

    class Encoder:
        """An encoder of one modality. It takes no time: `alternate` says how much."""

        def __init__(self, name: str) -> None:
            self.name = name

        def encode(self, contents: Any) -> None:
            given[self.name] = contents

        def forward(self, arrays: Any) -> None:
            given[f"{self.name} bare"] = given.get(f"{self.name} bare", 0) + len(arrays)
            given[f"{self.name} batch"] = max(len(arrays), given.get(f"{self.name} batch", 0))

    def alternate(pipeline: Callable[[], object], bare: Callable[[], object]) -> tuple[float, float]:
        before = set(given)
        pipeline()
        bare()
        [name] = (name for name in seconds if name in set(given) - before)
        return seconds[name]

    monkeypatch.setattr(bench, "_alternate", alternate)
    monkeypatch.setattr(bench, "MiniLM", lambda limits: Encoder("text"))
    monkeypatch.setattr(bench, "EfficientNet", lambda media, models: Encoder("image"))
    monkeypatch.setattr(bench, "Whisper", lambda media, text: Encoder("speech"))
    monkeypatch.setattr(bench, "AiSFX", lambda media, models: Encoder("sound"))
    monkeypatch.setattr(bench, "_bare_text", lambda text, captions: lambda: given.update(captions=captions))
    monkeypatch.setattr(bench.pictures, "prepare", lambda data, limits: [data, data])
    monkeypatch.setattr(bench.speech, "prepare", lambda data, limits: [data])
    monkeypatch.setattr(bench.sounds, "prepare", lambda data, limits: [data, data, data])
    result = bench.run(short=short, data=str(tmp_path))
    n_text, n_image, n_sound = numbers
    assert given["captions"] == [line.partition(",")[2] for line in lines[:n_text]]
    assert [content.parts for content in given["text"]] == [(Text(caption),) for caption in given["captions"]]
    assert [content.parts for content in given["image"]] == [
        (Image(tmp_path / "images" / name),) for name in names[:n_image]
    ]
    recordings = [(Audio(tmp_path / "audio" / f"p{n}.ogg"),) for n in range(n_sound)]
    assert [content.parts for content in given["speech"]] == recordings
    assert [content.parts for content in given["sound"]] == recordings
    assert {name: given[f"{name} bare"] for name in ("image", "speech", "sound")} == {
        "image": 2 * n_image,
        "speech": n_sound,
        "sound": 3 * n_sound,
    }
    assert {name: given[f"{name} batch"] for name in ("image", "speech", "sound")} == {
        "image": 8,
        "speech": 1,
        "sound": 1,
    }
    assert result.figures == {
        "text items": n_text,
        "text items_per_second": n_text / 2,
        "text bare items_per_second": float(n_text),
        "image items": n_image,
        "image items_per_second": n_image / 4,
        "image bare items_per_second": n_image / 4,
        "speech items": n_sound,
        "speech items_per_second": float(n_sound),
        "speech bare items_per_second": 2.0 * n_sound,
        "sound items": n_sound,
        "sound items_per_second": {8: 1.6, 32: 6.4}[n_sound],
        "sound bare items_per_second": n_sound / 4,
    }
    assert [(bar.name, bar.value, bar.op, bar.bar) for bar in result.bars] == [
        ("text: piped to bare", 0.5, ">=", 0.8),
        ("image: piped to bare", 1.0, ">=", 0.8),
        ("speech: piped to bare", 0.5, ">=", 0.8),
        ("sound: piped to bare", 0.8, ">=", 0.8),
    ]
