"""Shared by the commands: help texts of options, configurations by name, output."""

from contextlib import AbstractContextManager
from pathlib import Path
from sysconfig import get_path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from experiments.evaluation.ranking import Comparison
    from experiments.tracking.progress import Reporter

CONFIG = "A configuration file, or the name of a shipped configuration: movielens, complete-journey, beauty, ..."


def config_path(name: str) -> Path:
    """The file of a configuration, which is given as a path or as the name of a configuration in configs/.

    Raises ConfigError that lists the shipped configurations.
    """
    from features.errors import ConfigError

    checkout = Path(__file__).resolve().parents[2] / "configs"
    shipped = checkout if checkout.is_dir() else Path(get_path("data")) / "share" / "onespace-recsys" / "configs"
    candidates = (Path(name), Path("configs") / f"{name}.yaml", shipped / f"{name}.yaml")
    if found := next((path for path in candidates if path.is_file()), None):
        return found
    names = {path.stem: path for path in sorted(shipped.glob("*.yaml"))}
    using = [stem for stem, path in names.items() if f"\n  source: {name}\n" in path.read_text(encoding="utf-8")]
    hint = f"; {name} is the source of {', '.join(using)}" if using else ""
    known = ", ".join(names) or "none"
    raise ConfigError(f"no configuration {name!r}: not a file, and not among the shipped ones: {known}{hint}")


def print_json(value: object) -> None:
    """Print a value as one line of JSON; it may contain numpy values."""
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode())


def print_tables(tables: "list[Comparison]") -> None:
    """Print the tables of an evaluation, one for each placement."""
    from rich.console import Console

    console = Console(width=max(Console().width, 175))  # a narrower table cuts its figures off
    for table in tables:
        console.print(table.render())


def progress_bars() -> "AbstractContextManager[Reporter]":
    """Progress bars and lines on standard error while a command runs."""
    from experiments.tracking.progress import terminal

    return terminal()
