"""Folders and files for the time of one job: none stays of a killed process, and no message names one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_service import RULES

from features.errors import StoreError
from features.files import put_file, put_new_file, working_folder
from features.store.jobs.table_states import PREFIX, table_states

WAITING = """
import sys, time
from pathlib import Path
from features.files import working_folder
with working_folder(Path(sys.argv[1]), "job-") as folder:
    (folder / "part").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def start(base: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process with a working folder, and the folder."""
    process = subprocess.Popen([sys.executable, "-c", WAITING, str(base)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path: Path) -> None:
    killed, left = start(tmp_path)
    living, used = start(tmp_path)
    (tmp_path / "other-1").mkdir()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "part").exists()
        with working_folder(tmp_path, "job-") as folder:
            assert sorted(tmp_path.iterdir()) == sorted([folder, used, tmp_path / "other-1"])
        assert sorted(tmp_path.iterdir()) == sorted([used, tmp_path / "other-1"])
    finally:
        living.kill()
        for process in (killed, living):
            process.communicate()


def test_a_link_of_that_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "base" / "job-1").symlink_to(tmp_path / "kept")
    with working_folder(tmp_path / "base", "job-"):
        pass
    assert (tmp_path / "kept").is_dir()


def test_the_folder_is_removed_after_an_error(tmp_path: Path) -> None:
    def work() -> None:
        with working_folder(tmp_path, "job-") as folder:
            (folder / "a").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_refresh_removes_what_killed_ones_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{PREFIX}killed" / "00").mkdir(parents=True)
    assert list(table_states([], RULES, 1 << 30)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_refresh_without_room_names_the_folder_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError) as caught:
        list(table_states([], RULES, 1 << 30))
    assert str(caught.value).startswith(f"no folder can be made in {tmp_path}/none to distribute the events to: ")
    assert str(caught.value).endswith("No such file or directory; check the path; set TMPDIR")


@pytest.mark.parametrize("put", [put_file, put_new_file])
def test_an_error_names_the_file_and_no_temporary_one(tmp_path: Path, put: object) -> None:
    (tmp_path / "file").touch()
    for path, kind in (
        (tmp_path / "none" / "a.json", FileNotFoundError),
        (tmp_path / "file" / "a.json", NotADirectoryError),
    ):
        with pytest.raises(kind) as caught:
            put(path, lambda part: part.write_text("x"))  # type: ignore[operator]
        assert caught.value.filename == str(path)
    assert sorted(os.listdir(tmp_path)) == ["file"]
