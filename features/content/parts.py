"""Content: what a person sees and hears of an item or asks with, an ordered list of parts, as native multimodal
embedding models take it (Gemini Embedding 2, arXiv 2605.27295)."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from features.errors import ContentError
from features.schema import Strict

Modality = Literal["text", "image", "audio", "video"]

MODALITIES: tuple[Modality, ...] = ("text", "image", "audio", "video")

Source = bytes | Path | str
"""Where media come from: the file's bytes, a path, or (str) a URL."""


@dataclass(frozen=True)
class Text:
    """Words."""

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
    """Moving pictures, with their sound where there is one: MP4 or WebM."""

    source: Source
    modality: Literal["video"] = "video"


Part = Text | Image | Audio | Video


@dataclass(frozen=True)
class Content:
    """An ordered, interleaved list of parts; empty where nothing is known."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, *parts: Part) -> "Content":
        """From parts."""
        return cls(parts)


class Limits(Strict):
    """What is accepted of one content, checked before anything is decoded."""

    parts: Annotated[int, Field(ge=1)] = 32
    """Parts of one content."""

    text_bytes: Annotated[int, Field(ge=1)] = 200_000
    """Bytes of one text in UTF-8."""

    media_bytes: Annotated[int, Field(ge=1)] = 64 * 2**20
    """Bytes of one file."""

    pixels: Annotated[int, Field(ge=1)] = 40_000_000
    """Pixels of one picture or video frame."""

    frames: Annotated[int, Field(ge=1)] = 1000
    """Frames of one animated picture."""

    seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Length of one sound or video."""

    hosts: tuple[str, ...] = ()
    """Hosts that URLs may name; empty: none. Their addresses must be public."""

    fetch_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time that fetching one URL may take."""


def readable(
    content: Content, modalities: Collection[Modality], limits: Limits
) -> Iterator[tuple[int, Part | ContentError]]:
    """(place, part) of each part of some modalities that says something; (place, why not) of one beyond the limits.

    Half of a surrogate pair in a text becomes "?": no encoding can carry it, and tokenizers break on it.
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
