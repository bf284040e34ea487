"""The SQLite file of MLflow: creation, repair, and paths of artefacts. The only file that imports sqlalchemy.

MLflow creates its tables step by step, for seconds, and never finishes what was interrupted. It stores absolute paths
of artefacts. This module therefore holds a lock, creates the file aside, and moves it into place when it is complete.
"""

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from features.errors import FileError, describe_sqlite_error, detail

logger = logging.getLogger(__name__)

ARTIFACTS = "mlruns"
"""Folder of the artefacts, beside the database."""

PATHS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""(table, column) of the absolute paths of artefacts."""

LOCK_SECONDS = 60.0
"""How long a run waits for another one that creates or repairs the database."""

RETRY_SECONDS = 0.1

INTERNAL = ("alembic_version", "sqlite_sequence")
"""Tables in which MLflow and SQLite keep their own state."""

DEFAULTS = {"workspaces": "name != 'default'", "experiments": "name != 'Default'"}
"""Table -> the condition of rows that MLflow has not written itself when it created the database."""

SUFFIXES = ("-journal", "-wal", "-shm")
"""What SQLite writes beside a database file."""

Client = TypeVar("Client")


@contextmanager
def opened(uri: str, connect: Callable[[str], Client]) -> Iterator[Client]:
    """`connect(uri)`; where the URI names a SQLite file, the file is complete, and locked against other runs.

    connect: opens a database, and creates its tables where they are missing. A file that holds nothing (no run,
    model or experiment) and whose tables are incomplete is completed, or moved to NAME.damaged-TIME and created
    again, which is logged. Any other file is left as it is. Raises FileError for a file that is no SQLite database,
    and when another process holds the lock for LOCK_SECONDS; and what `connect` raises.
    """
    path = sqlite_file(uri)
    if path is None:
        yield connect(uri)
        return
    with _locked(path):
        if not _holds_records(path):
            _complete(path, connect)
        _move_artifacts(path)
        yield connect(uri)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI; None for another URI, and for a database in memory."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return Path(str(url.database))


def reason(error: BaseException) -> str:
    """Why a database or a tracking server cannot be used, in one line, with the remedy where it is known."""
    text = str(error)
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return (
            "another version of MLflow wrote its tables: install that version, or name another database in "
            "MLFLOW_TRACKING_URI; `mlflow db upgrade` brings an older one to this version"
        )
    if text.startswith("API request to"):  # an address of a tracking server
        if "failed with exception" in text:
            return "no server answers there: start it, or correct MLFLOW_TRACKING_URI"
        status = re.search(r"error code (\d+)", text)
        shown = f" (status {status[1]})" if status else ""
        return f"what answers there is no MLflow server, or refuses the request{shown}: correct MLFLOW_TRACKING_URI"
    cause: BaseException | None = error
    while cause is not None:
        if orig := getattr(cause, "orig", None):
            return _of_driver(orig)
        cause = cause.__cause__
    if isinstance(error, ImportError):
        return f"its driver is not installed{detail(error)}"
    return f"its address or what stands there is wrong{detail(error)}"


def _of_driver(error: BaseException) -> str:
    """Why a database cannot be used, from the exception of its driver."""
    if hasattr(error, "sqlite_errorcode"):
        return describe_sqlite_error(error)
    return f"its server refuses: check the address in MLFLOW_TRACKING_URI, and the rights of its user{detail(error)}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a database file, .NAME.lock beside it; the kernel releases it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOCK_SECONDS
    with (file := path.with_name(f".{path.name}.lock")).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise FileError(
                        f"{path} is locked for {LOCK_SECONDS:g} s by another process, e.g. a run that hangs or was "
                        f"stopped (Ctrl-Z): end it; `fuser {file}` shows its number"
                    ) from None
                time.sleep(RETRY_SECONDS)
        yield


def _holds_records(path: Path) -> bool:
    """Whether a database file holds what people or runs have written: a run, a model, an experiment of their own."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    tables = [str(row[0]) for row in _rows(path, None, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    written = [f'SELECT 1 FROM "{t}" WHERE {DEFAULTS.get(t, "1")}' for t in tables if t not in INTERNAL]
    return any(_rows(path, None, f"SELECT EXISTS({query})") == [(1,)] for query in written)


def _rows(path: Path, table: str | None, query: str) -> list[tuple[object, ...]]:
    """Rows of a query; none where the table (None: tables that exist) is missing.

    Raises FileError for a file that is no SQLite database.
    """
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import DatabaseError, OperationalError
    from sqlalchemy.pool import NullPool

    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    try:
        if table is not None and not inspect(engine).has_table(table):
            return []
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]
    except OperationalError:  # locked, or not readable
        raise
    except DatabaseError as error:
        why = describe_sqlite_error(error.orig or error)
        raise FileError(f"{path}: {why}; without the file a new one is created") from None


def _complete(path: Path, connect: Callable[[str], object]) -> None:
    """Create a database file, or complete one that holds nothing. The file at `path` is replaced in one step."""
    for file in list(path.parent.iterdir()):  # of a process that was killed; we hold the lock
        if file.name.startswith(f".{path.name}.writing-"):
            file.unlink()
    part = path.with_name(f".{path.name}.writing-{os.getpid()}-{datetime.now(UTC):%H%M%S%f}")
    try:
        exists = path.exists() and path.stat().st_size > 0
        if exists:
            shutil.copyfile(path, part)  # _runs has rolled back what an interrupted process left
            try:
                connect(f"sqlite:///{part}")
            except Exception as error:  # of MLflow, Alembic or SQLAlchemy
                part.unlink()
                _move_aside(path, error)
                exists = False
                part = part.with_name(f"{part.name}-new")  # MLflow keeps the connection to the first name
        if not exists:
            connect(f"sqlite:///{part}")
        if not exists or _version(part) != _version(path):
            os.replace(part, path)
    finally:
        for suffix in ("", *SUFFIXES):
            Path(f"{part}{suffix}").unlink(missing_ok=True)


def _version(path: Path) -> list[tuple[object, ...]]:
    """The tables of a database, and its version in MLflow's migrations."""
    return [
        *_rows(path, "alembic_version", "SELECT version_num FROM alembic_version"),
        *_rows(path, "alembic_version", "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"),
    ]


def _move_aside(path: Path, error: Exception) -> None:
    moved = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    for suffix in SUFFIXES:
        if (beside := Path(f"{path}{suffix}")).exists():
            beside.rename(f"{moved}{suffix}")
    path.rename(moved)
    logger.warning(
        "%s was incomplete and holds nothing (%s): it is now %s; a new one is created", path, reason(error), moved
    )


def _move_artifacts(path: Path) -> None:
    """Correct the paths of artefacts after the project's folder was moved or copied.

    The folder that the experiments name is replaced by the one beside the database where that one has the folder of
    an experiment.
    """
    own = path.absolute().parent / ARTIFACTS
    found = _rows(path, "experiments", "SELECT artifact_location FROM experiments")
    locations = [str(row[0]).removeprefix("file://") for row in found if str(row[0]).startswith(("/", "file:///"))]
    roots = {location.rpartition("/")[0] for location in locations} - {str(own)}
    moved = {root for root in roots if Path(root).name == ARTIFACTS}
    moved &= {
        root for root in moved for at in locations if at.startswith(f"{root}/") and (own / Path(at).name).is_dir()
    }
    if moved:
        _replace_prefixes(path, moved, str(own))


def _replace_prefixes(path: Path, old: set[str], new: str) -> None:
    """Replace the beginning of all paths of artefacts in one transaction."""
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.pool import NullPool

    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    with engine.begin() as connection:
        for table, column in PATHS:
            if not inspect(connection).has_table(table):
                continue
            for root in sorted(old):
                for scheme in ("", "file://"):
                    connection.execute(
                        text(
                            f"UPDATE {table} SET {column} = :new || substr({column}, :length) "
                            f"WHERE substr({column}, 1, :length) = :old"
                        ),
                        {"new": scheme + new, "old": f"{scheme}{root}/", "length": len(scheme + root) + 1},
                    )
