"""Erase a person from all places, and prove it by a search of all places.

The order makes an interrupted erasure safe to run again: the list of erased users first, so that no training uses
the person's rows of the tables any more; then the log, so that nothing is copied from it; then its copies; then the
store; then the search. What is logged after the erasure has begun belongs to a new person who uses the same id.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from features.erasure.places import LogPlace, ParquetPlace, Place, SearchedPlace, StorePlace
from features.erasure.tables import rejected_folder, table_rows
from features.errors import ConfigError, LogError, describe_os_error
from features.files import not_a_file
from features.ids import id_error
from features.instants import now_micros
from features.log.erasure.erased_users import ERASED_FILE, ErasedUsers
from features.log.erasure.log_lines import find_lines, log_ends
from features.log.erasure.overwrite import finish
from features.log.erasure.person import DISTINCTIVE_BYTES, Person
from features.log.readers import registered
from features.log.segments import exclusive, recover
from features.log.upkeep.prune import LOCK, delete_unfinished
from features.schema import DataConfig
from features.store.redis_users import RedisUsers


class UpkeepRunningError(LogError):
    """Another process does the upkeep of the log, or erases from it."""


@dataclass(frozen=True)
class Scope:
    """Where a person's data can be.

    log: folder of the event log; data: configuration of the tables, None: unknown; exports, slates, others: folders
    or files of parquet; searched: folders and files that hold no users; redis_url: None: no server is known.
    """

    log: Path
    data: DataConfig | None = None
    exports: tuple[Path, ...] = ()
    slates: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    searched: tuple[Path, ...] = ()
    redis_url: str | None = None


@dataclass(frozen=True)
class ErasedPlace:
    """One place. files, bytes: searched (keys of a store count as files); found: lines, rows or keys that were
    erased, or would be (dry_run); left: where the person still is, `n_left` times."""

    name: str
    path: str
    files: int
    bytes: int
    found: int
    n_left: int
    left: tuple[str, ...]


@dataclass(frozen=True)
class ErasureReport:
    """What was erased and searched. It does not hold the id.

    erased_at: µs; tables: table -> rows that stay in the customer's file; arrived: lines that the log has received of
    this id since; notes: what was not searched, and what remains to be done.
    """

    dry_run: bool
    erased_at: int
    places: tuple[ErasedPlace, ...]
    tables: dict[str, int]
    arrived: int
    notes: tuple[str, ...]

    @property
    def n_left(self) -> int:
        """Places in which the person still is."""
        return sum(place.n_left for place in self.places)


def erase_user(scope: Scope, user: str, *, dry_run: bool = False) -> ErasureReport:
    """Erase a user. dry_run: only say what would be erased.

    Raises ConfigError for a text that is no id, UpkeepRunningError, and any RecsysError or OSError of a place: then
    the erasure is not complete, and is simply run again.
    """
    if reason := id_error(user):
        raise ConfigError(f"the user id: {reason}")
    person = Person(user)
    with upkeep_lock(scope.log):
        places_of(scope, {})  # a wrong option is an error before anything is erased
        erased_at = now_micros()
        if not dry_run:
            ErasedUsers.of(scope.log).with_user(user, erased_at).write(scope.log)
            finish(scope.log)
            recover(scope.log)
            delete_unfinished(scope.log)
        until = log_ends(scope.log)
        places, notes = places_of(scope, until)
        found = [place.find(person).n if dry_run else place.erase(person) for place in places]
        tables = {} if scope.data is None else {name: len(t) for name, t in table_rows(scope.data, user).items()}
        searched = [place.find(person) for place in places]
        arrived = sum(len(lines.records) for lines in find_lines(scope.log, person, log_ends(scope.log), until))
        if not dry_run:
            os.utime(scope.log / ERASED_FILE)  # services look again at what they have read of the log
        for place in places:
            if isinstance(place, StorePlace):
                place.users.close()
    if unsearched := sum(finding.unsearched for finding in searched):
        notes.append(
            f"{unsearched:,} files of other kinds (bundles, media, positions) were not searched: the id has fewer "
            f"than {DISTINCTIVE_BYTES} bytes, which any file may hold; the product writes no user ids into such files"
        )
    erased = tuple(
        ErasedPlace(
            place.name,
            place.path,
            finding.files,
            finding.bytes,
            n,
            0 if dry_run else finding.n,
            () if dry_run else finding.where,
        )
        for place, n, finding in zip(places, found, searched, strict=True)
    )
    return ErasureReport(dry_run, erased_at, erased, tables, arrived, tuple(notes))


@contextmanager
def upkeep_lock(log: Path) -> Iterator[None]:
    """Hold the lock of the upkeep: nothing compacts, takes over, deletes or overwrites meanwhile.

    Raises UpkeepRunningError when another process holds it, and LogError.
    """
    try:
        with exclusive(log / LOCK) as mine:
            if not mine:
                raise UpkeepRunningError(f"another process prunes {log}, or erases from it: try again in a moment")
            yield
    except OSError as error:
        raise LogError(f"the erasure is not complete: {describe_os_error(error)}; then run it again") from error


def places_of(scope: Scope, until: dict[str, int]) -> tuple[list[Place], list[str]]:
    """The places to search, in the order in which they are erased, and notes on what is not searched."""
    notes: list[str] = []
    places: list[Place] = [LogPlace(scope.log, until)]
    exports = dict.fromkeys(path.resolve() for path in scope.exports)
    for reader in registered(scope.log):
        if reader.exports and Path(reader.exports).exists():
            exports[Path(reader.exports).resolve()] = None
        elif reader.exports:
            notes.append(f"exports of the reader {reader.name!r} were not searched: {reader.exports} is not here")
    places += _parquet("exports", list(exports))
    places += _parquet("slates", scope.slates)
    places += _parquet("other files", scope.others)
    if scope.data is None:
        notes.append("tables and rejected rows were not searched: no configuration is known, give --config")
    else:
        if rejected_folder(scope.data).is_dir():
            places.append(ParquetPlace("rejected rows", rejected_folder(scope.data), "*.part"))
        if scope.data.log is None or Path(scope.data.log).resolve() != scope.log.resolve():
            notes.append(
                f"data.log of the configuration is {scope.data.log or 'not set'}: set it to {scope.log}, or training "
                "goes on using the rows that the tables hold of the user"
            )
    places += [SearchedPlace("holds no users", path) for path in scope.searched]
    if scope.redis_url is None:
        notes.append(
            "no feature store was searched: REDIS_URL is not set; a service with a private server keeps the state of "
            "the user until it restarts: restart it"
        )
    else:
        places.append(StorePlace(RedisUsers(scope.redis_url)))
    return places, notes


def _parquet(name: str, paths: Sequence[Path]) -> list[Place]:
    for path in paths:
        if not path.is_dir() and (wrong := not_a_file(path)):
            raise ConfigError(f"{name} {path}: {wrong}")
    return [ParquetPlace(name, path) for path in paths]
