"""Environments of their own for what a benchmark measures beside us."""

import os
import subprocess
import sys
from pathlib import Path

from features.errors import DependencyError

ONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""One thread of the CPU, as ours."""


def environment(folder: Path, *pins: str) -> Path:
    """The Python of an environment with these packages in `folder`, made when it is not there yet.

    pip installs from where it is configured to. Raises DependencyError when it cannot.
    """
    python, done = folder / "bin" / "python", folder / "installed"
    if not (python.is_file() and done.is_file() and done.read_text().split() == [*pins]):
        quietly([sys.executable, "-m", "venv", "--clear", str(folder)])
        quietly([str(python), "-m", "pip", "install", "--quiet", *pins])
        done.write_text("\n".join(pins))
    return python


def quietly(command: list[str]) -> None:
    """Run it. Raises DependencyError with its last words when it fails."""
    seen = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE)
    if seen.returncode:
        raise DependencyError(f"{' '.join(command)} failed: {seen.stderr.strip()[-500:]}")
