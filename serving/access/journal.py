"""Logs of calls: one line of JSON for each. A line names no user: ids of users and of their events are hashed.

The hash is keyed by a random salt in the folder of the event log, so that who has the lines alone cannot find a user
by trying ids. All processes on one log, and later starts, have the same salt.
"""

import hashlib
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import orjson

from features.errors import describe_os_error
from features.files import put_new_file
from features.instants import format_instant

AUDIT_FILE, SALT_FILE = "audit.jsonl", ".access-salt"

logger = logging.getLogger("recsys.serving")
access = logging.getLogger("recsys.access")


class Journal:
    """The lines of one service. folder: of the event log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._salt = b""

    def log_request(self, at: int, facts: dict[str, Any]) -> None:
        """Log a request to the logger `recsys.access`. at: time (µs); facts: `path` among them."""
        line = self._line(at, facts)
        access.info("%s", line.decode().rstrip(), extra={"facts": orjson.loads(line)})

    def audit(self, at: int, facts: dict[str, Any]) -> None:
        """Append a call of an administrator to the file `audit.jsonl`. Where that fails, the service's log has it.

        The file is opened for each line: it may be moved away at any time.
        """
        line = self._line(at, facts)
        try:
            descriptor = os.open(self._folder / AUDIT_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.error("%s is not written: %s; %s", AUDIT_FILE, describe_os_error(error), line.decode().rstrip())

    def _line(self, at: int, facts: dict[str, Any]) -> bytes:
        path = self._without_users(facts["path"])
        return orjson.dumps({"time": format_instant(at), **facts, "path": path}, option=orjson.OPT_APPEND_NEWLINE)

    def _without_users(self, path: str) -> str:
        """A path with hashes in place of the user and of what follows, but for the words of routes."""
        segments = path.split("/")
        if segments[1:3] != ["v1", "users"]:
            return path
        for at in range(3, len(segments), 2):  # /v1/users/{id}/events/{id}
            if segments[at]:
                segments[at] = self._hash(segments[at])
        return "/".join(segments)

    def _hash(self, segment: str) -> str:
        if not self._salt:
            path = self._folder / SALT_FILE
            try:
                put_new_file(path, _write_salt)
                self._salt = path.read_bytes()
            except OSError as error:
                logger.error("%s: %s; users have other hashes until the next start", path, describe_os_error(error))
                self._salt = secrets.token_bytes(32)
        return hashlib.blake2b(segment.encode(), key=self._salt, digest_size=8).hexdigest()


def _write_salt(part: Path) -> None:
    part.touch(0o600)
    part.write_bytes(secrets.token_bytes(32))
