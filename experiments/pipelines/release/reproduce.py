"""A recorded training or evaluation, repeated from its record, and compared bit by bit."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from experiments.config import RunConfig
from experiments.dataset import load_dataset
from experiments.evaluation.outcomes import EVENT, read_outcomes
from experiments.pipelines.train import evaluate_run, train
from experiments.pipelines.warm_start import train_from
from experiments.tracking.mlflow import NullTracker
from experiments.tracking.progress import Reporter
from experiments.tracking.record import OUTCOMES
from experiments.tracking.recorded import RunArchive, find_run
from experiments.tracking.registry import FOLDER
from experiments.tracking.versions import code_version, environment
from features.errors import BundleError, ConfigError, DataError, describe_invalid
from features.files import working_folder
from recsys.bundle.formats import MANIFEST, read_manifest
from recsys.bundle.registry import find_bundle

PREFIX = "recsys-reproduce-"
"""Of the temporary folder."""

TABLES = "tables"
"""The part of a training that is its figures."""


@dataclass(frozen=True)
class Reproduction:
    """equal, different: names of the parts that are the same bit by bit, and of those that are not."""

    equal: list[str]
    different: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def reproduce(name: str, root: Path, archive: RunArchive, reporter: Reporter) -> Reproduction:
    """Repeat a run and compare. name: of a bundle below root, or of a run in MLflow (`recorded.find_run`).

    Of a training, the parts are the files of the bundle and the figures of its tables; of an evaluation, the ranks of
    each model in each placement. Nothing that is served changes. Raises DataError before the work, which names each
    part of data, code and libraries that is not the recorded one; and any error of a training.
    """
    try:
        folder = find_bundle(root, name)
    except (BundleError, OSError):
        run = find_run(archive, name, root)
    else:
        return _training(name, read_manifest(folder), root, reporter)
    manifests = [file for file in archive.files(run, FOLDER) if file.name == MANIFEST]
    if manifests:
        return _training(name, json.loads(manifests[0].read_text(encoding="utf-8")), root, reporter)
    files = archive.files(run, OUTCOMES)
    if len(files) == 1 and "config" in (facts := pl.read_parquet_metadata(files[0])):
        return _evaluation(name, facts, run.tags.get("rules"), files[0], reporter)
    raise DataError(
        f"{name}: the run {run.name!r} has written no bundle and is no evaluation: repeat the command that it was, "
        "such as `recsys experiment run FILE`"
    )


def _training(name: str, manifest: Mapping[str, Any], root: Path, reporter: Reporter) -> Reproduction:
    if manifest.get("decision"):
        raise DataError(f"{name}: a night trained it, first without the newest events: it cannot be repeated")
    config = _config(name, manifest["config"])
    _check(name, config, manifest, reporter)
    start = None if "from" not in manifest else str(find_bundle(root, manifest["from"]))
    with working_folder(Path(tempfile.gettempdir()), PREFIX) as folder:
        again = config.model_copy(update={"bundles": str(folder)})
        if start is None:
            path, _ = train(again, NullTracker(), reporter, publish=False)
        else:
            path, _ = train_from(again, start, NullTracker(), reporter, publish=False)
        found = read_manifest(path)
    digests = [
        {file: values["sha256"] for file, values in each["files"].items()} | {TABLES: _figures(each["metrics"])}
        for each in (manifest, found)
    ]
    return _compare(*digests)


def _evaluation(
    name: str, facts: Mapping[str, str], rules: str | None, recorded: Path, reporter: Reporter
) -> Reproduction:
    config = _config(name, json.loads(facts["config"]))
    _check(name, config, facts, reporter)
    with working_folder(Path(tempfile.gettempdir()), PREFIX) as folder:
        file = folder / "outcomes.parquet"
        evaluate_run(config, reporter, outcomes_file=file, rules_file=None if rules is None else Path(rules))
        return _compare(*(_ranks(path) for path in (recorded, file)))


def _compare(recorded: Mapping[str, object], found: Mapping[str, object]) -> Reproduction:
    names = sorted(recorded.keys() | found.keys())
    equal = [part for part in names if part in recorded and part in found and recorded[part] == found[part]]
    return Reproduction(equal, [part for part in names if part not in equal])


def _ranks(path: Path) -> dict[str, object]:
    """Model and placement -> its rows, as bytes."""
    groups = read_outcomes(path).sort("model", *EVENT).group_by("model", "placement", maintain_order=True)
    return {f"{model}, {placement}": part.write_csv() for (model, placement), part in groups}


def _figures(tables: list[dict[str, Any]]) -> object:
    """The tables without the seconds."""
    return [
        table
        | {"rows": [{key: value for key, value in row.items() if key != "fit_seconds"} for row in table["rows"]]}
        for table in tables
    ]


def _config(name: str, recorded: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(recorded)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, wrong.place))}: {wrong.reason}" for wrong in describe_invalid(error.errors()))
        raise ConfigError(f"{name}: its configuration is not valid in this version: {'; '.join(lines)}") from None


def _check(name: str, config: RunConfig, recorded: Mapping[str, Any], reporter: Reporter) -> None:
    """Raise DataError where data, code or libraries are not the recorded ones. Version 0.2 recorded no libraries."""
    now = {"code_version": code_version(), "data_hash": load_dataset(config, reporter.steps).hash}
    then = {key: str(recorded[key]) for key in now}
    if libraries := recorded.get("environment"):
        now |= environment()
        then |= libraries
    different = [
        f"{WORDS.get(key, key)} {then.get(key, 'none')} then, {now.get(key, 'none')} now"
        for key in dict.fromkeys([*then, *now])
        if then.get(key) != now.get(key)
    ]
    if different:
        raise DataError(f"{name} cannot be repeated here: {'; '.join(different)}")


WORDS = {
    "code_version": "version of the code",
    "data_hash": "data",
    "threads": "threads (OMP_NUM_THREADS)",
}
"""What a recorded fact is called in messages, where its key does not say it."""
