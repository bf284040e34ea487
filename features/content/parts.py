"""Content of an item or a query: an ordered list of text, image, audio and video parts.

Native multimodal embedding models take their input in this form (Gemini Embedding 2, arXiv 2605.27295).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from features.errors import ContentError
from features.schema import StrictModel

Modality = Literal["text", "image", "audio", "video"]

Source = bytes | Path | str
"""Where the bytes of a media file come from: the bytes themselves, a path, or a URL (str)."""


@dataclass(frozen=True)
class Text:
    """A text."""

    text: str
    modality: Literal["text"] = "text"


@dataclass(frozen=True)
class Image:
    """A picture: JPEG, PNG, WebP or GIF."""

    source: Source
    modality: Literal["image"] = "image"


@dataclass(frozen=True)
class Audio:
    """A sound: WAV, FLAC, OGG or MP3."""

    source: Source
    modality: Literal["audio"] = "audio"


@dataclass(frozen=True)
class Video:
    """A video, with its sound track if it has one: MP4 or WebM."""

    source: Source
    modality: Literal["video"] = "video"


Part = Text | Image | Audio | Video


@dataclass(frozen=True)
class Content:
    """An ordered, interleaved list of parts; empty if nothing is known."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, *parts: Part) -> "Content":
        """A content of the given parts."""
        return cls(parts)


class Limits(StrictModel):
    """Limits on one content, checked before anything is decoded."""

    parts: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Maximum number of parts in one content."""

    text_bytes: Annotated[int, Field(ge=1, le=2**40)] = 200_000
    """Maximum size of one text, in bytes of UTF-8."""

    media_bytes: Annotated[int, Field(ge=1, le=2**40)] = 64 * 2**20
    """Maximum size of one media file, in bytes."""

    pixels: Annotated[int, Field(ge=1, le=2**40)] = 40_000_000
    """Maximum number of pixels of one picture or video frame."""

    frames: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1000
    """Maximum number of frames of one animated picture."""

    seconds: Annotated[float, Field(gt=0, le=1_000_000_000)] = 3600.0
    """Maximum length of one sound or video, in seconds."""

    hosts: tuple[str, ...] = ()
    """Hosts that URLs may name; if empty, no URL is fetched. Their addresses must be public."""

    fetch_seconds: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    """Maximum time to fetch one URL, in seconds."""


def readable(
    content: Content, modalities: Collection[Modality], limits: Limits
) -> Iterator[tuple[int, Part | ContentError]]:
    """(position, part) of each part in the given modalities; (position, ContentError) for a part beyond the limits.

    Blank texts are skipped. An unpaired surrogate in a text becomes "?": UTF-8 cannot encode it, and tokenizers fail
    on it.
    """
    for at, part in enumerate(content.parts):
        if part.modality not in modalities or (isinstance(part, Text) and not part.text.strip()):
            continue
        yield at, _accepted(at, part, limits)


def _accepted(at: int, part: Part, limits: Limits) -> Part | ContentError:
    if at >= limits.parts:
        return ContentError(f"more than {limits.parts} parts in one content (limits.parts)")
    if not isinstance(part, Text):
        return part
    data = part.text.encode("utf-8", "replace")
    if len(data) > limits.text_bytes:
        return ContentError(
            f"text of {len(data):,} bytes; at most {limits.text_bytes:,} are accepted (limits.text_bytes)"
        )
    return Text(data.decode())
