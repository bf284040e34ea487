"""Script that serves a folder in which a test trained: python item_server.py FOLDER PORT.

Each item has eight shades of grey. Its title stands for them, its image shows them as stripes, and its sound has them
as loudness, each for an eighth of a second.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from media import picture, sound
from toy_service import ToyEyes, ToyWords, toy_settings

from features.arrays import Floats
from features.content.encoders.sounds import prepare as prepare_sound
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Limits
from features.content.spaces import Embedded, Encoder, SpaceKey, Task, unit
from features.store.memory import MemoryStore
from serving.app import create_app
from serving.http import http_server

SHADES = np.random.default_rng(0).integers(0, 256, (40, 8))
ROTATION = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]


def stripes(row: int) -> bytes:
    grey = np.repeat(np.repeat(SHADES[row][None, :, None], 32, axis=0), 4, axis=1)
    return picture(np.repeat(grey, 3, axis=2).astype(np.uint8), "PNG")


def steps(row: int) -> bytes:
    loudness = np.repeat(SHADES[row] / 255, 1000)
    return sound((loudness * np.where(np.arange(8000) % 8 < 4, 1, -1)).astype(np.float32), rate=8000, form="WAV")


class Words(ToyWords):
    """Text encoder: the shades of the item named in a title, in a rotated space."""

    key = SpaceKey("texts", "1", 8)

    def words(self, texts: Any) -> Floats:
        rows = [int((re.findall(r"\d+", text) or ["39"])[0]) for text in texts]
        return unit(((SHADES[rows] - 128) @ ROTATION).astype(np.float32))


class Eyes(ToyEyes):
    """Image encoder: the brightness of eight stripes."""

    key = SpaceKey("images", "1", 8)

    def see(self, frames: list[Any]) -> Floats:
        return np.stack([f.reshape(224, 8, 28, 3).mean((0, 2, 3)) for f in frames]).astype(np.float32) - 128


class Ears(ToyEyes):
    """Audio encoder: the loudness of eight sections."""

    modalities = frozenset({"audio"})
    key = SpaceKey("sounds", "1", 8)

    def encode(self, contents: Any, *, task: Task = "document", progress: Any = None) -> Embedded:
        return self.media.embed(contents, self.modalities, prepare_sound, self.hear, self.key, batch=8)

    def hear(self, waves: list[Any]) -> Floats:
        return np.stack([np.abs(w[: len(w) // 8 * 8]).reshape(8, -1).mean(1) * 255 - 128 for w in waves]).astype("f4")


def encoders(config: object, decoders: DecoderPool, limits: Limits, models: Path) -> dict[str, Encoder]:
    """`open_encoders` with the encoders of this script."""
    return {"text": Words(limits), "image": Eyes(decoders, limits), "sound": Ears(decoders, limits)}


def main() -> None:
    """Serve until killed."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    app = create_app(
        toy_settings(folder, follow_seconds=0.1, preload=True), connect=lambda r: MemoryStore(r), encoders=encoders
    )
    http_server(app, port=port, log_level="warning").run()


if __name__ == "__main__":
    main()
