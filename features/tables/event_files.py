"""The events table as a refresh of the feature store reads it: only the rows that are new since the last one.

An event counts there whether or not its item is in the items table, as events of the log do.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from features.errors import DataError
from features.instants import MAX_CLOCK_SKEW
from features.log.erasure.erased_users import ErasedUsers
from features.schema import EVENT, EVENT_ID, ITEM, ROW, TIME, USER, VALUE, DataConfig
from features.tables.erased import events_of_others
from features.tables.file_state import FileState
from features.tables.read import first_ahead, valid_events
from features.tables.scan import reading, table_files, tables_folder

COLUMNS = (USER, ITEM, EVENT, TIME, VALUE, EVENT_ID)
"""Columns that the store keeps."""

BATCH_ROWS = 250_000


@dataclass(frozen=True)
class TableChange:
    """How the events table differs from what a refresh remembers.

    text: what is to be remembered now; digest: of it; since: file -> the row from which it is new, for the files that
    have new rows; new_rows: file -> number of them; added, grown, changed, removed: names of files. Where one is
    changed or removed, all must be read.
    """

    text: str
    digest: str
    since: Mapping[str, int]
    new_rows: Mapping[str, int]
    added: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def of_all(self) -> "TableChange":
        """The same table with all rows as new ones."""
        rows = {name: int(values["rows"]) for name, values in json.loads(self.text).items()}
        return replace(self, since=dict.fromkeys(rows, 0), new_rows=rows)


class EventFiles:
    """The files of the events table in `data.path`. now: an event may lie up to a day after it; None: the clock."""

    def __init__(self, config: DataConfig, now: datetime | None = None) -> None:
        self._config, self._now = config, now
        self._folder = tables_folder(config.path)

    def compare(self, known: str) -> TableChange:
        """How the table differs from what was remembered, "" for nothing.

        Raises DataError when there is no events table, or when it cannot be read.
        """
        paths = self._paths()
        old = {name: FileState.from_json(values) for name, values in json.loads(known or "{}").items()}
        new, since = dict[str, FileState](), dict[str, int]()
        latest = round(self._time().timestamp() * 1e6) + MAX_CLOCK_SKEW
        added, grown, changed = list[str](), list[str](), list[str]()
        for name, path in paths.items():
            before = old.get(name)
            if before and 0 < before.ahead <= latest:  # rows that were rejected are read again
                since[name], before = 0, replace(before, ahead=0)
            if before and before.is_of(path):
                new[name] = before
                continue
            state = FileState.of(path, COLUMNS)
            new[name] = state = replace(state, ahead=before.ahead if before else 0)
            if before is None:
                added.append(name)
                since[name] = 0
            elif not before.is_beginning_of(state, path, COLUMNS):
                changed.append(name)
            elif state.rows > before.rows:
                grown.append(name)
                since.setdefault(name, before.rows)
        text = json.dumps({name: asdict(state) for name, state in new.items()})
        content = json.dumps({name: (state.rows, state.parts, state.tail) for name, state in new.items()})
        digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        removed = tuple(name for name in old if name not in new)
        new_rows = {name: new[name].rows - row for name, row in since.items()}
        return TableChange(text, digest, since, new_rows, tuple(added), tuple(grown), tuple(changed), removed)

    def noting_ahead(self, change: TableChange) -> TableChange:
        """The change, when some of its rows were rejected: rows too far in the future are read again later."""
        states, paths = json.loads(change.text), self._paths()
        for name, row in change.since.items():
            ahead = first_ahead(paths[name], row, self._config, self._time())
            states[name]["ahead"] = min(ahead or states[name]["ahead"], states[name]["ahead"] or ahead)
        return replace(change, text=json.dumps(states))

    def batches(self, since: Mapping[str, int]) -> Iterator[pl.DataFrame]:
        """The valid events from these rows on, in batches: `COLUMNS` in canonical types, and ROW.

        Events of erased users are left out. Raises DataError when a file cannot be read, LogError when the list of
        erased users cannot.
        """
        paths = self._paths()
        erased = ErasedUsers.of(None if self._config.log is None else Path(self._config.log))
        for name, row in since.items():
            with reading(str(paths[name])):
                events = valid_events(paths[name], row, self._config, self._time())
                rows = events.select(*COLUMNS, ROW)
                for batch in rows.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming"):
                    yield events_of_others(batch, erased)

    def check_same(self, change: TableChange) -> None:
        """Raises DataError when a file is no longer as `change` says."""
        paths = self._paths()
        for name, values in json.loads(change.text).items():
            if name not in paths or not FileState.from_json(values).is_of(paths[name]):
                raise DataError(f"{self._folder / name} was written while it was read: run the refresh again")

    def _time(self) -> datetime:
        return self._now or datetime.now(UTC)

    def _paths(self) -> dict[str, Path]:
        """The files of the table, by their path within the folder."""
        paths = table_files(self._folder, "events")
        if not paths:
            raise DataError(f"{self._folder}: no events table; `recsys data check` says what is missing")
        return {path.relative_to(self._folder).as_posix(): path for path in paths}
