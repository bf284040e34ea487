"""The front door: what it prints, as a table and as JSON, and one clear line when something is wrong."""

import json
import os
import subprocess
import sys

import pytest
from toy_data import toy_config, write_tables
from typer.testing import CliRunner

from features.errors import DataError
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import current_bundle
from recsys.cli import main as cli
from recsys.cli import options


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_tables(folder / "data")
    toy_config(folder, training={"epochs": 1})
    return folder


def test_help_teaches_where_to_start():
    told = call("--help").output
    assert "make demo" in told
    for command in ("data", "train", "evaluate", "serve", "features", "experiment", "bench"):
        assert command in told
    for command in (["train"], ["evaluate"], ["serve"], ["data", "get"], ["data", "check"], ["features", "refresh"]):
        assert "Example: " in call(*command, "--help").output.replace("\n", " ")


def test_train_prints_json_that_a_program_reads(folder):
    done = call("train", folder / "toy.yaml", "--json", "--no-track")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert str(current_bundle(folder / "bundles")) == told["bundle"]
    assert [table["title"] for table in told["tables"]] == [
        "toy · home: repeats excluded",
        "toy · again: repeats allowed",
    ]
    assert told["tables"] == load_bundle(current_bundle(folder / "bundles")).manifest["metrics"]
    assert "rows read" in done.stderr  # progress is for people


def test_train_goes_on_from_a_bundle_only_with_something_new(folder):
    with pytest.raises(DataError, match=r"no positive events since 2024-.* UTC, until when "):
        call("train", folder / "toy.yaml", "--from", "current", "--no-track")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_train_goes_on_when_mlflow_is_away(folder, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("RECSYS__SEED", "3")
    done = call("train", folder / "toy.yaml")
    assert done.exit_code == 0
    assert load_bundle(current_bundle(folder / "bundles")).manifest["seed"] == 3  # the environment overrides the file
    assert f"bundle {current_bundle(folder / 'bundles')} is current" in done.stdout.replace("\n", "")
    assert [r.levelname for r in caplog.records if r.name == "experiments.tracking.mlflow"] == ["WARNING"]


def test_evaluate_prints_the_table_with_its_split_users_and_events(folder):
    facts = json.loads(call("evaluate", folder / "toy.yaml", "--json").stdout)["tables"][0]
    told = call("evaluate", folder / "toy.yaml").stdout
    assert f"split {facts['split_hashes'][0]}" in told
    assert f"{facts['users']} users" in told
    assert f"{facts['events']} test events" in told
    for name in ("popular", "item-knn", "two towers", "two towers + reranker"):
        assert name in told
    assert "HR@10" in told
    assert f"{facts['rows'][0]['ndcg_at_10']['low']:.4f}" in told  # wide enough for its intervals
    assert "…" not in told
    assert "95 % interval over users" in told


def test_data_check_reports_what_was_read(folder):
    told = json.loads(call("data", "check", folder / "toy.yaml", "--json").stdout)
    assert [(c["table"], c["read"]) for c in told["counts"]] == [("items", 12), ("events", 520)]
    assert "520" in call("data", "check", folder / "toy.yaml").stdout


def recsys(*arguments):
    """The command as a person runs it."""
    code = "from recsys.cli.main import main; main()"
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "400"}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=env)


def test_an_error_is_one_line_and_status_1(folder):
    done = recsys("train", "nonsense")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no configuration 'nonsense': not a file, and not among the shipped ones: ")
    assert "complete-journey" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_square_brackets_in_an_error_are_shown_as_they_are(folder):
    (folder / "bad.yaml").write_text("name: '[/red] x'\nseed: [bold]")
    done = recsys("train", folder / "bad.yaml")
    assert done.returncode == 1
    assert "bad.yaml: data: Field required" in done.stderr
    assert "['bold']" in done.stderr


def test_a_source_taken_for_a_configuration_names_those_that_have_it(folder):
    told = recsys("data", "get", "sequences").stderr
    assert told.endswith("; sequences is the source of beauty, ml-1m, toys\n")


def test_configurations_are_found_by_name():
    found = options.config_path("complete-journey")
    assert found.name == "complete-journey.yaml"
    assert found.is_file()
