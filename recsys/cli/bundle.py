"""`recsys bundle`: a part of the front door, which alone calls it."""

from pathlib import Path

import typer

bundle_app = typer.Typer(
    help="Bundles side by side: train another with --no-publish, compare, publish; publish the old one to go back.",
    no_args_is_help=True,
)
ROOT = typer.Option(Path("bundles"), "--bundles", help="Folder of the bundles.")
ONE = "Fingerprint of a bundle, the beginning of it, or: current."


@bundle_app.command("list")
def bundle_list(root: Path = ROOT) -> None:
    """Every bundle, the oldest first: what it was trained on, which content space, and which one is served."""
    import json

    from recsys.bundle.io import MANIFEST
    from recsys.bundle.registry import current_bundle, list_bundles

    served = current_bundle(root).name if (root / "current").is_symlink() else None
    for folder in list_bundles(root):
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
    import orjson

    from recsys.bundle.compare import compare_bundles
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle

    told = compare_bundles(*(load_bundle(find_bundle(root, name)) for name in (one, other)))
    if as_json:
        typer.echo(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode())
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
            told_of = f"{table['note']}; split {', '.join(table['split_hashes'])}"
            typer.echo(f"{name} · {table['title']} ({told_of}): {', '.join(figures)}")


@bundle_app.command("publish")
def bundle_publish(name: str = typer.Argument(..., help=ONE), root: Path = ROOT) -> None:
    """Let the service take this bundle, in one step; the one before is kept. Its files are verified first."""
    from recsys.bundle.io import load_bundle
    from recsys.bundle.registry import find_bundle, publish_bundle

    path = find_bundle(root, name)
    load_bundle(path)
    publish_bundle(path)
    typer.echo(f"bundle {path} is current")
