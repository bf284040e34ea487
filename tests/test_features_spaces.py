"""Spaces: vectors of different spaces are never compared, and a cut is a different space."""

import itertools

import numpy as np
import pytest

from features.content.spaces import Embedded, Failure, SpaceKey, cut, same_space, unit
from features.errors import SpaceError

KEY = SpaceKey("m", "r1", 4, "retrieval", "128 tokens")
OTHERS = [
    SpaceKey("n", "r1", 4, "retrieval", "128 tokens"),
    SpaceKey("m", "r2", 4, "retrieval", "128 tokens"),
    SpaceKey("m", "r1", 3, "retrieval", "128 tokens"),
    SpaceKey("m", "r1", 4, "similarity", "128 tokens"),
    SpaceKey("m", "r1", 4, "retrieval", "256 tokens"),
    SpaceKey("m", "r1", 4, "retrieval", "128 tokens", "none"),
]


def test_each_field_makes_another_space():
    for a, b in itertools.combinations([KEY, *OTHERS], 2):
        assert a != b
        assert str(a) != str(b)
    assert len({KEY, *OTHERS, SpaceKey("m", "r1", 4, "retrieval", "128 tokens")}) == 7


def test_the_text_of_a_key_has_its_nonempty_fields():
    assert str(KEY) == "m@r1 · retrieval · 128 tokens · 4 l2"
    assert str(SpaceKey("m", "r1", 4)) == "m@r1 · 4 l2"


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_two_spaces_are_rejected_with_both_keys(other):
    same_space(KEY, SpaceKey("m", "r1", 4, "retrieval", "128 tokens"), "here")
    with pytest.raises(SpaceError) as caught:
        same_space(KEY, other, "the index")
    assert str(caught.value) == (
        f"the index: vectors of two spaces cannot be compared.\n  found: {KEY}\n  expected: {other}"
    )


def test_a_cut_is_normalised_again():
    failures = (Failure(2, 0, "broken"),)
    vectors = np.array([[3, 4, 0, 12], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32) / [[13], [1], [1]]
    full = Embedded(KEY, vectors.astype(np.float32), np.array([True, True, False]), failures)
    short = cut(full, 2)
    np.testing.assert_allclose(short.vectors, [[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]], atol=1e-6)
    assert short.vectors.dtype == np.float32
    assert short.space == SpaceKey("m", "r1", 2, "retrieval", "128 tokens")
    assert short.failures == failures
    assert short.present.tolist() == [True, True, False]
    np.testing.assert_allclose(cut(full, 4).vectors, vectors, atol=1e-6)
    assert cut(cut(full, 3), 2).space == short.space
    np.testing.assert_allclose(cut(cut(full, 3), 2).vectors, short.vectors, atol=1e-6)


@pytest.mark.parametrize("dimension", [0, -1, 5])
def test_an_invalid_dimension_of_a_cut(dimension):
    full = Embedded(KEY, np.zeros((1, 4), np.float32), np.array([False]))
    for attempt in (lambda: KEY.cut(dimension), lambda: cut(full, dimension)):
        with pytest.raises(SpaceError, match=rf"m@r1 .*cannot be cut to {dimension} dimensions; choose 1 to 4"):
            attempt()


def test_unit_rows_and_zero_rows():
    rows = np.array([[3, 4], [0, 0], [0, -1e-6], [1e15, 0]], np.float32)
    np.testing.assert_allclose(unit(rows), [[0.6, 0.8], [0.0, 0.0], [0.0, -1.0], [1.0, 0.0]], atol=1e-6)
    assert unit(rows.astype(np.float64)).dtype == np.float32
    assert unit(rows[:0]).shape == (0, 2)
