"""The list of shards: an interruption at any step loses no shard that was added."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from features.content.shards import DamagedShardError, Shards
from features.errors import StoreError


class Killed(BaseException):
    """The process was killed."""


@pytest.fixture
def shards(tmp_path):
    return Shards(tmp_path / "shards")


def add(shards, *values, replaced=()):
    with shards.writing():
        return [shards.add(memoryview(value), replaced) for value in values]


def contents(shards):
    return [shards.read(name) for name in shards.names()]


def test_added_shards_are_listed_in_order(shards):
    add(shards, b"one", b"two")
    add(shards, b"three")
    assert contents(shards) == [b"one", b"two", b"three"]


def test_a_shard_that_is_added_again_moves_to_the_end(shards):
    add(shards, b"one", b"two", b"one")
    assert contents(shards) == [b"two", b"one"]


def test_a_shard_replaces_others(shards):
    one, two, three = add(shards, b"one", b"two", b"three")
    add(shards, b"one and three", replaced={one, three})
    assert contents(shards) == [b"two", b"one and three"]
    assert len(list(shards.folder.glob("*.parquet"))) == 2
    add(shards, b"two", replaced={two})  # the same bytes: it does not remove itself
    assert contents(shards) == [b"one and three", b"two"]


def test_a_kill_at_any_step_loses_nothing_that_was_added(tmp_path, monkeypatch):
    """A step is a call that changes the folder; the process is killed after each number of steps in turn."""
    steps_left: list[int] = []

    def stepping(original):
        def step(*args, **kwargs):
            if steps_left[0] == 0:
                raise Killed
            steps_left[0] -= 1
            return original(*args, **kwargs)

        return step

    monkeypatch.setattr("features.content.shards.os.fsync", stepping(os.fsync))
    for name in ("replace", "unlink", "open"):
        monkeypatch.setattr(Path, name, stepping(getattr(Path, name)))
    for kill_at in range(100):
        shards = Shards(tmp_path / str(kill_at))
        steps_left[:] = [1000]
        first, second = add(shards, b"first", b"second")
        steps_left[:] = [kill_at]
        try:
            add(shards, b"third")
            add(shards, b"first and second", replaced={first, second})
            finished = True
        except Killed:
            finished = False
        steps_left[:] = [1000]
        listed = shards.names()
        assert b"first" in b" ".join(contents(shards))
        assert b"second" in b" ".join(contents(shards))
        with shards.writing():
            names = shards.names()
        assert names[len(names) - len(listed) :] == listed  # recovered shards come before the listed ones
        assert {path.name for path in shards.folder.iterdir()} == {
            "lock",
            "manifest.json",
            *(f"{name}.parquet" for name in names),
        }
        final = contents(shards)
        assert set(final) <= {b"first", b"second", b"third", b"first and second"}
        if finished:
            assert final == [b"third", b"first and second"]
            break
    assert 10 < kill_at < 99


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"X" + data[1:]])
def test_a_damaged_shard_is_rejected_by_name(shards, damage):
    first, second = add(shards, b"one", b"two")
    shards.path(first).write_bytes(damage(b"one"))
    with pytest.raises(DamagedShardError, match=f"{first}.*recsys embed"):
        shards.read(first)
    with shards.writing():
        damaged_path = shards.rejected(first)
    assert damaged_path.read_bytes() == damage(b"one")
    assert shards.names() == [second]
    add(shards, b"one")
    assert contents(shards) == [b"two", b"one"]


@pytest.mark.parametrize(
    "manifest_text", ["", "[]", "{}", '{"shards": 3}', '{"shards": ["../../etc/passwd"]}', '{"shards": [3]}']
)
def test_a_damaged_manifest_is_rejected_and_created_again_when_it_is_removed(shards, manifest_text):
    add(shards, b"one", b"two")
    manifest = shards.folder / "manifest.json"
    manifest.write_text(manifest_text)
    with pytest.raises(
        StoreError,
        match=r"manifest\.json: damaged: not (JSON at|what this version) .*\. Remove it",
    ):
        shards.names()
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"), shards.writing():
        pass
    manifest.unlink()
    with shards.writing():
        assert sorted(contents(shards)) == [b"one", b"two"]


def test_a_second_writer_is_rejected_with_the_id_of_the_first(shards):
    code = "import sys; from pathlib import Path; from features.content.shards import Shards\n"
    code += "with Shards(Path(sys.argv[1])).writing(): print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, shards.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(StoreError, match=f"process {other.pid} is writing here"), shards.writing():
            pass
        other.kill()
        other.wait()
        add(shards, b"one")
    with shards.writing(), pytest.raises(StoreError, match=f"process {os.getpid()} "), shards.writing():
        pass
    assert contents(shards) == [b"one"]


def test_a_file_system_without_locks_is_an_error(shards, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("features.content.shards.fcntl.flock", refuse)
    with pytest.raises(StoreError, match="No locks available"):
        add(shards, b"one")


def test_a_folder_that_is_removed_meanwhile_is_an_error(shards):
    with shards.writing():
        shards.add(memoryview(b"one"))
        shutil.rmtree(shards.folder)
        with pytest.raises(StoreError, match=r"cannot be read or written: .*No such file"):
            shards.add(memoryview(b"two"))
        with pytest.raises(StoreError, match=r"cannot be read or written: .*No such file"):
            shards.write("space.json", b"{}")


def test_a_full_disk_is_an_error_and_loses_nothing(shards, monkeypatch):
    add(shards, b"one")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("features.content.shards.os.fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            add(shards, b"two")
    add(shards, b"three")
    assert contents(shards) == [b"one", b"three"]
