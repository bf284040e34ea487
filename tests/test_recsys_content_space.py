"""The content space: one encoder's space, several aligned spaces, and the placement of other contents."""

import numpy as np
import pytest
from test_recsys_bundle_io import EVENTS
from toy_data import FACTS, toy_catalog, toy_stage

from features.content.spaces import Embedded, SpaceKey, unit
from features.errors import SpaceError
from recsys.bundle.io import load_bundle, save_bundle
from recsys.config import AlignmentConfig
from recsys.content.content_space import fit_content_space

TEXTS, IMAGES, OTHER = (SpaceKey(name, "1", 8) for name in ("texts", "images", "other"))
CONFIG = AlignmentConfig(nested=(2, 4), steps=4)
N = 60


def embedded(space, vectors, present=None):
    present = np.ones(len(vectors), dtype=np.bool_) if present is None else present
    return Embedded(space, unit(vectors.astype(np.float32)) * present[:, None], present)


@pytest.fixture(scope="module")
def channels():
    """Text and image of each item from the same hidden factors; the last ten items have no image."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((N, 4))
    text = hidden @ rng.standard_normal((4, 8)) + 0.1 * rng.standard_normal((N, 8))
    image = hidden @ rng.standard_normal((4, 8)) + 0.1 * rng.standard_normal((N, 8))
    return {"text": embedded(TEXTS, text), "image": embedded(IMAGES, image, np.arange(N) < N - 10)}


def test_one_encoders_space_is_used_as_it_is(channels):
    nothing = embedded(IMAGES, np.zeros((N, 8)), np.zeros(N, dtype=np.bool_))
    space, content, line = fit_content_space({"text": channels["text"], "image": nothing}, CONFIG, seed=0)
    assert (space.space, space.alignment, line) == (TEXTS, None, "contents: text of 60")
    np.testing.assert_allclose(content.vectors, channels["text"].vectors, atol=1e-6)


def test_channels_of_one_space_are_summed(channels):
    spoken = embedded(TEXTS, np.roll(channels["text"].vectors, 1, axis=0), np.arange(N) < 5)
    space, content, _ = fit_content_space({"text": channels["text"], "speech": spoken}, CONFIG, seed=0)
    assert space.alignment is None
    written = channels["text"].vectors
    np.testing.assert_allclose(content.vectors[:5], unit(written[:5] + spoken.vectors[:5]), atol=1e-6)
    np.testing.assert_allclose(content.vectors[5:], written[5:], atol=1e-6)


def test_several_spaces_become_one(channels):
    space, content, line = fit_content_space(channels, CONFIG, seed=0)
    assert space.alignment is not None
    assert space.space == space.alignment.space
    assert line == "contents aligned: text of 60, image of 50"
    assert content.present.all()
    np.testing.assert_array_equal(space.place(channels).vectors, content.vectors)
    scores = space.place({"image": channels["image"]}).vectors[:50] @ content.vectors.T
    assert (scores.argmax(1) == np.arange(50)).mean() > 0.9  # the hidden factors are almost all of the signal


@pytest.mark.parametrize("titles", [False, True])
def test_too_few_common_items_leave_the_largest_space(channels, titles):
    few = embedded(IMAGES, channels["image"].vectors, np.arange(N) < 19)
    texts = {"text": channels["text"]} | ({"title": channels["text"]} if titles else {})  # two channels of one space
    space, content, line = fit_content_space(texts | {"image": few}, CONFIG, seed=0)
    assert space.space == TEXTS
    assert list(space.channels) == list(texts)
    assert line.endswith("image of 19; image left out: fewer than 20 items are in another space too")
    np.testing.assert_allclose(content.vectors, channels["text"].vectors, atol=1e-6)
    enough = embedded(IMAGES, channels["image"].vectors, np.arange(N) < 20)
    assert list(fit_content_space(texts | {"image": enough}, CONFIG, seed=0)[0].channels) == [*texts, "image"]


def test_a_space_that_shares_few_items_is_left_out_of_the_alignment(channels):
    rng = np.random.default_rng(1)
    rare = embedded(OTHER, rng.standard_normal((N, 8)), np.arange(N) >= N - 19)
    space, content, line = fit_content_space(channels | {"sound": rare}, CONFIG, seed=0)
    without, expected, _ = fit_content_space(channels, CONFIG, seed=0)
    assert line.startswith("contents aligned: text of 60, image of 50, sound of 19; sound left out")
    assert space.space == without.space
    np.testing.assert_array_equal(content.vectors, expected.vectors)


def test_spaces_that_share_items_with_a_rare_one_only_are_not_aligned(channels):
    """Text of 40 items, images of 15 others, sounds of 10 of each: too few common items."""
    at = np.arange(N)
    text = embedded(TEXTS, channels["text"].vectors, at < 40)
    images = embedded(IMAGES, channels["text"].vectors, at >= 45)
    sounds = embedded(OTHER, channels["text"].vectors, (at >= 30) & (at < 55))
    space, _, line = fit_content_space({"text": text, "image": images, "sound": sounds}, CONFIG, seed=0)
    assert (space.space, list(space.channels)) == (TEXTS, ["text"])
    assert line.startswith("contents: text of 40, image of 15, sound of 25; image, sound left out")


@pytest.mark.parametrize("aligned", [True, False])
def test_a_query_of_another_space_is_rejected_with_both_printed(channels, aligned):
    space, _, _ = fit_content_space(channels if aligned else {"text": channels["text"]}, CONFIG, seed=0)
    with pytest.raises(SpaceError) as caught:
        space.place({"text": embedded(OTHER, np.ones((1, 8)))})
    assert str(OTHER) in str(caught.value)
    assert str(TEXTS) in str(caught.value)


@pytest.mark.parametrize("aligned", [True, False])
def test_another_catalogue_is_placed_in_the_same_space(channels, aligned):
    """Its items are placed as those of the first catalogue; channels unknown to the space are left out."""
    own = channels if aligned else {"text": channels["text"]}
    space, content, _ = fit_content_space(own, CONFIG, seed=0)
    reversed_ = {name: embedded(c.space, c.vectors[::-1], c.present[::-1]) for name, c in channels.items()}
    again, placed = space.with_catalog(reversed_ | {"sound": embedded(OTHER, np.ones((N, 8)))})
    assert (again.space, again.alignment, list(again.channels)) == (space.space, space.alignment, list(own))
    np.testing.assert_allclose(placed.vectors, content.vectors[::-1], atol=1e-6)
    np.testing.assert_allclose(again.channels["text"].vectors, space.channels["text"].vectors[::-1], atol=1e-6)
    with pytest.raises(SpaceError, match="contents are of sound, and "):
        space.with_catalog({"sound": reversed_["text"]})
    with pytest.raises(SpaceError):
        space.with_catalog({"text": embedded(OTHER, np.ones((N, 8)))})


def test_cosines_of_items_by_channel(channels):
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
    assert bundle.content is not None
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
