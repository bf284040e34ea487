"""`recsys bench`: benchmarks."""

import typer

from recsys.cli.options import print_json


def bench(
    context: typer.Context,
    name: str = typer.Argument(..., help="Name of a benchmark, or `all`."),
    short: bool = typer.Option(False, "--short", help="Use small sizes: the benchmark takes less time."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of standard output."),
) -> None:
    """Run a benchmark and compare its figures with their targets.

    The exit status is 0 when the benchmark has run, even if a target is missed. Options of a benchmark follow its
    name, e.g. --data FOLDER. Example: recsys bench check --short
    """
    import contextlib
    import sys

    import yaml
    from rich.console import Console

    from experiments.bench import runner
    from features.errors import ConfigError

    keys, values = context.args[::2], context.args[1::2]
    if len(keys) != len(values) or not all(key.startswith("--") for key in keys):
        raise ConfigError(f"options of a benchmark are pairs: --KEY VALUE; got: {' '.join(context.args)}")
    try:
        options = {key[2:].replace("-", "_"): yaml.safe_load(value) for key, value in zip(keys, values, strict=True)}
    except yaml.YAMLError as error:
        raise ConfigError(f"options of a benchmark: {' '.join(context.args)} cannot be read: {error}") from None
    with contextlib.redirect_stdout(sys.stderr), Console(stderr=True).status(f"bench {name}"):
        result = runner.run(name, short=short, **options)
    if as_json:
        print_json(result)
    else:
        Console().print(runner.render(result))
