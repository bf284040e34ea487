"""Runs one round of upkeep in a process of its own: python -m features.log.upkeep FOLDER LIMITS.

LIMITS: stream -> [days, bytes], as JSON. Prints the report as JSON, null when another process is running a round.
"""

import os
import sys
from pathlib import Path

import orjson

from features.errors import LogError
from features.log.upkeep.prune import prune
from features.log.upkeep.retention import Limit


def main(folder: str, limits: str) -> None:
    """Run one round. Ends with status 1 and one line when the log cannot be read or written."""
    os.nice(10)  # requests come first
    try:
        report = prune(Path(folder), {name: Limit(*limit) for name, limit in orjson.loads(limits).items()})
    except LogError as error:
        raise SystemExit(str(error)) from None
    print(orjson.dumps(report).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
