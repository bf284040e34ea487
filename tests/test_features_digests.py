"""Digests: alike where what is read is alike, and files read only when they have changed."""

import hashlib
import os
import sqlite3
import time
from contextlib import closing
from itertools import combinations
from pathlib import Path

import pytest

from features.content.digests import FileDigests, Reading, digests
from features.content.parts import Audio, Content, Image, Limits, Text, Video
from features.errors import StoreError

WORDS, PICTURES = Reading(frozenset({"text"})), Reading(frozenset({"image", "video"}))
BOTH = Reading(WORDS.modalities | PICTURES.modalities)


@pytest.fixture
def files(tmp_path):
    with closing(FileDigests(tmp_path / "index" / "files.sqlite", Limits(media_bytes=100))) as files:
        yield files


def old(path, data, age=3600.0):
    """A file that was last changed some time ago."""
    with open(path, "wb") as file:
        file.write(data)
    os.utime(path, (time.time() - age,) * 2)
    return path


def one(content, reading, files):
    return digests([content], [reading], files)[reading].to_list()[0]


def test_a_file_is_read_once_until_it_changes(files, tmp_path, monkeypatch):
    read = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: (read.append(path), real(path, mode))[1])
    a, b = old(tmp_path / "a", b"first"), old(tmp_path / "b", b"other")
    expected = {a: hashlib.sha256(b"first").digest(), b: hashlib.sha256(b"other").digest()}
    assert files.digests([a, b]) == expected
    assert files.digests([a, b]) == expected
    assert read == [a, b]
    old(a, b"FIRST", age=1800)
    assert files.digests([a, b]) == expected | {a: hashlib.sha256(b"FIRST").digest()}
    assert read == [a, b, a]
    with closing(FileDigests(tmp_path / "index" / "files.sqlite", Limits())) as again:
        assert again.digests([b]) == {b: expected[b]}
    assert read == [a, b, a]


def test_a_file_that_has_just_changed_is_not_trusted_to_its_time(files, tmp_path):
    path = tmp_path / "new"
    path.write_bytes(b"first")
    at = path.stat().st_mtime_ns
    assert files.digests([path]) == {path: hashlib.sha256(b"first").digest()}
    path.write_bytes(b"FIRST")
    os.utime(path, ns=(at, at))  # as when the clock of the file system is coarse
    assert files.digests([path]) == {path: hashlib.sha256(b"FIRST").digest()}


def test_what_is_no_readable_file_of_accepted_size_has_no_digest(files, tmp_path):
    large = old(tmp_path / "large", bytes(101))
    largest = old(tmp_path / "largest", bytes(100))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    bad = [large, tmp_path, tmp_path / "pipe", tmp_path / "loop", tmp_path / "none", Path("a\0b"), Path("\ud800")]
    bad += [Path("/dev/zero"), tmp_path / ("n" * 300)]
    assert files.digests([*bad, largest]) == dict.fromkeys(bad) | {largest: hashlib.sha256(bytes(100)).digest()}
    strange = Content(tuple(Image(path) for path in bad))
    assert len(one(strange, PICTURES, files)) == 32


def test_a_file_whose_name_is_no_unicode_is_remembered(files, tmp_path):
    path = old(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), b"data")
    assert files.digests([path]) == files.digests([path]) == {path: hashlib.sha256(b"data").digest()}


def test_a_content_is_what_the_encoder_reads_of_it(files, tmp_path):
    path = old(tmp_path / "a.jpg", b"jpeg")
    bare = one(Content.of(Image(b"jpeg")), PICTURES, files)
    assert one(Content.of(Image(path)), PICTURES, files) == bare
    assert one(Content.of(Text("words"), Image(path), Audio(b"x")), PICTURES, files) == bare
    assert one(Content.of(Text("words"), Audio(b"x")), PICTURES, files) is None
    assert one(Content(), BOTH, files) is None


def test_contents_that_differ_have_different_digests(files, tmp_path):
    different = [
        Content.of(Text("ab")),
        Content.of(Text("a"), Text("b")),
        Content.of(Text("b"), Text("a")),
        Content.of(Text("")),
        Content.of(Text("\ud800")),
        Content.of(Image(b"ab")),
        Content.of(Video(b"ab")),
        Content.of(Image("ab")),
        Content.of(Image(tmp_path / "none")),
        Content.of(Image(tmp_path / "neither")),
        Content.of(Text("ab"), Image(b"ab")),
        Content.of(Image(b"ab"), Text("ab")),
        Content.of(Image(b"https://example.org/a")),
        Content.of(Image("https://example.org/a")),
    ]
    for a, b in combinations(digests(different, [BOTH], files)[BOTH], 2):
        assert a != b
    text = Content.of(Text("ab"))
    assert one(text, BOTH, files) != one(text, WORDS, files)


def test_who_reads_counts(files):
    sound = Content.of(Audio(b"spoken"), Text("unread"))
    readers = [Reading(frozenset({"audio"}), reader) for reader in ("", "tiny", "base", "tiny video")]
    readers.append(Reading(frozenset({"audio", "video"}), "tiny"))
    for a, b in combinations(readers, 2):
        assert one(sound, a, files) != one(sound, b, files)
    # what caches were filled with before encoders had readers: those without one still find it
    part = b"audio bytes " + hashlib.sha256(b"spoken").digest()
    assert one(sound, readers[0], files) == hashlib.sha256(b"audio\n" + part).digest()


def test_a_damaged_index_is_told_with_what_to_do(tmp_path):
    path = tmp_path / "files.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"files\.sqlite.*Where it is damaged, remove it"):
        FileDigests(path, Limits())
    path.unlink()
    with closing(FileDigests(path, Limits())) as files:
        assert files.digests([]) == {}


def test_two_jobs_may_share_the_index(tmp_path):
    path, picture = tmp_path / "files.sqlite", old(tmp_path / "a", b"a")
    with closing(FileDigests(path, Limits())) as one_job, closing(FileDigests(path, Limits())) as other:
        assert one_job.digests([picture]) == other.digests([picture])
    with closing(sqlite3.connect(path)) as index:
        assert index.execute("SELECT count(*) FROM files").fetchall() == [(1,)]
