"""Format of a file, recognised by its first bytes; names, extensions and declared types are ignored."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from features.errors import ContentError, detail

PICTURES = ("jpeg", "png", "webp", "gif")
SOUNDS = ("wav", "flac", "ogg", "mp3", "mp4", "webm")
VIDEOS = ("mp4", "webm")

_START = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
}
_OTHER = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BM": "a BMP picture",
    b"II*\x00": "a TIFF picture",
    b"MM\x00*": "a TIFF picture",
    b"FLV": "a Flash video",
    b"#EXTM3U": "a playlist",
    b"ffconcat": "a playlist",
}
_BRANDS = {
    b"heic": "a HEIC picture",
    b"heix": "a HEIC picture",
    b"mif1": "a HEIC picture",
    b"avif": "an AVIF picture",
}


def sniff(data: bytes) -> str:
    """One of jpeg, png, webp, gif, wav, flac, ogg, mp3, mp4, webm.

    Raises ContentError with the format that the file seems to have.
    """
    if not data:
        raise ContentError("the file is empty")
    for magic, kind in _START.items():
        if data.startswith(magic):
            return kind
    if data[:4] in (b"RIFF", b"RF64"):
        if (kind := {b"WEBP": "webp", b"WAVE": "wav"}.get(data[8:12], "")) != "":
            return kind
    elif data[4:8] == b"ftyp" and data[8:12] not in _BRANDS:
        return "mp4"
    elif data.startswith(b"\x1a\x45\xdf\xa3") and (b"webm" in data[:64] or b"matroska" in data[:64]):
        return "webm"
    elif _is_mp3_frame(data):
        return "mp3"
    raise ContentError(
        f"the file seems to be {_description(data)}; supported formats: {', '.join((*PICTURES, *SOUNDS))}"
    )


def expect(data: bytes, kinds: Collection[str], name: str) -> str:
    """The format, one of `kinds`, which are the formats of a `name`. Raises ContentError for another format."""
    kind = sniff(data)
    if kind not in kinds:
        raise ContentError(f"the file is {kind}, not a {name}; supported formats: {', '.join(kinds)}")
    return kind


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Turns every exception of a decoding library into a ContentError, MemoryError included."""
    try:
        yield
    except ContentError:
        raise
    except Exception as error:
        raise ContentError(
            f"the {kind} cannot be decoded: it is damaged or of an unsupported kind; save it again, or choose "
            f"another file{detail(error)}"
        ) from error


def _is_mp3_frame(data: bytes) -> bool:
    """An MPEG audio frame header: sync, layer III, a bitrate and a sample rate that exist (ISO 11172-3, 2.4.1.3)."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE6 != 0xE2 or data[1] & 0x18 == 0x08:
        return False
    return data[2] >> 4 not in (0x0, 0xF) and data[2] & 0x0C != 0x0C


def _description(data: bytes) -> str:
    """Description of an unsupported file, for a message."""
    for magic, name in _OTHER.items():
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp" and (name := _BRANDS.get(data[8:12], "")):
        return name
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in start:
        return "an SVG drawing"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"<"):
        return "XML or HTML"
    if start and all(byte >= 0x20 or byte in b"\t\n\r" for byte in start):
        return "text"
    return f"something unknown, starting with {data[:8].hex(' ')}"
