"""The list of shards: whatever is interrupted wherever, what was added is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from features.content.shards import DamagedShard, Shards
from features.errors import StoreError


class Killed(BaseException):
    """The process is no more."""


@pytest.fixture
def shards(tmp_path):
    return Shards(tmp_path / "shards")


def add(shards, *values, instead=()):
    with shards.writing():
        return [shards.add(memoryview(value), instead) for value in values]


def contents(shards):
    return [shards.read(name) for name in shards.names()]


def test_what_is_added_is_there_in_order(shards):
    add(shards, b"one", b"two")
    add(shards, b"three")
    assert contents(shards) == [b"one", b"two", b"three"]


def test_a_shard_added_again_is_the_last(shards):
    add(shards, b"one", b"two", b"one")
    assert contents(shards) == [b"two", b"one"]


def test_one_instead_of_others(shards):
    one, two, three = add(shards, b"one", b"two", b"three")
    add(shards, b"one and three", instead={one, three})
    assert contents(shards) == [b"two", b"one and three"]
    assert len(list(shards.folder.glob("*.parquet"))) == 2
    add(shards, b"two", instead={two})  # the same bytes: it does not remove itself
    assert contents(shards) == [b"one and three", b"two"]


def test_a_kill_at_any_step_loses_nothing_that_was_added(tmp_path, monkeypatch):
    """Steps are everything that changes the folder: each is the last one in turn."""
    left = []

    def stepping(real):
        def step(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return step

    monkeypatch.setattr("features.content.shards.os.fsync", stepping(os.fsync))
    for name in ("replace", "unlink", "open"):
        monkeypatch.setattr(Path, name, stepping(getattr(Path, name)))
    for last in range(100):
        shards = Shards(tmp_path / str(last))
        left[:] = [1000]
        first, second = add(shards, b"first", b"second")
        left[:] = [last]
        try:
            add(shards, b"third")
            add(shards, b"first and second", instead={first, second})
            finished = True
        except Killed:
            finished = False
        left[:] = [1000]
        counted = shards.names()
        assert b"first" in b" ".join(contents(shards))
        assert b"second" in b" ".join(contents(shards))
        with shards.writing():
            names = shards.names()
        assert names[len(names) - len(counted) :] == counted  # what was left over is taken in before them
        assert {path.name for path in shards.folder.iterdir()} == {
            "lock",
            "manifest.json",
            *(f"{name}.parquet" for name in names),
        }
        made = contents(shards)
        assert set(made) <= {b"first", b"second", b"third", b"first and second"}
        if finished:
            assert made == [b"third", b"first and second"]
            break
    assert 10 < last < 99


@pytest.mark.parametrize("hurt", [lambda data: data[:-1], lambda data: b"", lambda data: b"X" + data[1:]])
def test_a_damaged_shard_is_refused_by_name_and_set_aside(shards, hurt):
    one, two = add(shards, b"one", b"two")
    shards.path(one).write_bytes(hurt(b"one"))
    with pytest.raises(DamagedShard, match=f"{one}.*recsys embed"):
        shards.read(one)
    with shards.writing():
        aside = shards.rejected(one)
    assert aside.read_bytes() == hurt(b"one")
    assert shards.names() == [two]
    add(shards, b"one")
    assert contents(shards) == [b"two", b"one"]


@pytest.mark.parametrize(
    "told", ["", "[]", "{}", '{"shards": 3}', '{"shards": ["../../etc/passwd"]}', '{"shards": [3]}']
)
def test_a_damaged_manifest_is_refused_and_made_again_when_it_is_removed(shards, told):
    add(shards, b"one", b"two")
    manifest = shards.folder / "manifest.json"
    manifest.write_text(told)
    with pytest.raises(StoreError, match=r"manifest\.json: damaged.*Remove it"):
        shards.names()
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"), shards.writing():
        pass
    manifest.unlink()
    with shards.writing():
        assert sorted(contents(shards)) == [b"one", b"two"]


def test_a_second_writer_is_told_who_the_first_is(shards):
    code = "import sys; from pathlib import Path; from features.content.shards import Shards\n"
    code += "with Shards(Path(sys.argv[1])).writing(): print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, shards.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(StoreError, match=f"process {other.pid} is writing here"), shards.writing():
            pass
        other.kill()
        other.wait()
        add(shards, b"one")
    with shards.writing(), pytest.raises(StoreError, match=f"process {os.getpid()} "), shards.writing():
        pass
    assert contents(shards) == [b"one"]


def test_a_file_system_without_locks_is_told(shards, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("features.content.shards.fcntl.flock", refuse)
    with pytest.raises(StoreError, match="No locks available"):
        add(shards, b"one")


def test_a_folder_that_goes_away_meanwhile_is_told(shards):
    with shards.writing():
        shards.add(memoryview(b"one"))
        shutil.rmtree(shards.folder)
        with pytest.raises(StoreError, match=r"cannot be read or written: .*No such file"):
            shards.add(memoryview(b"two"))
        with pytest.raises(StoreError, match=r"cannot be read or written: .*No such file"):
            shards.write("space.json", b"{}")


def test_a_full_disk_is_told_and_loses_nothing(shards, monkeypatch):
    add(shards, b"one")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("features.content.shards.os.fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            add(shards, b"two")
    add(shards, b"three")
    assert contents(shards) == [b"one", b"three"]
