"""`recsys evaluate` and `recsys experiment`: offline evaluation and tracked runs."""

import typer

from recsys.cli.options import CONFIG, config_path, print_json, print_tables, progress_bars


def evaluate(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as one JSON object."),
) -> None:
    """Evaluate offline: fit the baselines and the two towers in every window, and print a table for each placement.

    No bundle is written. Example: recsys evaluate complete-journey
    """
    from experiments.config import load_config
    from experiments.pipelines.train import evaluate_run

    config = load_config(config_path(name))
    with progress_bars() as reporter:
        tables = evaluate_run(config, reporter)
    if as_json:
        print_json({"tables": [table.to_dict() for table in tables]})
    else:
        print_tables(tables)


experiment_app = typer.Typer(help="Look at tracked runs.", no_args_is_help=True)


@experiment_app.command("ui")
def experiment_ui(port: int = typer.Option(5000, help="Port on loopback (127.0.0.1).")) -> None:
    """Serve the MLflow user interface with the tracked runs at http://127.0.0.1:5000. Ctrl-C stops it."""
    from experiments.tracking.mlflow import open_ui

    raise typer.Exit(open_ui(port))
