"""Names of the keys of the feature store in Redis, and what a request reads of the watermark."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from features.schema import EventRules
from features.store.base import schema_hash

_SERVED = re.compile(rb'\{"filled": (true|false), "fill": "(\w*)"')
"""Beginning of the watermark: the part of it that a request reads."""


@dataclass(frozen=True)
class RedisKeys:
    """Names of the keys. Stores of other layouts or other event rules have another prefix.

    In `generation` lie the states of one generation; the other keys are of all.
    """

    prefix: str

    @classmethod
    def of(cls, rules: EventRules) -> "RedisKeys":
        """The keys under the event rules of a bundle: recsys:<schema hash>:…"""
        return cls(f"recsys:{schema_hash(rules)}:")

    def generation(self, fill: str) -> str:
        """Beginning of the keys of one generation."""
        return f"{self.prefix}{fill}:"

    def user(self, fill: str, user_id: str) -> str:
        """The bytes of a `UserState`."""
        return f"{self.prefix}{fill}:u:{user_id}"

    def shown(self, user_id: str) -> str:
        """The bytes of `Shown`: of no generation, because no table holds what they are made of."""
        return f"{self.prefix}shown:{user_id}"

    def recent(self, fill: str) -> str:
        """Sorted set: user -> time of the latest event (µs); the newest RECENT_USERS of them."""
        return f"{self.prefix}{fill}:recent"

    @property
    def watermark(self) -> str:
        """JSON of the `Watermark`; it names the generation that is served."""
        return f"{self.prefix}watermark"

    @property
    def building(self) -> str:
        """The generation that a refresh is filling."""
        return f"{self.prefix}building"

    @property
    def tables(self) -> str:
        """What the last refresh has kept of the events table."""
        return f"{self.prefix}tables"

    @property
    def lock(self) -> str:
        """Held by the refresh that runs."""
        return f"{self.prefix}lock"

    @property
    def runs(self) -> str:
        """List: the JSON reports of the last refreshes, the newest first."""
        return f"{self.prefix}runs"


def served_fill(mark: bytes | None) -> tuple[bool, str]:
    """Whether the generation that is served is filled, and its name, from the text of the watermark."""
    if mark is None:
        return False, ""
    found = _SERVED.match(mark)
    if found is None:
        raise ValueError("no watermark")
    return found[1] == b"true", found[2].decode()


def ids_after(start: str, keys: Sequence[bytes]) -> list[str]:
    """The ids in keys that begin with `start`."""
    return [key.decode().removeprefix(start) for key in keys]
