"""Experiment tracking: MLflow behind a small Protocol. The only file that imports mlflow."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

DEFAULT_URI = "sqlite:///mlflow.db"


class Tracker(Protocol):
    """Where a run is recorded."""

    def start(self, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begin a run; nested parameters are flattened with dots."""
        ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures; names as MLflow takes them: ndcg_at_10."""
        ...

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or a folder with all in it."""
        ...

    def figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure as name.png."""
        ...

    def nested(self) -> "Tracker":
        """For a run inside this one."""
        ...

    def finish(self, failed: bool = False, pruned: bool = False) -> None:
        """End the run; pruned: it promised too little to go on with."""
        ...


class NullTracker:
    """Records nothing."""

    def start(self, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Nothing."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Nothing."""

    def figure(self, name: str, figure: Any) -> None:
        """Nothing."""

    def nested(self) -> Tracker:
        """Nothing either."""
        return self

    def finish(self, failed: bool = False, pruned: bool = False) -> None:
        """Nothing."""


class MlflowTracker:
    """MLflow at MLFLOW_TRACKING_URI, or an SQLite file here. Its being down or locked never fails a training.

    The first call that fails is logged as a warning that names it, and nothing more is recorded of the run.
    """

    def __init__(self, uri: str | None = None, parent: str = "") -> None:
        """Nothing is opened before `start`. parent: the run that this one lies in."""
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self._client: Any = None
        self._run = ""
        self._within = {"mlflow.parentRunId": parent} if parent else {}

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: a training goes on
            logger.warning("tracking at %s failed (%s: %s); the run goes on untracked", self._uri, what, error)
            self._client = None
            return None

    def start(self, experiment: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begin a run."""

        def begin() -> None:
            # MLflow's own defaults would retry a dead server for minutes
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
            from mlflow import MlflowClient
            from mlflow.entities import Param

            client = MlflowClient(self._uri)
            found = client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else client.create_experiment(experiment)
            self._run = client.create_run(number, tags={**tags, **self._within}).info.run_id
            flat = [Param(key, str(value)[:6000]) for key, value in _flatten(parameters).items()]
            for at in range(0, len(flat), 100):
                client.log_batch(self._run, params=flat[at : at + 100])
            self._client = client

        self._try("start", begin)

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

        self._try("metrics", log)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or folder."""
        if self._client is not None:
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            self._try("artifact", lambda: log(self._run, str(path), folder))

    def figure(self, name: str, figure: Any) -> None:
        """Keep a figure."""
        if self._client is not None:
            client = self._client
            self._try("figure", lambda: client.log_figure(self._run, figure, f"{name}.png"))

    def nested(self) -> Tracker:
        """For a run inside this one; of a run that is not recorded none is."""
        return NullTracker() if self._client is None else MlflowTracker(self._uri, parent=self._run)

    def finish(self, failed: bool = False, pruned: bool = False) -> None:
        """End the run; MLflow's word for a pruned one is KILLED."""
        if self._client is not None:
            client, status = self._client, "FAILED" if failed else "KILLED" if pruned else "FINISHED"
            self._try("finish", lambda: client.set_terminated(self._run, status))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}".replace(" ", "_")] = value
    return out


def open_ui(port: int, uri: str | None = None) -> int:
    """Run MLflow's own page on loopback until it is stopped; returns its exit status."""
    import subprocess
    import sys

    where = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    return subprocess.call(
        [
            sys.executable,
            "-m",
            "mlflow",
            "ui",
            "--backend-store-uri",
            where,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
    )
