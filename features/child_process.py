"""The command of a program that the kernel ends when this process dies, even by SIGKILL (Linux: PR_SET_PDEATHSIG)."""

import os
import sys
from collections.abc import Sequence

# This program runs between fork and exec: it asks for the signal, which survives exec, and exits when the parent has
# died before that.
_PROGRAM = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, int(sys.argv[1]), 0, 0, 0); "
    "os.getppid() == int(sys.argv[2]) or sys.exit(1); os.execv(sys.argv[3], sys.argv[3:])"
)


def child_command(program: Sequence[str], signal: int) -> list[str]:
    """The command to start instead of `program`, whose first word is the path of a file.

    The kernel sends the signal when the *thread* that starts the command ends, not only the process: that thread must
    wait for the program.
    """
    return [sys.executable, "-I", "-S", "-c", _PROGRAM, str(int(signal)), str(os.getpid()), *program]
