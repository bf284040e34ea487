"""The `recsys` command: its commands and groups, and the display of errors. No other package imports this one."""

import errno
import os
import re
import sys
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from recsys.cli import bench, bundle, data, experiment, features, log, serve, train, users

app = typer.Typer(
    help="Recommendations on one embedding space.\n\n"
    "Start with `make demo`. Or run three commands: recsys data get movielens, recsys train movielens, recsys serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("embed")(data.embed)
app.command("train")(train.train)
app.command("nightly")(train.nightly)
app.command("tune")(train.tune)
app.command("evaluate")(experiment.evaluate)
app.command("serve")(serve.serve)
app.command("search")(serve.search)
app.command("doctor")(serve.doctor)
app.command("slates")(train.slates)
app.command(
    "bench", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(bench.bench)
app.add_typer(data.data_app, name="data")
app.add_typer(bundle.bundle_app, name="bundle")
app.add_typer(log.events_app, name="events")
app.add_typer(bundle.vectors_app, name="vectors")
app.add_typer(features.features_app, name="features")
app.add_typer(log.log_app, name="log")
app.add_typer(users.users_app, name="users")
app.add_typer(serve.keys_app, name="keys")
app.add_typer(experiment.experiment_app, name="experiment")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"recsys {metadata.version('onespace-recsys')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
    ),
) -> None:
    pass


EXTRAS = {
    **dict.fromkeys(("fastapi", "uvicorn", "pydantic_settings", "python_multipart"), "serve"),
    **dict.fromkeys(("redis", "prometheus_client"), "serve"),
    **dict.fromkeys(("implicit", "optuna"), "train"),
    **dict.fromkeys(("mlflow", "matplotlib"), "track"),
}
"""Package that a command may need -> the extra that installs it."""


SETTINGS = {
    "OMP_NUM_THREADS": (r" *0*[1-9][0-9]{0,3} *(, *0*[1-9][0-9]{0,3} *)*", "a number of threads from 1 to 9999"),
    "OMP_WAIT_POLICY": (r"(?i) *(active|passive) *", "ACTIVE or PASSIVE"),
    "POLARS_MAX_THREADS": (r"0*[1-9][0-9]{0,3}", "a number of threads from 1 to 9999"),
}
"""Environment variable of a library, which fails or complains in its own words at another value -> what it takes."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def main() -> None:
    """Run the command. A RecsysError, or an error of the operating system, becomes one line and exit status 1.

    Wrong options become one line and status 2, Ctrl-C one line and status 130. Under torchrun the first process runs
    the command; the other processes take part in training only.
    """
    # By default a waiting OpenMP thread spins and keeps its core from other processes. OpenMP reads the variable
    # once, when the first library that uses OpenMP is loaded; none is loaded yet. Figures: experiments/LOG.md.
    for name in SETTINGS:
        if os.environ.get(name) == "":
            del os.environ[name]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_standard_streams()

    from features.errors import FileError, RecsysError, describe_os_error, detail, missing_package

    try:
        _check_environment()
        if _processes() > 1:
            from recsys.towers.distributed import run_distributed

            run_distributed(_run)
        else:
            _run()
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk is an error here, and a traceback when the interpreter flushes
    except TyperException as error:
        if not error.format_message():  # a group without a command: its help has been printed
            raise SystemExit(error.exit_code) from None
        _fail(_describe_usage_error(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except RecsysError as error:
        _fail(error)
    except BrokenPipeError:  # the reader of a pipe, e.g. `head`, has ended
        _give_up_output()
        raise SystemExit(1) from None
    except OSError as error:
        _give_up_output()
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
            error.filename = "standard output, or a file"
        _fail(FileError(describe_os_error(error)))
    except (MemoryError, RuntimeError) as error:  # torch has a RuntimeError for memory that is used up
        if (
            not isinstance(error, MemoryError)
            and "allocate memory" not in str(error)
            and "out of memory" not in str(error)
        ):
            raise
        own = f"{error}; " if type(error) is MemoryError and str(error) else ""  # numpy has a class of its own
        _fail(f"out of memory: {own}use a machine with more, or lower sizes{'' if own else detail(error)}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _fail(missing_package("this command", package, EXTRAS[package]))


def _check_environment() -> None:
    """Raises ConfigError for a variable of SETTINGS that its library cannot read."""
    from features.errors import ConfigError

    for name, (form, needed) in SETTINGS.items():
        if name in os.environ and not re.fullmatch(form, os.environ[name]):
            raise ConfigError(f"environment variable {name} = {os.environ[name]!r}: must be {needed}, or unset")


def _processes() -> int:
    """Processes that torchrun started; 1 without it. Raises ConfigError for variables that are not whole."""
    from features.errors import ConfigError

    # Schedulers set WORLD_SIZE too; only torchrun sets TORCHELASTIC_RUN_ID.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1
    size = os.environ.get("WORLD_SIZE", "1")
    needed = {"WORLD_SIZE": size}
    if size != "1":
        needed |= {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "MASTER_PORT")}
    wrong = [name for name, value in needed.items() if not (value.isascii() and value.isdigit())]
    wrong += ["WORLD_SIZE"] if size == "0" else []
    if wrong or (size != "1" and not os.environ.get("MASTER_ADDR")):
        name = wrong[0] if wrong else "MASTER_ADDR"
        problem = f"TORCHELASTIC_RUN_ID is set, and {name} is {os.environ.get(name, 'missing')!r}"
        raise ConfigError(f"{problem}: start the command with torchrun, or unset TORCHELASTIC_RUN_ID")
    return int(size)


def _run() -> None:
    """Run the command that the arguments name. Raises SystemExit where its status is not 0."""
    status = app(
        prog_name="recsys", standalone_mode=False
    )  # typer would print its own errors, each as a panel of several lines
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise SystemExit(status)


def _open_standard_streams() -> None:
    """Make sure that 0, 1 and 2 are open, and that every character can be printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed by `>&-`: the next file that is opened would receive what is printed
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a title may have characters that LANG=C has not


def _describe_usage_error(error: TyperException) -> str:
    """What is wrong with the arguments, the value that was given, and where the help is."""
    from features.errors import describe_invalid

    problems = getattr(error.__cause__, "errors", None)  # of pydantic, which typer converts values with
    value = ""
    if problems:
        first = describe_invalid(problems())[0]
        error.message, value = first.reason, f" (got {first.problem['input']!r})"
    context = getattr(error, "ctx", None)
    return f"{error.format_message().rstrip('.')}{value}; see {context.command_path if context else 'recsys'} --help"


def _give_up_output() -> None:
    """Drop what standard output does not take: the interpreter would flush it once more, with a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(error: object, status: int = 1) -> NoReturn:
    """Print an error as one line and exit."""
    from rich.console import Console
    from rich.text import Text

    line = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    Console(stderr=True).print(Text.assemble(("error: ", "red"), line), soft_wrap=True)
    raise SystemExit(status) from None
