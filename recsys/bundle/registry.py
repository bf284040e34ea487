"""The bundles in a folder: list, find, and publish one as `current`."""

import os
import re
from contextlib import suppress
from pathlib import Path

from features.errors import BundleError
from features.files import sync
from recsys.bundle.formats import MANIFEST

CURRENT = "current"
"""Name of the link to the published bundle."""

_NAME = re.compile("[0-9a-f]{16}").fullmatch


def publish_bundle(bundle: Path) -> None:
    """Point the link `current`, in the folder of bundles, at a bundle: one atomic rename.

    Raises BundleError where something else than a link has this name, and OSError.
    """
    _check_link(bundle.parent / CURRENT)
    link = bundle.parent / f".writing-{os.getpid()}-current"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(bundle.name)
        link.replace(bundle.parent / CURRENT)
    except OSError as error:  # it may name what the link points to, or the temporary link
        with suppress(OSError):
            link.unlink()
        raise OSError(error.errno, error.strerror, str(bundle.parent / CURRENT)) from error
    sync(bundle.parent)


def current_bundle(root: Path) -> Path:
    """The folder that root/current points to. Raises BundleError when no bundle is published, or it is not there."""
    link = root / CURRENT
    _check_link(link)
    if not link.is_symlink():
        raise BundleError(f"{link}: no bundle is published there; run `recsys train CONFIG` first")
    bundle = root / link.readlink()
    if not bundle.is_dir():
        raise BundleError(
            f"{link} points to {link.readlink()}, which is no folder there: restore it, or publish another bundle "
            "(`recsys bundle list` shows them)"
        )
    return bundle


def _check_link(link: Path) -> None:
    if os.path.lexists(link) and not link.is_symlink():
        raise BundleError(f"{link} is not a link: move it, then publish a bundle")


def find_bundle(root: Path, name: str) -> Path:
    """The folder of a bundle, by its fingerprint, a prefix of it, or `current`.

    Raises BundleError when the name is empty, and when no bundle or several bundles match.
    """
    if not name:
        raise BundleError(f"{root}: the name of a bundle is empty; `recsys bundle list` shows the names")
    if name == CURRENT:
        return current_bundle(root)
    matches = [path for path in list_bundles(root) if path.name.startswith(name)]
    if len(matches) != 1:
        existing = ", ".join(path.name for path in list_bundles(root)) or "none"
        raise BundleError(f"{root}: {len(matches)} bundles begin with {name!r}; there are: {existing}")
    return matches[0]


def list_bundles(root: Path) -> list[Path]:
    """The folders of the bundles below root, oldest first.

    A folder is one when it has a manifest, whatever that holds, or when its name is a fingerprint. Raises OSError.
    """
    named = [path for path in root.iterdir() if not path.name.startswith(".") and not path.is_symlink()]
    folders = [path for path in named if os.path.lexists(path / MANIFEST) or (_NAME(path.name) and path.is_dir())]
    return sorted(folders, key=lambda folder: (written_at(folder), folder.name))


def written_at(bundle: Path) -> float:
    """When the manifest of a bundle was written, in seconds since 1970; its folder, where there is no manifest."""
    for path in (bundle / MANIFEST, bundle):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0
