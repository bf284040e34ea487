"""The bundles in a folder: list, find, and publish one as `current`, with a history of what was current."""

import getpass
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from features.errors import BundleError
from features.files import sync
from recsys.bundle.formats import MANIFEST

CURRENT = "current"
"""Name of the link to the published bundle."""

HISTORY = "published.jsonl"
"""File beside the bundles with a line for each time that `current` has changed."""

_NAME = re.compile("[0-9a-f]{16}").fullmatch


@dataclass(frozen=True)
class Publication:
    """One change of `current`. bundle, previous: fingerprints, previous None for the first one; at: ISO 8601, UTC;
    by: the user of the system; why: in one line."""

    bundle: str
    previous: str | None
    at: str
    by: str
    why: str

    @property
    def time(self) -> int:
        """The time in µs since 1970."""
        return round(datetime.fromisoformat(self.at).timestamp() * 1e6)


def publish_bundle(bundle: Path, why: str = "") -> None:
    """Point the link `current`, in the folder of bundles, at a bundle: one atomic rename. Then note it in HISTORY.

    why: in one line. A bundle that is current already is not noted again. Raises BundleError where something else
    than a link has this name, and OSError.
    """
    _check_link(bundle.parent / CURRENT)
    current = bundle.parent / CURRENT
    previous = current.readlink().name if current.is_symlink() else None
    link = bundle.parent / f".writing-{os.getpid()}-current"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(bundle.name)
        link.replace(bundle.parent / CURRENT)
    except OSError as error:  # it may name what the link points to, or the temporary link
        with suppress(OSError):
            link.unlink()
        raise OSError(error.errno, error.strerror, str(bundle.parent / CURRENT)) from error
    if previous != bundle.name:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        entry = json.dumps(asdict(Publication(bundle.name, previous, now, _user(), why)))
        with (bundle.parent / HISTORY).open("a", encoding="utf-8") as history:
            history.write(f"{entry}\n" if _is_whole(bundle.parent / HISTORY) else f"\n{entry}\n")
        sync(bundle.parent / HISTORY)
    sync(bundle.parent)


def _is_whole(file: Path) -> bool:
    """Whether a file is empty or ends with a line break; after a crash it may not."""
    return not file.stat().st_size or file.read_bytes().endswith(b"\n")


def publications(root: Path) -> list[Publication]:
    """What HISTORY notes, the oldest first; a line that was cut off by a crash is left out. Raises OSError."""
    try:
        lines = (root / HISTORY).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    out = []
    for line in lines:
        with suppress(ValueError, TypeError):
            out.append(Publication(**json.loads(line)))
    return out


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without an entry for its user
        return str(os.getuid())


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
