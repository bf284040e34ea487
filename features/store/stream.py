"""A Redis Stream that producers add entries to, as one member of a consumer group reads it.

An entry that was read is pending until it is finished or buried. Entries of a consumer that died stay pending, and
another one claims them. Entries that cannot be used are buried in the stream `<stream>:dead`.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from features.errors import ConfigError, StoreError, describe_url
from features.store.connection import Breaker, Channel, Client, check_url, make_group

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
DEAD_ENTRIES = 100_000
"""About how many entries the dead-letter stream keeps, the newest."""

LEAVE = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""
"""Removes a consumer without unfinished entries: those of a removed one would be lost."""


@dataclass(frozen=True)
class Entry:
    """An entry of a stream. fields: empty when the entry was deleted before it was read."""

    id: str
    fields: dict[bytes, bytes]


class StreamGroup:
    """One consumer of a group. Every method raises StoreError when the server does not answer."""

    def __init__(self, url: str, stream: str, group: str, consumer: str) -> None:
        """Raises ConfigError when the URL cannot be read."""
        check_url(url)
        self.url, self.stream, self.group, self.consumer = url, stream, group, consumer
        self._channel = Channel(url, ANSWER_SECONDS, Breaker(0.0, time.monotonic), "the server of the stream")

    def open(self) -> None:
        """Make the group, which reads the stream from its beginning, unless it is there.

        Raises ConfigError when the name is that of another kind of value.
        """
        kind = self._channel.run(lambda client: client.type(self.stream)).decode()
        if kind not in ("stream", "none"):
            raise ConfigError(f"{self.stream!r} at {describe_url(self.url)} is a {kind}, no stream: name a stream")
        if kind == "none":
            logger.warning("there is no stream %r at %s yet: it is made, empty", self.stream, describe_url(self.url))
        self._channel.run(lambda client: make_group(client, self.stream, self.group))

    def read(self, limit: int, wait: float) -> list[Entry]:
        """Entries that no consumer has read, at most `limit`, the oldest first. wait: seconds for the first one."""
        block = max(1, int(1000 * wait)) if wait else None
        return self._read(">", limit, block)

    def pending(self, limit: int, after: str) -> list[Entry]:
        """Entries that this consumer has read and not finished, after an id, the oldest first."""
        return self._read(after, limit, None)

    def _read(self, start: str, limit: int, block: int | None) -> list[Entry]:
        def read(client: Client) -> Any:
            return client.xreadgroup(self.group, self.consumer, {self.stream: start}, count=limit, block=block)

        reply = self._channel.run(read)
        return _entries(reply[0][1]) if reply else []

    def claim(self, limit: int, idle: float) -> list[Entry]:
        """Take over at most `limit` entries that another consumer has read and not finished for `idle` seconds."""
        start, found = "0-0", list[Entry]()
        while True:

            def claim(client: Client, start: str = start, count: int = limit) -> Any:
                idle_ms = int(1000 * idle)
                return client.xautoclaim(self.stream, self.group, self.consumer, idle_ms, start_id=start, count=count)

            reply = self._channel.run(claim)
            start = reply[0].decode()
            found += _entries(reply[1])
            found += [Entry(name.decode(), {}) for name in (reply[2] if len(reply) > 2 else ())]  # deleted
            if any(name is None for name, _ in reply[1]):  # Redis 6.2 does not name the deleted ones that it gives
                found += [entry for entry in self.pending(limit, "0-0") if not entry.fields]
            if found or start == "0-0":
                return found

    def finish(self, ids: Sequence[str]) -> None:
        """Acknowledge entries: no consumer gets them again."""
        if ids:
            self._channel.run(lambda client: client.xack(self.stream, self.group, *ids))

    def bury(self, entries: Iterable[tuple[Entry, str]]) -> None:
        """Add entries with the reason to the dead-letter stream and acknowledge them, in one step."""
        dead = list(entries)

        def bury(client: Client) -> None:
            pipe = client.pipeline(transaction=True)
            for entry, reason in dead:
                fields: Any = {**entry.fields, b"dead_entry": entry.id, b"dead_reason": reason}
                pipe.xadd(self.dead, fields, maxlen=DEAD_ENTRIES, approximate=True)
                pipe.xack(self.stream, self.group, entry.id)
            pipe.execute()

        if dead:
            self._channel.run(bury)

    @property
    def dead(self) -> str:
        """Name of the dead-letter stream."""
        return f"{self.stream}:dead"

    def leave(self) -> None:
        """Remove this consumer from the group if it has finished all its entries, and close the connections."""
        with suppress(StoreError):  # a consumer without entries costs nothing
            self._channel.run(lambda client: client.eval(LEAVE, 1, self.stream, self.group, self.consumer))
        self._channel.close()


def _entries(reply: Iterable[Any]) -> list[Entry]:
    """The entries of a reply; those that were deleted have no fields, or no id (Redis 6.2)."""
    return [Entry(name.decode(), dict(fields or {})) for name, fields in reply if name is not None]
