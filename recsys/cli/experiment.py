"""`recsys evaluate` and `recsys experiment`: offline evaluation and tracked runs."""

from pathlib import Path

import typer

from recsys.cli.bundle import BUNDLE, ROOT
from recsys.cli.options import (
    CONFIG,
    RULES,
    bind,
    bundles_folder,
    config_path,
    given_path,
    given_text,
    log_folder,
    print_json,
    print_tables,
    progress_bars,
    repeat,
    seconds_of,
    show,
)


def evaluate(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    outcomes: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Write the rank of every event to a parquet file for `recsys experiment compare`.",
        parser=given_path,
    ),
    rules: Path | None = typer.Option(
        None, help=f"{RULES} The recommender is evaluated with them as well.", parser=given_path
    ),
    track: bool = typer.Option(True, "--track/--no-track", help="Record the run in MLflow."),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as one JSON object."),
) -> None:
    """Evaluate offline: fit the baselines and the two towers in every window, and print a table for each placement.

    No bundle is written. Example: recsys evaluate complete-journey --outcomes before.parquet
    """
    from experiments.config import load_config
    from experiments.pipelines.train import evaluate_run
    from experiments.tracking.mlflow import MlflowTracker, NullTracker

    config = load_config(config_path(name))
    with progress_bars() as reporter:
        tracker = MlflowTracker() if track else NullTracker()
        tables = evaluate_run(config, reporter, tracker=tracker, outcomes_file=outcomes, rules_file=rules)
    if as_json:
        print_json({"tables": [table.to_dict() for table in tables]})
    else:
        print_tables(tables)


experiment_app = typer.Typer(help="Compare evaluations; look at tracked runs.", no_args_is_help=True)


@experiment_app.command("run")
def experiment_run(
    file: Path = typer.Argument(..., help="The variants, seeds and the rule, in YAML.", parser=given_path),
    out: Path | None = typer.Option(
        None, metavar="DIR", help="Folder of outcomes and result. [data/experiments/NAME]", parser=given_path
    ),
    jobs: int | None = typer.Option(None, min=1, help="Processes at a time. [one for each core]"),
    track: bool = typer.Option(True, "--track/--no-track", help="Record it in MLflow, with a run for each variant."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Compare variants on one split with several seeds, and decide by the rule in the file.

    What was computed before is not computed again. Example: recsys experiment run rankers.yaml
    """
    from experiments import notebook
    from experiments.pipelines.experiment.report import RESULT_FILES, table

    with progress_bars() as reporter:
        result = notebook.run(file, out=out, jobs=jobs, track=track, reporter=reporter)
    if as_json:
        print_json(result.to_dict())
    else:
        show(table(result), 170)
        typer.echo(f"the page: {(out or notebook.folder_of(result.name)) / RESULT_FILES[-1]}")


@experiment_app.command("compare")
def experiment_compare(
    first: Path = typer.Argument(
        ...,
        metavar="A",
        help="A run in MLflow (id or name), a bundle (fingerprint or `current`), or a file of `recsys evaluate "
        "--outcomes FILE`.",
        parser=given_path,
    ),
    second: Path = typer.Argument(..., metavar="B", help="Another one, of the same split.", parser=given_path),
    model: str | None = typer.Option(None, help="Compare this model only. [every model in both]"),
    root: Path = ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as one JSON object."),
) -> None:
    """Compare two evaluations on the events that both have: B minus A, with a 95 % interval over users.

    A run of `recsys train` or `recsys evaluate` has recorded the ranks of its events, and that of a bundle is the one
    that trained it. Example: recsys experiment compare current 3f2a --model "two towers + reranker"
    """
    from experiments.notebook import compare

    compared = compare(first, second, model=model, bundles=root)
    if as_json:
        print_json(compared.to_dict())
    else:
        show(compared.render(), 150)


SERVED = typer.Argument(..., metavar="FILE", help="File of a service's experiments, in YAML.", parser=given_path)


@experiment_app.command("assignments")
def experiment_assignments(
    file: Path = SERVED,
    users: Path | None = typer.Argument(
        None, metavar="USERS", help="A parquet file with a column `user_id`.", parser=given_path
    ),
    user: str | None = typer.Option(None, metavar="ID", help="One user, in place of USERS.", parser=given_text),
) -> None:
    """Print which variant users get, as the service assigns them: CSV, a column for each experiment, empty for none.

    Example: recsys experiment assignments experiments.yaml --user 4711
    """
    import polars as pl

    from features.errors import ConfigError, DataError
    from features.schema import USER
    from features.tables.files.parquet import scan_parquet
    from features.tables.scan import reading
    from recsys.assignment import load_experiments

    if (users is None) == (user is None):
        raise ConfigError("whose variants? give either USERS, a parquet file, or --user ID")
    experiments = load_experiments(file)
    ids = pl.Series([user], dtype=pl.String)
    if users is not None:
        with reading(str(users)):
            frame = scan_parquet(users)
            if USER not in frame.collect_schema().names():
                raise DataError(f"{users} has no column {USER!r}: name the column of users so")
            ids = frame.select(USER).collect().to_series()
    typer.echo(experiments.table(ids).write_csv(), nl=False)


@experiment_app.command("check")
def experiment_check(file: Path = SERVED) -> None:
    """Check a file of a service's experiments, and the files of rules that its variants name, as the service does.

    Example: recsys experiment check experiments.yaml
    """
    from recsys.assignment import load_experiments
    from recsys.ranking.rules import rules_fault

    experiments = load_experiments(file, lambda of: rules_fault(file.parent / of.rules) if of.rules else "")
    for experiment in experiments.experiments:
        shares = ", ".join(f"{name} {share:.4g}" for name, share in experiment.shares.items())
        typer.echo(f"{experiment.name}: {experiment.share:.4g} of all users; of these {shares}")
    typer.echo(f"{file}: experiments: {len(experiments.experiments)}")


@experiment_app.command("analyse")
def experiment_analyse(
    outcomes: Path = typer.Argument(..., help="A file of `recsys log outcomes`.", parser=given_path),
    event: list[str] = typer.Option(..., metavar="TYPE", help="Event type that is counted. May be repeated."),
    experiment: str | None = typer.Option(
        None, metavar="NAME", help="Experiment, where `variant` names several. [`variant` as a whole is the arm]"
    ),
    control: str | None = typer.Option(
        None, metavar="ARM", help="Arm that others are compared with. [first by name]"
    ),
    share: list[str] = typer.Option(
        [], metavar="ARM=SHARE", help="Planned share of the users of an arm. May be repeated. [equal shares]"
    ),
    before: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Outcomes of the time before the test, to explain variance (CUPED).",
        parser=given_path,
    ),
    planned: int | None = typer.Option(None, min=2, help="Users of the whole test. [those that are there]"),
    as_json: bool = typer.Option(False, "--json", help="Print the analysis as one JSON object."),
) -> None:
    """Compare the arms of a test: differences with intervals, also one that holds at every look; a check of shares.

    Example: recsys experiment analyse outcomes.parquet --event click --event purchase --control old
    """
    from experiments.evaluation.online import analyse

    found = analyse(
        outcomes,
        event,
        experiment=experiment,
        control=control,
        shares=_shares(share),
        before=before,
        planned=planned,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        show(found.render(), 170)


@experiment_app.command("ope")
def experiment_ope(
    outcomes: Path = typer.Argument(..., help="A file of `recsys log outcomes`.", parser=given_path),
    event: str = typer.Option(..., metavar="TYPE", help="Event type that is the reward.", parser=given_text),
    bundle: list[str] = typer.Option(
        [], metavar="BUNDLE", help="A bundle to judge: its fingerprint, a prefix, or its folder. May be repeated."
    ),
    root: Path = typer.Option(Path("bundles"), "--bundles", help="Folder of the bundles.", parser=given_path),
    log: Path | None = typer.Option(
        None,
        help="Folder of the event log that the outcomes are of. [setting LOG of the service, else state/log]",
        parser=given_path,
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Estimate from the explored slots of a log what other bundles would have earned there, with intervals.

    Example: recsys experiment ope outcomes.parquet --event click --bundle 3f2a
    """
    import os

    from experiments.notebook import ope
    from serving.settings import load_settings

    folder = log_folder(load_settings(os.environ, log=log).log)
    if any(not (Path(name) / "manifest.json").is_file() for name in bundle):
        bundles_folder(root)
    with progress_bars() as reporter:
        found = ope(outcomes, event, bundle, bundles=root, log=folder, reporter=reporter)
    if as_json:
        print_json(found.to_dict())
    else:
        show(found.render(), 150)


def _shares(given: list[str]) -> dict[str, float] | None:
    """Arm -> share of ARM=SHARE texts. Raises ConfigError."""
    from features.errors import ConfigError

    shares = {}
    for text in given:
        arm, _, share = text.rpartition("=")
        try:
            shares[arm] = float(share)
        except ValueError:
            shares[arm] = -1
        if not arm or not 0 < shares[arm] < float("inf"):
            raise ConfigError(f"--share {text}: ARM=SHARE is needed, SHARE a number above 0, such as --share old=.5")
    return shares or None


@experiment_app.command("promote")
def experiment_promote(
    result: Path = typer.Argument(
        ...,
        metavar="RESULT",
        help="Folder of `recsys experiment run`, or a file with what `recsys experiment analyse --json` printed.",
        parser=given_path,
    ),
    variant: str = typer.Argument(..., metavar="VARIANT", help="Variant, or arm of the test.", parser=given_text),
    bundle: str | None = typer.Option(
        None, metavar="BUNDLE", help=f"{BUNDLE} [after a test: the one that answered in the arm]", parser=given_text
    ),
    metric: str | None = typer.Option(
        None, help="After a test: the metric that decides, e.g. 'click per user'. [offline: that of the file]"
    ),
    root: Path = ROOT,
) -> None:
    """Make the bundle of a variant current, if the decision is to ship it and the bundle is that variant.

    Example: recsys experiment promote data/experiments/rankers "more trees" --bundle 3f2a
    """
    from experiments.pipelines.release.promote import promote

    typer.echo(promote(result, variant, bundles_folder(root), name=bundle, metric=metric))


BREACH = 3
"""Exit status of `guard` when a metric is breached, and of `reproduce` when a part differs."""


@experiment_app.command("guard")
def experiment_guard(
    event: list[str] = typer.Option(..., metavar="TYPE", help="Event type that must not fall. May be repeated."),
    within: str = typer.Option("1h", help="Length of the window after an answer in which events count."),
    tolerated: float = typer.Option(0.02, min=0.0, max=1.0, help="Share of the value before that may be lost."),
    every: str | None = typer.Option(None, help="Do it again and again: the time from start to start, e.g. 5m."),
    roll_back: bool = typer.Option(False, "--roll-back", help="After a breach, publish the bundle before."),
    log: Path | None = typer.Option(
        None, help="Folder of the event log. [setting LOG of the service, else state/log]", parser=given_path
    ),
    root: Path = ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print the report of each look as one line."),
) -> None:
    """Compare what users do since the last publication with the time of the bundle before it.

    Exit status: 0 nothing is breached; 3 a metric is; 1 an error. A breach ends --every.
    Example: recsys experiment guard --event click --every 5m --roll-back
    """
    import os

    from experiments.pipelines.release.guard import guard, roll_back_command, rolled_back
    from serving.settings import load_settings

    folder = log_folder(load_settings(os.environ, log=log).log)
    seconds, pause = seconds_of("--within", within), seconds_of("--every", every)
    assert seconds is not None
    micros = int(seconds * 1e6)

    def once() -> None:
        report = guard(folder, bundles_folder(root), event, within=micros, tolerated=tolerated)
        if as_json:
            print_json(report.to_dict())
        else:
            show(report.render(), 150)
        if report.breaches:
            for breach in report.breaches:
                typer.echo(f"breach: {breach}", err=True)
            done = rolled_back(report, root) if roll_back else f"to roll back: {roll_back_command(report, root)}"
            typer.echo(done, err=True)
            raise typer.Exit(BREACH)

    if pause is None:
        once()
    else:
        repeat(once, pause)


@experiment_app.command("reproduce")
def experiment_reproduce(
    name: str = typer.Argument(
        ...,
        metavar="RUN",
        help="A run in MLflow (id or name), or a bundle (fingerprint or `current`).",
        parser=given_text,
    ),
    root: Path = ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print the report as one JSON object."),
) -> None:
    """Repeat a training or an evaluation from its record, and compare the result bit by bit. Nothing is published.

    Exit status: 0 all parts are equal; 3 one differs; 1 data, code or libraries are others, or an error.
    Example: recsys experiment reproduce current
    """
    from experiments.pipelines.release.reproduce import reproduce
    from experiments.tracking.recorded import RunArchive

    with progress_bars() as reporter:
        found = reproduce(name, root, RunArchive(), reporter)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(f"equal: {', '.join(found.equal) or 'nothing'}")
        typer.echo(f"different: {', '.join(found.different) or 'nothing'}")
    if found.different:
        raise typer.Exit(BREACH)


@experiment_app.command("ui")
def experiment_ui(
    port: int = typer.Option(5000, min=1, max=65535, help="Port on loopback (127.0.0.1)."),
) -> None:
    """Serve the MLflow user interface with the tracked runs at http://127.0.0.1:5000. Ctrl-C stops it."""
    from experiments.tracking.mlflow import open_ui

    for listener in bind("127.0.0.1", port):
        listener.close()  # MLflow opens its own
    raise typer.Exit(open_ui(port))
