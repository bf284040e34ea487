"""The benchmark of training: what is measured and on what data. A stub stands in for RecTools."""

import sys

import numpy as np
import pytest
from toy_data import toy_catalog, toy_config, toy_log, write_tables

from experiments.bench import train as module
from experiments.bench.peers import environment as environment_module
from experiments.bench.peers.environment import environment
from experiments.bench.train import FixedVectorRecommender, TrainingCurve, run
from experiments.evaluation.ranking import headline_metrics
from experiments.splits import Targets
from features.errors import ConfigError, DependencyError, RecsysError

STUB = """
import json, sys
from pathlib import Path
import numpy as np

folder = Path(sys.argv[1])
message = json.loads((folder / "settings.json").read_text())
log = np.load(folder / "events.npz")
n_users, n_items = message["shape"]
model = message["model"]
assert set(model) == {"n_factors", "n_blocks", "n_heads", "session_max_len", "dropout_rate", "lr", "batch_size"}
lines = 0
print("{}", flush=True)
for line in sys.stdin:
    lines += 1
    if lines > LAST:
        sys.exit("no memory")
    items = np.eye(n_items, dtype=np.float32)
    users = np.zeros((n_users, n_items), np.float32)
    users[log["users"], (log["items"] + 1) % n_items] = 1
    np.savez(folder / "vectors.npz", users=users, items=items)
    print(json.dumps({"seconds": [9.0, 2.0, 4.0][lines - 1], "positions": 300}), flush=True)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    write_tables(tmp_path / "data", n_items=14)  # a user's 13 items are distinct
    monkeypatch.setattr(module, "environment", lambda folder, *pins: sys.executable)
    (tmp_path / "worker.py").write_text(STUB.replace("LAST", "3"))
    monkeypatch.setattr(module, "WORKER", tmp_path / "worker.py")
    training = {"epochs": 9, "batch_events": 256, "learning_rate": 0.01, "patience": 9}
    return toy_config(tmp_path, split={"kind": "leave-last-out"}, training=training)


def test_both_models_are_measured_in_each_pass(config):
    result = run(config=str(config), passes=3)
    figures = result.figures
    assert figures["rectools: seconds of each pass"] == [9.0, 2.0, 4.0]
    assert figures["rectools: positions a second"] == 100  # 300 in 3 s, the median without the first
    assert figures["rectools: positions a pass"] == 300
    seconds = figures["ours: seconds of each pass"]
    assert len(seconds) == len(figures["ours: ndcg_at_10 after each pass"]) == 3
    (bar,) = result.bars
    rate = figures["ours: positions a second"]  # rounded to a whole number
    assert bar.value == pytest.approx(rate / 100, abs=0.006)
    assert (bar.op, bar.bar) == (">=", 2.0)
    key = "seconds to 95% of the best ndcg_at_10"
    assert figures[f"ours: {key}"] is figures[f"rectools: {key}"] is None  # patience stopped neither


def test_patience_stops_a_model_and_gives_its_seconds_to_learn(config):
    figures = run(config=str(config), passes=3, patience=1).figures
    assert figures["rectools: seconds of each pass"] == [9.0, 2.0]  # the second is no better
    assert figures["rectools: seconds to 95% of the best ndcg_at_10"] == 9.0


def test_the_short_form_takes_two_passes_over_a_tenth_of_the_users(config):
    result = run(config=str(config), short=True)
    assert len(result.figures["ours: seconds of each pass"]) == 2
    assert len(result.figures["rectools: seconds of each pass"]) == 2
    assert result.figures["ours: positions a pass"] == 4 * 10  # of 40 users with 13 events; two are held out
    assert result.bars == []


def test_a_split_by_time_is_rejected(config, tmp_path):
    by_time = toy_config(tmp_path, split={"kind": "time"})
    with pytest.raises(ConfigError, match=r"split\.kind is time; bench train needs leave-last-out"):
        run(config=str(by_time))


def test_the_error_has_the_standard_error_of_the_worker(config, tmp_path):
    (tmp_path / "worker.py").write_text(STUB.replace("LAST", "1"))
    with pytest.raises(RecsysError, match="RecTools has ended: no memory"):
        run(config=str(config), passes=3)


def test_figures_of_a_training_curve():
    curve = TrainingCurve([10.0, 2.0, 2.0, 4.0, 2.0], 50, [0.1, 0.18, 0.192, 0.2, 0.15])
    assert curve.rate() == 25.0
    assert curve.seconds_to_learn() == 14.0  # .192 >= .95 * .2 > .18
    assert curve.passes_since_best() == 1
    assert TrainingCurve().passes_since_best() == 0


def test_vectors_are_judged_by_the_headline_metrics():
    log = toy_log([(0, 0, 1), (1, 1, 1)], n_users=2, n_items=4)
    targets = Targets(log.states(np.array([0, 1]), np.array([9, 9])), np.arange(2), np.array([2, 2]))
    items = np.array([[1, 0], [1, 0], [0, 1], [np.nan, np.nan]], np.float32)
    users = np.array([[0.5, 1], [1, 0.5]], np.float32)
    # user 0: item 2 first; user 1: item 0, then 2 (1 is seen, 3 unknown): 1 / log2(3)
    figures = headline_metrics(FixedVectorRecommender(users, items), targets, toy_catalog(4), repeats=False)
    assert figures["ndcg_at_10"] == pytest.approx((1 + 1 / np.log2(3)) / 2)


def test_an_environment_is_created_once_and_a_failure_names_the_command(tmp_path, monkeypatch):
    folder = tmp_path / "rectools"
    with pytest.raises(DependencyError, match=r"pip install .*no_such_file\.whl.* failed"):
        environment(folder, "no_such_file.whl")
    assert not (folder / "installed").exists()
    commands = []

    class Done:
        returncode, stderr = 0, ""

    def running(command, **_):
        commands.append(command)
        return Done()

    monkeypatch.setattr(environment_module.subprocess, "run", running)
    folder.mkdir(exist_ok=True)
    assert environment(folder, "one==1") == environment(folder, "one==1")
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]]
    environment(folder, "another==1")
    assert len(commands) == 4
