"""MLflow's SQLite file: interrupted and simultaneous first runs, repair, a project folder that was moved."""

import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.tracking.database import opened, sqlite_file
from experiments.tracking.mlflow import MlflowTracker
from features.errors import FileError

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy",  # SQLAlchemy 2.1 warns about queries of MLflow
    "ignore::ResourceWarning",  # MLflow leaves its SQLite connections to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

RUN = """
from experiments.tracking.mlflow import MlflowTracker
tracker = MlflowTracker()
tracker.start("toy", {"a": 1}, {})
tracker.metrics({"loss": 1.0}, 1)
tracker.finish()
"""


def start_run(folder: Path) -> "subprocess.Popen[str]":
    """A process that records one run in folder/mlflow.db."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=folder, env=environment, text=True, stderr=subprocess.PIPE
    )


def recorded(file: Path) -> list[str]:
    """Status of every run in a database."""
    connection = sqlite3.connect(file)
    try:
        return [row[0] for row in connection.execute("SELECT status FROM runs")]
    finally:
        connection.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_three_first_runs_at_once_are_all_recorded(tmp_path: Path) -> None:
    processes = [start_run(tmp_path) for _ in range(3)]
    told = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert not any("untracked" in text for text in told), told
    assert recorded(tmp_path / "mlflow.db") == ["FINISHED"] * 3
    assert names(tmp_path) == {"mlflow.db", ".mlflow.db.lock"}


SLOW = """
import sqlite3, sys, time
from experiments.tracking.database import opened

def connect(uri):
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    for step in range(10):  # a migration: each step is committed
        connection.execute(f"CREATE TABLE IF NOT EXISTS step{step} (x)")
        connection.commit()
        time.sleep(0.03)
    connection.execute("CREATE TABLE IF NOT EXISTS experiments (name, artifact_location)")
    connection.commit()
    return connection

with opened("sqlite:///mlflow.db", connect) as connection:
    print("complete")
"""


def tables(file: Path) -> int:
    connection = sqlite3.connect(file)
    try:
        return len(connection.execute("SELECT name FROM sqlite_master").fetchall())
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_migration_that_is_killed_leaves_nothing_half_made(number: int, tmp_path: Path) -> None:
    for delay in (0.0, 0.05, 0.15, 0.25, 0.35):
        process = subprocess.Popen([sys.executable, "-c", SLOW], cwd=tmp_path, stderr=subprocess.DEVNULL)
        while not any(".writing-" in name for name in names(tmp_path)) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(number)
        process.wait()
        if (tmp_path / "mlflow.db").exists():
            assert tables(tmp_path / "mlflow.db") == 11
            (tmp_path / "mlflow.db").unlink()
    subprocess.run([sys.executable, "-c", SLOW], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert tables(tmp_path / "mlflow.db") == 11
    assert names(tmp_path) == {"mlflow.db", ".mlflow.db.lock"}


@pytest.mark.soak
@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0.3), (signal.SIGKILL, 0.6), (signal.SIGKILL, 1.2)])
def test_a_first_run_that_is_killed_does_not_break_the_next(number: int, delay: float, tmp_path: Path) -> None:
    process = start_run(tmp_path)
    while not any(".writing-" in name for name in names(tmp_path)):
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    process.communicate()
    assert "untracked" not in start_run(tmp_path).communicate()[1]
    assert "FINISHED" in recorded(tmp_path / "mlflow.db")
    assert names(tmp_path) == {"mlflow.db", ".mlflow.db.lock"}


def half_made(template: Path, path: Path, *damage: str) -> None:
    """A copy of MLflow's database after some statements."""
    shutil.copy(template, path)
    connection = sqlite3.connect(path)
    for statement in damage:
        connection.execute(statement)
    connection.commit()
    connection.close()


DAMAGES = {
    "an old version": ("UPDATE alembic_version SET version_num = '451aebb31d03'",),
    "an unknown version": ("UPDATE alembic_version SET version_num = 'ffffffffffff'",),
    "no version": ("DELETE FROM alembic_version", "DROP TABLE runs"),
    "a missing table": ("DROP TABLE logged_models",),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_database_without_runs_is_replaced(
    damage: str, template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    half_made(template, tmp_path / "mlflow.db", *DAMAGES[damage])
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db")
    tracker.start("toy", {}, {})
    tracker.finish()
    assert recorded(tmp_path / "mlflow.db") == ["FINISHED"]
    assert not [r for r in caplog.records if "untracked" in r.getMessage()]
    moved = [name for name in names(tmp_path) if name.startswith("mlflow.db.damaged-")]
    messages = [r.getMessage() for r in caplog.records if r.name == "experiments.tracking.database"]
    assert len(moved) == len(messages) <= 1
    assert all("was incomplete and holds nothing" in text and str(tmp_path / moved[0]) in text for text in messages)


def test_an_outdated_database_with_runs_is_left_as_it_is(
    template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half_made(
        template,
        tmp_path / "mlflow.db",
        "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('r', 0, 'active')",
        *DAMAGES["an old version"],
    )
    before = (tmp_path / "mlflow.db").read_bytes()
    MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db").start("toy", {}, {})
    assert (tmp_path / "mlflow.db").read_bytes() == before
    (message,) = [r.getMessage() for r in caplog.records if r.name == "experiments.tracking.mlflow"]
    assert "mlflow db upgrade" in message


@pytest.mark.parametrize(
    "written",
    [
        "INSERT INTO experiments (experiment_id, name, workspace) VALUES (7, 'mine', 'default')",
        "INSERT INTO registered_models (name, workspace) VALUES ('mine', 'default')",
    ],
)
def test_a_database_of_another_version_that_holds_anything_is_left_as_it_is(
    written: str, template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half_made(template, tmp_path / "mlflow.db", written, *DAMAGES["an unknown version"])
    before = (tmp_path / "mlflow.db").read_bytes()
    MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db").start("toy", {}, {})
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert names(tmp_path) == {"mlflow.db", ".mlflow.db.lock"}
    (message,) = [r.getMessage() for r in caplog.records if r.name == "experiments.tracking.mlflow"]
    assert "another version of MLflow wrote its tables: install that version" in message


def test_a_lock_that_is_never_released_ends_the_wait_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.tracking.database.LOCK_SECONDS", 0.2)
    with (tmp_path / ".mlflow.db.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(FileError, match=r"mlflow\.db is locked for 0\.2 s by another process, .*: end it"),
            opened(f"sqlite:///{tmp_path}/mlflow.db", lambda uri: uri),
        ):
            pass


def test_the_file_of_a_database_that_is_used_by_others_is_not_replaced(template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path / "mlflow.db")
    inode = (tmp_path / "mlflow.db").stat().st_ino
    with opened(f"sqlite:///{tmp_path}/mlflow.db", MlflowClient):
        assert (tmp_path / "mlflow.db").stat().st_ino == inode
    assert names(tmp_path) == {"mlflow.db", ".mlflow.db.lock"}


def test_one_run_opens_a_database_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def connect(uri: str) -> str:
        if ".writing-" in uri:
            sqlite3.connect(uri.removeprefix("sqlite:///")).execute(
                "CREATE TABLE experiments (name, artifact_location)"
            )
        return uri

    def first() -> None:
        with opened(f"sqlite:///{tmp_path}/mlflow.db", connect):
            inside.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        inside.wait(10)
        with opened(f"sqlite:///{tmp_path}/mlflow.db", connect):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    time.sleep(0.1)
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:////a/b.db?timeout=1", "/a/b.db"),
        ("sqlite+pysqlite:///c.db", "c.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://a:b@c/d", None),
        ("./mlruns", None),
    ],
)
def test_only_files_of_sqlite_are_locked(uri: str, file: str | None) -> None:
    assert sqlite_file(uri) == (None if file is None else Path(file))


@pytest.mark.parametrize("copied", [False, True])
def test_runs_of_a_folder_that_was_moved_keep_their_artefacts(
    copied: bool, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new place"
    old.mkdir()
    half_made(template, old / "mlflow.db", "DELETE FROM experiments")
    monkeypatch.chdir(old)
    (tmp_path / "one.txt").write_text("one")

    def record() -> None:
        tracker = MlflowTracker(f"sqlite:///{Path.cwd()}/mlflow.db")  # MLflow keeps connections by address
        tracker.start("toy", {}, {})
        tracker.artifact(tmp_path / "one.txt")
        tracker.finish()

    record()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(old, new) if copied else old.rename(new)
    monkeypatch.chdir(new)
    record()
    assert old.exists() == copied
    client = MlflowClient(f"sqlite:///{new}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert len(runs) == 2
    for run in runs:
        assert run.info.artifact_uri.startswith(f"{new}/mlruns/")
        assert Path(client.download_artifacts(run.info.run_id, "one.txt")).read_text() == "one"


def test_artefacts_that_are_elsewhere_stay_there(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is not in the working folder, where the artefacts are."""
    (tmp_path / "work").mkdir()
    shutil.copy(template, tmp_path / "mlflow.db")
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "one.txt").write_text("one")
    for _ in range(2):
        tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db")
        tracker.start("toy", {}, {})
        tracker.artifact(tmp_path / "one.txt")
    assert len(list((tmp_path / "work").glob("mlruns/*/*/artifacts/one.txt"))) == 2
