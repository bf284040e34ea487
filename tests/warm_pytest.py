"""A process that has imported the large libraries and forks itself for each run of pytest: a start costs no seconds.

It reads requests as lines of JSON, {"arguments": [...], "log": path, "limit": s or null}, and writes a line with the
exit status of pytest, or null when the run was ended at the limit. What a run started ends with it. Nothing has run
in the libraries when the process forks: a thread of OpenMP would be lost, and the child would wait for it.
"""

import importlib
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

LIBRARIES = (
    "numpy",
    "scipy.sparse",
    "sklearn.feature_extraction.text",
    "torch.nn.parallel",
    "lightgbm",
    "faiss",
    "av",
)
"""Not polars, which starts threads when it is imported, nor what pytest rewrites."""


def run(request: dict[str, Any]) -> int | None:
    """Run pytest in a child."""
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        import pytest

        status = 3
        try:
            status = int(pytest.main(request["arguments"]))
        finally:
            sys.stdout.flush()
            os._exit(status)
    deadline = None if request["limit"] is None else time.monotonic() + request["limit"]
    result = None
    while deadline is None or time.monotonic() < deadline:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            result = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if result is None:
        os.waitpid(child, 0)
    return result


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
