"""Where contents lie: one encoder's space as it is, several aligned, and the way of any other content into it."""

import numpy as np
import pytest
from test_recsys_bundle_io import EVENTS, FACTS
from toy_data import toy_catalog, toy_stage

from features.content.spaces import Embedded, SpaceKey, unit
from features.errors import SpaceError
from recsys.bundle.io import load_bundle, save_bundle
from recsys.config import AlignmentConfig
from recsys.content.content_space import fit_content_space

WORDS, PICTURES, OTHER = (SpaceKey(name, "1", 8) for name in ("words", "pictures", "other"))
CONFIG = AlignmentConfig(nested=(2, 4), steps=4)
N = 60


def embedded(space, vectors, present=None):
    present = np.ones(len(vectors), dtype=np.bool_) if present is None else present
    return Embedded(space, unit(vectors.astype(np.float32)) * present[:, None], present)


@pytest.fixture(scope="module")
def channels():
    """Words and pictures of one hidden cause each, the last ten items without a picture."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((N, 4))
    words = hidden @ rng.standard_normal((4, 8)) + 0.1 * rng.standard_normal((N, 8))
    pictures = hidden @ rng.standard_normal((4, 8)) + 0.1 * rng.standard_normal((N, 8))
    return {"text": embedded(WORDS, words), "image": embedded(PICTURES, pictures, np.arange(N) < N - 10)}


def test_one_encoders_space_is_used_as_it_is(channels):
    nothing = embedded(PICTURES, np.zeros((N, 8)), np.zeros(N, dtype=np.bool_))
    space, content, told = fit_content_space({"text": channels["text"], "image": nothing}, CONFIG, seed=0)
    assert (space.space, space.alignment, told) == (WORDS, None, "contents: text of 60")
    np.testing.assert_allclose(content.vectors, channels["text"].vectors, atol=1e-6)


def test_channels_of_one_space_are_summed(channels):
    spoken = embedded(WORDS, np.roll(channels["text"].vectors, 1, axis=0), np.arange(N) < 5)
    space, content, _ = fit_content_space({"text": channels["text"], "speech": spoken}, CONFIG, seed=0)
    assert space.alignment is None
    written = channels["text"].vectors
    np.testing.assert_allclose(content.vectors[:5], unit(written[:5] + spoken.vectors[:5]), atol=1e-6)
    np.testing.assert_allclose(content.vectors[5:], written[5:], atol=1e-6)


def test_several_spaces_become_one(channels):
    space, content, told = fit_content_space(channels, CONFIG, seed=0)
    assert space.alignment is not None
    assert space.space == space.alignment.space
    assert told == "contents aligned: text of 60, image of 50"
    assert content.present.all()
    np.testing.assert_array_equal(space.place(channels).vectors, content.vectors)
    asked = space.place({"image": channels["image"]}).vectors[:50] @ content.vectors.T
    assert (asked.argmax(1) == np.arange(50)).mean() > 0.9  # the hidden cause is nearly all there is


@pytest.mark.parametrize("titles", [False, True])
def test_too_few_items_with_both_leave_the_largest_space(channels, titles):
    few = embedded(PICTURES, channels["image"].vectors, np.arange(N) < 19)
    words = {"text": channels["text"]} | ({"title": channels["text"]} if titles else {})  # two of one space
    space, content, told = fit_content_space(words | {"image": few}, CONFIG, seed=0)
    assert space.space == WORDS
    assert list(space.channels) == list(words)
    assert told.endswith("image of 19; image left out: at least 20 items need it beside another kind")
    np.testing.assert_allclose(content.vectors, channels["text"].vectors, atol=1e-6)
    enough = embedded(PICTURES, channels["image"].vectors, np.arange(N) < 20)
    assert list(fit_content_space(words | {"image": enough}, CONFIG, seed=0)[0].channels) == [*words, "image"]


def test_a_space_that_few_items_have_beside_another_is_left_out_of_the_alignment(channels):
    rng = np.random.default_rng(1)
    rare = embedded(OTHER, rng.standard_normal((N, 8)), np.arange(N) >= N - 19)
    space, content, told = fit_content_space(channels | {"sound": rare}, CONFIG, seed=0)
    without, expected, _ = fit_content_space(channels, CONFIG, seed=0)
    assert told.startswith("contents aligned: text of 60, image of 50, sound of 19; sound left out")
    assert space.space == without.space
    np.testing.assert_array_equal(content.vectors, expected.vectors)


def test_spaces_that_meet_only_a_rare_one_are_not_aligned(channels):
    """Words of 40 items, pictures of 15 others; sounds of 10 of the one and 10 of the other bring none near."""
    at = np.arange(N)
    words = embedded(WORDS, channels["text"].vectors, at < 40)
    pictures = embedded(PICTURES, channels["text"].vectors, at >= 45)
    sounds = embedded(OTHER, channels["text"].vectors, (at >= 30) & (at < 55))
    space, _, told = fit_content_space({"text": words, "image": pictures, "sound": sounds}, CONFIG, seed=0)
    assert (space.space, list(space.channels)) == (WORDS, ["text"])
    assert told.startswith("contents: text of 40, image of 15, sound of 25; image, sound left out")


@pytest.mark.parametrize("aligned", [True, False])
def test_a_query_of_another_space_is_refused_and_both_are_printed(channels, aligned):
    space, _, _ = fit_content_space(channels if aligned else {"text": channels["text"]}, CONFIG, seed=0)
    with pytest.raises(SpaceError) as caught:
        space.place({"text": embedded(OTHER, np.ones((1, 8)))})
    assert str(OTHER) in str(caught.value)
    assert str(WORDS) in str(caught.value)


@pytest.mark.parametrize("aligned", [True, False])
def test_another_catalogue_comes_into_the_same_space(channels, aligned):
    """Its items stand where the first catalogue's would; kinds that the space was made without are left out."""
    mine = channels if aligned else {"text": channels["text"]}
    space, content, _ = fit_content_space(mine, CONFIG, seed=0)
    turned = {name: embedded(c.space, c.vectors[::-1], c.present[::-1]) for name, c in channels.items()}
    again, placed = space.with_catalog(turned | {"sound": embedded(OTHER, np.ones((N, 8)))})
    assert (again.space, again.alignment, list(again.channels)) == (space.space, space.alignment, list(mine))
    np.testing.assert_allclose(placed.vectors, content.vectors[::-1], atol=1e-6)
    np.testing.assert_allclose(again.channels["text"].vectors, space.channels["text"].vectors[::-1], atol=1e-6)
    with pytest.raises(SpaceError, match="contents are of sound, and "):
        space.with_catalog({"sound": turned["text"]})
    with pytest.raises(SpaceError):
        space.with_catalog({"text": embedded(OTHER, np.ones((N, 8)))})


def test_in_which_kind_two_items_are_near(channels):
    space, _, _ = fit_content_space(channels, CONFIG, seed=0)
    near = space.near_item(0, np.array([1, N - 1]))
    text, image = (space.channels[name].vectors for name in ("text", "image"))
    assert near["text"] == pytest.approx([float(text[0] @ text[1]), float(text[0] @ text[N - 1])], abs=1e-6)
    assert near["image"] == [pytest.approx(float(image[0] @ image[1]), abs=1e-6), None]
    assert space.near_item(N - 1, np.array([0]))["image"] == [None]


def test_a_bundle_keeps_its_space_and_searches_in_it(channels, tmp_path):
    thirty = {name: embedded(c.space, c.vectors[20:50], c.present[20:50]) for name, c in channels.items()}
    space, content, _ = fit_content_space(thirty, CONFIG, seed=0)
    stage, catalog, statistics = toy_stage(EVENTS, toy_catalog(30, text=content.vectors))
    bundle = load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS, space))
    assert bundle.content.space == space.space
    placed = bundle.content.place(thirty)
    np.testing.assert_array_equal(placed.vectors, content.vectors)
    for name, channel in space.channels.items():
        np.testing.assert_allclose(
            bundle.content.channels[name].vectors, channel.vectors, atol=1e-3
        )  # half precision
    found = bundle.search(placed.vectors, 30)
    scores = content.vectors @ content.vectors.T
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(30))
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1), atol=1e-5)
    allow = np.arange(30) % 2 == 0
    assert set(bundle.search(placed.vectors, 30, allow=allow).rows.ravel()) == {-1, *range(0, 30, 2)}


def test_a_bundle_without_contents_has_no_space(tmp_path):
    stage, catalog, statistics = toy_stage(EVENTS, toy_catalog(30))
    assert load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS)).content is None
