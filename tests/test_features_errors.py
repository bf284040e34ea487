"""Errors of the operating system: path, reason and remedy in one line."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.errors import describe_os_error


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "out/x: No space left on device; free space on its disk"),
        (errno.EROFS, "out/x: Read-only file system; its file system is read-only: choose another folder"),
        (errno.EPIPE, "out/x: Broken pipe"),
    ],
)
def test_path_reason_and_remedy(number: int, expected: str) -> None:
    assert describe_os_error(OSError(number, os.strerror(number), "out/x")) == expected


def test_an_error_without_a_number_keeps_its_text() -> None:
    assert describe_os_error(OSError("the wheel is broken")) == "the wheel is broken"


def test_the_command_shows_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    code = "import recsys.cli.main as m, pathlib; m.app = lambda: pathlib.Path('out/x').mkdir(); m.main()"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.replace("\n", " ").startswith("error: out/x: Not a directory; a file stands where a folder")
