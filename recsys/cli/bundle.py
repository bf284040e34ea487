"""`recsys bundle`: list, compare and publish bundles."""

from pathlib import Path

import typer

bundle_app = typer.Typer(
    help="List, compare and publish bundles. Train a bundle with --no-publish, compare it with the current one, and "
    "publish it. To roll back, publish the previous bundle.",
    no_args_is_help=True,
)
ROOT = typer.Option(Path("bundles"), "--bundles", help="Folder of the bundles.")
BUNDLE = "Fingerprint of a bundle, or a prefix of it, or `current`."


@bundle_app.command("list")
def bundle_list(root: Path = ROOT) -> None:
    """List all bundles, the oldest first: configuration, data, content space, and which one is current."""
    import json

    from recsys.bundle.io import MANIFEST
    from recsys.bundle.registry import current_bundle, list_bundles

    served = current_bundle(root).name if (root / "current").is_symlink() else None
    for folder in list_bundles(root):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        space = (manifest.get("content") or {}).get("space")
        content = "no contents" if space is None else f"{space['model']}@{space['revision']} · {space['dimension']}"
        mark = "  <- current" if folder.name == served else ""
        typer.echo(f"{folder.name}  {manifest['config']['name']}, data {manifest['data_hash']}, {content}{mark}")


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

    comparison = compare_bundles(*(load_bundle(find_bundle(root, name)) for name in (first, second)))
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
            row = next(r for r in table["rows"] if r["name"] == table["ours"])
            figures = [f"{key} {row[key]['mean']:.4f}" for key in ("hr_at_10", "ndcg_at_10")]
            split = f"{table['note']}; split {', '.join(table['split_hashes'])}"
            typer.echo(f"{name} · {table['title']} ({split}): {', '.join(figures)}")


@bundle_app.command("publish")
def bundle_publish(name: str = typer.Argument(..., help=BUNDLE), root: Path = ROOT) -> None:
    """Verify the files of a bundle and make it current: the service loads it. The previous bundle is kept."""
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle, publish_bundle

    path = find_bundle(root, name)
    load_bundle(path)
    publish_bundle(path)
    typer.echo(f"bundle {path} is current")
