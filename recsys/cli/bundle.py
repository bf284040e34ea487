"""`recsys bundle`: list, compare and publish bundles; `recsys vectors`: their vectors for other systems."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from recsys.cli.options import bundles_folder, given_path, print_json, progress_bars

bundle_app = typer.Typer(
    help="List, compare and publish bundles. Train a bundle with --no-publish, compare it with the current one, and "
    "publish it. To roll back, publish the previous bundle.",
    no_args_is_help=True,
)
ROOT = typer.Option(Path("bundles"), "--bundles", help="Folder of the bundles.", parser=given_path)
BUNDLE = "Fingerprint of a bundle, or a prefix of it, or `current`."


@bundle_app.command("list")
def bundle_list(root: Path = ROOT) -> None:
    """List all bundles, the oldest first: date, configuration, data, figures, contents, and which one is current.

    The date is that of the manifest, in UTC; the figure is NDCG@10 in the test window of each placement. Where
    this version cannot read a bundle, its line says why.
    """
    import os

    from features.errors import BundleError
    from recsys.bundle.formats import MANIFEST, read_manifest
    from recsys.bundle.registry import CURRENT, current_bundle, list_bundles, written_at

    served = None
    try:
        served = current_bundle(root).name if os.path.lexists(bundles_folder(root) / CURRENT) else None
    except BundleError as error:  # no bundle is served from there: the list says which ones there are
        typer.echo(f"warning: {error}", err=True)
    folders = list_bundles(root)
    if not folders:
        typer.echo(f"no bundle in {root}: run recsys train CONFIG", err=True)
    for folder in folders:
        try:
            line = _summary(read_manifest(folder))
        except BundleError as error:  # its name and date stand before it: the place is not repeated
            line = f"cannot be served: {str(error).removeprefix(f'{folder / MANIFEST}: ')}"
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            line = f"its figures cannot be read: {MANIFEST} is not what this version writes; train again"
        date = datetime.fromtimestamp(written_at(folder), UTC)
        mark = "  <- current" if folder.name == served else ""
        typer.echo(f"{folder.name}  {date:%Y-%m-%d %H:%M}  {line}{mark}")


def _summary(manifest: "dict[str, Any]") -> str:
    """Configuration, data, figures and contents of a bundle in one line."""
    figures = ", ".join(
        f"{table.get('placement', table['title'])} {_figure(_ours(table), 'ndcg_at_10')}"
        for table in manifest["metrics"]
    )
    space = (manifest.get("content") or {}).get("space")
    content = "no contents" if space is None else f"{space['model']}@{space['revision']} · {space['dimension']}"
    ndcg = f"NDCG@10 {figures}" if figures else "not evaluated"
    return f"{manifest['config']['name']}, data {manifest['data_hash']}, {ndcg}, {content}"


def _ours(table: "dict[str, Any]") -> "dict[str, Any]":
    """The row of the recommender that the bundle holds."""
    row: dict[str, Any] = next(r for r in table["rows"] if r["name"] == table["ours"])
    return row


def _figure(row: "dict[str, Any]", key: str) -> str:
    mean = row[key]["mean"]
    return "undefined" if mean is None else f"{mean:.4f}"


@bundle_app.command("compare")
def bundle_compare(
    first: str = typer.Argument(..., help=BUNDLE),
    second: str = typer.Argument(..., help=BUNDLE),
    root: Path = ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as one JSON object."),
) -> None:
    """Compare two bundles: their items, the share of nearest neighbours that both have, and their metrics.

    Example: recsys bundle compare current 3f2a
    """
    import orjson

    from recsys.bundle.compare import compare_bundles
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle

    comparison = compare_bundles(*(load_bundle(find_bundle(bundles_folder(root), name)) for name in (first, second)))
    if as_json:
        typer.echo(orjson.dumps(comparison, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode())
        return
    typer.echo(f"items: {', '.join(f'{name} {count:,}' for name, count in comparison['items'].items())}")
    for name, space in comparison["spaces"].items():
        typer.echo(f"content space of {name}: {space or 'none'}")
    for kind, share in comparison["overlap"].items():
        shown = "not comparable" if share is None else f"{share:.1%} of the {comparison['k']} nearest stay the same"
        typer.echo(f"{kind}: {shown}")
    for name, tables in comparison["metrics"].items():
        for table in tables:
            row = _ours(table)
            figures = [f"{key} {_figure(row, key)}" for key in ("hr_at_10", "ndcg_at_10")]
            split = f"{table['note']}; split {', '.join(table['split_hashes'])}"
            typer.echo(f"{name} · {table['title']} ({split}): {', '.join(figures)}")


@bundle_app.command("publish")
def bundle_publish(name: str = typer.Argument(..., help=BUNDLE), root: Path = ROOT) -> None:
    """Verify the files of a bundle and make it current: the service loads it. The previous bundle is kept."""
    from experiments.tracking.mlflow import champion
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle, publish_bundle

    path = find_bundle(bundles_folder(root), name)
    load_bundle(path)
    publish_bundle(path, "recsys bundle publish")
    champion(path)
    typer.echo(f"bundle {path} is current")


vectors_app = typer.Typer(help="The vectors of a bundle, for other systems.", no_args_is_help=True)


@vectors_app.command("export")
def vectors_export(
    out: Path = typer.Option(..., help="Folder of items.parquet and users.parquet.", parser=given_path),
    bundle: str = typer.Option("current", help=BUNDLE),
    root: Path = ROOT,
    dimension: int | None = typer.Option(
        None, min=1, help="Only so many first coordinates, in which users vary most. [all]"
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one JSON object."),
) -> None:
    """Write the vectors of all items of a bundle, and of all users of the tables and the log, as parquet.

    The metadata of the files name the bundle and the space. Example: recsys vectors export --out exports/vectors
    """
    from dataclasses import asdict

    from experiments.pipelines.export_vectors import export_vectors
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle

    loaded = load_bundle(find_bundle(bundles_folder(root), bundle))
    with progress_bars() as reporter:
        report = export_vectors(loaded, out, dimension=dimension, progress=reporter.steps)
    if as_json:
        print_json(asdict(report) | {"folder": str(report.folder)})
        return
    typer.echo(f"{out}: {report.items:,} items and {report.users:,} users, {report.dimension} dimensions")
    if report.cold:
        typer.echo(f"{report.cold:,} users have no positive event, and no vector")
