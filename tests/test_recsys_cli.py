"""The `recsys` command: its output as tables and as JSON, and errors as one line."""

import json
import os
import re
import signal
import subprocess
import sys

import httpx2 as httpx
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


@pytest.fixture(scope="module")
def trained(folder):
    """The result of `recsys train --json`."""
    return call("train", folder / "toy.yaml", "--json", "--no-track")


def test_the_help_names_the_first_steps_and_examples():
    output = call("--help").output
    assert "make demo" in output
    for command in ("data", "train", "evaluate", "serve", "features", "experiment", "bench"):
        assert command in output
    for words in (["train"], ["evaluate"], ["serve"], ["data", "get"], ["data", "check"], ["features", "refresh"]):
        assert "Example: " in call(*words, "--help").output.replace("\n", " ")


def test_train_prints_one_json_object(folder, trained):
    assert trained.exit_code == 0
    result = json.loads(trained.stdout)
    assert str(current_bundle(folder / "bundles")) == result["bundle"]
    assert [table["title"] for table in result["tables"]] == [
        "toy · home: repeats excluded",
        "toy · again: repeats allowed",
    ]
    assert result["tables"] == load_bundle(current_bundle(folder / "bundles")).manifest["metrics"]
    assert "rows read" in trained.stderr  # progress goes to standard error


def test_train_from_a_bundle_without_new_events_is_refused(folder, trained):
    assert trained.exit_code == 0
    with pytest.raises(DataError, match=r"no positive event is new to .*, which was fitted until 2024-.* UTC"):
        call("train", folder / "toy.yaml", "--from", "current", "--no-track")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_train_succeeds_when_mlflow_is_down(folder, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("RECSYS__SEED", "3")
    done = call("train", folder / "toy.yaml")
    assert done.exit_code == 0
    assert load_bundle(current_bundle(folder / "bundles")).manifest["seed"] == 3  # the environment overrides the file
    assert f"bundle {current_bundle(folder / 'bundles')} is current" in done.stdout.replace("\n", "")
    assert [r.levelname for r in caplog.records if r.name == "experiments.tracking.mlflow"] == ["WARNING"]


def test_evaluate_prints_the_table_with_its_split_users_and_events(folder):
    facts = json.loads(call("evaluate", folder / "toy.yaml", "--no-track", "--json").stdout)["tables"][0]
    output = call("evaluate", folder / "toy.yaml", "--no-track").stdout
    assert f"split {facts['split_hashes'][0]}" in output
    assert f"{facts['users']} users" in output
    assert f"{facts['events']} test events" in output
    for name in ("popular", "item-knn", "two towers", "two towers + reranker"):
        assert name in output
    assert "HR@10" in output
    assert f"{facts['rows'][0]['ndcg_at_10']['low']:.4f}" in output  # intervals are not cut off
    assert "…" not in output
    assert "95 % interval over users" in output


def test_data_check_reports_what_was_read(folder):
    report = json.loads(call("data", "check", folder / "toy.yaml", "--json").stdout)
    assert [(c["table"], c["read"]) for c in report["counts"]] == [("items", 12), ("events", 520)]
    assert report["refusal"] is None
    assert "520" in call("data", "check", folder / "toy.yaml").stdout


def test_data_check_says_why_training_would_be_refused(tmp_path):
    write_tables(tmp_path / "data")
    rules = {"source": "folder", "path": str(tmp_path / "data"), "events": {"positive": {"Take": None}}}
    config = toy_config(tmp_path, data=rules)
    checked = CliRunner().invoke(cli.app, ["data", "check", str(config), "--json"])
    report = json.loads(checked.stdout)
    assert checked.exit_code == 0
    assert "no event is positive: check data.events.positive" in report["refusal"]
    assert [(p["reason"], p["count"]) for p in report["problems"]] == [("no positive event", 520)]
    assert "'take' (520), is 'Take' meant?" in report["notes"][0]
    printed = call("data", "check", config).stdout
    assert "training would be refused: no user has a positive event" in printed
    with pytest.raises(DataError, match="no event is positive"):
        call("train", config, "--no-track")


def recsys(*arguments):
    """The command in a process of its own."""
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


def test_square_brackets_in_an_error_are_not_taken_as_markup(folder):
    (folder / "bad.yaml").write_text("name: '[/red] x'\nseed: '[bold]'")
    done = recsys("train", folder / "bad.yaml")
    assert done.returncode == 1
    assert "bad.yaml: data: missing; add it" in done.stderr
    assert "'[bold]'" in done.stderr


def test_the_error_of_a_source_name_lists_the_configurations_of_that_source(folder):
    error = recsys("data", "get", "sequences").stderr
    assert error.endswith("; sequences is the source of beauty, ml-1m, toys\n")


@pytest.mark.parametrize(
    ("number", "status", "form"), [(signal.SIGINT, 0, "json"), (signal.SIGHUP, -signal.SIGTERM, "text")]
)
def test_the_service_says_where_it_serves_and_ends_in_order(number, status, form, tmp_path):
    code = "from recsys.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    environment = os.environ | {"RECSYS_SERVE__PRELOAD": "false", "RECSYS_SERVE__LOG_FORMAT": form}
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, and a child inherits that
    try:
        service = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    lines = []
    assert service.stderr is not None
    for line in service.stderr:
        lines.append(line)
        if "startup complete" in line:
            break
    first = next(number for number, line in enumerate(lines) if "serving at http://127.0.0.1:" in line)
    assert first == 0
    base = lines[first].rpartition(" ")[2].rstrip('"}\n')
    assert httpx.get(f"{base}/healthz").status_code == 200
    service.send_signal(number)
    last = service.communicate(timeout=60)[1]
    assert "Traceback" not in last
    assert "Application shutdown complete" in last
    assert service.returncode == status
    for line in [*lines, *last.splitlines()]:
        if form == "json":
            assert json.loads(line).keys() == {"time", "level", "logger", "message"}
        else:
            assert re.match(r"\d{4}-\d\d-\d\d \S+ [A-Z]+ [a-z.]+: ", line)


def test_configurations_are_found_by_name():
    path = options.config_path("complete-journey")
    assert path.name == "complete-journey.yaml"
    assert path.is_file()
