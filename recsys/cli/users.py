"""`recsys users`: erase a person from all places, and write what is known of one."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from recsys.cli.log import AS_JSON, FOLDER
from recsys.cli.options import CONFIG, bundles_folder, config_path, given_path, log_folder, print_json

if TYPE_CHECKING:
    from features.erasure.erase import ErasureReport, Scope
    from features.schema import DataConfig

users_app = typer.Typer(help="The data of one person: erase it, or write down what is known.", no_args_is_help=True)

USER = typer.Argument(..., metavar="USER", help="The id of the user, as events and requests give it.")
NAME = typer.Option(None, "--config", metavar="CONFIG", help=f"{CONFIG} [that of the current bundle]")
LOG = typer.Option(None, help=FOLDER, parser=given_path)
EXPORTS = typer.Option(
    [], metavar="DIR", help="Exports of the log; those of registered readers are known.", parser=given_path
)
SLATES = typer.Option([], metavar="DIR", help="Folder that `recsys slates` wrote.", parser=given_path)
OTHERS = typer.Option(
    [], "--also", metavar="PATH", help="Other parquet: outcomes, exported vectors.", parser=given_path
)
BUNDLES = typer.Option(None, help="Folder of the bundles. [setting BUNDLES of the service]", parser=given_path)

TRACKED = "mlflow.db"
"""File of tracked runs, in the working folder."""

OUTCOMES = ("mlruns", "data/experiments")
"""Where runs and experiments keep the ranks of each user's events, in the working folder."""


@users_app.command("erase")
def users_erase(
    user: str = USER,
    config: str | None = NAME,
    log: Path | None = LOG,
    exports: list[Path] = EXPORTS,
    slates: list[Path] = SLATES,
    also: list[Path] = OTHERS,
    bundles: Path | None = BUNDLES,
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be erased."),
    as_json: bool = typer.Option(False, "--json", help=AS_JSON),
) -> None:
    """Erase a user from log, exports, rejected rows, slates and store, and search all of them for what is left.

    Services go on meanwhile. The tables are not changed: the next reading leaves the user's rows out. The status is 1
    when something is left, or could not be done; then run the command again.
    Example: REDIS_URL=redis://localhost:6379/0 recsys users erase 4711 --slates data/slates
    """
    from dataclasses import asdict

    from features.erasure.erase import erase_user

    report = erase_user(_scope(config, log, exports, slates, also, bundles), user, dry_run=dry_run)
    if as_json:
        print_json(asdict(report) | {"n_left": report.n_left})
    else:
        _show(report)
    if report.n_left:
        raise typer.Exit(1)


@users_app.command("export")
def users_export(
    user: str = USER,
    config: str | None = NAME,
    log: Path | None = LOG,
    exports: list[Path] = EXPORTS,
    slates: list[Path] = SLATES,
    also: list[Path] = OTHERS,
    out: Path | None = typer.Option(None, help="File to write to. [standard output]", parser=given_path),
) -> None:
    """Write what is known of a user as JSON: rows of the tables, records of the log, state in the store, other files.

    Example: REDIS_URL=redis://localhost:6379/0 recsys users export 4711 --out 4711.json
    """
    import orjson

    from features.erasure.known import known_of
    from features.files import put_file

    known = known_of(_scope(config, log, exports, slates, also, None), user)
    text = orjson.dumps(known, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if out is None:
        typer.echo(text.decode(), nl=False)
        return

    def write(part: Path) -> None:
        part.touch(0o600)
        part.write_bytes(text)

    put_file(out, write)
    typer.echo(f"{out}: {len(text):,} bytes")


def _scope(
    config: str | None,
    log: Path | None,
    exports: list[Path],
    slates: list[Path],
    others: list[Path],
    bundles: Path | None,
) -> "Scope":
    """Where to look. Raises ConfigError."""
    import os

    from features.erasure.erase import Scope
    from serving.settings import load_settings

    settings = load_settings(os.environ, log=log, bundles=bundles)
    log_folder(settings.log)
    if bundles is not None:
        bundles_folder(bundles)
    searched = (settings.bundles, Path(TRACKED))
    return Scope(
        settings.log,
        _data(config, settings.bundles),
        tuple(exports),
        tuple(slates),
        (*others, *(path for path in map(Path, OUTCOMES) if path.exists())),
        tuple(path for path in searched if path.exists()),
        settings.redis_url,
    )


def _data(config: str | None, bundles: Path) -> "DataConfig | None":
    """The configuration of the tables: of a file, or of the current bundle; None without either."""
    if config is not None:
        from experiments.config import load_config

        return load_config(config_path(config)).data
    if not (bundles / "current").is_symlink():
        return None
    from features.schema import DataConfig
    from recsys.bundle.formats import read_manifest
    from recsys.bundle.registry import current_bundle

    return DataConfig.model_validate(read_manifest(current_bundle(bundles))["config"]["data"])


def _show(report: "ErasureReport") -> None:
    """Print a report for people."""
    verb = "would be erased" if report.dry_run else "erased"
    for place in report.places:
        size = f", {place.bytes:,} bytes" if place.bytes else ""
        unit = "keys" if place.name == "feature store" else "files"
        typer.echo(f"{place.name} {place.path}: {place.found:,} {verb}; searched: {place.files:,} {unit}{size}")
    for table, rows in report.tables.items():
        what = "are left out when tables are read from now on" if not report.dry_run else "would be left out"
        typer.echo(f"table {table}: {rows:,} rows stay in your file and {what}")
    if report.arrived:
        typer.echo(f"{report.arrived:,} lines have arrived for this id since: they belong to a new person")
    for note in report.notes:
        typer.echo(f"note: {note}")
    if report.dry_run:
        return
    for place in report.places:
        for where in place.left:
            typer.echo(f"LEFT: {where}")
    typer.echo("found nowhere" if not report.n_left else f"found in {report.n_left:,} places; run the command again")
