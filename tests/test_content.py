"""Contents: parts keep their order and places, and limits are bounds, not wishes."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from pydantic import ValidationError

from features.content import MODALITIES, Audio, Content, Image, Limits, Text, Video

PARTS = (Text("a"), Image(b"1"), Text("b"), Audio(Path("c.wav")), Video("https://d/e.mp4"), Image(b"2"))


def test_a_content_keeps_its_parts_in_order():
    content = Content.of(*PARTS)
    assert content.parts == PARTS
    assert content == Content(PARTS)
    assert hash(content) == hash(Content(PARTS))
    assert content != Content.of(*PARTS[::-1])
    assert Content.of() == Content()
    assert Content().parts == ()


def test_parts_of_a_kind_come_with_their_places():
    content = Content.of(*PARTS)
    assert {kind: list(content.of_kind(kind)) for kind in MODALITIES} == {
        "text": [(0, Text("a")), (2, Text("b"))],
        "image": [(1, Image(b"1")), (5, Image(b"2"))],
        "audio": [(3, Audio(Path("c.wav")))],
        "video": [(4, Video("https://d/e.mp4"))],
    }
    assert list(Content().of_kind("text")) == []


def test_a_content_cannot_be_changed_once_it_is_hashed():
    with pytest.raises(FrozenInstanceError):
        Content.of(*PARTS).parts = ()
    with pytest.raises(FrozenInstanceError):
        PARTS[0].text = "b"


@pytest.mark.parametrize(
    "name", ["parts", "text_bytes", "media_bytes", "pixels", "frames", "seconds", "fetch_seconds"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_every_limit_is_positive(name, value):
    with pytest.raises(ValidationError, match=f"{name}\n.*greater than"):
        Limits(**{name: value})


def test_limits_know_their_names_and_name_no_hosts():
    with pytest.raises(ValidationError, match=r"part\n.*Extra inputs are not permitted"):
        Limits(part=1)
    assert Limits().hosts == ()
