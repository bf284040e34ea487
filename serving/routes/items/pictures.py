"""Image files of items."""

from pathlib import Path

import polars as pl

from features.schema import IMAGE
from serving.errors import ApiError
from serving.servable import ServableBundle

MAX_IMAGE_BYTES = 16 << 20


def picture(bundle: ServableBundle, item_id: str) -> tuple[bytes, str]:
    """Bytes and content type of an item's image file.

    Raises ApiError 404 unless the catalogue names a regular file of a known image type, of at most
    MAX_IMAGE_BYTES. A relative path must stay within the folder of the tables.
    """
    missing = ApiError("no_picture", "this item has no image file", "item_id")
    row = bundle.catalog.ids.row(item_id)
    frame = bundle.catalog.frame
    image = frame.get_column(IMAGE)[row] if row >= 0 and frame.schema.get(IMAGE) == pl.String else None
    if not image or "://" in image or "\0" in image:
        raise missing
    root = Path(bundle.data.path).resolve()
    path = (root / image).resolve()
    if not Path(image).is_absolute() and not path.is_relative_to(root):
        raise missing
    try:
        if not path.is_file() or path.stat().st_size > MAX_IMAGE_BYTES:
            raise missing
        content = path.read_bytes()
    except OSError:
        raise missing from None
    kind = _picture_type(content[:16])
    if not kind:
        raise missing
    return content, kind


def _picture_type(head: bytes) -> str:
    """Content type by the first bytes, because a file name may lie; "" when it is not a known image type."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if head[4:12] == b"ftypavif" else ""
