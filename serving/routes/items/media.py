"""Pictures, sounds and videos of items that are files."""

from pathlib import Path

import polars as pl

from features.content.media.formats import PICTURES, SOUNDS, VIDEOS, sniff
from features.errors import ContentError
from features.schema import AUDIO, IMAGE
from serving.errors import ApiError
from serving.servable import ServableBundle

MAX_IMAGE_BYTES = 16 << 20

HEAD_BYTES = 64 << 10
"""Bytes of a file that tell its format."""

SUBTYPES = {"mp3": "mpeg"}
"""Subtypes of content types that are not the name of the format."""


def media_file(bundle: ServableBundle, item_id: str, name: str) -> tuple[Path, str]:
    """Path and content type of a file of an item. name: IMAGE, AUDIO or VIDEO.

    The type is that of the first bytes, because a file name may lie.
    Raises ApiError 404 unless the catalogue names a regular file of a known type, and of at most MAX_IMAGE_BYTES for
    an image. A relative path must stay within the folder of the tables.
    """
    missing = no_media(name)
    row = bundle.catalog.ids.row(item_id)
    frame = bundle.catalog.frame
    source = frame.get_column(name)[row] if row >= 0 and frame.schema.get(name) == pl.String else None
    if not source or "://" in source or "\0" in source:
        raise missing
    root = Path(bundle.data.path).resolve()
    path = (root / source).resolve()
    if not Path(source).is_absolute() and not path.is_relative_to(root):
        raise missing
    try:
        if not path.is_file() or (name == IMAGE and path.stat().st_size > MAX_IMAGE_BYTES):
            raise missing
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        raise missing from None
    kind = _content_type(head, name)
    if not kind:
        raise missing
    return path, kind


def no_media(name: str) -> ApiError:
    """The error for an item that has no such file."""
    code = "no_picture" if name == IMAGE else "no_media"
    return ApiError(code, f"this item has no {name} file", "item_id")


def _content_type(head: bytes, name: str) -> str:
    """Content type by the first bytes; "" when it is not a known type of this kind."""
    if name == IMAGE and head[4:12] == b"ftypavif":  # browsers show it, encoders do not read it
        return "image/avif"
    kinds = PICTURES if name == IMAGE else SOUNDS if name == AUDIO else VIDEOS
    try:
        kind = sniff(head)
    except ContentError:
        return ""
    return f"{name}/{SUBTYPES.get(kind, kind)}" if kind in kinds else ""
