"""Threads that compute requests; all routes share one limit."""

from collections.abc import Callable
from typing import Any, TypeVar

import anyio

from serving.state.service import ServiceState

T = TypeVar("T")

InThread = Callable[..., Any]
"""Function and its arguments -> an awaitable of its result, computed in a thread."""


def thread_pool(service: ServiceState) -> InThread:
    """Returns an async function that runs work in a thread, at most `settings.threads` at once over all routes."""

    async def run(work: Callable[..., T], *args: Any) -> T:
        if service.threads is None:  # created inside the event loop
            service.threads = anyio.CapacityLimiter(service.settings.threads)
        return await anyio.to_thread.run_sync(work, *args, limiter=service.threads)

    return run
