"""Pictures: from the bytes of a file to RGB, never held in full size for longer than it takes to shrink them."""

import threading
import warnings
from contextlib import suppress
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.content.media.formats import PICTURES, expect, reading
from features.content.parts import Limits
from features.errors import ContentError

Pixels = npt.NDArray[np.uint8]

SHOTS = 8
"""Frames kept of an animated picture."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> how to set it upright."""

_PILLOW = threading.Lock()
"""Pillow's own limit and Python's warning filters belong to the process."""


def decode_image(data: bytes, limits: Limits, side: int | None = None, longest: int | None = None) -> Pixels:
    """RGB frames (f, h, w, 3) uint8: one of a still picture, up to 8 evenly spread ones of an animation.

    A shorter side of more than `side` pixels becomes that, and so does a longer one of more than `longest`; None
    bounds nothing. Set upright by EXIF; what is transparent is white.
    Raises ContentError: no picture, damaged, more pixels or frames than the limits allow (before any are decoded).
    """
    kind = expect(data, PICTURES, "picture")
    with _PILLOW, reading(kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # An animation may grow beyond the size in its header, so Pillow's own check, made on every change, enforces
        # our limit: exactly, rather than at twice its value.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limits.pixels
        try:
            with Image.open(BytesIO(data), formats=[kind.upper()]) as picture:
                count = 1 if kind == "jpeg" else getattr(picture, "n_frames", 1)
                if count > limits.frames:
                    raise ContentError(f"the {kind} has {count:,} frames, {limits.frames:,} are accepted")
                return np.stack([_frame(picture, at, side, longest) for at in spread(count, SHOTS)])
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            told = str(error).partition(" exceeds")[0]
            raise ContentError(
                f"the {kind} is too large: {told}, {limits.pixels:,} pixels are accepted (limits.pixels)"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of 0..count-1, evenly spread: the middles of equal stretches."""
    parts = min(count, most)
    return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]


def scaled(width: int, height: int, side: int | None, longest: int | None = None) -> tuple[int, int]:
    """(width, height) with a shorter side of at most `side` pixels and a longer one of `longest`."""
    shorter, longer = sorted((width, height))
    scale = min(1.0, (side or shorter) / shorter, (longest or longer) / longer)
    return max(1, round(width * scale)), max(1, round(height * scale))


def stretched(frame: Pixels, side: int) -> Pixels:
    """A frame (h, w, 3) as (side, side, 3), its proportions given up."""
    if frame.shape[:2] == (side, side):
        return frame
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR))


def _frame(picture: Image.Image, at: int, side: int | None, longest: int | None) -> Pixels:
    if at:
        picture.seek(at)
    size = scaled(*picture.size, side, longest)
    if size != picture.size:
        picture.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is enough
    picture.load()
    image = _eight_bit(picture)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    orientation = 1
    with suppress(Exception):  # damaged EXIF spoils no picture
        orientation = picture.getexif().get(0x0112, 1)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.asarray(image)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """As RGB, or RGBA where something may be transparent."""
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
