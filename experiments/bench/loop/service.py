"""`recsys serve` as a process, with folders of its own and the private store, and a client that asks it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from features.child_process import child_command
from features.errors import RecsysError

START_SECONDS = 180
"""Seconds that the service may take to start, or to follow a file."""

AT_ONCE = 8
"""Requests that are open at the same time."""

EVENTS_AT_ONCE = 1000
"""Events in one request: the most that the service takes."""

COMMAND = "from recsys.cli.main import main; main()"
"""The program `recsys`, of the code that runs."""


@dataclass(frozen=True)
class Paths:
    """Where one service keeps and finds its files, all below `folder`."""

    folder: Path

    @property
    def bundles(self) -> Path:
        """Folder of the bundles."""
        return self.folder / "bundles"

    @property
    def log(self) -> Path:
        """Folder of the event log."""
        return self.folder / "log"

    @property
    def rules(self) -> Path:
        """File of the rules."""
        return self.folder / "rules.yaml"

    @property
    def experiments(self) -> Path:
        """File of the experiments."""
        return self.folder / "experiments.yaml"


class Shop:
    """Asks a running service. All answers must be whole: a degraded one raises RecsysError."""

    def __init__(self, client: httpx2.Client, pool: ThreadPoolExecutor) -> None:
        self._client, self._pool = client, pool

    def answers(self, users: Sequence[str], placement: str, k: int) -> list[dict[str, Any]]:
        """The answers to one request of each user, in their order."""

        def ask(user: str) -> dict[str, Any]:
            query: dict[str, str | int] = {"placement": placement, "limit": k}
            answer = self._whole(self._client.get(f"/v1/users/{user}/recommendations", params=query))
            if answer["source"] != "model":
                raise RecsysError(f"user {user} was answered with what is popular: the store lacks the history")
            return answer

        return list(self._pool.map(ask, users))

    def post(self, events: Sequence[dict[str, Any]]) -> None:
        """Post events; all must be accepted."""
        for at in range(0, len(events), EVENTS_AT_ONCE):
            report = self._whole(self._client.post("/v1/events", json=events[at : at + EVENTS_AT_ONCE]))
            if report["rejected"]:
                raise RecsysError(f"{report['rejected']} events were rejected: {report['results'][:3]}")

    def wait(self, what: str, is_so: Callable[[dict[str, Any]], bool], user: str) -> None:
        """Wait until /v1/about is as expected and the answer to a user is whole: the store follows a bundle, too.

        Raises RecsysError after START_SECONDS.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            about, answer = (
                self._client.get(path).raise_for_status().json()
                for path in ("/v1/about", f"/v1/users/{user}/recommendations")
            )
            if is_so(about) and not answer["degraded"]:
                return
            if time.monotonic() > deadline:
                raise RecsysError(f"{what}: not done in {START_SECONDS} s; the service says {about}, {answer}")
            time.sleep(0.1)

    @staticmethod
    def _whole(response: httpx2.Response) -> dict[str, Any]:
        answer: dict[str, Any] = response.json()
        if not response.is_success or answer["degraded"]:
            raise RecsysError(f"an answer is not whole: {response.status_code} {response.text[:500]}")
        return answer


@contextmanager
def serving(paths: Paths) -> Iterator[Shop]:
    """A running service; see `started`."""
    # the bench measures answers, not their speed: a store that is slow on a busy machine must not change them
    environment = {"RECSYS_SERVE__STORE_TIMEOUT": "30", "OMP_NUM_THREADS": "1"}
    options = {name: str(getattr(paths, name)) for name in ("bundles", "log", "rules", "experiments")}
    with (
        started(options, paths.folder / "service.log", environment) as (_, address),
        httpx2.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        yield Shop(client, pool)


@contextmanager
def started(options: Mapping[str, str], output: Path, environment: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """`recsys serve` as a process, with options by name: its process id and its address, when it is ready.

    output: file of what it prints; environment: variables, besides those of this process that are not settings of a
    service. It is stopped at the end. Raises RecsysError where it does not start.
    """
    foreign = ("RECSYS_SERVE__", "REDIS_URL")
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with output.open("wb") as log:
        program = [sys.executable, "-c", COMMAND, "serve", "--port", "0", *arguments]
        process = subprocess.Popen(
            child_command(program, signal.SIGTERM), stdout=log, stderr=log, env={**own, **environment}
        )
    try:
        yield process.pid, _address(process, output)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], output: Path) -> str:
    """Where a started service answers that it is ready."""
    deadline, address = time.monotonic() + START_SECONDS, ""
    while process.poll() is None and time.monotonic() < deadline:
        text = output.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"serving at (http://\S+)", text):
            address = found[1]
            try:
                if httpx2.get(f"{address}/readyz", timeout=10).is_success:
                    return address
            except httpx2.TransportError:
                pass
        time.sleep(0.1)
    raise RecsysError(f"the service does not start: {output.read_text(encoding='utf-8', errors='replace')[-2000:]}")
