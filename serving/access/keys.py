"""The keys of a running service: the file is read again when it changes; a call is admitted by its key."""

import hmac
import logging
import math
from collections.abc import Callable
from pathlib import Path

from features.errors import ConfigError
from serving.access.key_file import ApiKey, digest_of, load_keys, rate
from serving.access.roles import Role, suffices
from serving.errors import ApiError
from serving.shop.rules import file_version

logger = logging.getLogger("recsys.serving")

HOW = "send it as `Authorization: Bearer KEY`, or as `X-API-Key: KEY`"


class ApiKeys:
    """The keys of a file. Without a file, no call needs one.

    A file that cannot be used later leaves the keys as they were: `fault` says why, "" when the file is in use.
    """

    def __init__(self, path: Path | None, now: Callable[[], int]) -> None:
        """now: returns the time (µs). Raises ConfigError when the file cannot be used."""
        self.fault = ""
        self._path, self._now = path, now
        self._version = file_version(path)
        self._due: dict[str, float] = {}
        self._use(() if path is None else load_keys(path))

    @property
    def needed(self) -> bool:
        """Whether calls need a key."""
        return self._path is not None

    def follow(self) -> None:
        """Read the file again if it has changed."""
        if self._path is None or (version := file_version(self._path)) == self._version:
            return
        self._version = version
        try:
            self._use(load_keys(self._path))
            logger.info("keys: %d were read from %s", len(self._by_digest), self._path)
        except ConfigError as error:
            self.fault = f"{error}; the keys of before stay in use"
            logger.error("keys: %s", self.fault)

    def _use(self, keys: tuple[ApiKey, ...]) -> None:
        self._by_digest = {key.sha256: key for key in keys}
        self._due = {key.name: self._due[key.name] for key in keys if key.name in self._due}
        none = self._path is not None and not keys
        self.fault = (
            f"{self._path} has no key: every call is refused until `recsys keys create` makes one" if none else ""
        )

    def find(self, presented: bytes) -> ApiKey | None:
        """The key that a call sent; None for one that is not in the file.

        The time of the look-up tells nothing about a key: what is looked up is a hash, and who sends a key cannot
        choose its hash, so cannot come nearer to one of the table step by step.
        """
        digest = digest_of(presented)
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.sha256, digest) else None

    def authenticate(self, bearer: bytes, own: bytes = b"") -> ApiKey:
        """The key of a call. bearer, own: what it sent in Authorization and in X-API-Key, b"" for nothing.

        Raises ApiError 401 for a key that is missing, unknown or expired, and for two different ones.
        """
        challenge = {"WWW-Authenticate": "Bearer"}
        if bearer and own and bearer != own:
            message = "the call has one key in Authorization and another one in X-API-Key; send one of them"
            raise ApiError("unknown_key", message, "header", challenge)
        presented = bearer or own
        if not presented:
            raise ApiError("no_key", f"the call needs an API key: {HOW}", "header", challenge)
        key = self.find(presented)
        if key is None:
            message = "the API key is not known: it was mistyped or revoked; ask the operator for one"
            raise ApiError("unknown_key", message, "header", challenge)
        if (until := key.expires_at) is not None and until <= self._now():
            message = f"the API key expired at {key.expires}; ask the operator for a new one"
            raise ApiError("expired_key", message, "header", challenge)
        return key

    def admit(self, key: ApiKey, needed: Role) -> None:
        """Count a call that needs a role against the limit of its key.

        Raises ApiError 403 for a role that is too small, 429 when the limit is reached.
        """
        if not suffices(key.role, needed):
            message = f"the call needs a key of the role {needed}; this key has the role {key.role}"
            raise ApiError("role_too_small", message, "header")
        if key.limit is not None and (wait := self._take(key.name, *rate(key.limit))):
            message = f"the key is limited to {key.limit}; try again in {wait} s"
            raise ApiError("too_many_requests", message, "header", {"Retry-After": str(wait)})

    def _take(self, name: str, calls: int, period: int) -> int:
        """Take one call of so many in a period (µs). Returns seconds to wait, 0 when the call was taken.

        The generic cell rate algorithm (ITU-T I.371): calls are due `period / calls` apart, and may come up to a
        period early, so `calls` of them may come at once.
        """
        now, step = self._now(), period / calls
        due = min(max(self._due.get(name, now), now), now + period)  # the clock may be set back
        if (early := due + step - now - period) > 0:
            return math.ceil(early / 1e6)
        self._due[name] = due + step
        return 0
