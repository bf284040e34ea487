"""The order of changes of one item: the state is read and changed by one request at a time, in each process."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary


class ItemTurns:
    """A lock for each item that is being changed."""

    def __init__(self) -> None:
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    @asynccontextmanager
    async def of(self, items: Iterable[str]) -> AsyncIterator[None]:
        """Hold the locks of items. All requests take them in the same order, so that none waits for ever."""
        async with AsyncExitStack() as held:
            for item in sorted({*items}):
                await held.enter_async_context(self._locks.setdefault(item, asyncio.Lock()))
            yield
