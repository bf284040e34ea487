"""The examples for cron, systemd and Kubernetes can be read, and name commands, options and files that exist."""

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from recsys.cli.main import app

FOLDER = Path(__file__).parent.parent / "examples" / "schedules"
OPERATIONS = Path(__file__).parent.parent / "docs" / "operations.md"
SCHEDULE = re.compile(r"(\S+ ){4}\S+")
COMMAND = re.compile(r"(?:\S*/)?recsys ([^>|&#\n]+)")


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / name).read_text())
    return parser


def called() -> list[list[str]]:
    """The arguments of every call of `recsys` in the examples."""
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if not line.startswith("#")]
    lines.append(unit("recsys-nightly.service")["Service"]["ExecStart"])
    out = [shlex.split(match[1]) for line in lines for match in COMMAND.finditer(line)]
    for job in kubernetes():
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert container["command"][0] == "recsys"
        out.append(container["command"][1:])
    return out


CALLED = called()


def test_both_jobs_are_shown_for_cron_and_kubernetes_and_nightly_for_systemd():
    assert sorted(words[0] for words in CALLED) == ["features", "features", "nightly", "nightly", "nightly"]


@pytest.mark.parametrize("words", CALLED, ids=" ".join)
def test_commands_and_options_exist(words):
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("recsys", list(words))  # raises for an unknown option


def test_cron_jobs_of_kubernetes():
    jobs = kubernetes()
    assert [job["metadata"]["name"] for job in jobs] == ["recsys-nightly", "recsys-refresh"]
    for job in jobs:
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
        assert SCHEDULE.fullmatch(job["spec"]["schedule"])
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes
        assert [entry["name"] for entry in pod["containers"][0]["env"]] == ["REDIS_URL"]


def test_lines_of_the_crontab_have_five_fields():
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if "recsys " in line and line[0] != "#"]
    assert len(lines) == 2
    assert all(re.match(r"[\d*/]+( [\d*/]+){4} +cd /srv/recsys && ", line) for line in lines)


def test_units_of_systemd():
    assert unit("recsys-nightly.service")["Service"]["Type"] == "oneshot"
    assert unit("recsys-nightly.timer")["Timer"]["OnCalendar"] == "*-*-* 02:30:00"


def test_the_documentation_names_every_file():
    text = OPERATIONS.read_text()
    assert all(f"examples/schedules/{path.name}" in text for path in FOLDER.iterdir())
