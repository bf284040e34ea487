"""A complete run on a tiny data set: its outputs, repeatability, events from the log, failures and kills."""

import json
import os
import re
import signal
import subprocess
import sys
from typing import cast

import numpy as np
import pytest
from toy_data import START, Lines, toy_config, write_tables

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.evaluation.outcomes import read_outcomes
from experiments.pipelines import train as train_module
from experiments.pipelines.train import evaluate_run, train
from experiments.splits import SplitConfig, window_cuts
from experiments.tracking import plots, versions
from experiments.tracking.mlflow import NullTracker
from features.errors import DataError
from features.log.event_log import EventLog
from features.log.records import Event
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import current_bundle
from recsys.ranking.pair_features import FEATURES
from recsys.ranking.reranker import Reranker

MODELS = ["popular", "item-knn", "two towers", "two towers + reranker"]


class Recorder(NullTracker):
    """Keeps every call of the tracker."""

    def __init__(self):
        self.started, self.figures, self.values, self.finished = None, {}, [], []
        self.outcomes, self.texts, self.bundles = None, {}, []

    def start(self, experiment, parameters, tags):
        self.started = (experiment, parameters, tags)

    def metrics(self, values, step=None):
        self.values.append((dict(values), step))

    def artifact(self, path, folder=None):
        assert folder == "outcomes"
        self.outcomes = read_outcomes(path)

    def text(self, name, content):
        self.texts[name] = content

    def bundle(self, folder, *, current):
        self.bundles.append((folder, current))

    def figure(self, name, figure):
        self.figures[name] = figure

    def finish(self, failed=False, pruned=False):
        self.finished.append(failed)


def run(folder, *, tracker=None, reporter=None, environ=None, **sections):
    environ = {"RECSYS__DATA__ORIGIN": "s3://u:s3cret@bucket/x"} | (environ or {})
    config = load_config(toy_config(folder, **sections), environ)
    return train(config, tracker or NullTracker(), reporter or Lines())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run: (folder, path of the bundle, tables, tracker, reporter)."""
    folder = tmp_path_factory.mktemp("run")
    write_tables(folder / "data")
    tracker, reporter = Recorder(), Lines()
    path, tables = run(folder, tracker=tracker, reporter=reporter)
    return folder, path, tables, tracker, reporter


def test_the_bundle_is_current_and_its_manifest_describes_the_run(done):
    folder, path, tables, _, _ = done
    assert current_bundle(folder / "bundles") == path
    manifest = load_bundle(path).manifest
    assert manifest["config"]["towers"]["dimension"] == 8
    placements = manifest["config"]["data"]["placements"]
    assert list(placements.items()) == [("home", {"repeats": False}), ("again", {"repeats": True})]  # in this order
    assert manifest["seed"] == 0
    assert manifest["code_version"].startswith("0.")
    assert len(manifest["data_hash"]) == len(manifest["split_hash"]) == 16
    assert manifest["metrics"] == json.loads(json.dumps([t.to_dict() for t in tables]))
    assert manifest["metrics"][0]["split_hashes"] == [manifest["split_hash"]]
    rows = manifest["metrics"][0]["rows"]
    assert [r["name"] for r in rows] == MODELS
    assert all(0 <= r["ndcg_at_10"]["low"] <= r["ndcg_at_10"]["mean"] for r in rows)


def test_no_password_of_the_configuration_is_recorded(done):
    _, path, _, tracker, _ = done
    assert "s3cret" not in (path / "manifest.json").read_text() + str(tracker.started)
    assert load_bundle(path).manifest["config"]["data"]["origin"] == "s3://bucket/x"


def test_there_is_one_table_for_each_placement(done):
    _, _, tables, _, _ = done
    assert [t.title for t in tables] == ["toy · home: repeats excluded", "toy · again: repeats allowed"]
    assert all([o.name for o in t.outcomes] == MODELS for t in tables)
    assert tables[0].hashes != tables[1].hashes  # seen items are not targets where repeats are excluded
    assert tables[0].to_dict()["events"] < tables[1].to_dict()["events"]


def test_the_bundle_is_fitted_on_all_events(done):
    folder, path, _, _, _ = done
    bundle = load_bundle(path)
    cut = np.datetime64(bundle.manifest["metrics"][0]["note"].split("before ")[1].split(" UTC")[0], "us")
    times = [
        np.datetime64(line.split(",")[3].removesuffix("Z"), "us")
        for line in (folder / "data" / "events.csv").read_text().splitlines()[1:]
    ]
    assert bundle.manifest["fitted_until"] == max(times).astype(np.int64)  # evaluated before the cut, refitted on all
    assert bundle.recommender.fallback.popularity.sum() > 0
    assert sum(t < cut for t in times) < len(times)


def test_the_run_is_tracked(done):
    _, path, _, tracker, _ = done
    experiment, parameters, tags = tracker.started
    manifest = load_bundle(path).manifest
    assert experiment == "toy"
    assert parameters["training"]["epochs"] == 2
    assert re.fullmatch(r"train \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", tags["mlflow.runName"])
    assert {key: tag for key, tag in tags.items() if key != "mlflow.runName"} == {
        "data_hash": manifest["data_hash"],
        "split_hash": manifest["split_hash"],
        "code_version": manifest["code_version"],
        "seed": "0",
    }
    epochs = [(step, set(values)) for values, step in tracker.values if step is not None]
    assert [step for step, _ in epochs] == list(range(1, len(epochs) + 1))
    assert {"loss", "ndcg_at_10"} <= epochs[0][1]
    names = {name for values, step in tracker.values if step is None for name in values}
    assert {"home_popular.ndcg_at_10", "again_two_towers___reranker.hr_at_10"} <= names
    assert {f"importance.{name}" for name in FEATURES} <= names
    drawn = {"learning_curve", "ndcg_by_history_length", "popularity_bias", "cold_items", "reliability"}
    assert set(tracker.figures) == drawn
    assert tracker.bundles == [(path, True)]
    assert json.loads(tracker.texts["tables.json"]) == manifest["metrics"]
    assert "toy · again: repeats allowed" in tracker.texts["tables.txt"]
    assert tracker.outcomes is not None
    counts = dict(tracker.outcomes.group_by("placement").len().iter_rows())
    assert counts == {table["placement"]: 4 * table["events"] for table in manifest["metrics"]}
    assert tracker.finished == [False]


def test_the_run_reports_what_it_read_and_fitted(done):
    output = "\n".join(done[4].lines)
    assert "items: 12 rows read, 12 kept, 0 rejected" in output
    assert "40 users, 12 items, 520 events, 520 positive" in output
    for name in MODELS:
        assert f"{name} · home: NDCG@10" in output


def test_the_same_seed_gives_the_same_weights(done, tmp_path):
    folder, path, tables, _, _ = done
    hashes = {name: f["sha256"] for name, f in load_bundle(path).manifest["files"].items()}
    repeated = load_bundle(run(folder, bundles=str(tmp_path / "repeated"))[0]).manifest
    assert {name: f["sha256"] for name, f in repeated["files"].items()} == hashes
    figures = [[r["ndcg_at_10"] for r in m["rows"]] for m in repeated["metrics"]]
    assert figures == [[r["ndcg_at_10"] for r in t.to_dict()["rows"]] for t in tables]
    other = load_bundle(run(folder, bundles=str(tmp_path / "other"), seed=1)[0]).manifest
    assert other["files"]["towers.safetensors"]["sha256"] != hashes["towers.safetensors"]


def test_events_of_the_log_are_in_the_next_bundle(tmp_path):
    write_tables(tmp_path / "data")
    first = load_bundle(run(tmp_path)[0])
    log = EventLog(tmp_path / "log")
    log.append_now(
        [
            Event(user_id=f"new {n}", item_id="i7", event="take", timestamp=START + n, event_id=str(n))
            for n in range(100)
        ]
    )
    log.close()
    second = load_bundle(run(tmp_path)[0])
    assert second.manifest["data_hash"] != first.manifest["data_hash"]
    assert second.manifest["split_hash"] != first.manifest["split_hash"]
    counts = [
        cast(Reranker, b.recommender.reranker).features.statistics.total[b.catalog.ids.row("i7")]
        for b in (first, second)
    ]
    assert counts[1] >= counts[0] + 90  # the cut has moved
    assert current_bundle(tmp_path / "bundles") == second.path
    assert load_bundle(first.path).fingerprint == first.fingerprint  # the first bundle is kept


def test_a_failed_run_publishes_nothing_and_is_tracked_as_failed(done, monkeypatch):
    folder, path, _, _, _ = done
    tracker = Recorder()
    monkeypatch.setattr(train_module, "save_bundle", fail)
    with pytest.raises(ZeroDivisionError):
        run(folder, tracker=tracker)
    assert tracker.finished == [True]
    assert current_bundle(folder / "bundles") == path


def test_a_plot_that_fails_does_not_cost_the_bundle(tmp_path, monkeypatch):
    write_tables(tmp_path / "data")
    monkeypatch.setattr(plots, "popularity_bias", fail)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    load_bundle(current_bundle(tmp_path / "bundles"))


def fail(*_, **__):
    """Raises ZeroDivisionError."""
    return 1 / 0


def test_too_few_events_are_refused(tmp_path):
    write_tables(tmp_path / "data", n_users=1, n_items=3, length=2)
    with pytest.raises(DataError, match="a time cut needs events before, between and after"):
        run(tmp_path)


def test_leave_last_out_fits_once_and_notes_its_leak(tmp_path):
    write_tables(tmp_path / "data", length=12)  # no user takes an item twice
    path, tables = run(tmp_path, split={"kind": "leave-last-out"}, reranker=None)
    assert [t.note for t in tables] == [
        "leave-last-out: fitted without the last two items of each user, but with later events of other users"
    ] * 2
    assert [o.name for o in tables[0].outcomes] == MODELS[:3]
    assert tables[0].to_dict()["events"] == tables[0].to_dict()["users"] == 40
    assert load_bundle(path).recommender.reranker is None


def test_evaluation_joins_all_windows(done):
    folder = done[0]
    before = sorted((folder / "bundles").iterdir())
    split = SplitConfig(test=0.4, validation=0.3, windows=2).model_dump()
    reporter = Lines()
    tables = evaluate_run(load_config(toy_config(folder, split=split), {}), reporter)
    assert all(len(t.hashes) == 2 and "(2 windows)" in t.note for t in tables)
    assert [o.name for o in tables[0].outcomes] == MODELS
    assert "window 2 of 2: 12 items, 0 events left out" in reporter.lines
    assert sorted((folder / "bundles").iterdir()) == before  # no bundle is written
    with_repeats = tables[1].to_dict()
    assert 0.3 * 520 < with_repeats["events"] <= 0.4 * 520 + 1


def test_rare_items_are_left_out_and_reported(done, tmp_path):
    folder = done[0]
    reporter = Lines()
    config = load_config(toy_config(folder), {})
    events = load_dataset(config).events
    # events of the validation window do not count
    early = events.before(window_cuts(events, config.split)[-1][0]).positives()
    counts = np.bincount(early.items, minlength=events.n_items)
    min_events = int(np.sort(counts)[5]) + 1
    data = config.data.model_dump()
    path, tables = run(folder, reporter=reporter, bundles=str(tmp_path), data=data | {"min_train_events": min_events})
    frequent = counts >= min_events
    assert frequent.sum() < 12
    assert tables[0].outcomes[0].items.max() < frequent.sum()
    in_all = np.bincount(events.positives().items, minlength=events.n_items)
    served = load_bundle(path).catalog  # with the items that became frequent later
    assert set(served.ids.ids) == {
        load_dataset(config).catalog.ids.ids[row] for row in np.flatnonzero(in_all >= min_events)
    }
    assert len(served) > frequent.sum()
    assert any(
        f"events left out: items with fewer than {min_events} before the validation window" in line
        for line in reporter.lines
    )


def test_items_that_become_frequent_are_encoded_in_the_evaluated_space(done, tmp_path, monkeypatch):
    spaces, original = [], train_module.encode_contents

    def encode(dataset, config, progress=None, *, space=None):
        spaces.append(space)
        return original(dataset, config, progress, space=space)

    monkeypatch.setattr(train_module, "encode_contents", encode)
    data = load_config(toy_config(done[0]), {}).data.model_dump() | {"min_train_events": 2}
    sections = {"encoder": {"kind": "builtin"}, "bundles": str(tmp_path / "b"), "cache": str(tmp_path / "cache")}
    path, _ = run(done[0], data=data, **sections)
    first, second = spaces
    assert first is None
    assert second is not None
    content = load_bundle(path).content
    assert content is not None
    assert content.space == second.space


@pytest.mark.parametrize("moment", ["popular · home", "epoch 1", "two towers + reranker · again"])
def test_a_killed_training_leaves_the_old_bundle(done, moment):
    folder, path, _, _, _ = done
    config = toy_config(folder, seed=5)
    command = [sys.executable, "-c", "from recsys.cli.main import main; main()", "train", str(config), "--no-track"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        assert child.stderr is not None
        seen = any(moment in line for line in child.stderr)
        child.send_signal(signal.SIGKILL)
    assert seen
    assert child.returncode == -signal.SIGKILL
    assert current_bundle(folder / "bundles") == path
    assert load_bundle(path).fingerprint == path.name
    for entry in (path for path in (folder / "bundles").iterdir() if path.is_dir()):
        if not entry.name.startswith(".") and entry.name != "current":
            load_bundle(entry)


def test_changes_since_the_commit_are_another_version(monkeypatch):
    printed = {"describe": b"1a2b3c4\n", "diff": b""}
    monkeypatch.setattr(versions, "_git", lambda command, *_: printed[command])
    found = []
    for printed["diff"] in (b"", b"one change", b"another change"):
        found.append(versions.code_version())
    assert found[0].endswith("+1a2b3c4")
    assert len(set(found)) == 3
    assert all("+1a2b3c4-dirty." in version for version in found[1:])


def test_a_run_needs_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert versions.code_version().endswith("+unknown")
