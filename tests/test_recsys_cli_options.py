"""The commands with their arguments, options and defaults: scripts of users depend on them."""

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from features.errors import ConfigError
from recsys.cli.main import app, main
from recsys.cli.options import bind

COMMANDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "bench": (["name"], {"--short": False, "--json": False}),
    "bundle compare": (["first", "second"], {"--bundles": Path("bundles"), "--json": False}),
    "bundle list": ([], {"--bundles": Path("bundles")}),
    "bundle publish": (["name"], {"--bundles": Path("bundles")}),
    "data check": (["name"], {"--json": False}),
    "data get": (["name"], {"--force": False, "--category": None, "--json": False}),
    "embed": (["name"], {"--retry": False, "--refetch": False, "--json": False}),
    "evaluate": (
        ["name"],
        {"--outcomes": None, "--rules": None, "--track/--no-track": True, "--json": False},
    ),
    "events consume": (
        ["stream"],
        {
            "--group": "recsys",
            "--consumer": None,
            "--config": None,
            "--log": None,
            "--idle": 60.0,
            "--once": False,
            "--json": False,
        },
    ),
    "experiment assignments": (["file", "users"], {"--user": None}),
    "experiment check": (["file"], {}),
    "experiment analyse": (
        ["outcomes"],
        {
            "--event": None,
            "--experiment": None,
            "--control": None,
            "--share": [],
            "--before": None,
            "--planned": None,
            "--json": False,
        },
    ),
    "experiment compare": (["first", "second"], {"--model": None, "--bundles": Path("bundles"), "--json": False}),
    "experiment guard": (
        [],
        {
            "--event": None,
            "--within": "1h",
            "--tolerated": 0.02,
            "--every": None,
            "--roll-back": False,
            "--log": None,
            "--bundles": Path("bundles"),
            "--json": False,
        },
    ),
    "experiment promote": (
        ["result", "variant"],
        {"--bundle": None, "--metric": None, "--bundles": Path("bundles")},
    ),
    "experiment reproduce": (["name"], {"--bundles": Path("bundles"), "--json": False}),
    "experiment ope": (
        ["outcomes"],
        {"--event": None, "--bundle": [], "--bundles": Path("bundles"), "--log": None, "--json": False},
    ),
    "experiment run": (["file"], {"--out": None, "--jobs": None, "--track/--no-track": True, "--json": False}),
    "experiment ui": ([], {"--port": 5000}),
    "doctor": ([], {"--json": False}),
    "features backfill": (
        ["name"],
        {"--from": None, "--to": None, "--log": None, "--memory": "4G", "--json": False},
    ),
    "features refresh": (["name"], {"--log": None, "--every": None, "--memory": "4G", "--json": False}),
    "features status": (["name"], {"--log": None, "--json": False}),
    "features verify": (["name"], {"--log": None, "--json": False}),
    "keys create": (["name"], {"--role": "read", "--limit": None, "--expires": None, "--keys": None}),
    "keys list": ([], {"--keys": None, "--json": False}),
    "keys revoke": (["name"], {"--keys": None}),
    "log export": (["stream"], {"--out": None, "--log": None, "--reader": None, "--json": False}),
    "log outcomes": (["out"], {"--within": "7d", "--log": None, "--json": False}),
    "log prune": ([], {"--log": None, "--dry-run": False, "--json": False}),
    "log status": ([], {"--log": None, "--check": False, "--json": False}),
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
    "serve": (
        [],
        {
            "--bundles": None,
            "--log": None,
            "--rules": None,
            "--experiments": None,
            "--keys": None,
            "--unprotected": None,
            "--host": None,
            "--port": None,
            "--workers": None,
        },
    ),
    "slates": (
        ["out"],
        {
            "--bundle": "current",
            "--bundles": Path("bundles"),
            "--k": 20,
            "--placement": None,
            "--part": "1/1",
            "--rules": None,
            "--json": False,
        },
    ),
    "train": (
        ["name"],
        {"--json": False, "--track/--no-track": True, "--publish/--no-publish": True, "--from": None},
    ),
    "nightly": (["name"], {"--full-every": 7, "--json": False, "--track/--no-track": True}),
    "tune": (
        ["name"],
        {
            "--trials": 30,
            "--minutes": None,
            "--only": None,
            "--json": False,
            "--track/--no-track": True,
        },
    ),
    "users erase": (
        ["user"],
        {
            "--config": None,
            "--log": None,
            "--exports": [],
            "--slates": [],
            "--also": [],
            "--bundles": None,
            "--dry-run": False,
            "--json": False,
        },
    ),
    "users export": (
        ["user"],
        {"--config": None, "--log": None, "--exports": [], "--slates": [], "--also": [], "--out": None},
    ),
    "vectors export": (
        [],
        {"--out": None, "--bundle": "current", "--bundles": Path("bundles"), "--dimension": None, "--json": False},
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


def usages(command: Any, words: tuple[str, ...] = ()) -> dict[str, str]:
    """Command -> the arguments in the first line of its help."""
    if below := getattr(command, "commands", {}):
        return {name: usage for part, inner in below.items() for name, usage in usages(inner, (*words, part)).items()}
    context = command.make_context(" ".join(words), [], resilient_parsing=True)
    pieces = " ".join(command.collect_usage_pieces(context)).removeprefix("[OPTIONS]")
    return {" ".join(words): pieces.replace("{", "").replace("}", "").strip()}


def test_arguments_as_the_help_shows_them() -> None:
    assert usages(get_command(app)) == {
        "bench": "[name]",
        "bundle compare": "first second",
        "bundle list": "",
        "bundle publish": "name",
        "data check": "CONFIG",
        "data get": "CONFIG_OR_NAME",
        "embed": "CONFIG",
        "evaluate": "CONFIG",
        "events consume": "stream",
        "experiment analyse": "outcomes",
        "experiment assignments": "FILE [USERS]",
        "experiment check": "FILE",
        "experiment compare": "A B",
        "experiment guard": "",
        "experiment promote": "RESULT VARIANT",
        "experiment reproduce": "RUN",
        "experiment ope": "outcomes",
        "experiment run": "file",
        "experiment ui": "",
        "doctor": "",
        "features backfill": "CONFIG",
        "features refresh": "CONFIG",
        "features status": "CONFIG",
        "features verify": "CONFIG",
        "keys create": "NAME",
        "keys list": "",
        "keys revoke": "NAME",
        "log export": "[stream]",
        "log outcomes": "out",
        "log prune": "",
        "log status": "",
        "nightly": "CONFIG",
        "search": "",
        "serve": "",
        "slates": "out",
        "train": "CONFIG",
        "tune": "CONFIG",
        "users erase": "USER",
        "users export": "USER",
        "vectors export": "",
    }


def empty_paths(command: Any, words: tuple[str, ...] = ()) -> list[list[str]]:
    """Arguments of every command with one path empty: a call for each path that it takes."""
    if below := getattr(command, "commands", {}):
        return [call for part, inner in below.items() for call in empty_paths(inner, (*words, part))]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    paths = [p for p in command.params if p.type_descriptor.annotation is Path]
    given = ["x" for _ in arguments]
    calls = [[*words, *given[:at], "", *given[at + 1 :]] for at, p in enumerate(arguments) if p in paths]
    needed = [part for p in paths if p.required and p not in arguments for part in (p.opts[0], "x")]
    return calls + [[*words, *needed, p.opts[0], "", *given] for p in paths if p not in arguments]


EMPTY = empty_paths(get_command(app))


def test_every_path_is_found() -> None:
    assert sum("--bundles" in call for call in EMPTY) == sum(
        "--bundles" in options for _, options in COMMANDS.values()
    )
    assert len(EMPTY) == 55


@pytest.mark.parametrize("call", EMPTY, ids=" ".join)
def test_an_empty_path_is_refused(call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["recsys", *call])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "the path is empty: name a file or a folder; see recsys " in capsys.readouterr().err


@pytest.mark.parametrize("call", EMPTY, ids=" ".join)
def test_a_path_that_is_not_utf_8_is_refused(call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["recsys", *(word or "a\udcff" for word in call)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert r"b'a\xff' is not UTF-8: rename it, or choose another path; see recsys " in said


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "a\udcff"])
def test_a_host_that_cannot_be_one_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^host '.*' has no address: choose one of this machine with --host$"):
        bind(host, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("OMP_NUM_THREADS", value) for value in ("abc", "0", "-1", "1.5", "4,x", "99999999999")),
        *(("OMP_WAIT_POLICY", value) for value in ("x", "ACTIVE PASSIVE")),
        *(("POLARS_MAX_THREADS", value) for value in ("abc", "0", "4,2")),
    ],
)
def test_a_variable_that_a_library_cannot_read_is_refused_by_its_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["recsys", "bundle", "list"])
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: environment variable {name} = {value!r}: must be ")


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_NUM_THREADS", " 4, 2 "), ("OMP_NUM_THREADS", ""), ("POLARS_MAX_THREADS", "")]
)
def test_a_variable_of_a_library_may_be_empty(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recsys", "--version"])
    monkeypatch.setenv(name, value)
    main()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("slates b --k 0", "'--k': must be 1 or more (got '0'); see recsys slates"),
        ("search --text x --k -1", "'--k': must be 1 or more (got '-1'); see recsys search"),
        ("search --text x --k 1001", "'--k': must be 1,000 or less (got '1001'); see recsys search"),
        ("experiment ui --port 99999", "'--port': must be 65,535 or less (got '99999'); see recsys experiment ui"),
        ("serve --port abc", "'--port': must be a whole number (got 'abc'); see recsys serve"),
        ("serve --port 1.5", "'--port': must be a whole number (got '1.5'); see recsys serve"),
    ],
)
def test_a_number_that_an_option_does_not_take(
    call: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["recsys", *call.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, capsys.readouterr().err) == (2, f"error: Invalid value for {message} --help\n")
