"""The `recsys` command: its commands and groups, and the display of errors. No other package imports this one."""

import os
from typing import TYPE_CHECKING, NoReturn

import typer

from recsys.cli import bench, bundle, data, experiment, features, serve, train

if TYPE_CHECKING:
    from features.errors import RecsysError

app = typer.Typer(
    help="Recommendations on one embedding space.\n\n"
    "Start with `make demo`. Or run three commands: recsys data get movielens, recsys train movielens, recsys serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("embed")(data.embed)
app.command("train")(train.train)
app.command("tune")(train.tune)
app.command("evaluate")(experiment.evaluate)
app.command("serve")(serve.serve)
app.command("search")(serve.search)
app.command("slates")(train.slates)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench.bench)
app.add_typer(data.data_app, name="data")
app.add_typer(bundle.bundle_app, name="bundle")
app.add_typer(features.features_app, name="features")
app.add_typer(experiment.experiment_app, name="experiment")

EXTRAS = {
    **dict.fromkeys(("fastapi", "uvicorn", "pydantic_settings", "python_multipart", "redis"), "serve"),
    **dict.fromkeys(("implicit", "optuna"), "train"),
    **dict.fromkeys(("mlflow", "matplotlib"), "track"),
}
"""Package that a command may need -> the extra that installs it."""


def main() -> None:
    """Run the command. A RecsysError, or an error of the operating system, becomes one line and exit status 1.

    Under torchrun the first process runs the command; the other processes take part in training only.
    """
    # By default a waiting OpenMP thread spins and keeps its core from other processes. OpenMP reads the variable
    # once, when the first library that uses OpenMP is loaded; none is loaded yet. Figures: experiments/LOG.md.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from features.errors import FileError, RecsysError, describe_os_error, missing_package

    try:
        # Schedulers set WORLD_SIZE too; only torchrun sets TORCHELASTIC_RUN_ID.
        if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from recsys.towers.distributed import run_distributed

            run_distributed(app)
        else:
            app()
    except RecsysError as error:
        _fail(error)
    except BrokenPipeError:  # the reader of a pipe, e.g. `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes standard output once more
        raise SystemExit(1) from None
    except OSError as error:
        _fail(FileError(describe_os_error(error)))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _fail(missing_package("this command", package, EXTRAS[package]))


def _fail(error: "RecsysError") -> NoReturn:
    """Print an error as one line and exit with status 1."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)))
    raise SystemExit(1) from None
