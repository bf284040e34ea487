"""Formats by the first bytes: every magic, its near misses, and what an unsupported file is called."""

import pytest

from features.content.media.formats import PICTURES, SOUNDS, VIDEOS, expect, reading, sniff
from features.errors import ContentError

REST = bytes(80)
MATROSKA = b"\x1a\x45\xdf\xa3"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\xff\xd8\xff", "jpeg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"RIFF\0\0\0\0WAVE", "wav"),
        (b"RF64\0\0\0\0WAVE", "wav"),
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (b"ID3", "mp3"),
        (b"\0\0\0\x18ftypisom", "mp4"),
        (b"\0\0\0\x18ftypM4A ", "mp4"),
        (MATROSKA + b"..webm", "webm"),
        (MATROSKA + b"..matroska", "webm"),
        (MATROSKA + bytes(56) + b"webm", "webm"),  # within the first 64 bytes
    ],
)
def test_each_format(head: bytes, kind: str) -> None:
    assert sniff(head + REST) == kind


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"%PDF", "a PDF"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"BM", "a BMP picture"),
        (b"II*\x00", "a TIFF picture"),
        (b"MM\x00*", "a TIFF picture"),
        (b"FLV", "a Flash video"),
        (b"#EXTM3U", "a playlist"),
        (b"ffconcat", "a playlist"),
        (b"\0\0\0\x18ftypheic", "a HEIC picture"),
        (b"\0\0\0\x18ftypheix", "a HEIC picture"),
        (b"\0\0\0\x18ftypmif1", "a HEIC picture"),
        (b"\0\0\0\x18ftypavif", "an AVIF picture"),
        (b"\xef\xbb\xbf \n<SVG ", "an SVG drawing"),
        (b'<?xml version="1.0"?><svg>', "an SVG drawing"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b" <html>", "an HTML page"),
        (b"<a>", "XML or HTML"),
        (b"RIFF\0\0\0\0AVI ", "something unknown, starting with 52 49 46 46 00 00 00 00"),
        (MATROSKA + bytes(57) + b"webm", "something unknown, starting with 1a 45 df a3 00 00 00 00"),
        (b"\xff\xd8", "something unknown, starting with ff d8 00 00 00 00 00 00"),
        (b"GIF88a", "something unknown"),
    ],
)
def test_each_unsupported_format_is_named(head: bytes, name: str) -> None:
    supported = "jpeg, png, webp, gif, wav, flac, ogg, mp3, mp4, webm"
    with pytest.raises(ContentError, match=f"seems to be {name}.*; supported formats: {supported}$"):
        sniff(head + REST)


@pytest.mark.parametrize("text", [b"words", b"tab\tand\r\nlines", b" ", "é".encode()])
def test_text_and_what_is_no_text(text: bytes) -> None:
    name = "text" if text.strip() else "something unknown, starting with 20"  # blanks alone are no text
    with pytest.raises(ContentError, match=f"seems to be {name};"):
        sniff(text)
    with pytest.raises(ContentError, match="seems to be something unknown"):
        sniff(text + b"\x01")


def test_an_empty_file() -> None:
    with pytest.raises(ContentError, match="the file is empty"):
        sniff(b"")


# bits: 11 of sync, 2 of version, 2 of layer, 1; 4 of bitrate, 2 of sample rate, 2
@pytest.mark.parametrize(
    "header",
    [b"\xff\xfb\x90\x00", b"\xff\xfa\x10\x00", b"\xff\xf3\xe0\x00", b"\xff\xe3\x90\x00", b"\xff\xfb\x98\x00"],
)
def test_headers_of_mp3_frames(header: bytes) -> None:
    assert sniff(header) == "mp3"


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfb\x90",  # too short
        b"\xfe\xfb\x90\x00",  # no sync
        b"\xff\xdb\x90\x00",
        b"\xff\xf9\x90\x00",  # layer of AAC
        b"\xff\xfd\x90\x00",  # layer II
        b"\xff\xff\x90\x00",  # layer I
        b"\xff\xeb\x90\x00",  # reserved version
        b"\xff\xfb\x00\x00",  # free bitrate
        b"\xff\xfb\xf0\x00",  # invalid bitrate
        b"\xff\xfb\x9c\x00",  # reserved sample rate
    ],
)
def test_bytes_that_are_no_header_of_an_mp3_frame(header: bytes) -> None:
    with pytest.raises(ContentError, match="the file seems to be"):
        sniff(header)


def test_the_formats_of_a_kind() -> None:
    assert PICTURES == ("jpeg", "png", "webp", "gif")
    assert SOUNDS == ("wav", "flac", "ogg", "mp3", "mp4", "webm")
    assert VIDEOS == ("mp4", "webm")
    assert expect(b"fLaC", SOUNDS, "sound") == "flac"
    with pytest.raises(ContentError, match="the file is flac, not a video; supported formats: mp4, webm"):
        expect(b"fLaC", VIDEOS, "video")


@pytest.mark.parametrize("error", [ValueError("why"), MemoryError("why"), OSError("why")])
def test_errors_of_decoders_become_content_errors(error: Exception) -> None:
    why = rf"the sound cannot be decoded: .*\({type(error).__name__}: why\)"
    with pytest.raises(ContentError, match=why), reading("sound"):
        raise error


def test_long_reasons_are_cut_and_content_errors_pass() -> None:
    with pytest.raises(ContentError) as cut, reading("sound"):
        raise ValueError("x" * 500)
    assert str(cut.value) == (
        "the sound cannot be decoded: it is damaged or of an unsupported kind; save it again, or choose another file "
        f"(ValueError: {'x' * 200})"
    )
    with pytest.raises(ContentError, match=r"^as it is$"), reading("sound"):
        raise ContentError("as it is")
