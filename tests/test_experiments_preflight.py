"""What a run will need is tried before it starts: one line that names place, reason and remedy, and no training."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from toy_data import Lines, toy_config, write_tables

from experiments.config import load_config
from experiments.dataset import embed_catalog
from experiments.evaluation.outcomes import SCHEMA
from experiments.pipelines.batch_slates import write_slates
from experiments.pipelines.train import evaluate_run, train
from experiments.pipelines.tune import tune
from experiments.pipelines.warm_start import train_from
from experiments.preflight import check_log, preflight
from experiments.tracking.mlflow import NullTracker
from features.errors import BundleError, ConfigError, FileError, LogError, RecsysError
from features.files import check_writable, put_file
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import current_bundle, publish_bundle
from recsys.cli.options import bundles_folder


@pytest.fixture
def folder(tmp_path):
    write_tables(tmp_path / "data")
    return tmp_path


def config_of(folder, **sections):
    return load_config(toy_config(folder, **sections), {})


RUNS = {
    "train": lambda config: train(config, NullTracker(), Lines()),
    "warm start": lambda config: train_from(config, "current", NullTracker(), Lines()),
    "tune": lambda config: tune(config, NullTracker(), Lines(), trials=1),
    "evaluate": lambda config: evaluate_run(config, Lines()),
    "embed": embed_catalog,
}
WITH_ENCODER = {"encoder": {"kind": "builtin"}}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("place", "needed_by"),
    [("bundles", {"train", "warm start"}), ("cache", set(RUNS)), ("log", set(RUNS))],
)
@pytest.mark.parametrize("obstacle", ["a file", "below a file"])
def test_a_place_that_cannot_be_used_stops_a_run_before_the_tables_are_read(
    folder, monkeypatch, run, place, needed_by, obstacle
):
    if place == "log" and obstacle == "below a file":
        return  # no log is there: an empty log
    monkeypatch.setattr("experiments.dataset.read_tables", _too_late)
    monkeypatch.setattr("experiments.dataset.read_items", _too_late)
    (folder / "file").write_text("here")
    path = str(folder / "file" if obstacle == "a file" else folder / "file" / "deeper")
    sections = WITH_ENCODER | ({place: path} if place != "log" else {})
    config = config_of(folder, **sections)
    if place == "log":
        config = config.model_copy(update={"data": config.data.model_copy(update={"log": path})})
    expected = LogError if place == "log" else FileError
    if run in needed_by:
        with pytest.raises(expected) as caught:
            RUNS[run](config)
        assert path in str(caught.value)
        assert place in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        with pytest.raises(TooLateError):
            RUNS[run](config)


class TooLateError(RecsysError):
    """The tables are read: the check before is over."""


def _too_late(*args, **options):
    raise TooLateError


def test_a_run_without_an_encoder_needs_no_cache(folder):
    (folder / "cache").write_text("here")
    preflight(config_of(folder), bundles=True)
    with pytest.raises(
        FileError,
        match=r"cache, the folder of encoded contents and chosen settings, cannot be .*a file stands",
    ):
        preflight(config_of(folder), cache=True)


def test_the_file_of_outcomes_is_tried(folder):
    config = config_of(folder)
    with pytest.raises(FileError, match=r"is a folder: outcomes are written to a file"):
        evaluate_run(config, Lines(), outcomes_file=folder / "data")
    with pytest.raises(FileError, match=r"folder of the outcomes cannot be written: .*items\.csv: "):
        evaluate_run(config, Lines(), outcomes_file=folder / "data" / "items.csv" / "outcomes.parquet")


def test_outcomes_replace_nothing_but_outcomes(folder, monkeypatch):
    config = config_of(folder)
    monkeypatch.setattr("experiments.dataset.read_tables", _too_late)
    os.mkfifo(folder / "pipe")
    pl.DataFrame({"model": ["a"]}).write_parquet(folder / "other.parquet")
    pl.DataFrame(schema=SCHEMA).write_parquet(folder / "outcomes.parquet")
    (folder / "empty.parquet").touch()
    (folder / "link.parquet").symlink_to("data/items.csv")
    with pytest.raises(FileError, match="pipe is not a regular file: outcomes are written to a file; choose another"):
        evaluate_run(config, Lines(), outcomes_file=folder / "pipe")
    for name in ("data/items.csv", "toy.yaml", "other.parquet", "link.parquet"):
        with pytest.raises(FileError, match=f"{name} is no file of outcomes, and would be replaced: move it"):
            evaluate_run(config, Lines(), outcomes_file=folder / name)
    for name in ("outcomes.parquet", "empty.parquet", "new.parquet"):
        with pytest.raises(TooLateError):
            evaluate_run(config, Lines(), outcomes_file=folder / name)


def test_a_file_that_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        put_file(tmp_path / "pipe", lambda part: part.write_text("new"))
    assert (tmp_path / "pipe").is_fifo()
    assert [*tmp_path.iterdir()] == [tmp_path / "pipe"]
    put_file(tmp_path / "file", lambda part: part.write_text("old"))
    put_file(tmp_path / "file", lambda part: part.write_text("new"))
    assert (tmp_path / "file").read_text() == "new"


def test_a_bundle_is_no_folder_of_bundles(folder):
    (folder / "bundles").mkdir()
    (folder / "bundles" / "manifest.json").write_text("{}")
    with pytest.raises(FileError, match="bundles is a bundle; its parent holds the bundles"):
        preflight(config_of(folder), bundles=True)
    with pytest.raises(ConfigError, match="bundles is a bundle; its parent holds the bundles"):
        bundles_folder(folder / "bundles")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_stands_in_place_of_the_link_is_not_published_over(tmp_path, make):
    make(tmp_path / "current")
    (tmp_path / "a").mkdir()
    for call in (lambda: current_bundle(tmp_path), lambda: publish_bundle(tmp_path / "a")):
        with pytest.raises(BundleError) as caught:
            call()
        assert str(caught.value) == f"{tmp_path}/current is not a link: move it, then publish a bundle"
    assert not (tmp_path / "current").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"current", "a"}


def test_a_folder_in_place_of_the_link_current_is_refused_before_training(folder):
    (folder / "bundles" / "current").mkdir(parents=True)
    with pytest.raises(FileError, match="current is not a link: no bundle can be published; move it"):
        train(config_of(folder), NullTracker(), Lines())


def test_the_folder_of_slates_is_tried(folder):
    train(config_of(folder), NullTracker(), Lines())
    bundle = load_bundle(current_bundle(folder / "bundles"))
    slates = partial(write_slates, bundle, k=3, progress=lambda description, total: lambda done: None)
    with pytest.raises(FileError, match=r"the folder of the slates cannot be written: .*items\.csv: .*a file stands"):
        slates(folder / "data" / "items.csv")
    out = folder / "slates"
    out.mkdir()
    slates(out)
    manifest = json.loads((out / "manifest.json").read_text())
    whole = json.dumps(manifest)
    del manifest["until"]
    for damage in ("", "[1]", "7", json.dumps(manifest)):
        (out / "manifest.json").write_text(damage)
        with pytest.raises(FileError, match=r"manifest\.json or users\.parquet is damaged"):
            slates(out)
    (out / "manifest.json").write_text(whole)
    (out / "users.parquet").write_bytes(b"half")
    with pytest.raises(FileError, match=r"users\.parquet is damaged"):
        slates(out)
    (out / "users.parquet").unlink()
    with pytest.raises(FileError, match=r"users\.parquet is damaged .*No such file"):
        slates(out)


def test_a_log_that_is_missing_is_empty_and_a_link_to_nothing_is_refused(tmp_path):
    check_log(None)
    check_log(str(tmp_path / "none"))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(LogError, match=r"data\.log .*link is not a folder: set it to the folder that"):
        check_log(str(tmp_path / "link"))


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "it")
    assert [*(tmp_path / "a" / "b").iterdir()] == []


def test_a_damaged_file_of_trials_is_named(folder):
    config = config_of(folder)
    (folder / "cache").mkdir()
    for content in (b"no database" * 100, b"SQLite format 3\0" + bytes(4096)):
        (folder / "cache" / "tune.sqlite").write_bytes(content)
        with pytest.raises(FileError, match=r"tune\.sqlite: the trials cannot be read: .*; without the file "):
            tune(config, NullTracker(), Lines(), trials=1)


LIMITED = """
import resource, sys
import experiments.pipelines.train, recsys.ranking.reranker  # what is imported may write caches
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["recsys", "train", sys.argv[2], "--no-track"]
from recsys.cli.main import main
main()
"""


@pytest.mark.parametrize("n_bytes", [0, 5000, 9000])
def test_a_disk_that_takes_no_more_gives_one_line_and_leaves_nothing(folder, n_bytes):
    """A limit on the size of files stands for a full disk: the check finds it at 0 bytes, else the bundle does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(n_bytes), str(toy_config(folder))],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"COLUMNS": "500", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert ("epoch 1" in done.stderr) == (n_bytes > 0)
    assert [path for path in (folder / "bundles").iterdir() if path.name != ".training.lock"] == []
