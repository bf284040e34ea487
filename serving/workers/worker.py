"""A worker: one of several processes of a service. Its parent is `serving.workers.supervisor`.

It reads a `Start` from standard input. Into the pipe `Start.beats` it writes a zero byte every second from the moment
that it answers requests, or the reason why it cannot start.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from socket import socket

from fastapi import FastAPI

from features.errors import RecsysError, describe_os_error
from serving.settings import ServeSettings
from serving.workers.run import Start, run_service

CANNOT_START = 3
"""Exit status of a worker that could not start."""


def run_worker(make_app: Callable[[ServeSettings, str | None], FastAPI]) -> int:
    """Run the worker until it gets the signal to end. Returns its exit status.

    make_app: settings and `Start.private_url` -> the application.
    """
    start = Start.of_json(sys.stdin.buffer.read())
    os.set_blocking(start.beats, False)  # a parent that does not read must not stop the service

    async def beat() -> None:
        with suppress(OSError):
            os.write(start.beats, b"\0")

    sockets = [socket(fileno=descriptor) for descriptor in start.listening]
    try:
        started = run_service(start.settings, sockets, lambda given: make_app(given, start.private_url), beat)
    except (RecsysError, OSError) as error:
        reason = str(error) if isinstance(error, RecsysError) else describe_os_error(error)
        os.write(start.beats, reason.encode(errors="replace")[:4000])  # less than a pipe takes at once
        return CANNOT_START
    return 0 if started else CANNOT_START
