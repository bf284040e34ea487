"""Contents: parts keep their order and positions, and the limits hold."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from pydantic import ValidationError

from features.content.parts import Audio, Content, Image, Limits, Text, Video, readable
from features.errors import ContentError

PARTS = (Text("a"), Image(b"1"), Text("b"), Audio(Path("c.wav")), Video("https://d/e.mp4"), Image(b"2"))


def test_a_content_keeps_its_parts_in_order():
    content = Content.of(*PARTS)
    assert content.parts == PARTS
    assert content == Content(PARTS)
    assert hash(content) == hash(Content(PARTS))
    assert content != Content.of(*PARTS[::-1])
    assert Content.of() == Content()
    assert Content().parts == ()


def test_readable_parts_have_positions():
    content = Content.of(*PARTS, Text(" \n"), Text(""))
    read = {kind: list(readable(content, {kind}, Limits())) for kind in ("text", "image", "audio", "video")}
    assert read == {
        "text": [(0, Text("a")), (2, Text("b"))],
        "image": [(1, Image(b"1")), (5, Image(b"2"))],
        "audio": [(3, Audio(Path("c.wav")))],
        "video": [(4, Video("https://d/e.mp4"))],
    }
    assert [at for at, _ in readable(content, {"text", "image"}, Limits())] == [0, 1, 2, 5]
    assert list(readable(Content(), {"text"}, Limits())) == []


def test_parts_beyond_the_limits_are_errors():
    content = Content.of(Image(b"1"), Text("ääb"), Text("ääbb"), Text("c"), Image(b"2"))
    read = readable(content, {"text", "image"}, Limits(parts=3, text_bytes=5))
    results = [(at, str(part) if isinstance(part, ContentError) else part) for at, part in read]
    assert results == [
        (0, Image(b"1")),
        (1, Text("ääb")),
        (2, "text of 6 bytes; at most 5 are accepted (limits.text_bytes)"),
        (3, "more than 3 parts in one content (limits.parts)"),
        (4, "more than 3 parts in one content (limits.parts)"),
    ]


def test_an_unpaired_surrogate_is_replaced():
    content = Content.of(Text("a\ud800b"), Text("\udfff"), Text("🐕"))
    assert [part for _, part in readable(content, {"text"}, Limits())] == [Text("a?b"), Text("?"), Text("🐕")]


def test_a_content_cannot_be_changed_once_it_is_hashed():
    with pytest.raises(FrozenInstanceError):
        Content.of(*PARTS).parts = ()  # type: ignore[misc]  # not allowed, as the test shows
    with pytest.raises(FrozenInstanceError):
        PARTS[0].text = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["parts", "text_bytes", "media_bytes", "pixels", "frames", "seconds", "fetch_seconds"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_every_limit_is_positive(name, value):
    with pytest.raises(ValidationError, match=f"{name}\n.*greater than"):
        Limits(**{name: value})


def test_limits_reject_unknown_names_and_have_no_hosts():
    with pytest.raises(ValidationError, match=r"part\n.*Extra inputs are not permitted"):
        Limits(part=1)  # type: ignore[call-arg]  # misspelt on purpose
    assert Limits().hosts == ()
