"""Search by text, images and mixtures: the query vector, and the command."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_embeddings import POISON, FakeEmbeddings, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from media import picture
from toy_data import noise, toy_catalog, toy_stage
from toy_service import RED, RULES, toy_bundle, with_contents
from typer.testing import CliRunner

from features.content.encoder_config import BuiltinConfig, GeminiConfig
from features.content.parts import Content, Image, Limits, Modality, Text
from features.content.spaces import Embedded, SpaceKey
from features.errors import BundleError, ConfigError, ContentError, SpaceError
from features.store.memory import MemoryStore
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import publish_bundle
from recsys.cli import main as cli
from recsys.content.alignment import AffineMap, Alignment
from recsys.content.content_space import ContentSpace
from recsys.content.query_encoding import EncoderSetup, QueryEncoder, searchable
from serving.state.snapshot import ServingSnapshot

RED_PNG = picture(np.full((8, 8, 3), (255, 0, 0), np.uint8), "PNG")


# The vector


class Fixed:
    """An encoder with one vector for every content, and given failures."""

    reader = ""

    def __init__(
        self, space: SpaceKey, kinds: set[Modality], vector: Any, reasons: dict[int, str] | None = None
    ) -> None:
        self.key, self.modalities, self.vector, self.reasons = space, frozenset(kinds), vector, reasons or {}
        self.calls = 0

    def space(self, task: str = "document") -> SpaceKey:
        return self.key

    def encode(self, contents: Any, *, task: str = "document", progress: Any = None) -> Embedded:
        from features.content.spaces import Failure

        self.calls += 1
        vectors = np.asarray([self.vector], np.float32)
        return Embedded(
            self.key,
            vectors,
            np.asarray(vectors.any(1)),
            tuple(Failure(0, at, reason) for at, reason in self.reasons.items()),
        )


TEXTS, IMAGES, SOUNDS = SpaceKey("words", "1", 2), SpaceKey("eyes", "1", 3), SpaceKey("ears", "1", 4)


def aligned() -> ContentSpace:
    """The map of text swaps both coordinates, that of images drops the last one."""
    swap = AffineMap(np.zeros(2, np.float32), np.array([[0, 1], [1, 0]], np.float32))
    drop = AffineMap(np.zeros(3, np.float32), np.eye(3, 2, dtype=np.float32))
    alignment = Alignment({TEXTS: swap, IMAGES: drop}, (2,))
    items = Embedded(alignment.space, np.eye(2, dtype=np.float32), np.array([True, True]))
    return ContentSpace(alignment.space, alignment, {"text": items, "image": items})


def test_a_mixture_is_the_sum_of_its_channels_in_the_space_of_the_items() -> None:
    space = aligned()
    query_encoder = QueryEncoder(
        space, {"text": Fixed(TEXTS, {"text"}, [1, 0]), "image": Fixed(IMAGES, {"image"}, [1, 0, 0])}
    )
    mixture = query_encoder.embed(Content.of(Text("x"), Image(b"y")))
    np.testing.assert_allclose(mixture.vectors, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    assert (mixture.space, mixture.failures, mixture.present.tolist()) == (space.space, (), [True])
    np.testing.assert_allclose(query_encoder.embed(Content.of(Text("x"))).vectors, [[0, 1]])


def test_only_encoders_that_read_a_part_are_called() -> None:
    text, image = Fixed(TEXTS, {"text"}, [1, 0]), Fixed(IMAGES, {"image", "video"}, [1, 0, 0])
    QueryEncoder(aligned(), {"text": text, "image": image}).embed(Content.of(Text("x")))
    assert (text.calls, image.calls) == (1, 0)


def test_a_channel_that_no_item_has_is_reported_and_not_encoded() -> None:
    sound, speech = Fixed(SOUNDS, {"audio"}, [1, 0, 0, 0]), Fixed(TEXTS, {"audio"}, [1, 0])
    content = Content.of(Text("x"), Image(b"a"))
    embedded = QueryEncoder(aligned(), {"text": Fixed(TEXTS, {"text"}, [1, 0]), "sound": sound}).embed(content)
    assert [(f.part, f.reason.partition(":")[0]) for f in embedded.failures] == [
        (1, "the items cannot be searched by image")
    ]
    alone = QueryEncoder(aligned(), {"sound": sound}).embed(Content.of(content.parts[1]))
    assert (alone.present.tolist(), len(alone.failures), sound.calls) == ([False], 1, 0)
    from features.content.parts import Audio

    spoken = QueryEncoder(aligned(), {"sound": sound, "speech": speech}).embed(Content.of(Audio(b"a")))
    np.testing.assert_allclose(spoken.vectors, [[0, 1]])  # in the space of text, though no item has speech
    assert (spoken.failures, sound.calls) == ((), 0)


def test_parts_that_fail_or_are_empty_are_reported_once() -> None:
    encoders = {"image": Fixed(IMAGES, {"image"}, [0, 0, 0], {0: "broken"}), "text": Fixed(TEXTS, {"text"}, [0, 0])}
    embedded = QueryEncoder(aligned(), encoders).embed(Content.of(Image(b"a"), Text("x")))
    assert [(f.part, f.reason) for f in embedded.failures] == [(0, "broken"), (1, "it has no content to search by")]
    assert embedded.present.tolist() == [False]


@pytest.mark.parametrize("space", [aligned(), ContentSpace(TEXTS, None, {"text": aligned().channels["text"]})])
def test_an_encoder_that_has_changed_is_rejected(space: ContentSpace) -> None:
    newer = replace(TEXTS, revision="2")
    with pytest.raises(SpaceError, match="words@2"):
        QueryEncoder(space, {"text": Fixed(newer, {"text"}, [1, 0])}).embed(Content.of(Text("x")))


def test_near_query_is_the_cosine_by_channel(tmp_path: Path) -> None:
    bundle = with_contents(toy_bundle(tmp_path))
    assert bundle.content is not None
    near = bundle.content.near_query(RED, np.array([0, 11, 2, 9]))
    assert near["text"] == [1.0, pytest.approx(np.cos(np.radians(88))), pytest.approx(np.cos(np.radians(16))), None]
    assert near["image"] == [0.0, None, 1.0, None]


def test_the_encoder_setup_is_read_from_the_manifest() -> None:
    run = {"encoder": {"kind": "builtin", "multilingual": True}, "limits": {"pixels": 9}, "cache": "c"}
    assert EncoderSetup.of({"config": run}) == EncoderSetup(
        BuiltinConfig(multilingual=True), Limits(pixels=9), Path("c/models")
    )
    assert EncoderSetup.of({"config": run | {"encoder": {"kind": "gemini"}}}) == EncoderSetup(
        GeminiConfig(kind="gemini"), Limits(pixels=9), Path("c/models")
    )
    assert EncoderSetup.of({"config": run | {"encoder": None}}) is None
    assert EncoderSetup.of({"config": {}}) is None
    for invalid in ({"encoder": {"kind": "crystal ball"}}, {"limits": {"pixels": 0}}):
        with pytest.raises(BundleError, match="train again"):
            EncoderSetup.of({"config": run | invalid})


@settings(max_examples=60, deadline=None)
@given(
    available=st.lists(st.booleans(), min_size=12, max_size=12),
    angle=st.floats(0, 360),
    k=st.integers(1, 14),
)
def test_unavailable_items_are_never_found(available: list[bool], angle: float, k: int) -> None:
    bundle = with_contents(toy_bundle(Path()))
    bundle = replace(bundle, catalog=replace(bundle.catalog, available=np.array(available)))
    vector = np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0]], np.float32)
    found = ServingSnapshot.of(bundle, MemoryStore(RULES)).search(vector, k, {}, np.zeros(0, np.int64))
    rows = found.rows.tolist()
    allowed = {row for row in range(12) if available[row] and row != 9}
    assert set(rows) <= allowed
    assert len(rows) == len(set(rows)) == min(k, len(allowed) - ({4, 5} <= allowed))
    scores = bundle.catalog.content @ vector[0]
    assert (np.diff(scores[rows]) <= 1e-6).all()
    missed = allowed - set(rows) - ({4, 5} if {4, 5} & set(rows) else set())
    assert not missed or max(scores[list(missed)]) <= scores[rows[-1]] + 1e-6
    assert searchable(bundle.catalog).tolist() == [a and row != 9 for row, a in enumerate(available)]
    later = np.where(np.arange(12) < 3, 2**62, bundle.catalog.published)
    assert not searchable(replace(bundle.catalog, published=later))[:3].any()


# The command


D = 8


@pytest.fixture(scope="module")
def service() -> Iterator[FakeEmbeddings]:
    with FakeEmbeddings(D) as fake:
        yield fake


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, service: FakeEmbeddings) -> Path:
    """A bundle of 30 items, whose texts were embedded by the service; i7 is not available, i5 has no text."""
    folder = tmp_path_factory.mktemp("bundles")
    text = np.stack([unit(f"Title {row}", D) for row in range(30)])
    text[5] = 0
    catalog = toy_catalog(30, text=text)
    catalog.available[7] = False
    stage, catalog, statistics = toy_stage(noise(), catalog, reranked=False)
    key = SpaceKey("toy-embed", service.url.partition("://")[2] + "/v1", D, preprocessing=JOINED)
    space = ContentSpace(key, None, {"content": Embedded(key, text, catalog.has_content)})
    encoder = {"kind": "openai-compatible", "base_url": f"{service.url}/v1", "model": "toy-embed"}
    facts = {"config": {"data": DATA, "encoder": encoder, "limits": {}, "cache": str(folder / "cache")}}
    publish_bundle(save_bundle(folder, catalog, stage, statistics, facts, space))
    return folder


DATA = {"source": "folder", "path": "x", "events": {"positive": {"take": None}}}
JOINED = "texts of a content joined by line breaks"


def search(bundles: Path, *arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["search", "--bundles", str(bundles), *arguments])


def test_the_command_prints_json(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(RED_PNG)
    done = search(bundles, "--text", "Title 4", "--image", str(tmp_path / "x.png"), "--k", "40", "--json")
    assert done.exit_code == 0, done.exception
    response = json.loads(done.stdout)
    cosines = {
        f"i{row}": float(unit(f"Title {row}", D) @ unit("Title 4", D)) for row in range(30) if row not in (5, 7)
    }
    assert [i["item_id"] for i in response["items"]] == sorted(cosines, key=lambda item: -cosines[item])
    assert response["items"][0] == {
        "item_id": "i4",
        "title": "Title 4",
        "score": pytest.approx(1, abs=1e-5),
        "near": {"content": pytest.approx(1, abs=1e-3)},  # stored in half precision
    }
    assert [part for part, _ in response["failed"]] == ["image"]
    assert done.stderr.startswith("image not read: the items cannot be searched by image")


def test_the_command_prints_a_table(bundles: Path) -> None:
    output = search(bundles, "--text", "Title 4", "--k", "2").stdout
    assert "Title 4" in output
    assert "1.000" in output
    assert "content" in output


def test_the_command_rejects_invalid_queries_and_bundles(bundles: Path, tmp_path: Path) -> None:
    assert isinstance(search(bundles).exception, ConfigError)
    absent = search(bundles, "--text", "x", "--image", str(tmp_path / "absent.png"))
    assert isinstance(absent.exception, ConfigError)
    (tmp_path / "no.png").write_bytes(b"no picture")
    done = search(bundles, "--text", POISON, "--image", str(tmp_path / "no.png"))
    assert isinstance(done.exception, ContentError)
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["text", "image"]
    assert isinstance(search(tmp_path, "--text", "x").exception, BundleError)
    without = tmp_path / "without"
    stage, catalog, statistics = toy_stage(noise(), toy_catalog(30), reranked=False)
    publish_bundle(save_bundle(without, catalog, stage, statistics, {"config": {"data": DATA, "encoder": None}}))
    assert "train with an encoder" in str(search(without, "--text", "x").exception)


@pytest.mark.parametrize(
    ("encoder", "channels", "kinds"),
    [
        ({"kind": "builtin"}, ["title", "text"], ("text",)),
        ({"kind": "builtin"}, ["image", "text"], ("text", "image", "video")),
        ({"kind": "builtin"}, ["sound"], ("audio", "video")),
        ({"kind": "clip", "model": "m"}, ["content"], ("text", "image")),
        ({"kind": "clap", "model": "m"}, ["content"], ("text", "audio")),
        ({"kind": "gemini"}, ["content"], ("text", "image", "audio", "video")),
        ({"kind": "openai-compatible", "base_url": "u", "model": "m"}, ["content"], ("text",)),
    ],
)
def test_what_a_query_can_hold(encoder: dict[str, str], channels: list[str], kinds: tuple[str, ...]) -> None:
    setup = EncoderSetup.of({"config": {"encoder": encoder, "limits": {}, "cache": "nowhere"}})
    assert setup is not None
    assert setup.modalities(channels) == kinds
