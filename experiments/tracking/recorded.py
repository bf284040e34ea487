"""What was recorded: runs in MLflow by their id, name or bundle, with their files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from experiments.tracking.database import opened, reason
from experiments.tracking.mlflow import connect, nothing_tracked, tracking_uri
from experiments.tracking.record import OUTCOMES
from features.errors import BundleError, DataError, FileError, RecsysError, describe_os_error, describe_url
from recsys.bundle.registry import find_bundle


@dataclass(frozen=True)
class RecordedRun:
    """A run that was tracked. started: in UTC; tags: all that it has; artifacts: address of its files."""

    id: str
    name: str
    started: datetime
    tags: Mapping[str, str]
    artifacts: str


class RunArchive:
    """Reads runs that were tracked."""

    def __init__(self, uri: str | None = None) -> None:
        """No connection is opened before the first search."""
        self._uri = tracking_uri(uri)
        self._client: Any = None

    def find(self, condition: str, value: str) -> list[RecordedRun]:
        """The runs of all experiments with a value, the newest first; none where nothing was ever tracked.

        condition: what has the value, in MLflow's words: attributes.run_id, attributes.run_name, tags.bundle. Raises
        FileError where the runs cannot be read.
        """
        if nothing_tracked(self._uri):
            return []
        return cast(list[RecordedRun], self._read(lambda: self._find(condition, value)))

    def files(self, run: RecordedRun, folder: str) -> list[Path]:
        """The artefacts of a run below a folder, on this machine, by name. Raises FileError."""

        def download() -> list[Path]:
            client = self._connected()
            if not client.list_artifacts(run.id, folder):
                return []
            if run.artifacts.startswith("/"):
                at = Path(run.artifacts) / folder
            elif run.artifacts.startswith("file:"):
                at = Path(unquote(urlsplit(run.artifacts).path)) / folder
            else:
                at = Path(client.download_artifacts(run.id, folder))
            return sorted(path for path in at.rglob("*") if path.is_file())

        return cast(list[Path], self._read(download))

    def _find(self, condition: str, value: str) -> list[RecordedRun]:
        client = self._connected()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        quote = '"' if "'" in value else "'"
        found = client.search_runs(
            experiments, f"{condition} = {quote}{value}{quote}", order_by=["attributes.start_time DESC"]
        )
        return [
            RecordedRun(
                run.info.run_id,
                run.info.run_name,
                datetime.fromtimestamp(run.info.start_time / 1000, UTC),
                run.data.tags,
                run.info.artifact_uri,
            )
            for run in found
        ]

    def _connected(self) -> Any:
        if self._client is None:
            with opened(self._uri, connect) as client:
                self._client = client
        return self._client

    def _read(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RecsysError:
            raise
        except Exception as error:  # of MLflow, SQLAlchemy or the network
            place = describe_url(self._uri)
            cause = reason(error).strip().replace(self._uri, place)
            raise FileError(f"{place}: the tracked runs cannot be read: {cause}") from error


def find_run(archive: RunArchive, name: str, root: Path) -> RecordedRun:
    """The run with this id or name, or the newest one that wrote the bundle of this name (a fingerprint, a prefix of
    it, or `current`) below root.

    Raises DataError where there is none, or where several runs have the name.
    """
    for condition in ("attributes.run_id", "attributes.run_name"):
        found = archive.find(condition, name)
        if len(found) > 1:
            listed = "; ".join(f"{run.id}, {run.started:%Y-%m-%d %H:%M:%S}" for run in found[:10])
            raise DataError(f"{len(found)} runs have the name {name!r}: give the id of one: {listed}")
        if found:
            return found[0]
    try:
        bundle = find_bundle(root, name)
    except (BundleError, OSError) as error:
        why = str(error) if isinstance(error, BundleError) else describe_os_error(error)
        raise DataError(
            f"{name!r} is no run in MLflow, by id or name (`recsys experiment ui` shows them), and no bundle in "
            f"{root} (`recsys bundle list` shows them): {why}"
        ) from None
    found = archive.find("tags.bundle", bundle.name)
    if not found:
        raise DataError(f"{bundle}: no run in MLflow has written it: it was trained with --no-track, or elsewhere")
    return found[0]


def outcomes_of(archive: RunArchive, name: str, root: Path) -> Path:
    """The file with the ranks of all events: a file itself, or that of a run or bundle, see `find_run`.

    Raises DataError where there is none, or several.
    """
    if Path(name).is_file():
        return Path(name)
    run = find_run(archive, name, root)
    files = archive.files(run, OUTCOMES)
    if not files:
        raise DataError(
            f"{name}: the run {run.name!r} has not recorded the ranks of its events: "
            "`recsys evaluate CONFIG --outcomes FILE` writes them"
        )
    if len(files) > 1:
        listed = ", ".join(map(str, files))
        raise DataError(f"{name}: the run {run.name!r} has a file for each seed: give one of them: {listed}")
    return files[0]
