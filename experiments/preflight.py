"""The check before a run: everything that it will read or write at its end, tried before hours of training.

A try shows a wrong path, a missing right and a full disk. It cannot show that space will run out later: the writers
report that as one FileError and leave nothing half-written.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.config import RunConfig
from features.errors import FileError, LogError
from features.files import check_writable
from features.log.segments import NO_LOG, is_log
from recsys.bundle.formats import MANIFEST
from recsys.bundle.registry import CURRENT

LOCK = ".training.lock"
"""File in the folder of the bundles that the one run which publishes there has locked."""


def preflight(config: RunConfig, *, bundles: bool = False, cache: bool = False, outcomes: Path | None = None) -> None:
    """Raise FileError or LogError where a place that a run needs cannot be used.

    bundles: the run writes a bundle; cache: it needs the cache even without an encoder, e.g. for the settings of
    baselines; outcomes: the file of outcomes that it writes.
    """
    check_log(config.data.log)
    if bundles:
        if (Path(config.bundles) / MANIFEST).is_file():
            raise FileError(f"{config.bundles} is a bundle; its parent holds the bundles: set `bundles` to it")
        check_writable(Path(config.bundles), "bundles, the folder of the bundles,")
        current = Path(config.bundles) / CURRENT
        if current.exists() and not current.is_symlink():
            raise FileError(
                f"{current} is not a link: no bundle can be published; move it, or choose another `bundles`"
            )
    if cache or config.encoder is not None:
        check_writable(Path(config.cache), "cache, the folder of encoded contents and chosen settings,")
    if outcomes is not None:
        if outcomes.is_dir():
            raise FileError(f"{outcomes} is a folder: outcomes are written to a file; add a file name")
        check_writable(outcomes.parent, "the folder of the outcomes")


@contextmanager
def publishing(config: RunConfig, *, publish: bool = True) -> Iterator[None]:
    """Hold the lock of the folder of the bundles: one run at a time trains a bundle and publishes it there.

    publish: False holds nothing; a run that publishes nothing only adds a folder. The lock ends with the process,
    however that ends. Raises FileError at once when another run holds it, and OSError.
    """
    if not publish:
        yield
        return
    with (Path(config.bundles) / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise FileError(
                f"{config.bundles}: process {lock.read(20).strip() or '?'} trains a bundle and publishes it there: "
                "let it end, or choose another `bundles`"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def check_log(log: str | None) -> None:
    """Raise LogError when `data.log` exists and is no event log that can be read. A missing log is an empty log."""
    if log is None or not os.path.lexists(log):
        return
    if not Path(log).is_dir():
        raise LogError(f"data.log {log} is not a folder: set it to the folder that `recsys serve --log` writes")
    if not os.access(log, os.R_OK | os.X_OK):
        raise LogError(f"data.log {log} cannot be read: give this user the right to it")
    if not is_log(Path(log)):
        raise LogError(f"data.log {log} {NO_LOG}; set it to the folder that `recsys serve --log` writes")
