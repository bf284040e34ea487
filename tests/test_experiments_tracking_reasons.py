"""Why tracking failed, in our words; and which databases hold what people have written."""

import sqlite3
from pathlib import Path

import pytest

from experiments.tracking import database
from experiments.tracking.database import reason
from features.errors import FileError


class Wrapped(Exception):
    """An error of SQLAlchemy, which holds the one of the driver."""

    def __init__(self, text: str) -> None:
        super().__init__("statement\nparameters")
        self.orig = ValueError(text)


REFUSED = "its server refuses: check the address in MLFLOW_TRACKING_URI, and the rights of its user"


SERVER = "what answers there is no MLflow server, or refuses the request"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Detected out-of-date database schema (found version x)", "another version of MLflow wrote its tables: "),
        (
            "Can't locate revision identified by 'x'",
            "another version of MLflow wrote its tables: install that version",
        ),
        (
            "API request to http://a failed with exception x",
            "no server answers there: start it, or correct MLFLOW_TRACKING_URI",
        ),
        (
            "API request to endpoint failed with error code 404 != 200",
            f"{SERVER} (status 404): correct MLFLOW_TRACKING_URI",
        ),
        ("API request to endpoint: x", f"{SERVER}: correct MLFLOW_TRACKING_URI"),
        ("first\nsecond", "its address or what stands there is wrong (RuntimeError: first)"),
    ],
)
def test_reasons(text: str, words: str) -> None:
    assert reason(RuntimeError(text)).startswith(words)


def test_the_reason_of_the_driver_is_told() -> None:
    assert reason(Wrapped("disk is full")) == f"{REFUSED} (ValueError: disk is full)"
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("outer") from Wrapped("no such table")
    assert reason(caught.value) == f"{REFUSED} (ValueError: no such table)"


def test_figures_and_names_of_the_database() -> None:
    assert (database.LOCK_SECONDS, database.RETRY_SECONDS, database.ARTIFACTS) == (60.0, 0.1, "mlruns")
    assert database.SUFFIXES == ("-journal", "-wal", "-shm")
    assert database.PATHS == (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
    )
    assert database.sqlite_file("sqlite:///a/b.db") == Path("a/b.db")


def make(path: Path, *statements: str) -> Path:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize(
    ("statements", "holds"),
    [
        ([], False),
        (["CREATE TABLE alembic_version (v)", "INSERT INTO alembic_version VALUES ('x')"], False),
        (["CREATE TABLE workspaces (name)", "INSERT INTO workspaces VALUES ('default')"], False),
        (["CREATE TABLE workspaces (name)", "INSERT INTO workspaces VALUES ('mine')"], True),
        (["CREATE TABLE experiments (name)", "INSERT INTO experiments VALUES ('Default')"], False),
        (["CREATE TABLE experiments (name)", "INSERT INTO experiments VALUES ('default')"], True),
        (["CREATE TABLE runs (id)"], False),
        (["CREATE TABLE runs (id)", "INSERT INTO runs VALUES (1)"], True),
        (["CREATE TABLE other (id)", "CREATE TABLE runs (id)", "INSERT INTO runs VALUES (1)"], True),
    ],
)
def test_what_people_have_written(statements: list[str], holds: bool, tmp_path: Path) -> None:
    assert database._holds_records(make(tmp_path / "a.db", *statements)) == holds


def test_a_missing_or_empty_file_holds_nothing_and_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    assert not database._holds_records(file)
    file.touch()
    assert not database._holds_records(file)
    file.write_bytes(b"no database" * 100)
    with pytest.raises(FileError) as caught:
        database._holds_records(file)
    assert str(caught.value) == (
        f"{file}: it is no database of SQLite, or damaged: move it away, or choose another path; without the file a "
        "new one is created"
    )


def test_paths_of_a_moved_folder(tmp_path: Path) -> None:
    old = "/old/mlruns"
    file = make(
        tmp_path / "a.db",
        "CREATE TABLE experiments (artifact_location)",
        "CREATE TABLE runs (artifact_uri)",
        f"INSERT INTO experiments VALUES ('{old}/1'), ('file://{old}/2'), ('s3://x/3'), ('/old/mlruns2/1')",
        f"INSERT INTO runs VALUES ('{old}/1/abc/artifacts'), ('/elsewhere/mlruns/1')",
    )
    database._move_artifacts(file)  # the new folder has no folder of an experiment yet
    assert database._rows(file, "experiments", "SELECT * FROM experiments LIMIT 1") == [(f"{old}/1",)]
    (tmp_path / "mlruns" / "1").mkdir(parents=True)
    database._move_artifacts(file)
    new = f"{tmp_path}/mlruns"
    assert database._rows(file, "experiments", "SELECT * FROM experiments") == [
        *((f"{new}/1",), (f"file://{new}/2",), ("s3://x/3",), ("/old/mlruns2/1",))
    ]
    assert database._rows(file, "runs", "SELECT * FROM runs") == [
        *((f"{new}/1/abc/artifacts",), ("/elsewhere/mlruns/1",))
    ]
    assert database._rows(file, "missing", "SELECT * FROM missing") == []
