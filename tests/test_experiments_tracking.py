"""MLflow on SQLite, and runs that continue when MLflow fails."""

import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx2 as httpx
import pytest
from mlflow import MlflowClient

from experiments.tracking.mlflow import MlflowTracker, NullTracker, open_ui
from experiments.tracking.plots import learning_curve
from features.errors import ConfigError, FileError

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy",  # SQLAlchemy 2.1 warns about queries of MLflow
    "ignore::ResourceWarning",  # MLflow leaves its SQLite connections to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def run_of(uri, experiment):
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def test_a_run_is_recorded(uri, tmp_path):
    bundle = tmp_path / "bundle"
    (bundle / "nested").mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    (bundle / "nested" / "index.faiss").write_bytes(b"1234")
    (tmp_path / "one.txt").write_text("one")
    tracker = MlflowTracker(uri)
    baselines = {"popular 7 days": {"days": 7}, "item-knn": {"k": 5}}
    tracker.start("toy", {"seed": 0, "towers": {"dimension": 8}, "baselines": baselines}, {"data_hash": "abc"})
    for epoch in (1, 2, 3):
        tracker.metrics({"loss": 1 / epoch, "ndcg_at_10": epoch / 10}, epoch)
    tracker.metrics({"home_two_towers.ndcg_at_10": 0.5})
    tracker.figure("learning_curve", learning_curve([{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0}]))
    tracker.tags({"nightly": "published", "nightly.reason": "x" * 9000})
    tracker.artifact(bundle, "bundle")
    tracker.artifact(tmp_path / "one.txt")
    tracker.finish()
    client, run = run_of(uri, "toy")
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "seed": "0",
        "towers.dimension": "8",
        "baselines.popular_7_days.days": "7",
        "baselines.item-knn.k": "5",
    }
    assert run.data.tags["data_hash"] == "abc"
    assert (run.data.tags["nightly"], len(run.data.tags["nightly.reason"])) == ("published", 5000)
    assert run.data.metrics["home_two_towers.ndcg_at_10"] == 0.5
    history = client.get_metric_history(run.info.run_id, "ndcg_at_10")
    assert [(m.step, m.value) for m in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"bundle", "one.txt", "learning_curve.png"}
    assert {f.path for f in client.list_artifacts(run.info.run_id, "bundle")} == {
        "bundle/manifest.json",
        "bundle/nested",
    }
    index_file = client.download_artifacts(run.info.run_id, "bundle/nested/index.faiss", str(tmp_path))
    with open(index_file, "rb") as file:
        assert file.read() == b"1234"
    plot = client.download_artifacts(run.info.run_id, "learning_curve.png", str(tmp_path))
    with open(plot, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_many_parameters_a_failed_run_and_a_second_run_are_recorded(uri):
    tracker = MlflowTracker(uri)
    tracker.start("many", {f"p{i}": i for i in range(230)}, {})
    tracker.finish(failed=True)
    _, run = run_of(uri, "many")
    assert run.info.status == "FAILED"
    assert len(run.data.params) == 230
    second = MlflowTracker(uri)
    second.start("many", {}, {})
    second.finish()
    client = MlflowClient(uri)
    assert len(client.search_runs([client.get_experiment_by_name("many").experiment_id])) == 2


def test_nested_runs_and_a_pruned_run_are_recorded(uri):
    tracker = MlflowTracker(uri)
    tracker.start("search", {}, {})
    for pruned in (False, True):
        nested = tracker.nested()
        nested.start("search", {"pruned": pruned}, {})
        nested.finish(pruned=pruned)
    tracker.finish()
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("search").experiment_id])
    parent = next(run for run in runs if not run.data.params)
    nested_runs = {run.data.params["pruned"]: run for run in runs if run.data.params}
    assert {name: run.info.status for name, run in nested_runs.items()} == {"False": "FINISHED", "True": "KILLED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in nested_runs.values()} == {parent.info.run_id}
    assert "mlflow.parentRunId" not in parent.data.tags


def test_a_run_nested_in_an_unrecorded_run_is_not_recorded(uri):
    assert isinstance(MlflowTracker(uri).nested(), NullTracker)


def record_run(tracker, tmp_path):
    """Every call that a training makes."""
    (tmp_path / "file").write_text("x")
    tracker.start("toy", {"a": 1}, {"t": "x"})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.figure("learning_curve", learning_curve([{"epoch": 1.0, "loss": 2.0}]))
    tracker.artifact(tmp_path / "file")
    tracker.finish()


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "experiments.tracking.mlflow"]


@contextmanager
def broken_server(kind, uri, tmp_path):
    """The address of a tracking server that does not work."""
    if kind == "locked":
        holder = sqlite3.connect(tmp_path / "mlflow.db")
        holder.execute("BEGIN EXCLUSIVE")
        yield f"{uri}?timeout=0.2"  # SQLite waits for five seconds by default
        holder.close()
    elif kind == "no database":
        (tmp_path / "bad.db").write_bytes(b"these bytes are not a database" * 99)
        yield f"sqlite:///{tmp_path}/bad.db"
    elif kind == "no scheme":
        yield "nonsense://x"
    else:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            if kind == "silent":
                server.listen()  # accepts connections, never answers
            yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refused", "silent", "locked", "no database", "no scheme"])
def test_a_tracking_server_that_does_not_work_causes_one_warning(kind, uri, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with caplog.at_level(logging.WARNING), broken_server(kind, uri, tmp_path) as address:
        worker = threading.Thread(target=record_run, args=(MlflowTracker(address), tmp_path), daemon=True)
        worker.start()
        worker.join(30)
        assert not worker.is_alive()
    (message,) = warnings_of(caplog)
    assert message.startswith(f"tracking at {address.partition('?')[0]} failed (start: ")
    assert message.endswith("the run goes on untracked")
    assert ("no server answers there: start it, or correct MLFLOW_TRACKING_URI" in message) == (
        kind in ("refused", "silent")
    )
    assert not [record for record in caplog.records if record.name.startswith("urllib3")]


def test_a_database_that_breaks_during_a_run_causes_one_warning(uri, tmp_path, caplog):
    """A table is renamed. A locked database has the same effect, but MLflow waits 20 s for it, which is fixed."""
    tracker = MlflowTracker(uri)
    tracker.start("toy", {"a": 1}, {})
    tracker.metrics({"loss": 3.0}, 1)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("ALTER TABLE metrics RENAME TO renamed")
    with caplog.at_level(logging.WARNING):
        tracker.metrics({"loss": 2.0}, 2)
        connection.execute("ALTER TABLE renamed RENAME TO metrics")
        connection.close()
        tracker.metrics({"loss": 1.0}, 3)  # not recorded: a curve with a gap would mislead
        tracker.finish()
    (message,) = warnings_of(caplog)
    assert "(metrics: " in message
    client, run = run_of(uri, "toy")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1]


def test_no_database_is_opened_before_the_start(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    MlflowTracker()
    assert list(tmp_path.iterdir()) == []


def test_the_address_is_the_argument_else_the_environment_variable_else_the_default(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert MlflowTracker()._uri == "sqlite:///elsewhere.db"
    assert MlflowTracker("sqlite:///here.db")._uri == "sqlite:///here.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MlflowTracker()._uri == "sqlite:///mlflow.db"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_the_user_interface_lists_the_experiment_and_ends_with_the_command(number, status, uri, tmp_path):
    record_run(MlflowTracker(uri), tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from recsys.cli.main import main; main()"
    command = [sys.executable, "-c", code, "experiment", "ui", "--port", str(port)]
    environ = os.environ | {"MLFLOW_TRACKING_URI": uri}
    with (tmp_path / "output.txt").open("wb") as output:
        server = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=output, stderr=output)
    base = f"http://127.0.0.1:{port}"
    for _ in range(1000):
        assert server.poll() is None
        with contextlib.suppress(httpx.TransportError):
            assert "<title>MLflow</title>" in httpx.get(base).text
            break
        time.sleep(0.2)
    response = httpx.post(f"{base}/api/2.0/mlflow/experiments/search", json={"max_results": 10}, timeout=60).json()
    assert "toy" in [experiment["name"] for experiment in response["experiments"]]
    server.send_signal(number)
    assert server.wait(60) == status
    for _ in range(300):
        try:
            httpx.get(base)
        except httpx.ConnectError:
            break
        except httpx.TransportError:  # a worker that is ending
            pass
        time.sleep(0.2)
    else:
        raise AssertionError("MLflow is still running")
    assert "Warning" not in (tmp_path / "output.txt").read_text()


@pytest.mark.parametrize(
    ("uri", "error", "told"),
    [
        ("https://u:s3cret@host/mlflow", ConfigError, "a tracking server has its own page: open https://host/mlflow"),
        ("HTTP://u:s3cret@host", ConfigError, "open HTTP://host"),
        (
            "mysql://u:s3cret@host/db",
            FileError,
            "mysql://host/db cannot be opened: its driver is not installed (Module",
        ),
        ("foo://u:s3cret@host/x", FileError, "foo://host/x cannot be opened: "),
        ("postgresql://u:s3cret@host:port/x", FileError, "postgresql://… cannot be opened: "),
        ("FILE/below", FileError, "FILE/below cannot be opened: "),
    ],
)
def test_a_database_that_cannot_be_opened_is_told_before_the_page_starts(uri, error, told, tmp_path, monkeypatch):
    (tmp_path / "FILE").write_text("here")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        open_ui(5000, uri)
    assert told in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_null_tracker_records_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_run(NullTracker(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
