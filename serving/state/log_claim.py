"""Which services write one log: any number with one shared feature store, or a single one with a private store.

A private store does not see the events that another service takes before it catches up with the log.
"""

import fcntl
import os
from pathlib import Path

from features.errors import ConfigError, LogError, describe_os_error

CLAIMS = ".services"
"""File in the folder of the log. Each service holds its lock: shared, or exclusive with a private store."""


def claim(log: Path, *, private: bool) -> int:
    """The descriptor that holds the claim until it is closed.

    Raises ConfigError when a private store and another service would meet, LogError when the file cannot be made.
    """
    try:
        descriptor = os.open(log / CLAIMS, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise LogError(f"the event log in {log} cannot be claimed: {describe_os_error(error)}") from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if private else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        what = "this one would have a private feature store" if private else "it has a private feature store"
        raise ConfigError(
            f"another service writes the event log in {log}, and {what}: give all of them one server with REDIS_URL, "
            "or end the other one first"
        ) from None
    return descriptor
