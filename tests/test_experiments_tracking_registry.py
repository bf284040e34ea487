"""Runs and bundles in a real MLflow: artefacts, versions, aliases, what is found again, comparisons by name."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from toy_data import Lines, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.evaluation.outcomes import compare_outcomes
from experiments.pipelines.train import evaluate_run, train
from experiments.tracking.mlflow import MlflowTracker, champion
from experiments.tracking.recorded import RunArchive, find_run, outcomes_of
from features.errors import DataError, FileError
from recsys.bundle.registry import current_bundle, publish_bundle
from recsys.cli.main import app

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy",  # SQLAlchemy 2.1 warns about queries of MLflow
    "ignore::ResourceWarning",  # MLflow leaves its SQLite connections to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

QUICK: dict[str, object] = {
    "reranker": None,
    "baselines": {"popular": {}},
    "training": {"epochs": 1, "batch_events": 256},
}


def read(**sections: object) -> Any:
    return load_config(toy_config(Path(), **{**QUICK, **sections}), {})


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tracked bundles, the first published, the second not, and an evaluation."""
    folder, back = tmp_path_factory.mktemp("project"), Path.cwd()
    shutil.copy(template, folder / "mlflow.db")
    os.chdir(folder)
    try:
        write_tables(Path("data"))
        for seed in (0, 1):
            train(read(seed=seed), MlflowTracker("sqlite:///mlflow.db"), Lines(), publish=seed == 0)
        evaluate_run(read(seed=2), Lines(), tracker=MlflowTracker("sqlite:///mlflow.db"))
    finally:
        os.chdir(back)
    return folder


@pytest.fixture
def copied(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project in another place, which is the working folder."""
    new = tmp_path / "new place"
    shutil.copytree(project, new, symlinks=True)
    monkeypatch.chdir(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/mlflow.db")  # MLflow keeps connections by address
    return new


def bundles() -> tuple[Path, Path]:
    """The published bundle, and the other one."""
    first = current_bundle(Path("bundles")).name
    (second,) = (path.name for path in Path("bundles").glob("*/") if path.name not in (first, "current"))
    return Path("bundles") / first, Path("bundles") / second


def aliases() -> dict[str, str]:
    """Alias -> fingerprint."""
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    return {
        alias: client.get_model_version(model.name, version).tags["fingerprint"]
        for model in client.search_registered_models()
        for alias, version in model.aliases.items()
    }


def test_runs_say_what_they_are_and_what_they_depend_on(copied: Path) -> None:
    archive = RunArchive()
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(name.split()[0] for name in names) == ["evaluate", "train", "train"]
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "home_two_towers.ndcg_at_10"
    published, _ = bundles()
    manifest = json.loads((published / "manifest.json").read_text())
    (run,) = archive.find("tags.bundle", published.name)
    assert (run.tags["bundles"], run.tags["data_hash"]) == ("bundles", manifest["data_hash"])
    assert run.tags["code_version"] == manifest["code_version"]
    assert run.tags["split_hash"] == manifest["split_hash"]
    artefacts = {file.path for file in client.list_artifacts(run.id)}
    assert artefacts >= {"bundle", "outcomes", "tables.txt", "tables.json", "learning_curve.png"}
    # the bundle itself is not copied
    assert [file.path for file in client.list_artifacts(run.id, "bundle")] == ["bundle/manifest.json"]
    (name,) = (name for name in names if name.startswith("evaluate"))
    evaluation = find_run(archive, name, Path("bundles"))
    found = client.get_run(evaluation.id).data
    assert {"home_two_towers.ndcg_at_10", "again_popular.hr_at_10"} <= set(found.metrics)
    assert found.params["towers.dimension"] == "8"
    assert len(found.tags["split_hash"].split(", ")) == 2  # of two placements
    artefacts = {file.path for file in client.list_artifacts(evaluation.id)}
    assert artefacts == {"outcomes", "tables.txt", "tables.json", "popularity_bias.png", "ndcg_by_history_length.png"}


def test_every_bundle_has_a_version_and_aliases_say_which_is_served(copied: Path) -> None:
    published, other = bundles()
    assert aliases() == {"champion": published.name, "challenger": other.name}
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    version = client.get_model_version_by_alias("toy", "champion")
    assert version.source == f"runs:/{version.run_id}/bundle"
    assert {"data_hash", "split_hash", "code_version", "seed", "fingerprint", "bundles"} <= set(version.tags)
    train(read(seed=0), MlflowTracker(), Lines())  # the same bundle again: the same version
    train(read(seed=0), MlflowTracker(), Lines(), publish=False)  # it is current all the same
    assert len(client.search_model_versions("name = 'toy'")) == 2
    assert aliases() == {"champion": published.name, "challenger": other.name}


def test_the_champion_follows_what_is_published(copied: Path) -> None:
    published, other = bundles()
    done = CliRunner().invoke(app, ["bundle", "publish", other.name], catch_exceptions=False)
    assert done.exit_code == 0
    assert aliases() == {"champion": other.name}
    # a bundle of another configuration in the same folder
    train(read(name="a/b", seed=5), MlflowTracker(), Lines())
    assert aliases() == {"champion": current_bundle(Path("bundles")).name}
    champion(published.absolute(), {"why": "x" * 9000})
    assert aliases() == {"champion": published.name}
    version = MlflowClient(f"sqlite:///{copied}/mlflow.db").get_model_version_by_alias("toy", "champion")
    assert len(version.tags["why"]) == 5000
    unknown = Path("bundles") / ("0" * 16)
    champion(unknown)  # was never tracked
    assert aliases() == {}


def test_artefacts_are_found_again_in_a_folder_that_was_copied(copied: Path, project: Path) -> None:
    published, _ = bundles()
    file = outcomes_of(RunArchive(), published.name[:8], Path("bundles"))
    assert file.is_relative_to(copied)
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    version = client.get_model_version_by_alias("toy", "champion")
    assert client.get_run(version.run_id).info.artifact_uri.startswith(f"{copied}/mlruns/")
    manifest = client.download_artifacts(version.run_id, "bundle/manifest.json")
    assert json.loads(Path(manifest).read_text())["fingerprint"] == published.name


def test_runs_and_bundles_are_compared_by_name(copied: Path) -> None:
    published, other = bundles()
    (run,) = RunArchive().find("tags.bundle", other.name)
    command = ["experiment", "compare", "current", run.id, "--json"]
    found = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    files = [outcomes_of(RunArchive(), each.name, Path("bundles")) for each in (published, other)]
    assert found == json.loads(json.dumps(compare_outcomes(*files).to_dict()))
    assert {row["model"] for row in found["rows"]} == {"popular", "two towers"}
    row = next(row for row in found["rows"] if row["model"] == "popular")
    assert row["ndcg_at_10_change"] == {"mean": 0, "low": 0, "high": 0}  # the baseline does not depend on the seed
    (evaluation,) = RunArchive().find("tags.seed", "2")
    named = ["experiment", "compare", evaluation.name, str(files[0]), "--model", "popular"]
    assert "popular" in CliRunner().invoke(app, named, catch_exceptions=False).stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"'nothing' is no run in MLflow, by id or name .* and no bundle in bundles"),
        ("it's", r"\"it's\" is no run in MLflow"),
        ("two", r"2 runs have the name 'two': give the id of one: \w+, \d{4}-"),
        ("seeds", r"seeds: the run 'seeds' has a file for each seed: give one of them: .*a\.parquet, .*b\.parquet"),
        ("empty", r"empty: the run 'empty' has not recorded the ranks of its events: `recsys evaluate"),
    ],
)
def test_what_cannot_be_compared_is_refused(copied: Path, name: str, message: str) -> None:
    for run, files in (("two", ()), ("two", ()), ("seeds", ("a", "b")), ("empty", ())):
        tracker = MlflowTracker()
        tracker.start("other", {}, {"mlflow.runName": run})
        for seed in files:
            Path(f"{seed}.parquet").write_bytes(b"x")
            tracker.artifact(Path(f"{seed}.parquet"), f"outcomes/seed-{seed}")
        tracker.finish()
    with pytest.raises(DataError, match=message):
        outcomes_of(RunArchive(), name, Path("bundles"))


def test_a_bundle_that_was_not_tracked_is_named(copied: Path) -> None:
    shutil.copytree("bundles", "others", symlinks=True)
    path, _ = train(read(seed=7, bundles="others"), MlflowTracker(f"sqlite:///{copied}/else.db"), Lines())
    with pytest.raises(DataError, match=rf"others/{path.name}: no run in MLflow has written it"):
        outcomes_of(RunArchive(), "current", Path("others"))


def test_without_a_tracked_run_nothing_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    publish_bundle(tmp_path / "abc")
    champion(tmp_path / "abc")
    assert RunArchive().find("attributes.run_name", "x") == []
    with pytest.raises(DataError, match="'x' is no run in MLflow"):
        find_run(RunArchive(), "x", tmp_path / "none")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_damaged_database_stops_a_search_and_not_a_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"these bytes are not a database" * 99)
    with pytest.raises(FileError, match=r"mlflow\.db: "):
        RunArchive("sqlite:///mlflow.db").find("attributes.run_name", "x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with caplog.at_level(logging.WARNING):
        champion(tmp_path / "abc")
    (message,) = (record.getMessage() for record in caplog.records)
    assert re.match(r"the alias champion was not moved at sqlite:///mlflow\.db \(", message)
    with pytest.raises(FileError, match=r"^http://127\.0\.0\.1:9: the tracked runs cannot be read: no server"):
        RunArchive("http://127.0.0.1:9").find("attributes.run_name", "x")
