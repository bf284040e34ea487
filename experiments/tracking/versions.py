"""What a result depends on besides configuration, seed and data: the version of the code, and the machine's part."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "lightgbm", "faiss-cpu", "faiss-gpu", "numpy", "scipy", "polars")
"""Packages whose version may change a figure or a bit."""


def code_version() -> str:
    """Version of the package and git commit, e.g. 0.1.0+1a2b3c4; "unknown" in place of the commit without git.

    Where tracked files have been changed since, "-dirty" and a digest of the changes follow.
    """
    try:
        commit = _git("describe", "--always", "--exclude", "*").decode().strip()
        changes = _git("diff", "HEAD")
    except OSError:  # git is not installed
        commit, changes = "", b""
    if changes:
        commit += f"-dirty.{hashlib.sha256(changes).hexdigest()[:8]}"
    return f"{metadata.version('onespace-recsys')}+{commit or 'unknown'}"


def environment() -> dict[str, str]:
    """Versions of Python and LIBRARIES, machine, device and number of threads: sums in another order round otherwise.

    A library that is not installed is left out.
    """
    import torch

    from recsys.towers.distributed import device

    found = {"python": platform.python_version(), "machine": platform.machine(), "device": str(device())}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"threads": str(torch.get_num_threads())}


def _git(*arguments: str) -> bytes:
    """What git prints about the checkout that this file is in; nothing where it is in none."""
    folder = Path(__file__).resolve().parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False).stdout
