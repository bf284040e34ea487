"""The hyper-parameter search: repeatable, resumed, pruned, tracked, and without the test events."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from optuna.distributions import CategoricalDistribution
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
    "ignore:The ``noload`` loader strategy",  # SQLAlchemy 2.1 warns about queries of MLflow
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


def replace_training(monkeypatch, curves):
    """Trials train nothing and report these figures by epoch; returns the list of configurations that were tried."""
    tried = []

    def select_model(config, dataset, splits, report, progress):
        tried.append(config)
        for epoch, value in enumerate(curves[len(tried) - 1], 1):
            report({"epoch": float(epoch), "seconds": 2.0, "ndcg_at_10": value})

    monkeypatch.setattr(module, "select_model", select_model)
    return tried


def test_the_same_seed_gives_the_same_trials_and_the_first_has_the_configured_values(config, tmp_path):
    config = config.changed({"training.learning_rate": 0.012345})  # proposed values have three digits
    first = search(config)
    (tmp_path / "cache" / "tune.sqlite").unlink()
    repeated = search(config)
    assert [(t.number, t.settings, t.ndcg_at_10) for t in first.trials] == [
        (t.number, t.settings, t.ndcg_at_10) for t in repeated.trials
    ]
    configured = next(t for t in first.trials if t.number == 0)
    assert configured.settings == {"towers.dropout": 0.0, "training.learning_rate": 0.012345}
    rates = [t.settings["training.learning_rate"] for t in first.trials if t.number]
    assert rates == [float(f"{rate:.3g}") for rate in rates]
    assert len({json.dumps(t.settings) for t in first.trials}) == 3
    reseeded = search(config.model_copy(update={"seed": 1}))
    assert {json.dumps(t.settings) for t in reseeded.trials} != {json.dumps(t.settings) for t in first.trials}


def test_test_events_are_never_read(config, monkeypatch):
    class Poison:
        def __getattr__(self, name):
            raise AssertionError(f"test.{name} was read")

    def poisoned(config, dataset):
        windows = evaluation_windows(config, dataset)
        for _, splits in windows:
            for split in splits.values():
                object.__setattr__(split, "test", Poison())
        return windows

    clean = search(config, trials=1)
    monkeypatch.setattr(module, "evaluation_windows", poisoned)
    assert search(config.model_copy(update={"name": "poisoned"}), trials=1).trials[0].ndcg_at_10 == pytest.approx(
        clean.trials[0].ndcg_at_10
    )


def test_the_best_settings_are_sections_of_a_configuration(config, monkeypatch):
    replace_training(monkeypatch, [[0.1, 0.2], [0.1, 0.5, 0.3], [0.4]])
    result = search(config)
    assert [(t.number, t.ndcg_at_10, t.passes, t.seconds) for t in result.trials] == [
        (1, 0.5, 3, 6.0),
        (2, 0.4, 1, 2.0),
        (0, 0.2, 2, 4.0),
    ]
    sections = yaml.safe_load(result.best)
    best = result.trials[0].settings
    assert sections["towers"] == {**config.towers.model_dump(mode="json"), "dropout": best["towers.dropout"]}
    assert sections["training"] == {
        "epochs": 2,
        "batch_events": 256,
        "learning_rate": best["training.learning_rate"],
    }


def test_a_trial_below_the_median_is_pruned_and_tracked_as_pruned(config, monkeypatch):
    ended = []

    class Recorder(NullTracker):
        def nested(self):
            return Recorder()

        def finish(self, failed=False, pruned=False):
            ended.append((failed, pruned))

    # the first five trials set the median, 0.3 in epoch 3; no trial is pruned before epoch 3
    poor = [0.01, 0.02, 0.03, 0.04]
    replace_training(monkeypatch, [poor, *[[0.1, 0.2, 0.3, 0.4]] * 4, [0.05, 0.1, 0.29, 0.9]])
    result = search(config, trials=6, tracker=Recorder())
    worst = [(t.number, t.state, t.passes, t.ndcg_at_10) for t in result.trials[-2:]]
    assert worst == [(0, "complete", 4, 0.04), (5, "pruned", 3, 0.29)]
    assert ended == [(False, False)] * 5 + [(False, True), (False, False)]  # the last one is the run of the search


def test_a_killed_search_is_resumed(config, monkeypatch):
    tried = replace_training(monkeypatch, [[0.1], [], [0.2], [0.4]])
    search(config, trials=1)
    working = module.select_model

    def killed(config, *arguments):
        tried.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "select_model", killed)
    with pytest.raises(KeyboardInterrupt):
        search(config)
    monkeypatch.setattr(module, "select_model", working)
    result = search(config)
    assert [(t.number, t.ndcg_at_10) for t in result.trials] == [(3, 0.4), (2, 0.2), (0, 0.1)]  # trial 1 was killed
    settings = [(c.towers.dropout, c.training.learning_rate) for c in tried]
    assert settings[1] == settings[2]  # tried again
    assert len(set(settings)) == 3
    assert search(config).trials == result.trials  # three trials have ended: nothing is run
    assert len(tried) == 4


def test_no_trial_starts_after_the_time_limit(config, monkeypatch):
    replace_training(monkeypatch, [[0.1], [0.2], [0.3]])
    clock = iter([0.0, 0.0, 61.0])
    monkeypatch.setattr(
        module, "time", SimpleNamespace(monotonic=lambda: next(clock))
    )  # the name of this module only
    assert [t.ndcg_at_10 for t in search(config, minutes=1).trials] == [0.1]


def test_a_search_is_tracked_as_a_run_with_a_nested_run_for_each_trial(config, uri, monkeypatch):
    replace_training(monkeypatch, [[0.1, 0.3], [0.2]])
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


def test_the_error_of_an_unknown_setting_lists_the_known_ones(config):
    with pytest.raises(ConfigError, match=r"no setting 'towers.width'.*towers.dimension, towers.layers"):
        search(config, only=("towers.width",))


def test_several_processes_are_refused(config, monkeypatch):
    monkeypatch.setattr(module.distributed, "size", lambda: 2)
    with pytest.raises(ConfigError, match="without torchrun"):
        search(config)


def test_the_space_has_the_configured_values_and_no_invalid_ones(config):
    changed = config.changed({"towers.dimension": 48, "towers.nested": (40,), "training.learning_rate": 0.5})
    space = module._space(changed, ())
    assert list(space) == list(SEARCH_SPACE)
    dimensions, negatives = space["towers.dimension"], space["training.negatives"]
    assert isinstance(dimensions, CategoricalDistribution)
    assert isinstance(negatives, CategoricalDistribution)
    assert dimensions.choices == (48, 64, 128)  # 32 is below the nested dimension
    assert space["training.learning_rate"] == optuna.distributions.FloatDistribution(3e-4, 0.5, log=True)
    assert negatives.choices == (0, 256, 1024)


def test_the_command_prints_a_table_or_json(config, tmp_path):
    command = ["tune", str(tmp_path / "toy.yaml"), "--trials", "1", "--only", "towers.dropout", "--no-track"]
    done = CliRunner().invoke(cli.app, [*command, "--json"], catch_exceptions=False)
    result = json.loads(done.stdout)
    assert [trial["settings"] for trial in result["trials"]] == [{"towers.dropout": 0.0}]
    assert yaml.safe_load(result["best"])["towers"]["dropout"] == 0.0
    output = CliRunner().invoke(cli.app, command, catch_exceptions=False).stdout
    assert "best first" in output
    assert f"{result['trials'][0]['ndcg_at_10']:.4f}" in output


def test_the_ranges_of_the_search(config):
    """docs/training.md and users' searches depend on them."""
    default = config.changed({"towers.dimension": 64, "training.batch_events": 8192})
    kinds = {key: optuna.distributions.distribution_to_json(kind) for key, kind in SEARCH_SPACE.items()}
    found = {key: json.loads(kind)["attributes"] for key, kind in kinds.items()}
    assert {key: tuple(kind["choices"]) for key, kind in found.items() if "choices" in kind} == {
        "towers.dimension": (32, 64, 128),
        "training.weight_decay": (0.0, 0.01, 0.1),
        "training.batch_events": (1024, 2048, 4096, 8192),
        "training.negatives": (0, 256, 1024),
    }
    assert {key: (kind["low"], kind["high"], kind["log"]) for key, kind in found.items() if "low" in kind} == {
        "towers.layers": (1, 3, False),
        "towers.dropout": (0.0, 0.6, False),
        "towers.id_dropout": (0.0, 0.5, False),
        "training.learning_rate": (3e-4, 1e-2, True),
    }
    assert module._space(default, ["training.batch_events"]) == {
        "training.batch_events": CategoricalDistribution((8192, 1024, 2048, 4096))
    }


def test_proposed_numbers_have_three_digits_and_the_configured_one_all():
    assert module._rounded(0.0123456, 0.5) == 0.0123
    assert module._rounded(0.0123456, 0.0123456) == 0.0123456
    assert module._rounded(12345, 1) == 12345


def test_the_cells_of_the_table_of_trials():
    first = module.Trial(3, "complete", 0.12346, 5, 61.7, {"towers.layers": 2, "towers.dropout": 0.125})
    second = module.Trial(0, "pruned", 0.1, 1, 0.4, {"towers.layers": 1, "towers.dropout": 0.0})
    rendered: list[Any] = module.TuningResult((first, second), "towers: {layers: 2}\n").render().renderables
    table, best = rendered
    columns = ["trial", "state", "NDCG@10", "passes", "seconds", "towers.layers", "towers.dropout"]
    assert [column.header for column in table.columns] == columns
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("3", "complete", "0.1235", "5", "62", "2", "0.125"),
        ("0", "pruned", "0.1000", "1", "0", "1", "0"),
    ]
    assert (table.title, best.plain) == ("on validation, best first", "towers: {layers: 2}")
