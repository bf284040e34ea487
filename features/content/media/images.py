"""Decodes the bytes of pictures to RGB arrays; each frame is scaled down as soon as it is decoded."""

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

MAX_FRAMES = 8
"""Maximum number of frames that are kept of an animated picture."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> transposition that sets the picture upright."""

_PILLOW = threading.Lock()
"""Pillow's pixel limit and Python's warning filters are global to the process."""


def decode_image(data: bytes, limits: Limits, side: int | None = None, longest: int | None = None) -> Pixels:
    """RGB frames (f, h, w, 3) uint8: one of a still picture, up to 8 evenly spread ones of an animation.

    Frames are scaled down so that the shorter side has at most `side` pixels and the longer one at most `longest`;
    None sets no bound. Frames are set upright by EXIF, and transparent pixels become white. Raises ContentError when
    the file is not a picture, is damaged, or has more pixels or frames than the limits allow; the limits are checked
    before anything is decoded.
    """
    kind = expect(data, PICTURES, "picture")
    with _PILLOW, reading(kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Frames of an animation may be larger than the size in its header. Pillow checks the size at every change:
        # this filter makes it reject above the limit exactly, instead of above twice the limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        default, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limits.pixels
        try:
            with Image.open(BytesIO(data), formats=[kind.upper()]) as picture:
                count = 1 if kind == "jpeg" else getattr(picture, "n_frames", 1)
                if count > limits.frames:
                    raise ContentError(
                        f"the {kind} has {count:,} frames, at most {limits.frames:,} are accepted (limits.frames)"
                    )
                return np.stack([_frame(picture, at, side, longest) for at in spread(count, MAX_FRAMES)])
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            size = str(error).partition(" exceeds")[0]
            raise ContentError(
                f"the {kind} is too large: {size}, at most {limits.pixels:,} pixels are accepted (limits.pixels)"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = default


def spread(count: int, maximum: int) -> list[int]:
    """Up to `maximum` of 0..count-1, evenly spread: the middles of equal intervals."""
    parts = min(count, maximum)
    return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]


def scaled(width: int, height: int, side: int | None, longest: int | None = None) -> tuple[int, int]:
    """(width, height), scaled down to at most `side` pixels of the shorter and `longest` of the longer side."""
    shorter, longer = sorted((width, height))
    scale = min(1.0, (side or shorter) / shorter, (longest or longer) / longer)
    return max(1, round(width * scale)), max(1, round(height * scale))


def stretched(frame: Pixels, side: int) -> Pixels:
    """A frame (h, w, 3) as (side, side, 3); proportions are not preserved."""
    if frame.shape[:2] == (side, side):
        return frame
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR))


def _frame(picture: Image.Image, at: int, side: int | None, longest: int | None) -> Pixels:
    if at:
        picture.seek(at)
    size = scaled(*picture.size, side, longest)
    if size != picture.size:
        picture.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is enough
    picture.load()
    image = _eight_bit(picture)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    orientation = 1
    with suppress(Exception):  # damaged EXIF does not reject the picture
        orientation = picture.getexif().get(0x0112, 1)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.asarray(image)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """The picture as RGB, or as RGBA if it may have transparent pixels."""
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
