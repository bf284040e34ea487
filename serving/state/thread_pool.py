"""Threads that compute requests. All routes share them, and a bounded number of requests waits for one.

A request is refused before its first work starts, or it is answered: work of a request that has started goes before
that of one that has not. From the first work on, a request has a budget of time, which its stages ask.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ApiError
from serving.http import GONE
from serving.telemetry.metrics import SHED

T = TypeVar("T")

InThread = Callable[..., Awaitable[Any]]
"""Function and its arguments -> an awaitable of its result, computed in a thread."""


START_SHARE = 0.8
"""Share of the time of a request in which it may wait for its first thread; the rest is for its work."""


@dataclass
class Budget:
    """The time that a request has. until: its end (monotonic s); None before it begins, and outside of a request."""

    until: float | None = None

    def begin(self, seconds: float) -> None:
        """Begin, or begin anew."""
        self.until = time.monotonic() + seconds

    def left(self, least: float = 0.0) -> float | None:
        """Seconds that are left, `least` or more; None where there is no end."""
        return None if self.until is None else max(least, self.until - time.monotonic())


class TimeUpError(ApiError):
    """No time is left for a stage of a request. A stage without a fallback ends the request with it."""

    def __init__(self) -> None:
        message = "the answer takes too long: the service is overloaded; try again in a moment"
        super().__init__("busy", message, "", {"Retry-After": "1"})


@dataclass
class _Call:
    """A request. gone: whether its client has disconnected; started: whether work of it has begun."""

    gone: Callable[[], bool]
    started: bool = False
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class _Waiter:
    """Work that waits for its turn."""

    call: _Call
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


_call: ContextVar[_Call | None] = ContextVar("call", default=None)


def budget() -> Budget:
    """The budget of the current request; one without an end outside of a request."""
    call = _call.get()
    return Budget() if call is None else call.budget


class Turns:
    """Who computes: at most `threads` at once; at most `queue` requests wait to start.

    deadline: seconds that a request has, from when it asks for its first turn; it waits START_SHARE of them for that.
    Work outside of a request counts as started.
    """

    def __init__(self, threads: int, queue: int, deadline: float) -> None:
        self._free, self._queue, self._deadline = threads, queue, deadline
        self._new, self._started = deque[_Waiter](), deque[_Waiter]()

    @property
    def waiting(self) -> int:
        """Work that waits for its turn."""
        return len(self._new) + len(self._started)

    async def take(self) -> None:
        """Wait for a turn. Raises ApiError 503 when the request cannot start, 499 when its client has gone."""
        call = _call.get() or _Call(lambda: False, started=True)
        if not call.started:
            call.budget.begin(self._deadline)
        if self._free:
            self._free -= 1
        elif call.started:
            await self._wait(_Waiter(call), self._started, None)
        else:
            if len(self._new) >= self._queue:
                self._forget_gone()
            if len(self._new) >= self._queue:
                raise _refused("queue", "too many requests wait")
            try:
                await self._wait(_Waiter(call), self._new, START_SHARE * self._deadline)
            except TimeoutError:
                why = f"the request cannot be answered within {self._deadline:g} s"
                raise _refused("deadline", why) from None
        call.started = True

    def give_back(self) -> None:
        """End a turn: the next work has it."""
        for waiters in (self._started, self._new):
            while waiters:
                waiter = waiters.popleft()
                if not waiter.call.started and waiter.call.gone():
                    _drop(waiter)
                elif not waiter.turn.done():
                    waiter.turn.set_result(None)
                    return
        self._free += 1

    async def _wait(self, waiter: _Waiter, waiters: deque[_Waiter], seconds: float | None) -> None:
        """Wait in a queue. Raises TimeoutError."""
        waiters.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter.turn
        except (TimeoutError, asyncio.CancelledError):
            if waiter in waiters:
                waiters.remove(waiter)
            elif not waiter.turn.cancelled() and waiter.turn.exception() is None:  # the turn came at this moment
                self.give_back()
            raise

    def _forget_gone(self) -> None:
        """Make room in the queue."""
        for waiter in [waiter for waiter in self._new if waiter.call.gone()]:
            self._new.remove(waiter)
            _drop(waiter)


def _drop(waiter: _Waiter) -> None:
    """End the wait of a request whose client has gone; nobody reads the error."""
    if not waiter.turn.done():
        SHED.labels("gone").inc()
        waiter.turn.set_exception(ApiError("client_gone", "the client has disconnected"))


def _refused(reason: str, why: str) -> ApiError:
    SHED.labels(reason).inc()
    return ApiError("busy", f"{why}: the service is overloaded; try again in a moment", "", {"Retry-After": "1"})


class KnowCall:
    """Middleware that lets `Turns` know the request, whose client may go."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the call on."""
        if scope["type"] == "http":
            _call.set(_Call(scope.get(GONE, lambda: False)))
        await self._app(scope, receive, send)


def thread_pool(turns: Turns, threads: int) -> InThread:
    """Returns an async function that runs work in one of the threads when it has a turn; see `Turns.take`."""
    limiter: anyio.CapacityLimiter | None = None

    async def run(work: Callable[..., T], *args: Any) -> T:
        nonlocal limiter
        limiter = limiter or anyio.CapacityLimiter(threads)  # created inside the event loop
        await turns.take()
        try:
            return await anyio.to_thread.run_sync(work, *args, limiter=limiter)
        finally:
            turns.give_back()

    return run


async def in_time(in_thread: InThread, work: Callable[..., T], *args: Any) -> T:
    """Result of work in a thread, which is awaited no longer than the budget of the request.

    Raises TimeUpError. The thread is not interrupted: work that has begun keeps its turn until it ends.
    """
    is_cut = False

    def unless_cut() -> T:
        if is_cut:
            raise TimeUpError
        return work(*args)

    task = asyncio.ensure_future(in_thread(unless_cut))
    _tasks.add(task)
    task.add_done_callback(_end)
    await asyncio.sleep(0)  # the task asks for its turn: with the first one of a request its budget begins
    await asyncio.wait({task}, timeout=budget().left())
    if task.done():
        result: T = task.result()
        return result
    is_cut = True
    raise TimeUpError


_tasks: set[asyncio.Future[Any]] = set()
"""Work that is awaited, or was: the event loop alone would not keep it."""


def _end(task: asyncio.Future[Any]) -> None:
    """Forget work that has ended; nobody may have waited for its error."""
    _tasks.discard(task)
    if not task.cancelled():
        task.exception()
