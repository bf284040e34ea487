"""The search of settings: repeatable, resumed, pruned, recorded, and blind to the test window."""

import json
import shutil
from types import SimpleNamespace

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from toy_data import Lines, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.pipelines import tune as module
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.pipelines.tune import SEARCH_SPACE, tune
from experiments.tracking.mlflow import MlflowTracker, NullTracker
from features.errors import ConfigError
from recsys.cli import main as cli

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy",  # SQLAlchemy 2.1 says so of MLflow's own queries
    "ignore::ResourceWarning",  # MLflow and Optuna leave their SQLite connections to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

RATES = ("towers.dropout", "training.learning_rate")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder / "data")
    return folder / "data"


@pytest.fixture
def config(tables, tmp_path):
    shutil.copytree(tables, tmp_path / "data")
    return load_config(toy_config(tmp_path), {})


def search(config, *, trials=3, tracker=None, only=RATES, **options):
    return tune(config, tracker or NullTracker(), Lines(), trials=trials, only=only, **options)


def judged(monkeypatch, curves):
    """Trials get these figures, pass by pass, and train nothing; returns the configurations that were tried."""
    tried = []

    def choose(config, dataset, splits, report, progress):
        tried.append(config)
        for epoch, value in enumerate(curves[len(tried) - 1], 1):
            report({"epoch": float(epoch), "seconds": 2.0, "ndcg_at_10": value})

    monkeypatch.setattr(module, "select_model", choose)
    return tried


def test_the_same_seed_gives_the_same_trials_and_the_first_is_the_configurations_own(config, tmp_path):
    config = config.changed({"training.learning_rate": 0.012345})  # others have three digits
    first = search(config)
    (tmp_path / "cache" / "tune.sqlite").unlink()
    again = search(config)
    assert [(t.number, t.settings, t.ndcg_at_10) for t in first.trials] == [
        (t.number, t.settings, t.ndcg_at_10) for t in again.trials
    ]
    own = next(t for t in first.trials if t.number == 0)
    assert own.settings == {"towers.dropout": 0.0, "training.learning_rate": 0.012345}
    others = [t.settings["training.learning_rate"] for t in first.trials if t.number]
    assert others == [float(f"{rate:.3g}") for rate in others]
    assert len({json.dumps(t.settings) for t in first.trials}) == 3
    other = search(config.model_copy(update={"seed": 1}))
    assert {json.dumps(t.settings) for t in other.trials} != {json.dumps(t.settings) for t in first.trials}


def test_test_events_are_never_read(config, monkeypatch):
    class Poison:
        def __getattr__(self, name):
            raise AssertionError(f"test.{name} was read")

    def poisoned(config, dataset):
        every = evaluation_windows(config, dataset)
        for _, splits in every:
            for split in splits.values():
                object.__setattr__(split, "test", Poison())
        return every

    clean = search(config, trials=1)
    monkeypatch.setattr(module, "evaluation_windows", poisoned)
    assert search(config.model_copy(update={"name": "poisoned"}), trials=1).trials[0].ndcg_at_10 == pytest.approx(
        clean.trials[0].ndcg_at_10
    )


def test_the_best_are_lines_of_a_configuration(config, monkeypatch):
    judged(monkeypatch, [[0.1, 0.2], [0.1, 0.5, 0.3], [0.4]])
    found = search(config)
    assert [(t.number, t.ndcg_at_10, t.passes, t.seconds) for t in found.trials] == [
        (1, 0.5, 3, 6.0),
        (2, 0.4, 1, 2.0),
        (0, 0.2, 2, 4.0),
    ]
    sections = yaml.safe_load(found.best)
    best = found.trials[0].settings
    assert sections["towers"] == {**config.towers.model_dump(mode="json"), "dropout": best["towers.dropout"]}
    assert sections["training"] == {
        "epochs": 2,
        "batch_events": 256,
        "learning_rate": best["training.learning_rate"],
    }


def test_a_trial_below_the_median_is_pruned_and_recorded_so(config, monkeypatch):
    ended = []

    class Recorder(NullTracker):
        def nested(self):
            return Recorder()

        def finish(self, failed=False, pruned=False):
            ended.append((failed, pruned))

    # the first five teach the median, .3 after three passes, before which nobody is judged
    poor = [0.01, 0.02, 0.03, 0.04]
    judged(monkeypatch, [poor, *[[0.1, 0.2, 0.3, 0.4]] * 4, [0.05, 0.1, 0.29, 0.9]])
    found = search(config, trials=6, tracker=Recorder())
    told = [(t.number, t.state, t.passes, t.ndcg_at_10) for t in found.trials[-2:]]
    assert told == [(0, "complete", 4, 0.04), (5, "pruned", 3, 0.29)]
    assert ended == [(False, False)] * 5 + [(False, True), (False, False)]  # the last is the whole search


def test_a_search_that_was_killed_goes_on(config, monkeypatch):
    tried = judged(monkeypatch, [[0.1], [], [0.2], [0.4]])
    search(config, trials=1)
    whole = module.select_model

    def killed(config, *arguments):
        tried.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "select_model", killed)
    with pytest.raises(KeyboardInterrupt):
        search(config)
    monkeypatch.setattr(module, "select_model", whole)
    found = search(config)
    assert [(t.number, t.ndcg_at_10) for t in found.trials] == [(3, 0.4), (2, 0.2), (0, 0.1)]  # trial 1 was lost
    asked = [(c.towers.dropout, c.training.learning_rate) for c in tried]
    assert asked[1] == asked[2]  # tried again
    assert len(set(asked)) == 3
    assert search(config).trials == found.trials  # there are enough
    assert len(tried) == 4


def test_time_that_is_up_begins_no_trial(config, monkeypatch):
    judged(monkeypatch, [[0.1], [0.2], [0.3]])
    clock = iter([0.0, 0.0, 61.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # this module's alone
    assert [t.ndcg_at_10 for t in search(config, minutes=1).trials] == [0.1]


def test_a_search_is_a_run_with_a_run_for_each_trial(config, uri, monkeypatch):
    judged(monkeypatch, [[0.1, 0.3], [0.2]])
    search(config, trials=2, tracker=MlflowTracker(uri))
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("toy tune").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = sorted((run for run in runs if run is not parent), key=lambda run: run.data.tags["trial"])
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert [run.data.tags["trial"] for run in nested] == ["0", "1"]
    assert nested[0].data.params == {"towers.dropout": "0.0", "training.learning_rate": "0.01"}
    curve = client.get_metric_history(nested[0].info.run_id, "ndcg_at_10")
    assert [(m.step, m.value) for m in curve] == [(1, 0.1), (2, 0.3)]
    assert parent.data.metrics == {"ndcg_at_10": 0.3, "trials": 2.0}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_an_unknown_setting_is_refused_with_the_known_ones(config):
    with pytest.raises(ConfigError, match=r"no setting 'towers.width'.*towers.dimension, towers.layers"):
        search(config, only=("towers.width",))


def test_several_processes_are_refused(config, monkeypatch):
    monkeypatch.setattr(module.distributed, "size", lambda: 2)
    with pytest.raises(ConfigError, match="without torchrun"):
        search(config)


def test_the_space_holds_the_configurations_own_values_and_none_that_do_not_fit(config):
    odd = config.changed({"towers.dimension": 48, "towers.nested": (40,), "training.learning_rate": 0.5})
    space = module._space(odd, ())
    assert list(space) == list(SEARCH_SPACE)
    assert space["towers.dimension"].choices == (48, 64, 128)  # 32 is less than what vectors are cut to
    assert space["training.learning_rate"] == optuna.distributions.FloatDistribution(3e-4, 0.5, log=True)
    assert space["training.negatives"].choices == (0, 256, 1024)


def test_the_command_prints_a_table_or_json(config, tmp_path):
    command = ["tune", str(tmp_path / "toy.yaml"), "--trials", "1", "--only", "towers.dropout", "--no-track"]
    done = CliRunner().invoke(cli.app, [*command, "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert [one["settings"] for one in told["trials"]] == [{"towers.dropout": 0.0}]
    assert yaml.safe_load(told["best"])["towers"]["dropout"] == 0.0
    shown = CliRunner().invoke(cli.app, command, catch_exceptions=False).stdout
    assert "best first" in shown
    assert f"{told['trials'][0]['ndcg_at_10']:.4f}" in shown
