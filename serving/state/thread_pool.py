"""Threads in which requests are computed, bounded over all routes."""

from collections.abc import Callable
from typing import Any, TypeVar

import anyio

from serving.state.service import ServiceState

T = TypeVar("T")


InThread = Callable[..., Any]


def thread_pool(service: ServiceState) -> InThread:
    """Runs work in a thread, as many at once as the settings say, over all routes that share it."""
    limiter: list[anyio.CapacityLimiter] = []  # made inside the event loop

    async def run(work: Callable[..., T], *args: Any) -> T:
        if not limiter:
            limiter.append(anyio.CapacityLimiter(service.settings.threads))
        return await anyio.to_thread.run_sync(work, *args, limiter=limiter[0])

    return run
