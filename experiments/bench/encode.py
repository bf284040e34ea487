"""The overhead of the encoding pipeline: items a second through an encoder, against the model's bare forward pass.

Captions, photographs and spoken captions come from a folder as `bench alignment` reads it. Pipeline and bare pass are
timed in alternation, in one process, on the same items. The inputs of the bare pass are read, decoded and cut into
batches beforehand.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.bench.runner import Bar, Result
from features.content.encoders import images as pictures
from features.content.encoders import sounds, speech
from features.content.encoders.frozen import THREADS, Media
from features.content.encoders.images import EfficientNet
from features.content.encoders.sounds import AiSFX
from features.content.encoders.speech import Whisper
from features.content.encoders.text import MiniLM
from features.content.media.decoder_pool import DecoderPool
from features.content.media.worker import Array
from features.content.parts import Audio, Content, Image, Limits, Text
from features.content.spaces import Encoder
from features.errors import SourceError
from features.tables.scan import reading, scan_csv

ROUNDS = 5
MINIMUM_RATIO = 0.8
"""Of the throughput of the pipeline to that of the bare pass."""

MODELS = Path("data/cache/models")


def run(*, short: bool = False, data: str | None = None) -> Result:
    """Items a second by modality, in the pipeline and bare: medians of alternating rounds.

    data: the folder; short: a quarter of the items. Raises SourceError when it has no captions.csv.
    """
    if data is None or not (Path(data) / "captions.csv").is_file():
        raise SourceError("bench encode needs --data DIR with captions.csv, images/ and audio/, as bench alignment")
    folder, scale = Path(data), 1 if short else 4
    with reading(str(folder / "captions.csv")):
        table = scan_csv(folder / "captions.csv").select("image", "caption").collect()
    names = table.get_column("image").unique(maintain_order=True).to_list()
    captions = table.get_column("caption").to_list()[: 256 * scale]
    photographs = [folder / "images" / name for name in names[: 64 * scale]]
    recordings = [(folder / "audio" / name).with_suffix(".ogg") for name in names[: 8 * scale]]
    limits, text = Limits(), MiniLM(Limits())
    figures: dict[str, Any] = {}
    bars = []
    with DecoderPool(1) as decoders:
        media = Media(decoders, limits)
        image, whisper, sound = EfficientNet(media, MODELS), Whisper(media, text), AiSFX(media, MODELS)
        image_inputs = [a for path in photographs for a in pictures.prepare(path.read_bytes(), limits)]
        speech_inputs = [a for path in recordings for a in speech.prepare(path.read_bytes(), limits)]
        sound_inputs = [a for path in recordings for a in sounds.prepare(path.read_bytes(), limits)]
        runs: dict[str, tuple[Encoder, list[Content], Callable[[], object]]] = {
            "text": (text, [Content.of(Text(c)) for c in captions], _bare_text(text, captions)),
            "image": (image, [Content.of(Image(p)) for p in photographs], _bare(image.forward, image_inputs, 8)),
            "speech": (
                whisper,
                [Content.of(Audio(p)) for p in recordings],
                _bare(whisper.forward, speech_inputs, 1),
            ),
            "sound": (sound, [Content.of(Audio(p)) for p in recordings], _bare(sound.forward, sound_inputs, 1)),
        }
        for name, (encoder, contents, bare) in runs.items():
            piped_seconds, bare_seconds = _alternate(partial(encoder.encode, contents), bare)
            figures[f"{name} items"] = len(contents)
            figures[f"{name} items_per_second"] = round(len(contents) / piped_seconds, 1)
            figures[f"{name} bare items_per_second"] = round(len(contents) / bare_seconds, 1)
            bars.append(Bar(f"{name}: piped to bare", bare_seconds / piped_seconds, ">=", MINIMUM_RATIO))
    return Result(figures, bars)


def _alternate(pipeline: Callable[[], object], bare: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of each over ROUNDS alternating rounds, after one that is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(ROUNDS + 1):
        for taken, work in zip(seconds, (pipeline, bare), strict=True):
            started = time.perf_counter()
            work()
            if round_:
                taken.append(time.perf_counter() - started)
    return median(seconds[0]), median(seconds[1])


def _bare(forward: Callable[[list[Array]], object], arrays: Sequence[Array], batch: int) -> Callable[[], object]:
    """The model on prepared batches, THREADS of them at a time, as in the pipeline."""
    batches = [list(arrays[start : start + batch]) for start in range(0, len(arrays), batch)]
    pool = ThreadPoolExecutor(THREADS)
    return lambda: list(pool.map(forward, batches))


def _bare_text(text: MiniLM, captions: Sequence[str]) -> Callable[[], object]:
    """The transformer on prepared token ids. Captions of similar length share a batch, as in the encoder."""
    import torch

    text.words(captions[:1])  # loads the model
    order = np.argsort([-len(caption) for caption in captions], kind="stable")
    model = text._model
    batches = [
        model.preprocess([captions[i] for i in part]) for part in np.split(order, range(32, len(captions), 32))
    ]

    def work() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.forward(dict(batch))

    return work
