"""The front door: the `recsys` command. The one room that may call every other, lazily; nothing calls it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from experiments.evaluate import Comparison
    from experiments.train import Reporter

app = typer.Typer(
    help="Recommendations on one embedding space.\n\n"
    "Start with `make demo`, or step by step: recsys data get movielens, recsys train movielens, recsys serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


data_app = typer.Typer(help="Get a data set by name; check tables against the data contract.", no_args_is_help=True)
app.add_typer(data_app, name="data")

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
    from features.sources import get

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
    from features.tables import read_tables

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

    from features.content import Audio, Content, Image, Part, Text, Video
    from features.errors import ConfigError, ContentError
    from recsys.bundle import current, load_bundle
    from recsys.search import find

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
    import time
    from dataclasses import asdict

    from experiments.config import load_config
    from features.errors import ConfigError
    from features.redis_store import RedisStore
    from features.refresh import refresh
    from features.tables import read_tables

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
        report = refresh(store, tables, folder, now=time.time_ns() // 1000, progress=reporter.steps)
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
) -> None:
    """Train the two towers and the reranker, compare them with the baselines, write and publish a bundle.

    Example: recsys train movielens
    """
    from experiments.config import load_config
    from experiments.tracking import MlflowTracker, NullTracker
    from experiments.train import train as run

    config = load_config(config_path(name))
    with _reporter() as reporter:
        path, tables = run(config, MlflowTracker() if track else NullTracker(), reporter, publish=publish)
    if as_json:
        _print_json({"bundle": str(path), "tables": [table.to_dict() for table in tables]})
    else:
        _print_tables(tables)
        typer.echo(f"bundle {path} is current" if publish else f"next: recsys bundle compare current {path.name}")


@app.command("evaluate")
def evaluate(
    name: str = typer.Argument(..., metavar="CONFIG", help=CONFIG),
    as_json: bool = typer.Option(False, "--json", help="Print the tables as one JSON object."),
) -> None:
    """Fit every baseline and the two towers in every window of the split and print one table a placement.

    Nothing is written. Example: recsys evaluate complete-journey
    """
    from experiments.config import load_config
    from experiments.train import evaluate_run

    config = load_config(config_path(name))
    with _reporter() as reporter:
        tables = evaluate_run(config, reporter)
    if as_json:
        _print_json({"tables": [table.to_dict() for table in tables]})
    else:
        _print_tables(tables)


def _print_tables(tables: "list[Comparison]") -> None:
    from rich.console import Console

    console = Console(width=max(Console().width, 175))  # narrower would cut the figures off
    for table in tables:
        console.print(table.render())


@contextmanager
def _reporter() -> "Iterator[Reporter]":
    """Lines and progress bars on standard error: rate and time left of whatever takes long."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as BarTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: BarTask) -> Text:
            speed = task.speed or 0
            return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        class Terminal:
            def say(self, text: str) -> None:
                bars.console.print(text, markup=False, highlight=False)

            def steps(self, what: str, total: int) -> Callable[[int], None]:
                task = bars.add_task(what, total=total)

                def step(done: int) -> None:
                    bars.update(task, advance=done)
                    if bars.tasks[bars.task_ids.index(task)].finished:
                        bars.remove_task(task)

                return step

        yield Terminal()


bundle_app = typer.Typer(
    help="Bundles side by side: train another with --no-publish, compare, publish; publish the old one to go back.",
    no_args_is_help=True,
)
app.add_typer(bundle_app, name="bundle")
ROOT = typer.Option(Path("bundles"), "--bundles", help="Folder of the bundles.")
ONE = "Fingerprint of a bundle, the beginning of it, or: current."


@bundle_app.command("list")
def bundle_list(root: Path = ROOT) -> None:
    """Every bundle, the oldest first: what it was trained on, which content space, and which one is served."""
    import json

    from recsys.bundle import MANIFEST, current
    from recsys.compare import bundles

    served = current(root).name if (root / "current").is_symlink() else None
    for folder in bundles(root):
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        space = (told.get("content") or {}).get("space")
        name = "no contents" if space is None else f"{space['model']}@{space['revision']} · {space['dimension']}"
        mark = "  <- current" if folder.name == served else ""
        typer.echo(f"{folder.name}  {told['config']['name']}, data {told['data_hash']}, {name}{mark}")


@bundle_app.command("compare")
def bundle_compare(
    one: str = typer.Argument(..., help=ONE),
    other: str = typer.Argument(..., help=ONE),
    root: Path = ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print everything as one line."),
) -> None:
    """What would change with the other bundle in the one's place: neighbours that stay, figures of both.

    Example: recsys bundle compare current 3f2a
    """
    from recsys.bundle import load_bundle
    from recsys.compare import compare, find

    told = compare(*(load_bundle(find(root, name)) for name in (one, other)))
    if as_json:
        _print_json(told)
        return
    typer.echo(f"items: {', '.join(f'{name} {count:,}' for name, count in told['items'].items())}")
    for name, space in told["spaces"].items():
        typer.echo(f"content space of {name}: {space or 'none'}")
    for what, share in told["overlap"].items():
        typer.echo(
            f"{what}: {'nothing to compare' if share is None else f'{share:.1%}'} of the {told['k']} nearest stay"
        )
    for name, tables in told["metrics"].items():
        for table in tables:
            row = next(r for r in table["rows"] if r["name"] == table["ours"])
            figures = [f"{key} {row[key]['mean']:.4f}" for key in ("hr_at_10", "ndcg_at_10")]
            typer.echo(f"{name} · {table['title']} (split {', '.join(table['split_hashes'])}): {', '.join(figures)}")


@bundle_app.command("publish")
def bundle_publish(name: str = typer.Argument(..., help=ONE), root: Path = ROOT) -> None:
    """Let the service take this bundle, in one step; the one before is kept. Its files are verified first."""
    from recsys.bundle import load_bundle, publish
    from recsys.compare import find

    path = find(root, name)
    load_bundle(path)
    publish(path)
    typer.echo(f"bundle {path} is current")


experiment_app = typer.Typer(help="Tracked runs.", no_args_is_help=True)
app.add_typer(experiment_app, name="experiment")


@experiment_app.command("ui")
def experiment_ui(port: int = typer.Option(5000, help="Port on loopback.")) -> None:
    """Open MLflow's page of the tracked runs at http://127.0.0.1:5000, until Ctrl-C."""
    from experiments.tracking import open_ui

    raise typer.Exit(open_ui(port))


def main() -> None:
    """Run the command; an error of ours is one clear line on standard error and exit status 1."""
    from features.errors import RecsysError

    try:
        app()
    except RecsysError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)))
        raise SystemExit(1) from None
