"""The commands with their arguments, options and defaults: scripts of users depend on them."""

from pathlib import Path
from typing import Any

from typer.main import get_command

from recsys.cli.main import app

COMMANDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "bench": (["name"], {"--short": False, "--json": False}),
    "bundle compare": (["first", "second"], {"--bundles": Path("bundles"), "--json": False}),
    "bundle list": ([], {"--bundles": Path("bundles")}),
    "bundle publish": (["name"], {"--bundles": Path("bundles")}),
    "data check": (["name"], {"--json": False}),
    "data get": (["name"], {"--force": False, "--json": False}),
    "embed": (["name"], {"--retry": False, "--refetch": False, "--json": False}),
    "evaluate": (["name"], {"--outcomes": None, "--json": False}),
    "experiment compare": (["first", "second"], {"--model": None, "--json": False}),
    "experiment ui": ([], {"--port": 5000}),
    "features refresh": (["name"], {"--log": None, "--json": False}),
    "search": (
        [],
        {
            "--text": None,
            "--image": None,
            "--audio": None,
            "--video": None,
            "--k": 10,
            "--bundles": Path("bundles"),
            "--json": False,
        },
    ),
    "serve": ([], {"--bundles": None, "--log": None, "--host": None, "--port": None}),
    "slates": (
        ["out"],
        {
            "--bundle": "current",
            "--bundles": Path("bundles"),
            "--k": 20,
            "--placement": None,
            "--part": "1/1",
            "--json": False,
        },
    ),
    "train": (
        ["name"],
        {"--json": False, "--track/--no-track": True, "--publish/--no-publish": True, "--from": None},
    ),
    "tune": (
        ["name"],
        {
            "--trials": 30,
            "--minutes": None,
            "--only": "",
            "--json": False,
            "--track/--no-track": True,
        },
    ),
}
"""Command -> (arguments, option -> default)."""


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """The commands below a command, as COMMANDS has them."""
    if below := getattr(command, "commands", {}):
        return {
            name: entry for part, inner in below.items() for name, entry in commands(inner, (*path, part)).items()
        }
    arguments = [p.name for p in command.params if p.param_type_name == "argument"]
    options = {
        "/".join([*p.opts, *p.secondary_opts]): p.default
        for p in command.params
        if p.param_type_name == "option" and "--help" not in p.opts
    }
    return {" ".join(path): (arguments, options)}


def test_commands_options_and_defaults() -> None:
    assert commands(get_command(app)) == COMMANDS
