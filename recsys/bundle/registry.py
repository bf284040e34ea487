"""Bundles in a folder: which there are, and which one is published."""

import os
from pathlib import Path

from features.errors import BundleError
from features.files import sync
from recsys.bundle.io import MANIFEST


def publish_bundle(bundle: Path) -> None:
    """Point `current` beside the bundle at it, in one step."""
    link = bundle.parent / f".writing-{os.getpid()}-current"
    link.unlink(missing_ok=True)
    link.symlink_to(bundle.name)
    link.replace(bundle.parent / "current")
    sync(bundle.parent)


def current_bundle(root: Path) -> Path:
    """The folder that root/current points at. Raises BundleError when there is none."""
    link = root / "current"
    if not link.is_symlink():
        raise BundleError(f"{link}: no bundle is published there; run `recsys train CONFIG` first")
    return root / link.readlink()


def find_bundle(root: Path, name: str) -> Path:
    """The folder of a bundle by its fingerprint, the beginning of it, or `current`.

    Raises BundleError when there is none, or several begin so.
    """
    if name == "current":
        return current_bundle(root)
    found = [path for path in list_bundles(root) if path.name.startswith(name)]
    if len(found) != 1:
        there = ", ".join(path.name for path in list_bundles(root)) or "none"
        raise BundleError(f"{root}: {len(found)} bundles begin with {name!r}; there are: {there}")
    return found[0]


def list_bundles(root: Path) -> list[Path]:
    """Folders of the bundles below root, the oldest first."""
    folders = [path.parent for path in root.glob(f"[!.]*/{MANIFEST}") if not path.parent.is_symlink()]
    return sorted(folders, key=lambda folder: ((folder / MANIFEST).stat().st_mtime_ns, folder.name))
