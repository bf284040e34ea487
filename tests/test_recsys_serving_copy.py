"""The copy that a service serves a bundle from: verified, shared, removed by its last user, safe from truncation."""

import gc
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_data import FACTS, noise, toy_catalog, toy_stage

from features.errors import BundleError
from recsys.bundle import serving_copy
from recsys.bundle.io import load_bundle, save_bundle
from recsys.bundle.serving_copy import copies_folder, load_serving_bundle


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    catalog = toy_catalog(30, categories=[["a"]] * 30, text=np.eye(30, 4, dtype=np.float32))
    stage, catalog, statistics = toy_stage(noise(), catalog)
    return save_bundle(tmp_path_factory.mktemp("bundles"), catalog, stage, statistics, FACTS)


@pytest.fixture
def path(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bundles" / saved.name))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    gc.collect()


def copies() -> list[Path]:
    return sorted(copies_folder().iterdir())


def test_a_copy_is_shared_verified_and_removed_by_its_last_user(path: Path) -> None:
    first, second = load_serving_bundle(path), load_serving_bundle(path)
    assert (first.path, first.fingerprint) == (path, path.name)
    (copy,) = copies()
    assert {file.name for file in copy.iterdir()} == {file.name for file in path.iterdir()}
    assert {file.stat().st_mode & 0o777 for file in copy.iterdir()} == {0o400}
    assert copies_folder().stat().st_mode & 0o777 == 0o700
    vectors = load_bundle(path).recommender.vectors.copy()
    shutil.rmtree(path)
    np.testing.assert_array_equal(second.recommender.vectors, vectors)
    del first
    gc.collect()
    assert copies() == [copy]
    del second
    gc.collect()
    assert copies() == []


def test_damage_is_reported_at_the_place_of_the_bundle(path: Path) -> None:
    data = (path / "vectors.npy").read_bytes()
    (path / "vectors.npy").write_bytes(data[:-1])
    with pytest.raises(BundleError, match="truncated or tampered") as caught:
        load_serving_bundle(path)
    assert str(caught.value).startswith(f"{path}/vectors.npy: ")
    assert copies() == []
    (path / "vectors.npy").unlink()
    with pytest.raises(BundleError, match=r"vectors\.npy: missing"):
        load_serving_bundle(path)
    (path / "vectors.npy").write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    for damaged in (b"", b"{", b"[]", json.dumps(manifest | {"files": {"../x": {}}}).encode()):
        (path / "manifest.json").write_bytes(damaged)
        with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
            load_serving_bundle(path)
    (path / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read: .*check the path"):
        load_serving_bundle(path)
    assert copies() == []


def test_a_damaged_copy_is_made_again(path: Path) -> None:
    used = load_serving_bundle(path)
    (copy,) = copies()
    (copy / "vectors.npy").unlink()
    again = load_serving_bundle(path)
    np.testing.assert_array_equal(used.recommender.vectors, again.recommender.vectors)
    assert (copy / "vectors.npy").exists()


def test_another_bundle_of_the_same_name_has_its_own_copy(path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(path, tmp_path / "other" / path.name))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"seed": 1}))
    bundle = load_serving_bundle(path)
    with pytest.raises(BundleError, match="own checksum"):
        load_serving_bundle(other)
    assert bundle.manifest["seed"] == 0


def test_a_folder_for_copies_that_others_can_write_is_refused(path: Path, temporary: Path) -> None:
    copies_folder().mkdir(mode=0o755)
    with pytest.raises(BundleError, match="not a folder that only this user can enter: remove it, or set TMPDIR"):
        load_serving_bundle(path)
    copies_folder().rmdir()
    copies_folder().touch()
    with pytest.raises(BundleError, match=r"a file stands where a folder is needed.*TMPDIR"):
        load_serving_bundle(path)


def test_no_room_for_a_copy_names_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recsys.bundle.serving_copy.shutil.copyfile", full)
    with pytest.raises(BundleError, match="cannot be copied to be served: No space left on device; free space"):
        load_serving_bundle(path)
    assert copies() == []


def test_a_service_that_loads_a_copy_does_not_keep_others_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, leave = threading.Event(), threading.Event()
    loaded: list[Any] = []

    def slow(copy: Path) -> Any:
        if threading.current_thread() is first:
            inside.set()
            assert leave.wait(60)
        return load_bundle(copy)

    monkeypatch.setattr("recsys.bundle.serving_copy.load_bundle", slow)
    first = threading.Thread(target=lambda: loaded.append(load_serving_bundle(path)))
    first.start()
    assert inside.wait(60)
    second = threading.Thread(target=lambda: loaded.append(load_serving_bundle(path)))
    second.start()
    second.join(60)
    assert not second.is_alive()
    loaded.pop().close()
    assert len(copies()) == 1  # the first service still loads it
    leave.set()
    first.join()
    assert len(loaded) == 1
    assert len(copies()) == 1
    second.join()


def test_services_that_find_one_copy_damaged_make_one_new_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = load_serving_bundle(path)
    (copy,) = copies()
    (copy / "vectors.npy").unlink()
    ready = threading.Barrier(2)
    made: list[Path] = []
    loaded: list[Any] = []
    copy_bundle = serving_copy._copy

    def together(folder: Path) -> Any:
        if not (folder / "vectors.npy").exists():
            ready.wait(60)
        return load_bundle(folder)

    def counted(source: Path, manifest: bytes, target: Path) -> None:
        made.append(target)
        copy_bundle(source, manifest, target)

    monkeypatch.setattr("recsys.bundle.serving_copy.load_bundle", together)
    monkeypatch.setattr("recsys.bundle.serving_copy._copy", counted)
    threads = [threading.Thread(target=lambda: loaded.append(load_serving_bundle(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 2
    assert made == [copy]
    assert used.path == path


SERVER = """
    import sys
    from pathlib import Path
    import numpy as np
    from recsys.bundle.serving_copy import load_serving_bundle
    bundle = load_serving_bundle(Path(sys.argv[1]))
    print("loaded", flush=True)
    input()
    found = bundle.similar(np.arange(30), 5)
    print(found.rows.sum(), bundle.contents.search(bundle.catalog.content, 3).rows.shape, flush=True)
    input()
"""


def test_truncation_in_place_ends_no_service_and_a_killed_one_leaves_nothing_for_long(path: Path) -> None:
    expected = int(load_bundle(path).similar(np.arange(30), 5).rows.sum())
    command = [sys.executable, "-c", textwrap.dedent(SERVER), str(path)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == "loaded\n"
    for file in path.iterdir():
        with file.open("r+b") as stream:
            stream.truncate(0)
    server.stdin.write("\n")
    server.stdin.flush()
    assert server.stdout.readline() == f"{expected} (30, 3)\n"
    (copy,) = copies()
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdin.close()
    server.stdout.close()
    assert copies() == [copy]
    with pytest.raises(BundleError):
        load_serving_bundle(path)
    assert copies() == []
