"""Embeds the acoustic content of sounds, not their speech, by aiSFX."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import Floats
from features.content.encoders import onnx
from features.content.encoders.frozen import Media, MediaEncoder
from features.content.encoders.speech import stretch
from features.content.media.worker import Array
from features.content.parts import Limits, Modality
from features.content.spaces import SpaceKey
from features.errors import DependencyError

RATE = 44100
SECONDS = 30.0
WINDOW, HOP, BANDS, BLOCK = 2048, 1024, 96, 100
MAX_LOG_MEL = 9.457798957824707
"""Largest log-mel value in the training data of the model; its inputs are divided by it."""


def installed() -> bool:
    """Whether the package aisfx is installed."""
    return find_spec("aisfx") is not None


def prepare(data: bytes, limits: Limits) -> Array:
    """(1, n) float32 at 44.1 kHz; (0, 0) for a video without sound."""
    return stretch(data, limits, RATE, SECONDS)


class AiSFX(MediaEncoder):
    """aiSFX (Hagen et al., ISMIR 2022; MIT): a network trained on sound effects, averaged over blocks of 2.3 seconds.

    Its wheel pins an old numpy: pip install --no-deps aisfx==0.1.2.
    """

    key = SpaceKey("aisfx", "0.1.2", 512, "", f"first {SECONDS:g} s, peak at 1")
    modalities: frozenset[Modality] = frozenset({"audio", "video"})
    batch = 1
    prepare = staticmethod(prepare)

    def __init__(self, media: Media, models: Path) -> None:
        """models: folder of exported models. The model is loaded at the first sound."""
        super().__init__(media)
        self._file = models / "aisfx-0.1.2.onnx"
        self._session: onnx.Session | None = None

    def forward(self, sounds: list[Array]) -> Floats:
        """(k, 512) for k sounds (n,) float32 at 44.1 kHz; zeros for silence."""
        with self._lock:
            if self._session is None:
                self._filters = _mel_filters()
                self._session = onnx.Session(self._file, _export)
        out = np.zeros((len(sounds), self.key.dimension), dtype=np.float32)
        for i, sound in enumerate(sounds):
            if np.any(sound):
                out[i] = self._session(_blocks(sound, self._filters)).mean(0)
        return out


def _mel_filters() -> Any:
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(1 + WINDOW // 2, BANDS, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")


def _blocks(sound: Array, filters: Any) -> Array:
    """(b, 100, 96) log-mel blocks that overlap by half; the last one is padded with silence."""
    from transformers.audio_utils import spectrogram, window_function

    sound = sound / np.abs(sound).max()
    sound = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    hann = window_function(WINDOW, "hann")
    mel = spectrogram(sound, hann, WINDOW, HOP, power=2.0, mel_filters=filters, pad_mode="constant")
    bank = filters.sum(0)[:, None]  # librosa's norm=1: each band's filter sums to 1
    log = np.log10(mel / np.maximum(bank, 1e-12) * 10000.0 + 1).T / MAX_LOG_MEL  # (frames, 96)
    count = max(1, int(np.ceil((len(log) - BLOCK) / (BLOCK // 2))) + 1)
    log = np.pad(log, ((0, max(0, (count - 1) * (BLOCK // 2) + BLOCK - len(log))), (0, 0)))
    return np.stack([log[i * (BLOCK // 2) :][:BLOCK] for i in range(count)]).astype(np.float32)


def _export(file: Path) -> None:
    try:
        import torch
        from aisfx.inference import get_path_modelWeights
        from aisfx.models.cnn2d import EmbeddingNet
    except ImportError as error:
        raise DependencyError(f"the sound encoder needs {error.name}: pip install --no-deps aisfx==0.1.2") from error
    scalar = np.int64(0).__reduce__()[0]
    numbers: list[Any] = [np.dtype, np.dtypes.Int64DType, (scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals(numbers):  # no other class is unpickled
        weights, _ = torch.load(get_path_modelWeights(), map_location="cpu", weights_only=True)
    network = EmbeddingNet("max", 3, 1, 64)
    prefix = "embedding_net."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    onnx.export(network, torch.zeros(2, BLOCK, BANDS), {0: "n"}, file)
