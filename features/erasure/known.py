"""What is known of a person, as one object of JSON: for the person, who may ask for it."""

from typing import Any

import orjson

from features.erasure.erase import Scope, places_of
from features.erasure.parquet import is_abandoned, parquet_files, rows_of
from features.erasure.places import ParquetPlace, StorePlace
from features.erasure.tables import table_rows
from features.errors import ConfigError, LogError, describe_os_error
from features.ids import id_error
from features.log.erasure.log_lines import find_lines, log_ends
from features.log.erasure.person import Person
from features.log.records import STREAMS, stream_of_payload
from features.log.segments import payload_of, segment_paths
from features.store.redis_users import StoredUser


def known_of(scope: Scope, user: str) -> dict[str, Any]:
    """Everything that the places of the scope hold of a user.

    tables: table -> rows as they stand there; log: stream -> records; damaged_lines: lines of the log that hold the
    id and cannot be read; rejected rows, slates, other files: file -> rows; exports: file -> number of rows, for they
    are copies of the log; store: prefix of the keys -> state; notes: what was not searched.
    Raises ConfigError for a text that is no id, and any RecsysError of a place.
    """
    if reason := id_error(user):
        raise ConfigError(f"the user id: {reason}")
    person = Person(user)
    try:
        log, damaged = _logged(scope, person)
        places, notes = places_of(scope, {})
        known: dict[str, Any] = {"user_id": user, "tables": {}, "log": log, "damaged_lines": damaged}
        if scope.data is not None:
            known["tables"] = {name: rows.to_dicts() for name, rows in table_rows(scope.data, user).items()}
        for place in places:
            if isinstance(place, ParquetPlace):
                finished = [path for path in parquet_files(place.root) if not is_abandoned(path)]
                tables = {str(path): rows_of(path, person) for path in finished}
                known.setdefault(place.name, {}).update(
                    {
                        path: len(rows) if place.name == "exports" else rows.to_dicts()
                        for path, rows in tables.items()
                        if len(rows)
                    }
                )
            elif isinstance(place, StorePlace):
                known["store"] = {found.prefix: _state(found) for found in place.users.find(user)}
    except OSError as error:
        raise LogError(f"what is known of the user cannot be read: {describe_os_error(error)}") from error
    return known | {"notes": notes}


def _logged(scope: Scope, person: Person) -> tuple[dict[str, list[Any]], int]:
    """The person's records by stream, and the number of damaged lines that hold the id. Raises OSError."""
    records: dict[str, list[Any]] = {stream: [] for stream in STREAMS}
    legacy = {path.name for path in segment_paths(scope.log)}
    damaged = 0
    for found in find_lines(scope.log, person, log_ends(scope.log)):
        if found.path.name in legacy and found.path.parent != scope.log:
            continue  # a copy that does not count yet
        damaged += len(found.damaged)
        with found.path.open("rb") as file:
            for offset, length in found.records:
                file.seek(offset)
                payload = payload_of(file.read(length)[:-1])
                if payload is not None:  # else it was erased meanwhile
                    stream = stream_of_payload(payload) or "of other versions"
                    records.setdefault(stream, []).append(orjson.loads(payload))
    return {stream: found for stream, found in records.items() if found}, damaged


def _state(found: StoredUser) -> dict[str, Any]:
    """A state as it is shown; times in µs. Items that were seen or shown are kept as hashes, so that only their
    number is known."""
    facts: dict[str, Any] = {"recent": found.recent, "keys": list(found.keys)}
    if (state := found.state) is not None:
        columns = zip(state.items, state.events, state.times.tolist(), state.values.tolist(), strict=True)
        names = ("item_id", "event", "timestamp", "value")
        facts |= {"events": [dict(zip(names, row, strict=True)) for row in columns], "seen_items": len(state.seen)}
    return facts | ({"shown_items": len(found.shown.keys)} if len(found.shown.keys) else {})
