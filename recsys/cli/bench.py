"""`recsys bench`: benchmarks."""

from typing import Any

import typer

from recsys.cli.options import print_json, show


def bench(
    context: typer.Context,
    name: str | None = typer.Argument(None, help="Name of a benchmark, or `all`."),
    short: bool = typer.Option(False, "--short", help="Use small sizes: the benchmark takes less time."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of standard output."),
    help_: bool = typer.Option(False, "--help", help="Show this message; after NAME, the options of the benchmark."),
) -> None:
    """Run a benchmark and compare its figures with their targets.

    The exit status is 0 when the benchmark has run, even if a target is missed. Options of a benchmark follow its
    name, e.g. --data FOLDER. Example: recsys bench check --short
    """
    import contextlib
    import sys

    from rich.console import Console

    from experiments.bench import runner
    from features.errors import ConfigError

    names = f"{', '.join(runner.BENCHES)}, all"
    if help_:
        typer.echo(context.get_help())
        typer.echo(runner.describe(name) if name in runner.BENCHES else f"Benchmarks: {names}")
        return
    if name is None:
        raise ConfigError(f"no benchmark is named; choose from {names}")
    options = _pairs(context.args)
    with contextlib.redirect_stdout(sys.stderr), Console(stderr=True).status(f"bench {name}"):
        result = runner.run(name, short=short, **options)
    if as_json:
        print_json(result)
    else:
        show(runner.render(result), 120)


def _pairs(arguments: list[str]) -> dict[str, Any]:
    """Options of a benchmark: --KEY VALUE or --KEY=VALUE. Raises ConfigError for anything else."""
    from features.errors import ConfigError

    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith("--") else [argument]
    keys, values = words[::2], words[1::2]
    if len(keys) != len(values) or not all(key.startswith("--") for key in keys):
        raise ConfigError(
            f"options of a benchmark are pairs, --KEY VALUE; got: {' '.join(arguments)}; see recsys bench NAME --help"
        )
    return {key[2:].replace("-", "_"): value for key, value in zip(keys, values, strict=True)}
