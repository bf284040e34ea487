"""The list of the users that were erased: what tables still hold of them is left out when tables are read.

    <log>/erased.json    a random key, and for each erased user a hash under this key and the time of the erasure

The list names nobody. Who has the file and an id can tell whether this id was erased, and nothing else.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl

from features.errors import LogError, describe_os_error
from features.files import put_file
from features.log.records import VERSION

ERASED_FILE = "erased.json"


@dataclass(frozen=True)
class ErasedUsers:
    """The list. users: keyed hash of the id -> time (µs) of the newest erasure."""

    key: bytes
    users: Mapping[str, int]

    @classmethod
    def of(cls, log: Path | None) -> "ErasedUsers":
        """The list in the folder of a log; empty where there is none. Raises LogError when it cannot be read."""
        if log is None:
            return cls(b"", {})
        path = log / ERASED_FILE
        try:
            values = orjson.loads(path.read_bytes())
            if values["v"] > VERSION:
                raise LogError(f"{path}: is of version {values['v']}: install the version that wrote it")
            return cls(bytes.fromhex(values["key"]), {str(name): int(at) for name, at in values["users"].items()})
        except (FileNotFoundError, NotADirectoryError):
            return cls(b"", {})
        except OSError as error:
            raise LogError(f"the list of erased users cannot be read: {describe_os_error(error)}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogError(
                f"{path}: is no list of erased users: restore it from a backup of the log; without it, events of "
                "erased users would be used again"
            ) from error

    def with_user(self, user: str, at: int) -> "ErasedUsers":
        """This list with a user who was erased at a time (µs)."""
        key = self.key or secrets.token_bytes(32)
        return ErasedUsers(key, {**self.users, ErasedUsers(key, {}).hash(user): at})

    def write(self, log: Path) -> None:
        """Replace the list in the folder of a log, on disk when this returns. Raises OSError."""
        values = {"v": VERSION, "key": self.key.hex(), "users": dict(self.users)}

        def write(part: Path) -> None:
            part.touch(0o600)
            part.write_bytes(orjson.dumps(values))

        put_file(log / ERASED_FILE, write)

    def hash(self, user: str) -> str:
        """The hash under which a user stands in the list."""
        return hashlib.blake2b(user.encode(), key=self.key, digest_size=16).hexdigest()

    def times(self, users: pl.Series) -> pl.Series:
        """(n,) int64: when each user of a text column was erased (µs); null for a user who was not."""
        none = pl.repeat(None, len(users), dtype=pl.Int64, eager=True)
        if not self.users:
            return none
        distinct = [user for user in users.unique().to_list() if user is not None]
        erased = {user: at for user in distinct if (at := self.users.get(self.hash(user))) is not None}
        if not erased:
            return none
        return users.replace_strict(list(erased), list(erased.values()), default=None, return_dtype=pl.Int64)
