"""What a Redis server holds of one user, under the keys of all event rules and layouts, and its deletion."""

import re
import time
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any

from features.errors import describe_url
from features.store.connection import Breaker, Channel, Client, check_url
from features.store.redis import BULK_SECONDS
from features.store.user_state import Shown, UserState, readable

_GLOB = re.compile(rb"[\\*?\[\]]")


@dataclass(frozen=True)
class StoredUser:
    """What one store of a server holds of a user.

    prefix: of the keys of the store, or of a generation of it; state: None where there is none, or it is of another
    layout; recent: whether the user is among the most recently active ones; keys: that hold or name the user; shown:
    what the user was shown.
    """

    prefix: str
    state: UserState | None
    recent: bool
    keys: tuple[str, ...]
    shown: Shown = field(default_factory=Shown)


class RedisUsers:
    """The users in all stores of one server, whatever the rules and the version that wrote them.

    Raises ConfigError when the URL cannot be read; every method raises StoreError when the server does not answer.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        self.place = describe_url(url)
        self._channel = Channel(url, BULK_SECONDS, Breaker(0.0, time.monotonic))

    def find(self, user: str) -> list[StoredUser]:
        """What each store holds of a user; only those that hold something."""
        found = []
        for prefix in self._prefixes(user):
            state_key, recent_key, shown_key = _keys(prefix, user)
            data, shown = self._channel.run(methodcaller("mget", state_key, shown_key))
            state = None if data is None else readable(data)
            score: Any = self._channel.run(methodcaller("zscore", recent_key, user))
            held = {state_key: data, recent_key: score, shown_key: shown}
            if keys := tuple(key for key, value in held.items() if value is not None):
                found.append(StoredUser(prefix, state, score is not None, keys, Shown.from_bytes(shown)))
        return found

    def erase(self, user: str) -> None:
        """Delete the state, the showings and the entry among the recent users in each store.

        A service that adds an event at the same time begins with an empty state.
        """
        for prefix in self._prefixes(user):
            keys = _keys(prefix, user)

            def delete(client: Client, keys: tuple[str, str, str] = keys) -> None:
                state_key, recent_key, shown_key = keys
                pipe = client.pipeline(transaction=True)
                pipe.delete(state_key, shown_key)
                pipe.zrem(recent_key, user)
                pipe.execute()

            self._channel.run(delete)

    def count_keys(self) -> int:
        """Number of keys of the server."""
        return int(self._channel.run(methodcaller("dbsize")))

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()

    def _prefixes(self, user: str) -> list[str]:
        """The prefixes of the stores: each has a watermark, a list of recent users, or a state or showings of
        this user."""
        name = re.escape(user.encode())
        store = rb"(recsys:[0-9a-f]+:(?:[0-9a-f]{16}:)?)"  # and its generation; earlier layouts had none
        pattern = re.compile(store + rb"(?:watermark|recent|(?:u|shown):" + name + rb")", re.DOTALL)
        found = (key for kind in _patterns(user) for keys in self._channel.scan(kind) for key in keys)
        matches = map(pattern.fullmatch, found)
        return sorted({match[1].decode() for match in matches if match})


def _keys(prefix: str, user: str) -> tuple[str, str, str]:
    """The keys of the state, of the recent users and of the showings."""
    return f"{prefix}u:{user}", f"{prefix}recent", f"{prefix}shown:{user}"


def _patterns(user: str) -> tuple[bytes, ...]:
    escaped = _GLOB.sub(rb"\\\g<0>", user.encode())
    return b"recsys:*:watermark", b"recsys:*:recent", b"recsys:*:u:" + escaped, b"recsys:*:shown:" + escaped
