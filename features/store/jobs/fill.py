"""The filling of a store for a service, in a process of its own: a service never reads the tables itself.

`python -m features.store.jobs.fill` reads a JSON object from standard input: url, data (a `DataConfig`), log.
It prints the `RefreshReport`, or null when the tables cannot be read.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import orjson

from features.errors import DataError, RecsysError
from features.schema import DataConfig
from features.store.base import FeatureStore
from features.store.jobs.refresh import RefreshReport, fill_from_log, refresh
from features.tables.event_files import EventFiles


def fill(store: FeatureStore, data: DataConfig, log: Path) -> RefreshReport | None:
    """Bring the store up to date; None: from the log alone, because the tables cannot be read.

    See `features.store.jobs.refresh.refresh`. Raises StoreError and LogError.
    """
    store.ping()  # raises before the tables are read for a store that does not respond
    try:
        return refresh(store, EventFiles(data), log)
    except DataError:
        fill_from_log(store, log)
        return None


def main() -> None:
    """One filling. Exit status 1, and the reason as one line on standard error, when it fails."""
    from features.store.redis import RedisStore

    given = orjson.loads(sys.stdin.buffer.read())
    data = DataConfig.model_validate(given["data"])
    store = RedisStore(given["url"], data.events, timeout=1.0)
    try:
        report = fill(store, data, Path(given["log"]))
    except RecsysError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(orjson.dumps(None if report is None else asdict(report)))


if __name__ == "__main__":
    main()
