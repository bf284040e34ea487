"""The embedding job: each content is embedded once, across kills and damaged files, and again only after a change."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.arrays import Floats
from features.content import vector_cache as vectors
from features.content.embed import cached_vectors, embed, item_contents
from features.content.parts import Audio, Content, Image, Limits, Part, Text, Video
from features.content.spaces import Embedded, Failure, SpaceKey, unit
from features.content.vector_cache import VectorCache, cache_folder
from features.errors import SpaceError, StoreError

LIMITS = Limits(media_bytes=1000)


def part_bytes(part):
    """The bytes of a part, or ValueError."""
    if isinstance(part, Text):
        return part.text.encode()
    data = part.source.read_bytes() if isinstance(part.source, Path) else bytes(part.source)
    if data.startswith(b"bad"):
        raise ValueError(data.decode())
    return data


def always(*vector):
    """A `Toy.vector` that is the same for every part."""
    return lambda part: np.array(vector, np.float32)


class Toy:
    """An encoder: unit mean of a random unit vector for each part; `read` lists the contents that were embedded."""

    def __init__(self, *modalities, name="toy", d=4, reader=""):
        self.modalities = frozenset(modalities)
        self.reader = reader
        self.key = SpaceKey(name, "1", d)
        self.read = []
        self.before = lambda contents: None
        self.vector = self.own_vector

    def space(self, task="document"):
        return self.key

    def encode(self, contents, *, task="document", progress=None):
        self.before(contents)
        out = np.zeros((len(contents), self.key.dimension), dtype=np.float32)
        failures = []
        for row, content in enumerate(contents):
            self.read.append(content)
            for at, part in enumerate(content.parts):
                if part.modality in self.modalities:
                    try:
                        out[row] += self.vector(part)
                    except (OSError, ValueError, TypeError) as error:
                        failures.append(Failure(row, at, str(error)))
        if progress:
            progress(len(contents))
        return Embedded(self.key, unit(out), np.asarray(out.any(axis=1)), tuple(failures))

    def own_vector(self, part: Part) -> Floats:
        seed = hashlib.sha256(part.modality.encode() + part_bytes(part)).digest()
        return unit(np.random.default_rng(list(seed)).normal(size=(1, self.key.dimension)).astype(np.float32))[0]

    def pop_read(self):
        """The contents that were embedded since the last call."""
        read, self.read = self.read, []
        return read


@pytest.fixture
def words():
    return Toy("text", name="words")


@pytest.fixture
def pictures():
    return Toy("image", "video", name="pictures")


@pytest.fixture
def catalogue(tmp_path):
    """Six items with texts, and with pictures except the fourth; the files are old enough to be in the index."""
    folder = tmp_path / "media"
    folder.mkdir()
    contents = []
    for number in range(6):
        path = folder / f"{number}.jpg"
        write(path, f"picture {number}")
        contents.append(Content.of(Text(f"words {number}"), *([Image(path)] if number != 3 else [])))
    return contents


def write(path, text, age=3600):
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def run(contents, cache, *encoders, **settings):
    named = {encoder.key.model: encoder for encoder in encoders}
    return embed(contents, named, cache, limits=LIMITS, **settings)


def cached(contents, encoder, cache):
    return cached_vectors(contents, encoder, cache, limits=LIMITS)


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual.vectors, expected.vectors)
    np.testing.assert_array_equal(actual.present, expected.present)
    assert actual.failures == expected.failures
    assert actual.space == expected.space


def test_items_become_contents():
    items = pl.DataFrame(
        {
            "title": ["Lamp", None, None],
            "categories": [["home", "light"], None, []],
            "description": ["Bright", None, ""],
            "image": ["a/b.jpg", "/elsewhere/c.jpg", None],
            "audio": [None, "https://example.org/s.mp3?k=1", ""],
            "video": [None, "v.mp4", None],
        }
    )
    assert item_contents(items, Path("/root")) == [
        Content.of(Text("Lamp. home, light. Bright"), Image(Path("/root/a/b.jpg"))),
        Content.of(
            Image(Path("/elsewhere/c.jpg")), Audio("https://example.org/s.mp3?k=1"), Video(Path("/root/v.mp4"))
        ),
        Content(),
    ]
    bare = items.select("title", "categories", "description")
    assert [len(content.parts) for content in item_contents(bare, Path())] == [1, 0, 0]


def test_a_catalogue_is_embedded_once(catalogue, words, pictures, tmp_path):
    cache = tmp_path / "cache"
    report = run(catalogue, cache, words, pictures, shard=2)
    for result, encoder, readable in zip(report.encoders, (words, pictures), (6, 5), strict=True):
        assert (result.encoder, result.space) == (encoder.key.model, encoder.key)
        assert (result.contents, result.readable, result.cached, result.computed) == (6, readable, 0, readable)
        assert (result.changed, result.failed, result.first, result.damaged) == (0, 0, (), ())
        assert encoder.pop_read() == [content for content in catalogue if encoder is words or len(content.parts) == 2]
        assert_same(cached(catalogue, encoder, cache), encoder.encode(catalogue))
        encoder.pop_read()
    again = run(catalogue, cache, words, pictures, shard=2)
    assert [(result.cached, result.computed) for result in again.encoders] == [(6, 0), (5, 0)]
    assert (words.pop_read(), pictures.pop_read()) == ([], [])
    assert pl.read_parquet(again.failures).schema == {
        "encoder": pl.String,
        "row": pl.Int64,
        "part": pl.Int32,
        "reason": pl.String,
    }


def test_only_what_has_changed_is_computed(catalogue, words, pictures, tmp_path):
    cache = tmp_path / "cache"
    run(catalogue, cache, words, pictures)
    words.pop_read(), pictures.pop_read()
    changed = list(catalogue)
    changed[1] = Content.of(Text("other words"), *catalogue[1].parts[1:])
    write(catalogue[4].parts[1].source, "PICTURE 4", age=1800)
    changed += [Content.of(Text("new words"))]
    changed = changed[::-1]  # the order does not matter
    report = run(changed, cache, words, pictures)
    assert [(result.cached, result.computed) for result in report.encoders] == [(5, 2), (4, 1)]
    assert words.pop_read() == [changed[0], changed[5]]
    assert pictures.pop_read() == [changed[2]]
    for encoder in (words, pictures):
        assert_same(cached(changed, encoder, cache), encoder.encode(changed))


def test_equal_contents_are_computed_once(pictures, tmp_path):
    for name in "ab":
        write(tmp_path / name, "the same")
    contents = [Content.of(Image(tmp_path / "a")), Content.of(Text("x"), Image(tmp_path / "b"))] * 3
    report = run(contents, tmp_path / "cache", pictures, shard=2)
    result = report.encoders[0]
    assert (result.readable, result.cached, result.computed) == (6, 0, 1)
    assert pictures.pop_read() == contents[:1]
    assert_same(cached(contents, pictures, tmp_path / "cache"), pictures.encode(contents))


def test_a_failure_names_its_position_and_leaves_the_other_parts(pictures, tmp_path):
    contents = [
        Content.of(Image(b"good")),
        Content.of(Text("x"), Image(b"good"), Text("y"), Image(b"bad one")),
        Content.of(Image(b"good"), Image(b"bad one")),
        Content.of(Text("z"), Image(b"bad two")),
    ]
    cache = tmp_path / "cache"
    result = run(contents, cache, pictures, shard=1).encoders[0]
    failures = (Failure(1, 3, "bad one"), Failure(2, 1, "bad one"), Failure(3, 1, "bad two"))
    assert (result.readable, result.computed, result.failed, result.first) == (4, 3, 3, failures)
    embedded = cached(contents, pictures, cache)
    assert_same(embedded, pictures.encode(contents))
    assert embedded.present.tolist() == [True, True, True, False]
    pictures.pop_read()
    again = run(contents, cache, pictures)
    assert (again.encoders[0].computed, again.encoders[0].failed) == (0, 3)
    assert pictures.pop_read() == []
    assert pl.read_parquet(again.failures).rows() == [
        ("pictures", 1, 3, "bad one"),
        ("pictures", 2, 1, "bad one"),
        ("pictures", 3, 1, "bad two"),
    ]


def test_retry_embeds_failures_again(pictures, tmp_path):
    url = Content.of(Image("https://example.org/a.jpg"))
    contents, cache = [Content.of(Image(b"good")), url], tmp_path / "cache"
    assert run(contents, cache, pictures).encoders[0].failed == 1
    pictures.pop_read()
    pictures.vector = always(1, 0, 0, 0)  # the server is up again
    assert run(contents, cache, pictures).encoders[0].computed == 0
    result = run(contents, cache, pictures, retry=True).encoders[0]
    assert (result.cached, result.computed, result.failed) == (1, 1, 0)
    assert pictures.pop_read() == [url]
    assert cached(contents, pictures, cache).vectors[1].tolist() == [1, 0, 0, 0]
    assert run(contents, cache, pictures, retry=True).encoders[0].computed == 0


def test_refetch_embeds_urls_again(words, tmp_path):
    text_and_image = Toy("text", "image")
    text_and_image.vector = always(1, 0, 0, 0)
    contents = [Content.of(Text("x")), Content.of(Text("x"), Image("https://example.org/a.jpg")), Content()]
    run(contents, tmp_path, text_and_image, words)
    text_and_image.pop_read(), words.pop_read()
    text_and_image.vector = always(0, 1, 0, 0)
    result = run(contents, tmp_path, text_and_image, words, refetch=True).encoders
    assert [(each.cached, each.computed) for each in result] == [(1, 1), (2, 0)]
    assert (text_and_image.pop_read(), words.pop_read()) == ([contents[1]], [])
    assert cached(contents, text_and_image, tmp_path).vectors.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_a_missing_file_is_embedded_once_it_exists(pictures, tmp_path):
    path, cache = tmp_path / "late.jpg", tmp_path / "cache"
    contents = [Content.of(Image(path))]
    result = run(contents, cache, pictures).encoders[0]
    assert (result.computed, result.failed) == (1, 1)
    assert str(path) in result.first[0].reason
    write(path, "here")
    result = run(contents, cache, pictures).encoders[0]
    assert (result.computed, result.failed) == (1, 0)
    assert_same(cached(contents, pictures, cache), pictures.encode(contents))


def test_a_file_that_changes_during_embedding_is_not_stored(catalogue, pictures, tmp_path):
    cache = tmp_path / "cache"
    path = catalogue[2].parts[1].source
    pictures.before = lambda contents: write(path, "PICTURE 2", age=1800)
    result = run(catalogue, cache, pictures).encoders[0]
    assert (result.computed, result.changed) == (4, 1)
    write(path, "picture 2")
    assert cached(catalogue, pictures, cache).present.tolist() == [True, True, False, False, True, True]
    pictures.before = lambda contents: None
    result = run(catalogue, cache, pictures).encoders[0]
    assert (result.cached, result.computed, result.changed) == (4, 1, 0)
    assert_same(cached(catalogue, pictures, cache), pictures.encode(catalogue))


def test_rows_of_failures_are_correct_when_another_content_is_not_stored(tmp_path, pictures):
    path = tmp_path / "a.jpg"
    write(path, "first")
    contents = [Content.of(Image(path)), Content.of(Text("x"), Image(b"bad"), Image(b"good"))]
    pictures.before = lambda contents: write(path, "FIRST", age=1800)
    result = run(contents, tmp_path / "cache", pictures).encoders[0]
    assert (result.computed, result.changed, result.first) == (1, 1, (Failure(1, 1, "bad"),))


def test_spaces_are_separate_and_two_encoders_may_share_one(catalogue, tmp_path):
    toy, other_toy = Toy("text"), Toy("text", name="other")
    other_toy.vector = always(0, 0, 0, 1)
    sounds = Toy("text", "image")  # a second encoder of the space of the first
    sounds.vector = always(0, 1, 0, 0)
    embed(catalogue, {"toy": toy, "other": other_toy, "sounds": sounds}, tmp_path / "cache", limits=LIMITS)
    expected = Toy("text").encode(catalogue)
    assert_same(cached(catalogue, toy, tmp_path / "cache"), expected)
    for encoder, vector in ((other_toy, [0, 0, 0, 1]), (sounds, [0, 1, 0, 0])):
        assert cached(catalogue, encoder, tmp_path / "cache").vectors.tolist() == [vector] * 6
    assert len(list((tmp_path / "cache").glob("*/space.json"))) == 2


def test_two_readers_of_one_space_have_separate_vectors(catalogue, tmp_path):
    tiny, base = Toy("text", reader="tiny"), Toy("text", reader="base")
    base.vector = always(0, 1, 0, 0)
    run(catalogue, tmp_path, tiny)
    assert not cached(catalogue, base, tmp_path).present.any()
    result = run(catalogue, tmp_path, base).encoders[0]
    assert (result.cached, result.computed) == (0, 6)
    assert cached(catalogue, base, tmp_path).vectors.tolist() == [[0, 1, 0, 0]] * 6
    assert_same(cached(catalogue, tiny, tmp_path), Toy("text").encode(catalogue))
    assert not cached(catalogue, Toy("text"), tmp_path).present.any()
    assert len(list(tmp_path.glob("*/space.json"))) == 1


def test_a_folder_of_another_space_is_rejected(catalogue, words, pictures, tmp_path):
    run(catalogue, tmp_path, words)
    cache_folder(tmp_path, words.key).rename(cache_folder(tmp_path, pictures.key))
    with pytest.raises(SpaceError, match="words@1 · 4 l2\n  expected: pictures@1 · 4 l2"):
        run(catalogue, tmp_path, pictures)
    with pytest.raises(SpaceError, match="words@1 · 4 l2\n  expected: pictures@1 · 4 l2"):
        cached(catalogue, pictures, tmp_path)


def test_an_encoder_that_stops_keeps_what_was_finished(catalogue, words, tmp_path):
    def stop(contents):
        if catalogue[4] in contents:
            raise SpaceError("the service is away")

    words.before = stop
    with pytest.raises(SpaceError, match="the service is away"):
        run(catalogue, tmp_path, words, shard=2)
    assert cached(catalogue, words, tmp_path).present.tolist() == [True] * 4 + [False] * 2
    words.before = lambda contents: words.pop_read()
    result = run(catalogue, tmp_path, words, shard=2).encoders[0]
    assert (result.cached, result.computed) == (4, 2)


def test_a_second_job_is_rejected_with_the_id_of_the_first(catalogue, words, tmp_path):
    with (
        VectorCache(cache_folder(tmp_path, words.key), words.key).writing(),
        pytest.raises(StoreError, match=f"process {os.getpid()} is writing here"),
    ):
        run(catalogue, tmp_path, words)


def test_a_job_with_nothing_to_compute_needs_no_lock(catalogue, words, tmp_path):
    run(catalogue, tmp_path, words)
    with VectorCache(cache_folder(tmp_path, words.key), words.key).writing():  # another run, with other items
        result = run(catalogue, tmp_path, words).encoders[0]
        assert (result.cached, result.computed, result.changed) == (6, 0, 0)
        with pytest.raises(StoreError, match="is writing here"):
            run(catalogue, tmp_path, words, retry=True)


def test_a_damaged_shard_is_computed_again(catalogue, words, tmp_path):
    run(catalogue, tmp_path, words, shard=2)
    damaged = sorted(tmp_path.glob("*/*.parquet"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"X")
    with pytest.raises(StoreError, match=str(damaged)):
        cached(catalogue, words, tmp_path)
    words.pop_read()
    result = run(catalogue, tmp_path, words, shard=2).encoders[0]
    assert (result.cached, result.computed, result.damaged) == (4, 2, (damaged.with_suffix(".damaged"),))
    assert len(words.pop_read()) == 2
    assert_same(cached(catalogue, words, tmp_path), words.encode(catalogue))
    assert run(catalogue, tmp_path, words).encoders[0].damaged == ()


@pytest.mark.parametrize("contents", [[], [Content()] * 3])
def test_empty_contents_are_not_embedded(contents, words, tmp_path):
    result = run(contents, tmp_path, words).encoders[0]
    assert (result.contents, result.readable, result.cached, result.computed, result.failed) == (
        len(contents),
        0,
        0,
        0,
        0,
    )
    assert words.pop_read() == []
    embedded = cached(contents, words, tmp_path)
    assert embedded.vectors.tolist() == [[0, 0, 0, 0]] * len(contents)
    assert not embedded.present.any()


def test_blank_texts_are_embedded_once(words, tmp_path):
    words.vector = lambda part: np.zeros(4, dtype=np.float32)
    assert run([Content.of(Text(" "))], tmp_path, words).encoders[0].computed == 1
    assert run([Content.of(Text(" "))], tmp_path, words).encoders[0].computed == 0
    assert not cached([Content.of(Text(" "))], words, tmp_path).present.any()


def test_progress_counts_contents_and_then_computed_ones(catalogue, words, tmp_path):
    events = []

    def start(name, total):
        events.append((name, total))
        return events.append

    run(catalogue, tmp_path, words, shard=4, progress=start)
    assert events == [("files and texts", 6), 6, ("embed words", 6), 4, 2]
    events.clear()
    run(catalogue, tmp_path, words, progress=start)
    assert events == [("files and texts", 6), 6]


MANY = [Content.of(Text(f"words {number}"), Image(f"picture {number}".encode())) for number in range(200)]

JOB = """
import sys
sys.path[:0] = ["tests"]
import time
from test_features_embed import MANY, Path, Toy, run
def before(contents):
    if len(toy.read) == 0:
        print("started", flush=True)
    time.sleep(0.004)
    with open(sys.argv[2], "a") as calls:
        calls.writelines(f"{MANY.index(content)}\\n" for content in contents)
toy = Toy("text", "image")
toy.before = before
run(MANY, Path(sys.argv[1]), toy, shard=2)
"""


def test_a_killed_job_does_not_repeat_finished_shards(tmp_path):
    cache, calls = tmp_path / "cache", tmp_path / "calls"
    toy, rng, kills = Toy("text", "image"), random.Random(0), 0
    finished = np.zeros(len(MANY), dtype=bool)
    for _ in range(6):
        calls.write_text("")
        with subprocess.Popen([sys.executable, "-c", JOB, cache, calls], stdout=subprocess.PIPE) as job:
            assert job.stdout is not None
            job.stdout.readline()
            time.sleep(rng.uniform(0, 0.3))
            job.send_signal(signal.SIGKILL)
        is_cached = cached(MANY, toy, cache).present  # read before any writer recovers the folder
        embedded_rows = [int(line) for line in calls.read_text().split()]
        assert not finished[embedded_rows].any()
        assert not (finished & ~is_cached).any()
        assert len(set(embedded_rows)) == len(embedded_rows)
        finished = is_cached
        kills += job.returncode == -signal.SIGKILL
    assert finished.any()
    assert kills >= 3
    with VectorCache(cache_folder(cache, toy.key), toy.key).writing():
        pass  # a kill may leave a complete shard unlisted: the next writer lists it
    recovered = cached(MANY, toy, cache).present
    assert not (finished & ~recovered).any()
    assert (recovered & ~finished).sum() in (0, 2)
    run(MANY, cache, toy)
    assert toy.pop_read() == [content for content, is_cached in zip(MANY, recovered, strict=True) if not is_cached]
    run(MANY, tmp_path / "undisturbed", toy)
    assert_same(cached(MANY, toy, cache), cached(MANY, toy, tmp_path / "undisturbed"))


class Lazy(Sequence):
    """A sequence that creates its contents on access."""

    def __len__(self):
        return 25_000

    def __getitem__(self, row):
        return Content.of(Text(str(row)))


class Quick(Toy):
    """Vectors of contents that are numbers; no content is kept in memory."""

    def encode(self, contents, *, task="document", progress=None):
        numbers = np.array([int(content.parts[0].text) for content in contents], dtype=np.float32)
        out = unit(np.sin(numbers[:, None] + np.arange(self.key.dimension, dtype=np.float32)))
        return Embedded(self.key, out, np.ones(len(out), dtype=np.bool_))


def test_vectors_are_never_all_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SHARD_BYTES", 2**22)
    quick, lazy = Quick("text", d=512), Lazy()
    tracemalloc.start()
    try:
        result = run(lazy, tmp_path, quick, shard=1024).encoders[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        vectors_read = cached(lazy, quick, tmp_path)
        read_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = 25_000 * 512 * 4
    assert result.computed == 25_000
    assert peak < size / 2
    assert size < read_peak < 1.5 * size
    rows = [0, 1, 17_777, 24_999]
    np.testing.assert_array_equal(vectors_read.vectors[rows], quick.encode([lazy[row] for row in rows]).vectors)
