"""Virtual environments for the libraries that a benchmark compares with ours."""

import os
import subprocess
import sys
from pathlib import Path

from features.errors import DependencyError

SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment variables that restrict a process to one thread of the CPU, as our own code is measured."""


def environment(folder: Path, *pins: str) -> Path:
    """The Python of the virtual environment in `folder` that has these packages.

    The environment is created when it does not exist. pip installs from the index that it is configured with. Raises
    DependencyError when the installation fails.
    """
    python, installed = folder / "bin" / "python", folder / "installed"
    if not (python.is_file() and installed.is_file() and installed.read_text().split() == [*pins]):
        quietly([sys.executable, "-m", "venv", "--clear", str(folder)])
        quietly([str(python), "-m", "pip", "install", "--quiet", *pins])
        installed.write_text("\n".join(pins))
    return python


def quietly(command: list[str]) -> None:
    """Run the command without output. Raises DependencyError with the end of its standard error when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | SINGLE_THREAD)
    if result.returncode:
        raise DependencyError(f"{' '.join(command)} failed: {result.stderr.strip()[-500:]}")
