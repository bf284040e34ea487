"""Branches of experiments that runs take seldom: what is refused, and what is said."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_data import toy_config, write_tables

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.pipelines import batch_slates, nightly
from experiments.pipelines.batch_slates import load_served
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.pipelines.warm_start import check_compatible
from experiments.preflight import check_log
from experiments.tracking import database
from experiments.tracking import mlflow as tracking
from features.errors import BundleError, ConfigError, DependencyError, FileError, LogError, SpaceError
from features.progress import silent


class Page:
    """MLflow's page as a process, which ends in one way."""

    pid = 4711

    def __init__(self, end: BaseException | None) -> None:
        self.end, self.waits = end, 0

    def wait(self) -> None:
        self.waits += 1
        if self.end is not None and self.waits == 1:
            raise self.end


@pytest.mark.parametrize(("end", "status"), [(None, 1), (KeyboardInterrupt(), 0)])
def test_the_page_of_runs_ends_with_its_processes(
    monkeypatch: pytest.MonkeyPatch, end: BaseException | None, status: int
) -> None:
    page, killed, started = Page(end), list[tuple[int, int]](), list[tuple[list[str], dict[str, Any]]]()
    handlers: dict[int, Any] = {}

    @contextmanager
    def opened(uri: str, connect: object) -> Any:
        yield None

    def popen(command: list[str], **options: Any) -> Page:
        started.append((command, options))
        return page

    monkeypatch.setattr(tracking, "opened", opened)
    monkeypatch.setattr(tracking, "child_command", lambda program, number: [*program, str(int(number))])
    monkeypatch.setattr(tracking.subprocess, "Popen", popen)
    monkeypatch.setattr(tracking.os, "killpg", lambda group, number: killed.append((group, number)))
    monkeypatch.setattr(tracking.signal, "signal", handlers.__setitem__)
    assert tracking.open_ui(5001, "sqlite:///x.db") == status
    [(command, options)] = started
    assert command == [
        *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///x.db"),
        *("--host", "127.0.0.1", "--port", "5001", "15"),
    ]
    assert options["start_new_session"] is True
    assert options["stdin"] == subprocess.DEVNULL
    assert options["env"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert killed == [(4711, signal.SIGTERM)]
    assert page.waits == 2
    assert handlers[signal.SIGINT] is signal.default_int_handler
    with pytest.raises(SystemExit) as caught:
        handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert caught.value.code == 143


def test_the_page_of_runs_needs_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"the page of tracked runs needs the package mlflow: .* extra `track`"):
        tracking.open_ui(5001, "sqlite:///x.db")


def test_the_environment_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = "ignore:starlette.middleware.wsgi is deprecated"
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    assert tracking._ui_environment()["PYTHONWARNINGS"] == quiet
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    environment = tracking._ui_environment()
    assert environment["PYTHONWARNINGS"] == f"error,{quiet}"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "true"


def test_a_damaged_database_is_moved_with_what_lies_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mlflow.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").write_text(suffix or "database")
    database._move_aside(path, sqlite3.DatabaseError("file is not a database"))
    moved = sorted(file.name for file in tmp_path.iterdir())
    assert [name.removeprefix(moved[0]) for name in moved] == ["", "-shm", "-wal"]
    assert moved[0].startswith("mlflow.db.damaged-20")
    assert (tmp_path / f"{moved[0]}-wal").read_text() == "-wal"
    assert "was incomplete and holds nothing (its address or what stands there is wrong" in caplog.text


@pytest.mark.parametrize("readable", [True, False])
def test_a_log_that_this_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool) -> None:
    asked: list[tuple[str, int]] = []

    def access(path: str, mode: int) -> bool:
        asked.append((path, mode))
        return readable

    monkeypatch.setattr(os, "access", access)
    if readable:
        check_log(str(tmp_path))
    else:
        with pytest.raises(LogError) as caught:
            check_log(str(tmp_path))
        assert str(caught.value) == f"data.log {tmp_path} cannot be read: give this user the right to it"
    assert asked == [(str(tmp_path), os.R_OK | os.X_OK)]


def test_a_split_without_a_cut_in_time_has_no_minimum_of_events(tmp_path: Path) -> None:
    write_tables(tmp_path / "data", length=5)
    config = load_config(toy_config(tmp_path, split={"kind": "leave-last-out"}), {})
    data = config.data.model_copy(update={"min_train_events": 3})
    with pytest.raises(ConfigError) as caught:
        evaluation_windows(config.model_copy(update={"data": data}), load_dataset(config))
    assert str(caught.value) == (
        "data.min_train_events = 3 needs a cut in time, and split.kind = leave-last-out has none: set "
        "data.min_train_events to 0"
    )
    [(_, splits)] = evaluation_windows(config, load_dataset(config))
    assert list(splits) == ["home", "again"]


def served(split: str = "time", content: Any = None, **config: Any) -> Any:
    """A bundle, as far as these checks look at it."""
    manifest = {"config": {"split": {"kind": split}, **config}}
    return SimpleNamespace(path="bundles/abc", manifest=manifest, content=content)


def test_training_cannot_continue_from_a_bundle_of_other_contents(tmp_path: Path) -> None:
    plain = load_config(toy_config(tmp_path), {})
    with_texts = load_config(toy_config(tmp_path, encoder={"kind": "builtin"}), {})
    last_out = load_config(toy_config(tmp_path, split={"kind": "leave-last-out"}), {})
    content = SimpleNamespace(space="minilm")
    check_compatible(plain, served())
    check_compatible(with_texts, served(content=content))
    with pytest.raises(SpaceError) as caught:
        check_compatible(plain, served(content=content))
    assert str(caught.value) == "encoder is null, and the contents of bundles/abc are in minilm; set encoder back"
    with pytest.raises(SpaceError) as caught:
        check_compatible(with_texts, served())
    assert str(caught.value) == (
        "encoder is builtin, and bundles/abc was trained without contents; set encoder to null"
    )
    for config, bundle in ((last_out, served()), (plain, served("leave-last-out"))):
        with pytest.raises(ConfigError, match=r"^bundles/abc: a bundle of a leave-last-out split was not fitted"):
            check_compatible(config, bundle)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"name": "toy", "data": 3}, "data in its configuration: must be named values"),
        ([], "its configuration: must be named values"),
    ],
)
def test_a_bundle_whose_configuration_this_version_cannot_read(config: Any, reason: str) -> None:
    bundle: Any = SimpleNamespace(path="bundles/abc", manifest={"config": config})
    with pytest.raises(BundleError) as caught:
        load_served(bundle, silent)
    assert str(caught.value) == f"bundles/abc: {reason}; train again"


def test_what_was_embedded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(toy_config(tmp_path), {})
    reports = [
        SimpleNamespace(encoder="text", computed=1234, cached=5678, failed=1000),
        SimpleNamespace(encoder="image", computed=0, cached=1, failed=2),
    ]

    def embed_catalog(given: Any, *, progress: Any) -> Any:
        assert (given, progress) == (config, silent)
        return SimpleNamespace(encoders=reports), None

    monkeypatch.setattr(nightly, "embed_catalog", embed_catalog)
    assert nightly.embed_contents(config, silent) == (
        "text: 1,234 computed, 5,678 cached, 1,000 failed; image: 0 computed, 1 cached, 2 failed"
    )


def test_a_configuration_that_the_system_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy_config(tmp_path)

    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert str(caught.value) == (
        f"{path}: cannot be read: Permission denied; give this user the right to it, or choose another path"
    )


def test_a_folder_of_slates_whose_manifest_is_a_folder(tmp_path: Path) -> None:
    dataset: Any = SimpleNamespace()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(FileError) as caught:
        batch_slates._join_job(tmp_path, {}, dataset)
    assert str(caught.value) == f"{tmp_path / 'manifest.json'}: a folder; give a file"


def test_a_job_of_slates_goes_on_where_it_was_begun(tmp_path: Path) -> None:
    def dataset(*users: str, latest: int) -> Any:
        events = SimpleNamespace(latest=latest)
        return SimpleNamespace(users=SimpleNamespace(ids=users), hash="h", events=events)

    out = tmp_path / "out"
    for _ in range(2):
        until, users = batch_slates._join_job(out, {"k": 5}, dataset("b", "a", latest=6))
        assert (until, users.to_list()) == (7, ["a", "b"])
    until, users = batch_slates._join_job(out, {"k": 5}, dataset("c", latest=9))  # newer tables: the same job
    assert (until, users.to_list()) == (7, ["a", "b"])
    with pytest.raises(ConfigError) as refused:
        batch_slates._join_job(out, {"k": 6}, dataset("b", "a", latest=6))
    assert str(refused.value) == (
        f"{out}: slates of another job are there (k 5 there, 6 here): choose another folder, or remove it"
    )
    (out / "manifest.json").write_text("{")
    with pytest.raises(FileError) as caught:
        batch_slates._join_job(out, {"k": 5}, dataset("b", "a", latest=6))
    damaged = "manifest.json or users.parquet is damaged (not JSON at line 1, column 2)"
    assert str(caught.value) == f"{out}: {damaged}: remove the folder, start anew"
