"""The cache of vectors: stored vectors are returned, of one space only, and damaged files are detected."""

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


def digests_of(*names):
    """Digests of names; None becomes null."""
    digests = [None if name is None else hashlib.sha256(str(name).encode()).digest() for name in names]
    return pl.Series(digests, dtype=pl.Binary)


def embedded(rows, failures=(), space=SPACE):
    """Rows of two numbers; (0, 0) is an absent content."""
    rows = np.array(rows, dtype=np.float32).reshape(-1, space.dimension)
    return Embedded(space, rows, rows.any(axis=1), tuple(failures))


def angle(number):
    """The unit vector (2,) at an angle."""
    return [np.cos(number), np.sin(number)]


@pytest.fixture
def cache(tmp_path):
    return VectorCache(tmp_path / "space", SPACE)


def store(cache, names, rows, failures=()):
    with cache.writing():
        cache.append(digests_of(*names), embedded(rows, failures))


def shards(cache):
    return sorted(cache.folder.glob("*.parquet"))


def test_vectors_are_returned_in_the_order_of_the_query(cache):
    store(cache, "ab", [[1, 0], [0, 0]], [Failure(1, 3, "too dark"), Failure(1, 4, "too loud")])
    store(cache, "c", [[0.6, 0.8]], [Failure(0, 0, "too long")])
    for reader in (cache, VectorCache(cache.folder, SPACE)):
        assert reader.known(digests_of("c", "x", None, "b", "a", "c")).tolist() == [
            True,
            False,
            False,
            True,
            True,
            True,
        ]
        result = reader.get(digests_of("c", "x", None, "b", "a", "c"))
        assert result.space == SPACE
        expected = np.array([[0.6, 0.8], [0, 0], [0, 0], [0, 0], [1, 0], [0.6, 0.8]], dtype=np.float32)
        np.testing.assert_array_equal(result.vectors, expected, strict=True)
        assert result.present.tolist() == [True, False, False, False, True, True]
        failures = (
            Failure(0, 0, "too long"),
            Failure(3, 3, "too dark"),
            Failure(3, 4, "too loud"),
            Failure(5, 0, "too long"),
        )
        assert result.failures == failures
        assert reader.failures(digests_of("c", "x", None, "b", "a", "c")) == failures


def test_an_empty_cache_and_an_empty_query(cache):
    assert cache.known(digests_of("a", None)).tolist() == [False, False]
    assert cache.get(digests_of("a")).vectors.tolist() == [[0, 0]]
    assert cache.get(digests_of()).vectors.shape == (0, 2)
    assert not cache.folder.exists()
    store(cache, "", [])
    assert cache.failures(digests_of("a")) == ()


def test_later_vectors_replace_earlier_ones(cache):
    store(cache, "ab", [[0, 0], [1, 0]], [Failure(0, 0, "server away")])
    store(cache, "a", [[0, 1]])
    for reader in (cache, VectorCache(cache.folder, SPACE)):
        assert reader.get(digests_of("a", "b")).vectors.tolist() == [[0, 1], [1, 0]]
        assert reader.failures(digests_of("a", "b")) == ()


def test_a_reason_with_invalid_unicode_is_stored_as_text(cache):
    store(cache, "a", [[0, 0]], [Failure(0, 0, "\udcff.jpg: cannot be read")])
    assert cache.failures(digests_of("a")) == (Failure(0, 0, "?.jpg: cannot be read"),)


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
def test_another_space_has_another_folder_and_is_rejected(cache, change):
    other = replace(SPACE, **change)
    assert cache_folder(Path("cache"), other) != cache_folder(Path("cache"), SPACE)
    store(cache, "a", [[1, 0]])
    with pytest.raises(SpaceError) as caught:
        VectorCache(cache.folder, other)
    assert f"found: {SPACE}\n" in str(caught.value)
    assert str(caught.value).endswith(f"expected: {other}")
    with cache.writing(), pytest.raises(SpaceError, match="two spaces cannot be compared"):
        cache.append(digests_of("b"), embedded([1] + [0] * (other.dimension - 1), space=other))
    assert cache.known(digests_of("a", "b")).tolist() == [True, False]


def test_a_folder_that_another_space_took_meanwhile_is_not_written(cache):
    other = VectorCache(cache.folder, replace(SPACE, model="other"))
    store(cache, "a", [[1, 0]])
    with pytest.raises(SpaceError, match="two spaces cannot be compared"), other.writing():
        pass


def test_space_json_has_the_full_key(cache):
    store(cache, "a", [[1, 0]])
    assert json.loads((cache.folder / "space.json").read_text()) == {
        "format": 1,
        "model": "toy",
        "revision": "1",
        "dimension": 2,
        "prompt": "retrieval",
        "preprocessing": "as it is",
        "normalisation": "l2",
    }


@pytest.mark.parametrize("header", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "model": "toy", "colour": 3}'])
def test_an_invalid_space_json_is_rejected(cache, header):
    store(cache, "a", [[1, 0]])
    (cache.folder / "space.json").write_text(header)
    with pytest.raises(StoreError, match=r"space\.json: .*remove the folder"):
        VectorCache(cache.folder, SPACE)


@pytest.mark.parametrize("invalid", [embedded([[1, 0], [0, 1]]), embedded([[np.nan, 1]]), embedded([[np.inf, 1]])])
def test_invalid_vectors_are_rejected(cache, invalid):
    with cache.writing(), pytest.raises(SpaceError, match="the encoder returned vectors"):
        cache.append(digests_of("a"), invalid)
    assert not cache.known(digests_of("a")).any()


def test_only_a_writer_appends(cache):
    with cache.writing():
        pass
    with pytest.raises(StoreError, match="only inside"):
        cache.append(digests_of("a"), embedded([[1, 0]]))


def test_many_small_shards_become_one(cache):
    with cache.writing():
        for number in range(100):
            cache.append(digests_of(number, "same"), embedded([angle(number), angle(-number)]))
    assert len(shards(cache)) < vectors.MIN_MERGED
    rows = sum(len(pl.read_parquet(shard)) for shard in shards(cache))
    assert 101 <= rows <= 101 + vectors.MIN_MERGED  # merging removes replaced rows of "same"
    for reader in (cache, VectorCache(cache.folder, SPACE)):
        result = reader.get(digests_of(*range(100), "same"))
        expected = [angle(number) for number in [*range(100), -99]]
        np.testing.assert_array_equal(result.vectors, np.array(expected, dtype=np.float32))


def test_shards_are_merged_up_to_a_size(cache, monkeypatch):
    store(cache, range(100), [angle(number) for number in range(100)])
    size = shards(cache)[0].stat().st_size
    monkeypatch.setattr(vectors, "SHARD_BYTES", 4 * size)
    with cache.writing():
        for number in range(100, 4000, 100):
            numbers = range(number, number + 100)
            cache.append(digests_of(*numbers), embedded([angle(each) for each in numbers]))
    sizes = [shard.stat().st_size for shard in shards(cache)]
    assert max(sizes) <= 4.5 * size
    assert sum(each < 2 * size for each in sizes) < vectors.MIN_MERGED
    expected = [angle(number) for number in range(4000)]
    result = VectorCache(cache.folder, SPACE).get(digests_of(*range(4000)))
    np.testing.assert_array_equal(result.vectors, np.array(expected, dtype=np.float32))


def test_shards_left_by_a_crash_do_not_replace_later_ones(cache):
    store(cache, ["same", "other"], [[1, 0], [1, 0]])
    old_shards = {shard: shard.read_bytes() for shard in shards(cache)}
    with cache.writing():
        for number in range(vectors.MIN_MERGED):
            cache.append(digests_of("same", number), embedded([[0, 1], angle(number)]))
    assert not old_shards.keys() & set(shards(cache))
    for shard, data in old_shards.items():
        shard.write_bytes(data)  # as after a kill before the removal
    (cache.folder / "half.writing").write_bytes(b"half")
    with cache.writing():
        assert cache.get(digests_of("same", "other", 3)).vectors.tolist()[:2] == [[0, 1], [1, 0]]
    assert not list(cache.folder.glob("*.writing"))


def test_a_reader_continues_after_a_merge(cache):
    store(cache, "a", [[1, 0]])
    reader = VectorCache(cache.folder, SPACE)
    assert reader.known(digests_of("a")).all()
    with cache.writing():
        for number in range(2 * vectors.MIN_MERGED):
            cache.append(digests_of(number), embedded([angle(number)]))
    assert reader.get(digests_of("a")).vectors.tolist() == [[1, 0]]


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_shard_is_named_and_computed_again(cache, damage):
    store(cache, "ab", [[1, 0], [0, 1]])
    (damaged,) = shards(cache)
    store(cache, "c", [[0.6, 0.8]])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(bytes(data) if damage == "flipped" else data[:-9])
    reader = VectorCache(cache.folder, SPACE)
    for read in (reader.known, reader.get, reader.failures, cache.get):
        with pytest.raises(StoreError, match=f"{damaged}.*recsys embed"):
            read(digests_of("a"))
    with cache.writing():
        assert cache.damaged == (damaged.with_suffix(".damaged"),)
        assert cache.known(digests_of("a", "b", "c")).tolist() == [False, False, True]
        cache.append(digests_of("a", "b"), embedded([[1, 0], [0, 1]]))
    assert reader.get(digests_of("a", "b", "c")).vectors.tolist() == pytest.approx(
        np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    )
    with cache.writing():
        assert cache.damaged == ()


WRITER = """
import sys
sys.path[:0] = ["tests"]
from pathlib import Path
from test_features_vector_cache import SPACE, VectorCache, angle, digests_of, embedded
cache = VectorCache(Path(sys.argv[1]), SPACE)
with cache.writing():
    for number in range(300):
        cache.append(digests_of(number), embedded([angle(number)]))
        if not number:
            print("started", flush=True)
"""


def test_readers_see_complete_shards_while_another_process_writes_and_merges(cache):
    with subprocess.Popen([sys.executable, "-c", WRITER, cache.folder], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "started\n"
        digests = digests_of(*range(300))
        expected = np.array([angle(number) for number in range(300)], dtype=np.float32)
        counts = [0]
        while counts[-1] < 300:
            ended = writer.poll() is not None
            result = VectorCache(cache.folder, SPACE).get(digests)
            count = int(result.present.sum())
            assert count >= counts[-1] >= 0
            assert result.present[:count].all()
            np.testing.assert_array_equal(result.vectors[:count], expected[:count])
            counts.append(count)
            assert count == 300 or not ended
    assert writer.returncode == 0
    assert len(set(counts)) > 3
