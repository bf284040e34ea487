"""Experiment tracking: MLflow behind a small Protocol. The only file that imports mlflow."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from experiments.tracking.database import opened, reason, sqlite_file
from experiments.tracking.registry import move_champion, register
from features.child_process import child_command
from features.errors import ConfigError, FileError, RecsysError, describe_url, missing_package

logger = logging.getLogger(__name__)

DEFAULT_URI = "sqlite:///mlflow.db"

HEADLINE = "mlflow.experiment.primaryMetric.name"
"""Tag of an experiment with the metric that MLflow's page draws first."""


class Tracker(Protocol):
    """Where a run is recorded."""

    def start(self, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Start a run. Nested parameters are flattened: the keys are joined by dots."""
        ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures. Names use only characters that MLflow accepts, e.g. ndcg_at_10."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        ...

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder with everything in it."""
        ...

    def figure(self, name: str, figure: Any) -> None:
        """Store a matplotlib figure as `name`.png."""
        ...

    def text(self, name: str, content: str) -> None:
        """Store a text as a file."""
        ...

    def headline(self, metric: str) -> None:
        """Name the metric that pages show first for the runs of this experiment."""
        ...

    def bundle(self, folder: Path, *, current: bool) -> None:
        """Register a bundle that this run has written; current: whether it is published."""
        ...

    def nested(self) -> "Tracker":
        """A tracker for a run nested in this one."""
        ...

    def finish(self, failed: bool = False, pruned: bool = False) -> None:
        """End the run. pruned: a search stopped the trial early, because its figures were low."""
        ...


class NullTracker:
    """A tracker that records nothing."""

    def start(self, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Does nothing."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Does nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Does nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Does nothing."""

    def figure(self, name: str, figure: Any) -> None:
        """Does nothing."""

    def text(self, name: str, content: str) -> None:
        """Does nothing."""

    def headline(self, metric: str) -> None:
        """Does nothing."""

    def bundle(self, folder: Path, *, current: bool) -> None:
        """Does nothing."""

    def nested(self) -> Tracker:
        """This tracker."""
        return self

    def finish(self, failed: bool = False, pruned: bool = False) -> None:
        """Does nothing."""


class MlflowTracker:
    """Records in MLflow at MLFLOW_TRACKING_URI, or without it in the SQLite file DEFAULT_URI.

    A SQLite file is created by `tracking.database`, which an interrupted run does not damage.

    A tracking server that is down, or a database that is locked, does not fail a training: the first call that fails
    is logged as a warning, and nothing more of the run is recorded.
    """

    def __init__(self, uri: str | None = None, parent: str = "") -> None:
        """parent: id of the run that this one is nested in. No connection is opened before `start`."""
        self._uri = tracking_uri(uri)
        self._client: Any = None
        self._run = self._name = self._experiment = ""
        self._parent_tags = {"mlflow.parentRunId": parent} if parent else {}

    def _attempt(self, action: str, call: Callable[[], Any]) -> Any:
        """Result of the call. When it raises, tracking ends with one warning, and the result is None."""
        try:
            return call()
        except Exception as error:  # of MLflow, SQLAlchemy or the network: none may fail a training
            place = describe_url(self._uri)
            cause = reason(error).replace(self._uri, place)
            logger.warning("tracking at %s failed (%s: %s); the run goes on untracked", place, action, cause)
            self._client = None
            return None

    def start(self, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Start a run."""

        def open_run() -> None:
            if find_spec("mlflow") is None:
                raise missing_package("tracking", "mlflow", "track")
            from mlflow.entities import Param

            with opened(self._uri, connect) as client:
                existing = client.get_experiment_by_name(experiment)
                found = existing.experiment_id if existing else client.create_experiment(experiment)
                self._name, self._experiment = experiment, found
                self._run = client.create_run(found, tags={**tags, **self._parent_tags}).info.run_id
            flat = [Param(key, str(value)[:6000]) for key, value in _flatten(parameters).items()]
            for start in range(0, len(flat), 100):  # MLflow accepts at most 100 parameters a call
                client.log_batch(self._run, params=flat[start : start + 100])
            self._client = client

        self._attempt("start", open_run)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures."""
        if self._client is None:
            return
        client = self._client

        def log() -> None:
            import time

            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            client.log_batch(self._run, metrics=[Metric(k, float(v), now, step or 0) for k, v in values.items()])

        self._attempt("metrics", log)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        if self._client is None:
            return
        client = self._client

        def log() -> None:
            from mlflow.entities import RunTag

            client.log_batch(self._run, tags=[RunTag(key, value[:5000]) for key, value in values.items()])

        self._attempt("tags", log)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or folder."""
        if self._client is not None:
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            self._attempt("artifact", lambda: log(self._run, str(path), folder))

    def figure(self, name: str, figure: Any) -> None:
        """Store a figure."""
        if self._client is not None:
            client = self._client
            self._attempt("figure", lambda: client.log_figure(self._run, figure, f"{name}.png"))

    def text(self, name: str, content: str) -> None:
        """Store a text as a file."""
        if self._client is not None:
            client = self._client
            self._attempt("text", lambda: client.log_text(self._run, content, name))

    def headline(self, metric: str) -> None:
        """Name the metric of the experiment whose chart MLflow's page draws first."""
        if self._client is not None:
            client = self._client
            self._attempt("headline", lambda: client.set_experiment_tag(self._experiment, HEADLINE, metric))

    def bundle(self, folder: Path, *, current: bool) -> None:
        """Store the manifest of a bundle, and register it as a version of the model that has the experiment's name.

        The files of the bundle are not copied: the tags `bundle` and `bundles` say where it is.
        """
        if self._client is not None:
            client = self._client
            self._attempt("bundle", lambda: register(client, self._run, self._name, folder, current=current))

    def nested(self) -> Tracker:
        """A tracker for a run nested in this one; it records nothing when this run is not recorded."""
        return NullTracker() if self._client is None else MlflowTracker(self._uri, parent=self._run)

    def finish(self, failed: bool = False, pruned: bool = False) -> None:
        """End the run. A pruned run has the MLflow status KILLED."""
        if self._client is not None:
            client, status = self._client, "FAILED" if failed else "KILLED" if pruned else "FINISHED"
            self._attempt("finish", lambda: client.set_terminated(self._run, status))


def tracking_uri(uri: str | None = None) -> str:
    """Where runs are recorded: the given address, that of the environment, or the file of the working folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def champion(bundle: Path, facts: Mapping[str, str] | None = None) -> None:
    """Move the alias `champion` to a bundle that was published by another command than a training.

    facts: tags of its version: who did it and why. Nothing happens where no run was ever tracked. A failure is
    logged as a warning: what is served does not depend on MLflow.
    """
    uri = tracking_uri()
    if nothing_tracked(uri):
        return
    try:
        with opened(uri, connect) as client:
            move_champion(client, bundle, facts)
    except Exception as error:  # of MLflow, SQLAlchemy or the network: the bundle is published all the same
        place = describe_url(uri)
        cause = reason(error).replace(uri, place)
        logger.warning("the alias champion was not moved at %s (%s)", place, cause)


def nothing_tracked(uri: str) -> bool:
    """Whether no run can be there: MLflow is not installed, or its file does not exist."""
    file = sqlite_file(uri)
    return find_spec("mlflow") is None or (file is not None and not file.exists())


def connect(uri: str) -> Any:
    """A client of MLflow. In a database it creates the tables where they are missing."""
    # with MLflow's defaults, a dead server is retried for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    # it logs each retry with the whole URL, which may hold a password
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}".replace(" ", "_")] = value
    return out


def open_ui(port: int, uri: str | None = None) -> int:
    """Run the MLflow user interface on loopback until it is stopped; returns the exit status: 0 after Ctrl-C, else 1.

    However this process ends, MLflow and its workers end too. Raises SystemExit(143) at SIGTERM, DependencyError
    where MLflow is not installed, ConfigError for the address of a tracking server, and FileError or OSError where
    the database cannot be opened.
    """
    if find_spec("mlflow") is None:
        raise missing_package("the page of tracked runs", "mlflow", "track")
    backend = tracking_uri(uri)
    place = describe_url(backend)
    if backend.lower().startswith(("http://", "https://")):
        raise ConfigError(f"MLFLOW_TRACKING_URI: a tracking server has its own page: open {place}")
    try:
        with opened(backend, connect):  # creates the database: MLflow's workers would do it side by side
            pass
    except (RecsysError, OSError):
        raise
    except Exception as error:  # of MLflow, Alembic or SQLAlchemy
        cause = reason(error).strip().replace(backend, place)
        raise FileError(f"{place} cannot be opened: {cause}; correct MLFLOW_TRACKING_URI") from error
    program = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", backend]
    program += ["--host", "127.0.0.1", "--port", str(port)]

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    # a session of its own: Ctrl-C reaches this process alone, and the group has all processes that MLflow starts
    server = subprocess.Popen(
        child_command(program, signal.SIGTERM),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        env=_ui_environment(),
    )
    try:
        server.wait()
        return 1  # nobody stopped it; MLflow's own status is 0 even then
    except KeyboardInterrupt:
        return 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _ui_environment() -> dict[str, str]:
    """Environment of MLflow's page: no processes for jobs, which no run has, and no warning of each worker."""
    quiet = "ignore:starlette.middleware.wsgi is deprecated"
    warnings = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), quiet)))
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, "PYTHONWARNINGS": warnings}
