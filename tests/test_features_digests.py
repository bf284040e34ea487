"""Digests: equal for equal parts read, and a file is read again only after a change."""

import hashlib
import os
import sqlite3
import time
from contextlib import closing
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

import features.content.digests
from features.content.digests import FileDigests, Reading, digests
from features.content.parts import Audio, Content, Image, Limits, Text, Video
from features.errors import StoreError

WORDS, PICTURES = Reading(frozenset({"text"})), Reading(frozenset({"image", "video"}))
WORDS_AND_PICTURES = Reading(WORDS.modalities | PICTURES.modalities)


@pytest.fixture
def files(tmp_path):
    with closing(FileDigests(tmp_path / "index" / "files.sqlite", Limits(media_bytes=100))) as files:
        yield files


def write_old(path, data, age=3600.0):
    """Write a file with a modification time `age` seconds ago."""
    with open(path, "wb") as file:
        file.write(data)
    os.utime(path, (time.time() - age,) * 2)
    return path


def digest_of(content, reading, files):
    return digests([content], [reading], files)[reading].to_list()[0]


def test_a_file_is_read_once_until_it_changes(files, tmp_path, monkeypatch):
    opened = []
    original = Path.open

    def opening(path, mode):
        opened.append(path)
        return original(path, mode)

    monkeypatch.setattr(Path, "open", opening)
    a, b = write_old(tmp_path / "a", b"first"), write_old(tmp_path / "b", b"other")
    expected = {a: hashlib.sha256(b"first").digest(), b: hashlib.sha256(b"other").digest()}
    assert files.digests([a, b]) == expected
    assert files.digests([a, b]) == expected
    assert opened == [a, b]
    write_old(a, b"FIRST", age=1800)
    assert files.digests([a, b]) == expected | {a: hashlib.sha256(b"FIRST").digest()}
    assert opened == [a, b, a]
    with closing(FileDigests(tmp_path / "index" / "files.sqlite", Limits())) as reopened:
        assert reopened.digests([b]) == {b: expected[b]}
    assert opened == [a, b, a]


def test_the_digest_of_a_recently_changed_file_is_not_stored(files, tmp_path):
    path = tmp_path / "new"
    path.write_bytes(b"first")
    modified = path.stat().st_mtime_ns
    assert files.digests([path]) == {path: hashlib.sha256(b"first").digest()}
    path.write_bytes(b"FIRST")
    os.utime(path, ns=(modified, modified))  # as when the clock of the file system is coarse
    assert files.digests([path]) == {path: hashlib.sha256(b"FIRST").digest()}


def test_only_a_readable_file_of_accepted_size_has_a_digest(files, tmp_path):
    large = write_old(tmp_path / "large", bytes(101))
    largest = write_old(tmp_path / "largest", bytes(100))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    unreadable = [
        large,
        tmp_path,
        tmp_path / "pipe",
        tmp_path / "loop",
        tmp_path / "none",
        Path("a\0b"),
        Path("\ud800"),
    ]
    unreadable += [Path("/dev/zero"), tmp_path / ("n" * 300)]
    assert files.digests([*unreadable, largest]) == dict.fromkeys(unreadable) | {
        largest: hashlib.sha256(bytes(100)).digest()
    }
    content = Content(tuple(Image(path) for path in unreadable))
    assert len(digest_of(content, PICTURES, files)) == 32


def test_a_file_with_a_non_unicode_name_has_a_digest(files, tmp_path):
    path = write_old(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), b"data")
    assert files.digests([path]) == files.digests([path]) == {path: hashlib.sha256(b"data").digest()}


def test_the_digest_depends_only_on_the_parts_that_are_read(files, tmp_path):
    path = write_old(tmp_path / "a.jpg", b"jpeg")
    bare = digest_of(Content.of(Image(b"jpeg")), PICTURES, files)
    assert digest_of(Content.of(Image(path)), PICTURES, files) == bare
    assert digest_of(Content.of(Text("words"), Image(path), Audio(b"x")), PICTURES, files) == bare
    assert digest_of(Content.of(Text("words"), Audio(b"x")), PICTURES, files) is None
    assert digest_of(Content(), WORDS_AND_PICTURES, files) is None


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
    for a, b in combinations(digests(different, [WORDS_AND_PICTURES], files)[WORDS_AND_PICTURES], 2):
        assert a != b
    text = Content.of(Text("ab"))
    assert digest_of(text, WORDS_AND_PICTURES, files) != digest_of(text, WORDS, files)


def test_the_reader_and_the_modalities_are_part_of_the_digest(files):
    sound = Content.of(Audio(b"spoken"), Text("unread"))
    readers = [Reading(frozenset({"audio"}), reader) for reader in ("", "tiny", "base", "tiny video")]
    readers.append(Reading(frozenset({"audio", "video"}), "tiny"))
    for a, b in combinations(readers, 2):
        assert digest_of(sound, a, files) != digest_of(sound, b, files)
    # encoders without a reader find the digests of caches from before `reader` existed
    part = b"audio bytes " + hashlib.sha256(b"spoken").digest()
    assert digest_of(sound, readers[0], files) == hashlib.sha256(b"audio\n" + part).digest()


def test_a_damaged_index_is_an_error_with_a_remedy(tmp_path):
    path = tmp_path / "files.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(
        StoreError, match=r"files\.sqlite: the index .* cannot be used: it is no database of SQLite, or damaged: "
    ):
        FileDigests(path, Limits())
    path.unlink()
    with closing(FileDigests(path, Limits())) as files:
        assert files.digests([]) == {}


def test_two_jobs_may_share_the_index(tmp_path):
    path, picture = tmp_path / "files.sqlite", write_old(tmp_path / "a", b"a")
    with closing(FileDigests(path, Limits())) as first_job, closing(FileDigests(path, Limits())) as second_job:
        assert first_job.digests([picture]) == second_job.digests([picture])
    with closing(sqlite3.connect(path)) as index:
        assert index.execute("SELECT count(*) FROM files").fetchall() == [(1,)]


def test_the_folders_of_the_index_are_made(tmp_path):
    index = tmp_path / "a" / "b" / "files.sqlite"
    for _ in range(2):  # made, and there already
        with closing(FileDigests(index, Limits())):
            assert index.is_file()


def test_a_file_of_the_largest_accepted_size_has_a_digest(files, tmp_path):
    largest, larger = write_old(tmp_path / "a", b"x" * 100), write_old(tmp_path / "b", b"x" * 101)
    found = files.digests([largest, larger])
    assert found == {largest: hashlib.sha256(b"x" * 100).digest(), larger: None}


@pytest.mark.parametrize(("age", "stored"), [(2_000_000_000, False), (2_000_000_001, True), (-2_000_000_001, True)])
def test_a_digest_is_stored_from_two_seconds_after_a_change_on(files, tmp_path, monkeypatch, age, stored):
    path = write_old(tmp_path / "a", b"first")
    changed = path.stat().st_mtime_ns
    monkeypatch.setattr("features.content.digests.time.time_ns", lambda: changed + age)
    files.digests([path])
    assert (files._entry(str(path).encode()) is not None) == stored


def test_digests_stay_those_of_earlier_versions(files, tmp_path):
    """Vectors in caches are found by them."""

    def sha(data):
        return hashlib.sha256(data).digest()

    file, missing = write_old(tmp_path / "a", b"bytes"), tmp_path / "none"
    parts = Text("two"), Image(b"bytes"), Image(file), Image("https://a.example/x"), Image(missing), Text("words")
    content = Content(tuple(parts))
    words = b"text words " + sha(b"two") + b"text words " + sha(b"words")
    pictures = 2 * (b"image bytes " + sha(b"bytes")) + b"image url " + sha(b"https://a.example/x")
    pictures += b"image path " + sha(str(missing).encode())
    assert digest_of(content, WORDS, files) == sha(b"text\n" + words)
    assert digest_of(content, PICTURES, files) == sha(b"image video\n" + pictures)
    assert digest_of(content, Reading(frozenset({"text"}), "reader"), files) == sha(b"text reader\n" + words)
    assert digest_of(content, Reading(frozenset({"audio"})), files) is None


def test_an_index_that_another_process_writes_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    connect = sqlite3.connect
    # in this module alone: coverage uses SQLite, too
    impatient = {**vars(sqlite3), "connect": lambda path, timeout: connect(path, timeout=0)}
    monkeypatch.setattr(features.content.digests, "sqlite3", SimpleNamespace(**impatient))
    with (
        closing(FileDigests(tmp_path / "files.sqlite", Limits())),
        closing(connect(tmp_path / "files.sqlite")) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError) as caught:
            FileDigests(tmp_path / "files.sqlite", Limits())
    assert str(caught.value) == (
        f"{tmp_path}/files.sqlite: the index of files cannot be used: another process writes it: try again when that "
        "has ended"
    )


def test_an_index_in_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(StoreError, match=r"cannot be used: .*cache: File exists; a file stands where a folder is"):
        FileDigests(tmp_path / "cache" / "files.sqlite", Limits())
