"""What our pipeline costs beside the models: items a second through an encoder, against its bare forward pass.

The folder of `bench alignment` gives captions, photographs and spoken captions. Both are timed in turn, in one
process, on the same items; what the bare pass is given was read, decoded and cut into batches before.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

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

ROUNDS = 5
ASKED = 0.8
MODELS = Path("data/cache/models")


def run(*, short: bool = False, data: str | None = None) -> Result:
    """Items a second by modality, piped and bare, medians of alternating rounds. short: fewer items."""
    if data is None or not (Path(data) / "captions.csv").is_file():
        raise SourceError("bench encode needs --data DIR with captions.csv, images/ and audio/, as bench alignment")
    folder, scale = Path(data), 1 if short else 4
    table = pl.read_csv(folder / "captions.csv")
    names = table.get_column("image").unique(maintain_order=True).to_list()
    captions = table.get_column("caption").to_list()[: 256 * scale]
    shown = [folder / "images" / name for name in names[: 64 * scale]]
    spoken = [(folder / "audio" / name).with_suffix(".ogg") for name in names[: 8 * scale]]
    limits, text = Limits(), MiniLM(Limits())
    figures: dict[str, Any] = {}
    bars = []
    with DecoderPool(1) as decoders:
        media = Media(decoders, limits)
        image, words, sound = EfficientNet(media, MODELS), Whisper(media, text), AiSFX(media, MODELS)
        seen = [a for path in shown for a in pictures.prepare(path.read_bytes(), limits)]
        said = [a for path in spoken for a in speech.prepare(path.read_bytes(), limits)]
        heard = [a for path in spoken for a in sounds.prepare(path.read_bytes(), limits)]
        runs: dict[str, tuple[Encoder, list[Content], Callable[[], object]]] = {
            "text": (text, [Content.of(Text(c)) for c in captions], _bare_text(text, captions)),
            "image": (image, [Content.of(Image(p)) for p in shown], _bare(image.forward, seen, 8)),
            "speech": (words, [Content.of(Audio(p)) for p in spoken], _bare(words.forward, said, 1)),
            "sound": (sound, [Content.of(Audio(p)) for p in spoken], _bare(sound.forward, heard, 1)),
        }
        for name, (encoder, contents, bare) in runs.items():
            ours, floor = _alternate(partial(encoder.encode, contents), bare)
            figures[f"{name} items"] = len(contents)
            figures[f"{name} items_per_second"] = round(len(contents) / ours, 1)
            figures[f"{name} bare items_per_second"] = round(len(contents) / floor, 1)
            bars.append(Bar(f"{name}: piped to bare", floor / ours, ">=", ASKED))
    return Result(figures, bars)


def _alternate(ours: Callable[[], object], floor: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of each, after one round of both that is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(ROUNDS + 1):
        for kept, work in zip(seconds, (ours, floor), strict=True):
            began = time.perf_counter()
            work()
            if round_:
                kept.append(time.perf_counter() - began)
    return median(seconds[0]), median(seconds[1])


def _bare(forward: Callable[[list[Array]], object], arrays: Sequence[Array], batch: int) -> Callable[[], object]:
    """The model on batches made before, as many at a time as the pipeline computes."""
    batches = [list(arrays[at : at + batch]) for at in range(0, len(arrays), batch)]
    pool = ThreadPoolExecutor(THREADS)
    return lambda: list(pool.map(forward, batches))


def _bare_text(text: MiniLM, captions: Sequence[str]) -> Callable[[], object]:
    """The transformer on token ids made before, captions of like length together, as the encoder batches them."""
    import torch

    text.words(captions[:1])  # loads it
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
