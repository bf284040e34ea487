"""`recsys bench`: benchmarks."""

import typer

from recsys.cli.options import print_json


def bench(
    context: typer.Context,
    name: str = typer.Argument(..., help="A benchmark, or all of them: all."),
    short: bool = typer.Option(False, "--short", help="The short form: small sizes."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of standard output."),
) -> None:
    """Measure, and hold the figures against their bars. Exits 0 when it could measure, whatever holds.

    Options of one benchmark follow its name, as --data FOLDER. Example: recsys bench check --short
    """
    import contextlib
    import sys

    import yaml
    from rich.console import Console

    from experiments.bench import runner
    from features.errors import ConfigError

    keys, values = context.args[::2], context.args[1::2]
    if len(keys) != len(values) or not all(key.startswith("--") for key in keys):
        raise ConfigError(f"options of a benchmark are pairs, --KEY VALUE; given: {' '.join(context.args)}")
    try:
        given = {key[2:].replace("-", "_"): yaml.safe_load(value) for key, value in zip(keys, values, strict=True)}
    except yaml.YAMLError as error:
        raise ConfigError(f"options of a benchmark: {' '.join(context.args)} cannot be read: {error}") from None
    with contextlib.redirect_stdout(sys.stderr), Console(stderr=True).status(f"bench {name}"):
        done = runner.run(name, short=short, **given)
    if as_json:
        print_json(done)
    else:
        Console().print(runner.render(done))
