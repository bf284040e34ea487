"""`recsys evaluate` and `recsys experiment`: figures offline, and tracked runs."""

import typer

from recsys.cli.options import CONFIG, config_path, print_json, print_tables, progress_bars


def evaluate(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as one JSON object."),
) -> None:
    """Fit every baseline and the two towers in every window of the split and print one table a placement.

    Nothing is written. Example: recsys evaluate complete-journey
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


experiment_app = typer.Typer(help="Tracked runs.", no_args_is_help=True)


@experiment_app.command("ui")
def experiment_ui(port: int = typer.Option(5000, help="Port on loopback.")) -> None:
    """Open MLflow's page of the tracked runs at http://127.0.0.1:5000, until Ctrl-C."""
    from experiments.tracking.mlflow import open_ui

    raise typer.Exit(open_ui(port))
