"""The file of API keys: one JSON object a line. It holds the SHA-256 of each key, and no key.

    {"name": "shop", "sha256": "9f86…", "role": "write", "limit": "100/second", "expires": "2027-01-01T00:00:00Z"}

A key has 256 random bits. SHA-256 without salt and repetition is enough for it: nobody can try all keys.
"""

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from features.errors import ConfigError, describe_invalid, describe_read_error
from features.files import not_a_file, replace_file
from features.instants import parse_instant
from serving.access.roles import Role

PREFIX = "rk_"
"""Beginning of every key: programs that look for secrets in files find it."""

PERIODS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000}
"""Period of a limit -> µs."""


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError(
            "must be 1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or digit"
        )
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("must be the 64 hexadecimal digits, in small letters, of the SHA-256 of a key")
    return text


def _limit(text: str) -> str:
    rate(text)
    return text


def _expires(text: str) -> str:
    parse_instant(text, dates=True)
    return text


def rate(text: str) -> tuple[int, int]:
    """(number of calls, µs) of a limit such as 100/second. Raises ValueError with what is needed."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})/(second|minute|hour)", text)
    if found is None:
        raise ValueError("must be a number of calls and a period: second, minute or hour, e.g. 100/second")
    return int(found[1]), PERIODS[found[2]]


class ApiKey(BaseModel):
    """A key as the file has it. limit: calls in a period; expires: a time, or a date for midnight UTC."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, AfterValidator(_name)]
    sha256: Annotated[str, AfterValidator(_sha256), Field(repr=False)]
    role: Role
    limit: Annotated[str, AfterValidator(_limit)] | None = None
    expires: Annotated[str, AfterValidator(_expires)] | None = None

    @property
    def expires_at(self) -> int | None:
        """When the key expires (µs since 1970 UTC)."""
        return None if self.expires is None else parse_instant(self.expires, dates=True)


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file, in its order; empty lines are passed over.

    Raises ConfigError with the line, the reason and the remedy.
    """
    if wrong := not_a_file(path):
        raise ConfigError(f"{path}: {wrong}; `recsys keys create NAME --keys {path}` makes a file with a key")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: {describe_read_error(error)}") from error
    keys, first = list[ApiKey](), dict[str, int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            key = ApiKey.model_validate(orjson.loads(line))
        except ValidationError as error:
            fault = describe_invalid(error.errors())[0]
            place = "".join(f"{part}: " for part in fault.place)
            raise ConfigError(f"{path} line {number}: {place}{fault.reason}") from None
        except orjson.JSONDecodeError:
            message = f"{path} line {number}: not one JSON object in UTF-8: correct the line, or remove it"
            raise ConfigError(message) from None
        for value in (key.name, key.sha256):
            if value in first:
                raise ConfigError(
                    f"{path} line {number}: the name or the key stands in line {first[value]}, too: remove one"
                )
            first[value] = number
        keys.append(key)
    return tuple(keys)


def digest_of(key: bytes) -> str:
    """SHA-256 of a key as the file has it."""
    return hashlib.sha256(key).hexdigest()


def create_key(path: Path, name: str, role: Role, limit: str | None = None, expires: str | None = None) -> str:
    """A new key, whose SHA-256 is appended to the file. A new file is readable for its owner alone.

    Raises ConfigError for a name that the file has, and for a value that cannot be; OSError.
    """
    known = load_keys(path) if os.path.lexists(path) else ()
    if any(key.name == name for key in known):
        raise ConfigError(f"{path}: there is a key {name!r}: choose another name, or revoke that key first")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        entry = ApiKey(name=name, sha256=digest_of(secret.encode()), role=role, limit=limit, expires=expires)
    except ValidationError as error:
        fault = describe_invalid(error.errors())[0]
        raise ConfigError(f"{fault.place[0]}: {fault.reason}") from None
    line = orjson.dumps(entry.model_dump(exclude_none=True)) + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        os.write(descriptor, line if whole else b"\n" + line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from the file. Owner and rights of the file stay: the service must be able to read it.

    Raises ConfigError when the file has no such key; OSError.
    """
    keys, path = load_keys(path), path.resolve()
    if name not in {key.name for key in keys}:
        names = ", ".join(key.name for key in keys) or "none"
        raise ConfigError(f"{path}: there is no key {name!r}; keys: {names}")
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    kept = [line for line, key in zip(lines, keys, strict=True) if key.name != name]
    replace_file(path, b"".join(line + b"\n" for line in kept))
