"""A training and an evaluation repeated from their record: equal, different, or refused with what differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from toy_data import START, Lines, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.pipelines.release import reproduce as module
from experiments.pipelines.release.reproduce import reproduce
from experiments.pipelines.train import evaluate_run, train
from experiments.pipelines.warm_start import train_from
from experiments.tracking.mlflow import MlflowTracker, NullTracker
from experiments.tracking.recorded import RunArchive
from experiments.tracking.versions import LIBRARIES, environment
from features.errors import ConfigError, DataError
from features.log.event_log import EventLog
from features.log.records import Event
from recsys.bundle.formats import checksum_of, read_manifest
from recsys.bundle.registry import current_bundle
from recsys.cli.main import app

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy",  # SQLAlchemy 2.1 warns about queries of MLflow
    "ignore::ResourceWarning",  # MLflow leaves its SQLite connections to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def read(**sections: object) -> Any:
    settings: dict[str, object] = {"baselines": {"popular": {}}, "training": {"epochs": 1, "batch_events": 256}}
    return load_config(toy_config(Path(), **{**settings, **sections}), {})


@pytest.fixture
def folder(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with tables and an empty MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    write_tables(tmp_path / "data")
    return tmp_path


def again(name: str) -> module.Reproduction:
    return reproduce(name, Path("bundles"), RunArchive(), Lines())


def test_a_training_is_repeated_bit_by_bit(folder: Path) -> None:
    path, _ = train(read(), MlflowTracker(), Lines())
    files = sorted([*read_manifest(path)["files"], "tables"])
    (run,) = RunArchive().find("tags.bundle", path.name)
    command = ["experiment", "reproduce", run.id, "--json"]
    found = CliRunner().invoke(app, command, catch_exceptions=False)
    assert (found.exit_code, json.loads(found.stdout)) == (0, {"equal": files, "different": []})
    assert sorted(entry.name for entry in Path("bundles").glob("[!.]*")) == sorted(
        [path.name, "current", "published.jsonl"]
    )
    # the bundle itself may be gone
    shutil.rmtree("bundles")
    assert again(run.name).equal == files


def test_the_parts_that_differ_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = train(read(), NullTracker(), Lines())

    def otherwise(config: Any, *rest: Any, **more: Any) -> Any:
        return train(config.changed({"training.learning_rate": 0.02}), *rest, **more)

    monkeypatch.setattr(module, "train", otherwise)
    found = again(path.name[:6])
    assert {"items.parquet", "trained_events.npy"} <= set(found.equal)
    assert {"towers.safetensors", "vectors.npy", "tables"} <= set(found.different)
    assert CliRunner().invoke(app, ["experiment", "reproduce", "current"]).exit_code == 3


def test_a_continued_training_is_repeated(folder: Path) -> None:
    train(read(), NullTracker(), Lines())
    log = EventLog(Path("log"))
    log.append_now(
        [
            Event(user_id=f"u{n}", item_id="i7", event="take", timestamp=START + 10**13 + n, event_id=str(n))
            for n in range(40)
        ]
    )
    log.close()
    path, _ = train_from(read(), "current", NullTracker(), Lines())
    assert "from" in read_manifest(path)
    found = again("current")
    assert found.different == []
    assert "towers.safetensors" in found.equal


def test_data_code_and_libraries_that_are_others_are_refused_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = train(read(), NullTracker(), Lines())
    manifest = read_manifest(path)
    monkeypatch.setattr(module, "train", None)  # is not called
    monkeypatch.setattr(module, "code_version", lambda: "0.9+abc")
    libraries = environment() | {"threads": "7", "new": "1"}
    del libraries["numpy"]
    monkeypatch.setattr(module, "environment", lambda: libraries)
    write_tables(Path("data"), n_users=41)
    with pytest.raises(DataError) as caught:
        again("current")
    text = str(caught.value)
    assert text.startswith(
        f"current cannot be repeated here: version of the code {manifest['code_version']} then, 0.9+abc now; "
        f"data {manifest['data_hash']} then, "
    )
    for part in (
        f"numpy {manifest['environment']['numpy']} then, none now",
        f"threads (OMP_NUM_THREADS) {manifest['environment']['threads']} then, 7 now",
        "new none then, 1 now",
    ):
        assert part in text
    Path("data/events.csv").unlink()
    with pytest.raises(Exception, match=r"events"):
        again("current")


def reseal(path: Path, **values: Any) -> None:
    manifest = read_manifest(path) | values
    manifest["checksum"] = checksum_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_of_a_night_and_one_of_other_settings_are_refused(folder: Path) -> None:
    train(read(), NullTracker(), Lines())
    path = current_bundle(Path("bundles"))
    config = read_manifest(path)["config"]
    reseal(path, decision={"publish": True})
    with pytest.raises(DataError, match="current: a night trained it, first without the newest events"):
        again("current")
    reseal(path, decision=None, config=config | {"unknown": 1})
    with pytest.raises(ConfigError, match=r"current: its configuration is not valid in this version: unknown"):
        again("current")


def test_an_evaluation_is_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_run(read(reranker=None), Lines(), tracker=MlflowTracker())
    (run,) = RunArchive().find("tags.seed", "0")
    parts = ["popular, again", "popular, home", "two towers, again", "two towers, home"]
    assert again(run.name) == module.Reproduction(parts, [])
    (file,) = RunArchive().files(run, "outcomes")
    changed = pl.col("rank") + ((pl.col("model") == "popular") & (pl.col("placement") == "home"))
    facts = pl.read_parquet_metadata(file)
    pl.read_parquet(file).with_columns(changed).write_parquet(file, metadata=dict(facts))
    assert again(run.id) == module.Reproduction([parts[0], *parts[2:]], ["popular, home"])


def test_another_run_cannot_be_repeated(folder: Path) -> None:
    tracker = MlflowTracker()
    tracker.start("toy tune", {}, {"mlflow.runName": "tune"})
    tracker.finish()
    with pytest.raises(DataError, match="tune: the run 'tune' has written no bundle and is no evaluation"):
        again("tune")


def test_the_environment_names_what_changes_bits() -> None:
    found = environment()
    assert set(found) - set(LIBRARIES) == {"python", "machine", "device", "threads"}
    assert {"torch", "numpy", "polars", "scipy", "lightgbm"} <= set(found)
    assert found["threads"].isdecimal()
