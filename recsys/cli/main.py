"""The front door: the `recsys` command. The one room that may call every other, lazily; nothing calls it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from recsys.cli.bundle import ONE, bundle_app

if TYPE_CHECKING:
    from experiments.evaluation.ranking import Comparison
    from experiments.pipelines.train import Reporter

app = typer.Typer(
    help="Recommendations on one embedding space.\n\n"
    "Start with `make demo`, or step by step: recsys data get movielens, recsys train movielens, recsys serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


data_app = typer.Typer(help="Get a data set by name; check tables against the data contract.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(bundle_app, name="bundle")

CONFIG = "A configuration file, or the name of a shipped one: movielens, complete-journey, beauty, ..."


def config_path(name: str) -> Path:
    """A configuration by file name, or by the name of one that is shipped in configs/."""
    from features.errors import ConfigError

    shipped = Path(__file__).resolve().parent.parent / "configs"
    tried = (Path(name), Path("configs") / f"{name}.yaml", shipped / f"{name}.yaml")
    if found := next((path for path in tried if path.is_file()), None):
        return found
    names = {path.stem: path for path in sorted(shipped.glob("*.yaml"))}
    of = [stem for stem, path in names.items() if f"\n  source: {name}\n" in path.read_text(encoding="utf-8")]
    meant = f"; {name} is the source of {', '.join(of)}" if of else ""
    told = ", ".join(names) or "none"
    raise ConfigError(f"no configuration {name!r}: not a file, and not among the shipped ones: {told}{meant}")


def _print_json(value: object) -> None:
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode())


@data_app.command("get")
def data_get(
    name: str = typer.Argument(..., metavar="CONFIG_OR_NAME", help=CONFIG),
    force: bool = typer.Option(False, "--force", help="Write anew what is there already."),
    as_json: bool = typer.Option(False, "--json", help="Print source.json as one line."),
) -> None:
    """Write the tables of a data set into its folder: items.parquet, events.parquet, source.json.

    Example: recsys data get movielens
    """
    import json

    from experiments.config import load_config
    from features.tables.sources import get

    config = load_config(config_path(name)).data
    typer.echo(f"getting {config.source} into {config.path}", err=True)  # a download draws its own progress bar
    folder = get(config, force=force)
    manifest = folder / "source.json"
    told: dict[str, Any] = {"name": config.source}
    if manifest.is_file():
        told = json.loads(manifest.read_text(encoding="utf-8"))
    if as_json:
        _print_json(told | {"path": str(folder)})
        return
    typer.echo(f"{config.source} is in {folder}" + (f", from {told['origin']}" if "origin" in told else ""))
    for file, about in told.get("files", {}).items():
        typer.echo(f"  {file}: {about['rows']:,} rows")
    for note in told.get("notes", []):
        typer.echo(f"  note: {note}")
    if "terms" in told:
        typer.echo(f"  terms of use: {told['terms']}")
    typer.echo(f"next: recsys data check {name}")


@data_app.command("check")
def data_check(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Read the tables and report what was kept, repaired and set aside, with places and what to do.

    Example: recsys data check configs/movielens.yaml
    """
    from rich.console import Console

    from experiments.config import load_config
    from features.tables.read import read_tables

    config = load_config(config_path(name)).data
    with _reporter() as reporter:
        report = read_tables(config, progress=reporter.steps).report
    if as_json:
        _print_json(report.to_dict())
    else:
        Console().print(report.render())


@app.command("embed")
def embed(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    retry: bool = typer.Option(False, "--retry", help="Try again what could not be read before."),
    refetch: bool = typer.Option(False, "--refetch", help="Embed again what is behind URLs."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Turn what items show, say and sound like into vectors; only what is new or changed is computed.

    May be killed and run again at any time. The next `recsys train` uses what is there.
    Example: recsys embed movielens
    """
    from dataclasses import asdict

    from experiments.config import load_config
    from experiments.dataset import embed_catalog

    config = load_config(config_path(name))
    with _reporter() as reporter:
        done, items = embed_catalog(config, retry=retry, refetch=refetch, progress=reporter.steps)
    if as_json:
        encoders = [
            asdict(one) | {"space": str(one.space), "items_per_second": one.per_second} for one in done.encoders
        ]
        _print_json({"items": items.to_dict(), "encoders": encoders, "failures": str(done.failures)})
        return
    for one in done.encoders:
        typer.echo(
            f"{one.encoder}: {one.readable:,} of {one.contents:,} items have it; {one.cached:,} known, "
            f"{one.computed:,} computed ({one.per_second:,.1f}/s), {one.failed:,} parts failed"
        )
        for failure in one.first:
            typer.echo(f"  item {failure.row + 1}, part {failure.part + 1}: {failure.reason}")
    if any(one.failed for one in done.encoders):
        typer.echo(f"all failures: {done.failures}")


@app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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
        _print_json(done)
    else:
        Console().print(runner.render(done))


@app.command("serve")
def serve(
    bundles: Path | None = typer.Option(None, help="Folder of the bundles; `current` in it is served. [bundles]"),
    log: Path | None = typer.Option(None, help="Folder of the event log. [state/log]"),
    host: str | None = typer.Option(None, help="Address to listen on. [127.0.0.1]"),
    port: int | None = typer.Option(None, help="Port to listen on. [8000]"),
) -> None:
    """Serve the current bundle: the page at /, the API at /v1, its documentation at /docs.

    Every option can be given as RECSYS_SERVE__NAME. The feature store is at REDIS_URL, else a private server.
    Ctrl-C stops it after the requests under way. Example: recsys serve --bundles bundles --port 8000
    """
    import logging
    import os

    # requests share the cores already: more threads inside each would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    import uvicorn
    from pydantic import ValidationError

    from features.errors import ConfigError
    from serving.app import create_app
    from serving.settings import ServeSettings

    given = {"bundles": bundles, "log": log, "host": host, "port": port}
    try:
        settings = ServeSettings.model_validate({})
        settings = ServeSettings(**{**settings.model_dump(), **{k: v for k, v in given.items() if v is not None}})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"setting {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"
        ) from None
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


@app.command("search")
def search(
    text: str | None = typer.Option(None, help="Words."),
    image: Path | None = typer.Option(None, help="A picture: JPEG, PNG, WebP or GIF."),
    audio: Path | None = typer.Option(None, help="A sound: WAV, FLAC, OGG or MP3."),
    video: Path | None = typer.Option(None, help="A video: MP4 or WebM."),
    k: int = typer.Option(10, min=1, max=1000, help="How many items."),
    bundles: Path = typer.Option(Path("bundles"), help="Folder of the bundles; `current` in it is searched."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Find items by words, a picture, a sound, a video, or any mixture of them, and say in what they are near.

    Parts that cannot be read are told on standard error. Example: recsys search --text "a dog on a beach"
    """
    from rich.console import Console

    from features.content.parts import Audio, Content, Image, Part, Text, Video
    from features.errors import ConfigError, ContentError
    from recsys.bundle.io import current, load_bundle
    from recsys.content.query_encoding import find

    kinds: list[tuple[Callable[[Any], Part], object]] = [(Text, text), (Image, image), (Audio, audio), (Video, video)]
    content = Content(tuple(kind(given) for kind, given in kinds if given is not None))
    if not content.parts:
        raise ConfigError("nothing to search by: give --text, --image, --audio or --video")
    found = find(load_bundle(current(bundles)), content, k)
    for part, reason in found.failed:
        typer.echo(f"{part} not read: {reason}", err=True)
    if not found.read:
        raise ContentError("nothing of the query could be read")
    if as_json:
        _print_json(found)
    else:
        Console().print(found.render())


features_app = typer.Typer(
    help="The feature store: what changes per user and item between trainings.", no_args_is_help=True
)
app.add_typer(features_app, name="features")


@features_app.command("refresh")
def features_refresh(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    log: Path | None = typer.Option(None, help="Folder of the event log. [data.log of CONFIG, else state/log]"),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Fill the feature store at REDIS_URL from the tables and the event log. Running it again changes nothing.

    `recsys serve` does this by itself when it starts.
    Example: REDIS_URL=redis://localhost:6379/0 recsys features refresh movielens
    """
    import os
    from dataclasses import asdict

    from experiments.config import load_config
    from features.errors import ConfigError
    from features.interactions import now_micros
    from features.store.redis import RedisStore
    from features.store.refresh import refresh
    from features.tables.read import read_tables

    if not (url := os.environ.get("REDIS_URL")):
        raise ConfigError(
            "REDIS_URL is not set: a store to fill must outlive this command; try redis://localhost:6379/0"
        )
    data = load_config(config_path(name)).data
    store = RedisStore(url, data.events, timeout=1.0)
    store.ping()
    folder = log or Path(data.log or "state/log")
    with _reporter() as reporter:
        tables = read_tables(data, progress=reporter.steps).events
        report = refresh(store, tables, folder, now=now_micros(), progress=reporter.steps)
    if as_json:
        _print_json(asdict(report))
        return
    typer.echo("filled from the beginning" if report.rebuilt else "brought up to date")
    typer.echo(f"  {report.users:,} users and {report.table_events:,} events of the tables")
    typer.echo(f"  {report.log_events:,} events of the log, {report.damaged:,} damaged lines passed over")
    typer.echo(f"  statistics of {report.items:,} items")


@app.command("train")
def train(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(
        False, "--json", help="Print the bundle's folder and the tables as one JSON object."
    ),
    track: bool = typer.Option(True, "--track/--no-track", help="Record the run in MLflow."),
    publish: bool = typer.Option(
        True, "--publish/--no-publish", help="Let the service take the bundle; else see `recsys bundle`."
    ),
    start: str | None = typer.Option(
        None, "--from", metavar="BUNDLE", help=f"Go on from it with the events since then. {ONE} Or its folder."
    ),
) -> None:
    """Train the two towers and the reranker, compare them with the baselines, write and publish a bundle.

    Example: recsys train movielens; a day later: recsys train movielens --from current
    """
    from experiments.config import load_config
    from experiments.tracking.mlflow import MlflowTracker, NullTracker
    from experiments.pipelines.train import train as run
    from experiments.pipelines.warm_start import train_from

    config = load_config(config_path(name))
    tracker = MlflowTracker() if track else NullTracker()
    with _reporter() as reporter:
        if start is None:
            path, tables = run(config, tracker, reporter, publish=publish)
        else:
            path, tables = train_from(config, start, tracker, reporter, publish=publish)
    if as_json:
        _print_json({"bundle": str(path), "tables": [table.to_dict() for table in tables]})
    else:
        _print_tables(tables)
        typer.echo(f"bundle {path} is current" if publish else f"next: recsys bundle compare current {path.name}")


@app.command("slates")
def slates(
    out: Path = typer.Argument(..., help="Folder for part-*.parquet: user_id, position, item_id, score, source."),
    bundle: str = typer.Option("current", help=ONE),
    bundles: Path = typer.Option(Path("bundles"), help="Folder of the bundles."),
    k: int = typer.Option(20, min=1, max=1000, help="Items for each user."),
    placement: str | None = typer.Option(None, help="Whose rule on repeats holds. [the bundle's first]"),
    part: str = typer.Option("1/1", metavar="I/N", help="The I-th of N shares: one process or machine each."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one line."),
) -> None:
    """Write the best items of every user of the tables and the log, for e-mail and for judging offline.

    May be killed and run again: what is there is kept. Example: recsys slates data/slates --k 50
    """
    from dataclasses import asdict

    from experiments.pipelines.batch_slates import slates_of_all
    from features.errors import ConfigError
    from recsys.bundle.io import load_bundle
    from recsys.bundle.compare import find

    share = part.split("/")
    if len(share) != 2 or not all(text.isdecimal() for text in share):
        raise ConfigError(f"--part {part}: give I/N, e.g. 1/4 to 4/4")
    numbered = int(share[0]), int(share[1])
    chosen = load_bundle(find(bundles, bundle))
    with _reporter() as reporter:
        done = slates_of_all(chosen, out, k=k, placement=placement, part=numbered, progress=reporter.steps)
    if as_json:
        _print_json(asdict(done) | {"folder": str(done.folder)})
        return
    typer.echo(f"{out}: {done.rows:,} rows for {done.users:,} users; {done.there} of {done.shards} shards were there")


@app.command("evaluate")
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
    with _reporter() as reporter:
        tables = evaluate_run(config, reporter)
    if as_json:
        _print_json({"tables": [table.to_dict() for table in tables]})
    else:
        _print_tables(tables)


@app.command("tune")
def tune(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    trials: int = typer.Option(30, min=1, help="How many are to be there in the end."),
    minutes: float | None = typer.Option(None, min=0.0, help="No trial begins after so many minutes."),
    only: str = typer.Option("", help="Settings to search, as towers.dropout,training.learning_rate. [all]"),
    as_json: bool = typer.Option(False, "--json", help="Print the trials and the best settings as one JSON object."),
    track: bool = typer.Option(True, "--track/--no-track", help="Record the search in MLflow, a run for each trial."),
) -> None:
    """Search settings of the towers by the validation window: trials, and the best as lines of a configuration.

    May be stopped at any time: run again, it goes on. Without the reranker, and test events are not looked at: what
    the best is worth, `recsys evaluate` says.
    Example: recsys tune movielens --trials 20 --only towers.dropout,training.learning_rate
    """
    from dataclasses import asdict

    from rich.console import Console

    from experiments.config import load_config
    from experiments.tracking.mlflow import MlflowTracker, NullTracker
    from experiments.pipelines.tune import tune as run

    keys = [key.strip() for key in only.split(",") if key.strip()]
    config, tracker = load_config(config_path(name)), MlflowTracker() if track else NullTracker()
    with _reporter() as reporter:
        found = run(config, tracker, reporter, trials=trials, minutes=minutes, only=keys)
    if as_json:
        _print_json(asdict(found))
    else:
        Console(width=max(Console().width, 175)).print(found.render())


def _print_tables(tables: "list[Comparison]") -> None:
    from rich.console import Console

    console = Console(width=max(Console().width, 175))  # narrower would cut the figures off
    for table in tables:
        console.print(table.render())


def _reporter() -> "AbstractContextManager[Reporter]":
    from experiments.tracking.progress import terminal

    return terminal()


experiment_app = typer.Typer(help="Tracked runs.", no_args_is_help=True)
app.add_typer(experiment_app, name="experiment")


@experiment_app.command("ui")
def experiment_ui(port: int = typer.Option(5000, help="Port on loopback.")) -> None:
    """Open MLflow's page of the tracked runs at http://127.0.0.1:5000, until Ctrl-C."""
    from experiments.tracking.mlflow import open_ui

    raise typer.Exit(open_ui(port))


def main() -> None:
    """Run the command; an error of ours is one clear line on standard error and exit status 1.

    Of several processes that torchrun started the first runs it, and the others help to train.
    """
    import os

    from features.errors import RecsysError

    try:
        # a scheduler may set WORLD_SIZE for its own ends; torchrun says that it was it
        if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from recsys.towers.distributed import lead_or_help

            lead_or_help(app)
        else:
            app()
    except RecsysError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)))
        raise SystemExit(1) from None
