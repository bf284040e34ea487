"""A bundle served from a private copy that is verified and that all services of this user on the machine share.

Vectors and indexes are mapped from files. A file that is truncated in place, e.g. by a copy over it, ends each
process that has mapped it (SIGBUS). Nobody but the owner can write the copy, and nothing changes it.

<TMPDIR>/recsys-bundles-<user id>/<SHA-256 of the manifest>/   its files, read-only

A lock on the folder of all copies guards making and removing one. It is not held while a copy is verified and loaded:
services that start together do so at the same time. Each user of a copy holds a shared lock on it, which ends with
the process. The last user removes the copy; copies of killed processes are removed by the next load.
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from features.errors import BundleError, describe_os_error, describe_read_error
from features.files import not_a_file, remove_abandoned
from recsys.bundle.formats import MANIFEST
from recsys.bundle.io import load_bundle
from recsys.bundle.model import Bundle


class Lease:
    """The use of a copy. The copy is removed when its last lease has ended."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder does not exist."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        self.end = weakref.finalize(self, _end, descriptor, folder.parent)
        """Ends the use; a second call does nothing."""

    def discard(self, folder: Path) -> None:
        """End the use of a damaged copy and remove it, unless another service has replaced it. The lock of all copies
        is held; who has mapped its files keeps them."""
        if ended := self.end.detach():
            descriptor = ended[2][0]
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                shutil.rmtree(folder)
            os.close(descriptor)


def copies_folder() -> Path:
    """The folder of the copies of this user."""
    return Path(tempfile.gettempdir()) / f"recsys-bundles-{os.getuid()}"


def load_serving_bundle(path: Path) -> Bundle:
    """Copy a bundle, unless a service has done so, verify the copy and load it.

    Raises BundleError as `load_bundle` does, and when no copy can be made.
    """
    try:
        return _load(path, copies_folder())
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be copied to be served: {describe_os_error(error)}; TMPDIR names the folder of the copy"
        ) from error


def _load(path: Path, root: Path) -> Bundle:
    """Load a bundle from its copy, which is made when it does not exist or is not intact."""
    if wrong := not_a_file(path / MANIFEST):
        raise BundleError(f"{path / MANIFEST}: cannot be read: {wrong}")
    try:
        manifest = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{path / MANIFEST}: cannot be read: {describe_read_error(error)}") from error
    copy = root / hashlib.sha256(manifest).hexdigest()  # the manifest holds the SHA-256 of each file
    with _locked(root):
        remove_abandoned(root, "*")
        made = not copy.exists()
        lease = _leased(path, manifest, copy)
    while True:
        try:
            return replace(load_bundle(copy), path=path, lease=lease)
        except BundleError as error:
            with _locked(root):
                lease.discard(copy)
                if made:
                    raise BundleError(str(error).replace(str(copy), str(path))) from None
                made = not copy.exists()
                lease = _leased(path, manifest, copy)


def _leased(path: Path, manifest: bytes, copy: Path) -> Lease:
    """The use of a copy, which is made where it does not exist. The lock of all copies is held."""
    if not copy.exists():
        _copy(path, manifest, copy)
    return Lease(copy)


def _copy(path: Path, manifest: bytes, copy: Path) -> None:
    """Copy a bundle's files. They are not verified. Raises BundleError for a damaged manifest, and OSError."""
    try:
        names = list(json.loads(manifest)["files"])
        if any(Path(name).name != name for name in names):
            raise ValueError("a file has a path for a name")
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"{path / MANIFEST}: cannot be read: {describe_read_error(error)}; restore it or train again"
        ) from error
    part = Path(tempfile.mkdtemp(prefix=".writing-", dir=copy.parent))
    try:
        (part / MANIFEST).write_bytes(manifest)
        for name in names:
            if (path / name).is_file():  # `load_bundle` reports a missing file
                shutil.copyfile(path / name, part / name)
        for file in part.iterdir():
            file.chmod(0o400)
        part.rename(copy)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def _locked(root: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the folder of all copies, which is made when it does not exist.

    Raises BlockingIOError when the lock is held and `wait` is False, BundleError when others can write the folder.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise BundleError(f"{root}: not a folder that only this user can enter: remove it, or set TMPDIR")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _end(descriptor: int, root: Path) -> None:
    """End a lease, and remove its copy unless others use it. Never waits: another load removes what stays."""
    os.close(descriptor)
    with suppress(OSError, BundleError), _locked(root, wait=False):
        remove_abandoned(root, "*")
