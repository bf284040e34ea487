"""Spaces: vectors of two of them never meet, and a cut is a space of its own."""

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
    for one, other in itertools.combinations([KEY, *OTHERS], 2):
        assert one != other
        assert str(one) != str(other)
    assert len({KEY, *OTHERS, SpaceKey("m", "r1", 4, "retrieval", "128 tokens")}) == 7


def test_a_key_is_printed_with_what_it_has():
    assert str(KEY) == "m@r1 · retrieval · 128 tokens · 4 l2"
    assert str(SpaceKey("m", "r1", 4)) == "m@r1 · 4 l2"


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_two_spaces_are_refused_with_both_printed(other):
    same_space(KEY, SpaceKey("m", "r1", 4, "retrieval", "128 tokens"), "here")
    with pytest.raises(SpaceError) as told:
        same_space(KEY, other, "the index")
    assert str(told.value) == (f"the index: vectors of two spaces do not compare.\n  there: {KEY}\n  given: {other}")


def test_a_cut_is_normalised_anew():
    failures = (Failure(2, 0, "broken"),)
    vectors = np.array([[3, 4, 0, 12], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32) / [[13], [1], [1]]
    whole = Embedded(KEY, vectors.astype(np.float32), np.array([True, True, False]), failures)
    short = cut(whole, 2)
    np.testing.assert_allclose(short.vectors, [[0.6, 0.8], [0, 1], [0, 0]], atol=1e-6)
    assert short.vectors.dtype == np.float32
    assert short.space == SpaceKey("m", "r1", 2, "retrieval", "128 tokens")
    assert short.failures == failures
    assert short.present.tolist() == [True, True, False]
    np.testing.assert_allclose(cut(whole, 4).vectors, vectors, atol=1e-6)
    assert cut(cut(whole, 3), 2).space == short.space
    np.testing.assert_allclose(cut(cut(whole, 3), 2).vectors, short.vectors, atol=1e-6)


@pytest.mark.parametrize("dimension", [0, -1, 5])
def test_what_cannot_be_cut(dimension):
    whole = Embedded(KEY, np.zeros((1, 4), np.float32), np.array([False]))
    for attempt in (lambda: KEY.cut(dimension), lambda: cut(whole, dimension)):
        with pytest.raises(SpaceError, match=rf"m@r1 .*cannot be cut to {dimension} dimensions; 1 to 4 can be had"):
            attempt()


def test_unit_rows_and_zero_rows():
    rows = np.array([[3, 4], [0, 0], [0, -1e-6], [1e15, 0]], np.float32)
    np.testing.assert_allclose(unit(rows), [[0.6, 0.8], [0, 0], [0, -1], [1, 0]], atol=1e-6)
    assert unit(rows.astype(np.float64)).dtype == np.float32
    assert unit(rows[:0]).shape == (0, 2)
