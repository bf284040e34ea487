"""The cache of vectors: what was kept comes back, of one space, whatever happens to its files."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.content import vector_cache as vectors
from features.content.spaces import Embedded, Failure, SpaceKey
from features.content.vector_cache import VectorCache, cache_folder
from features.errors import SpaceError, StoreError

SPACE = SpaceKey("toy", "1", 2, "retrieval", "as it is")


def named(*names):
    """Digests of names; None stays null."""
    made = [None if name is None else hashlib.sha256(str(name).encode()).digest() for name in names]
    return pl.Series(made, dtype=pl.Binary)


def embedded(rows, failures=(), space=SPACE):
    """Rows of two numbers; (0, 0) is nothing."""
    rows = np.array(rows, dtype=np.float32).reshape(-1, space.dimension)
    return Embedded(space, rows, rows.any(axis=1), tuple(failures))


def angle(number):
    """The vector that stands for a number."""
    return [np.cos(number), np.sin(number)]


@pytest.fixture
def cache(tmp_path):
    return VectorCache(tmp_path / "space", SPACE)


def keep(cache, names, rows, failures=()):
    with cache.writing():
        cache.append(named(*names), embedded(rows, failures))


def shards(cache):
    return sorted(cache.folder.glob("*.parquet"))


def test_what_is_kept_comes_back_in_the_order_asked_for(cache):
    keep(cache, "ab", [[1, 0], [0, 0]], [Failure(1, 3, "too dark"), Failure(1, 4, "too loud")])
    keep(cache, "c", [[0.6, 0.8]], [Failure(0, 0, "too long")])
    for seen in (cache, VectorCache(cache.folder, SPACE)):
        assert seen.known(named("c", "x", None, "b", "a", "c")).tolist() == [True, False, False, True, True, True]
        found = seen.get(named("c", "x", None, "b", "a", "c"))
        assert found.space == SPACE
        expected = np.array([[0.6, 0.8], [0, 0], [0, 0], [0, 0], [1, 0], [0.6, 0.8]], dtype=np.float32)
        np.testing.assert_array_equal(found.vectors, expected, strict=True)
        assert found.present.tolist() == [True, False, False, False, True, True]
        told = (
            Failure(0, 0, "too long"),
            Failure(3, 3, "too dark"),
            Failure(3, 4, "too loud"),
            Failure(5, 0, "too long"),
        )
        assert found.failures == told
        assert seen.failures(named("c", "x", None, "b", "a", "c")) == told


def test_nothing_is_kept_in_an_empty_cache_and_nothing_asked_for(cache):
    assert cache.known(named("a", None)).tolist() == [False, False]
    assert cache.get(named("a")).vectors.tolist() == [[0, 0]]
    assert cache.get(named()).vectors.shape == (0, 2)
    assert not cache.folder.exists()
    keep(cache, "", [])
    assert cache.failures(named("a")) == ()


def test_later_vectors_take_the_place_of_earlier_ones(cache):
    keep(cache, "ab", [[0, 0], [1, 0]], [Failure(0, 0, "server away")])
    keep(cache, "a", [[0, 1]])
    for seen in (cache, VectorCache(cache.folder, SPACE)):
        assert seen.get(named("a", "b")).vectors.tolist() == [[0, 1], [1, 0]]
        assert seen.failures(named("a", "b")) == ()


def test_a_reason_that_is_no_unicode_is_kept_readable(cache):
    keep(cache, "a", [[0, 0]], [Failure(0, 0, "\udcff.jpg: cannot be read")])
    assert cache.failures(named("a")) == (Failure(0, 0, "?.jpg: cannot be read"),)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"revision": "2"},
        {"dimension": 3},
        {"prompt": "", "preprocessing": "retrieval · as it is"},
        {"normalisation": "none"},
    ],
)
def test_another_space_has_another_folder_and_is_refused_here(cache, change):
    other = replace(SPACE, **change)
    assert cache_folder(Path("cache"), other) != cache_folder(Path("cache"), SPACE)
    keep(cache, "a", [[1, 0]])
    with pytest.raises(SpaceError) as told:
        VectorCache(cache.folder, other)
    assert f"there: {SPACE}\n" in str(told.value)
    assert str(told.value).endswith(f"given: {other}")
    with cache.writing(), pytest.raises(SpaceError, match="two spaces do not compare"):
        cache.append(named("b"), embedded([1] + [0] * (other.dimension - 1), space=other))
    assert cache.known(named("a", "b")).tolist() == [True, False]


def test_a_folder_that_became_another_space_s_meanwhile_is_not_written(cache):
    other = VectorCache(cache.folder, replace(SPACE, model="other"))
    keep(cache, "a", [[1, 0]])
    with pytest.raises(SpaceError, match="two spaces do not compare"), other.writing():
        pass


def test_a_folder_tells_its_space_in_full(cache):
    keep(cache, "a", [[1, 0]])
    assert json.loads((cache.folder / "space.json").read_text()) == {
        "format": 1,
        "model": "toy",
        "revision": "1",
        "dimension": 2,
        "prompt": "retrieval",
        "preprocessing": "as it is",
        "normalisation": "l2",
    }


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "model": "toy", "colour": 3}'])
def test_a_folder_that_does_not_tell_its_space_is_refused(cache, told):
    keep(cache, "a", [[1, 0]])
    (cache.folder / "space.json").write_text(told)
    with pytest.raises(StoreError, match=r"space\.json: .*remove the folder"):
        VectorCache(cache.folder, SPACE)


@pytest.mark.parametrize("wrong", [embedded([[1, 0], [0, 1]]), embedded([[np.nan, 1]]), embedded([[np.inf, 1]])])
def test_vectors_that_are_none_are_refused(cache, wrong):
    with cache.writing(), pytest.raises(SpaceError, match="the encoder gave vectors"):
        cache.append(named("a"), wrong)
    assert not cache.known(named("a")).any()


def test_only_a_writer_appends(cache):
    with cache.writing():
        pass
    with pytest.raises(StoreError, match="outside of"):
        cache.append(named("a"), embedded([[1, 0]]))


def test_many_small_shards_become_one(cache):
    with cache.writing():
        for number in range(100):
            cache.append(named(number, "same"), embedded([angle(number), angle(-number)]))
    assert len(shards(cache)) < vectors.MIN_MERGED
    rows = sum(len(pl.read_parquet(shard)) for shard in shards(cache))
    assert 101 <= rows <= 101 + vectors.MIN_MERGED  # those of "same" that were replaced went when shards were merged
    for seen in (cache, VectorCache(cache.folder, SPACE)):
        found = seen.get(named(*range(100), "same"))
        expected = [angle(number) for number in [*range(100), -99]]
        np.testing.assert_array_equal(found.vectors, np.array(expected, dtype=np.float32))


def test_shards_are_merged_up_to_a_size(cache, monkeypatch):
    keep(cache, range(100), [angle(number) for number in range(100)])
    size = shards(cache)[0].stat().st_size
    monkeypatch.setattr(vectors, "SHARD_BYTES", 4 * size)
    with cache.writing():
        for number in range(100, 4000, 100):
            part = range(number, number + 100)
            cache.append(named(*part), embedded([angle(each) for each in part]))
    sizes = [shard.stat().st_size for shard in shards(cache)]
    assert max(sizes) <= 4.5 * size
    assert sum(each < 2 * size for each in sizes) < vectors.MIN_MERGED
    expected = [angle(number) for number in range(4000)]
    found = VectorCache(cache.folder, SPACE).get(named(*range(4000)))
    np.testing.assert_array_equal(found.vectors, np.array(expected, dtype=np.float32))


def test_what_a_crash_left_never_takes_the_place_of_what_came_later(cache):
    keep(cache, ["same", "other"], [[1, 0], [1, 0]])
    left = {shard: shard.read_bytes() for shard in shards(cache)}
    with cache.writing():
        for number in range(vectors.MIN_MERGED):
            cache.append(named("same", number), embedded([[0, 1], angle(number)]))
    assert not left.keys() & set(shards(cache))
    for shard, data in left.items():
        shard.write_bytes(data)  # as if the process had died before it removed it
    (cache.folder / "half.writing").write_bytes(b"half")
    with cache.writing():
        assert cache.get(named("same", "other", 3)).vectors.tolist()[:2] == [[0, 1], [1, 0]]
    assert not list(cache.folder.glob("*.writing"))


def test_a_reader_of_before_still_reads_when_shards_are_merged(cache):
    keep(cache, "a", [[1, 0]])
    reader = VectorCache(cache.folder, SPACE)
    assert reader.known(named("a")).all()
    with cache.writing():
        for number in range(2 * vectors.MIN_MERGED):
            cache.append(named(number), embedded([angle(number)]))
    assert reader.get(named("a")).vectors.tolist() == [[1, 0]]


@pytest.mark.parametrize("hurt", ["cut", "flipped", "gone"])
def test_a_damaged_shard_is_named_and_computed_again(cache, hurt):
    keep(cache, "ab", [[1, 0], [0, 1]])
    (bad,) = shards(cache)
    keep(cache, "c", [[0.6, 0.8]])
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    if hurt == "gone":
        bad.unlink()
    else:
        bad.write_bytes(bytes(data) if hurt == "flipped" else data[:-9])
    reader = VectorCache(cache.folder, SPACE)
    for look in (reader.known, reader.get, reader.failures, cache.get):
        with pytest.raises(StoreError, match=f"{bad}.*recsys embed"):
            look(named("a"))
    with cache.writing():
        assert cache.damaged == (bad.with_suffix(".damaged"),)
        assert cache.known(named("a", "b", "c")).tolist() == [False, False, True]
        cache.append(named("a", "b"), embedded([[1, 0], [0, 1]]))
    assert reader.get(named("a", "b", "c")).vectors.tolist() == pytest.approx(
        np.float32([[1, 0], [0, 1], [0.6, 0.8]])
    )
    with cache.writing():
        assert cache.damaged == ()


WRITER = """
import sys
sys.path[:0] = ["tests"]
from pathlib import Path
from test_features_vector_cache import SPACE, VectorCache, angle, embedded, named
cache = VectorCache(Path(sys.argv[1]), SPACE)
with cache.writing():
    for number in range(300):
        cache.append(named(number), embedded([angle(number)]))
        if not number:
            print("begun", flush=True)
"""


def test_readers_see_whole_shards_while_another_process_writes_and_merges(cache):
    with subprocess.Popen([sys.executable, "-c", WRITER, cache.folder], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "begun\n"
        digests = named(*range(300))
        expected = np.array([angle(number) for number in range(300)], dtype=np.float32)
        seen = [0]
        while seen[-1] < 300:
            ended = writer.poll() is not None
            found = VectorCache(cache.folder, SPACE).get(digests)
            many = int(found.present.sum())
            assert many >= seen[-1] >= 0
            assert found.present[:many].all()
            np.testing.assert_array_equal(found.vectors[:many], expected[:many])
            seen.append(many)
            assert many == 300 or not ended
    assert writer.returncode == 0
    assert len(set(seen)) > 3
