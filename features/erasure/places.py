"""The places that can hold a person's data: each finds the person, and most erase the person.

    log              segments and torn ends: lines overwritten in place (`features.log.erasure`)
    parquet files    exports of the log, rejected rows, slates, outcomes, vectors: written again without the rows
    store            states, showings and entries among the recent users, under all prefixes of a server

Bundles and tracked runs hold no users: they are searched only.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from features.erasure.parquet import count_rows, erase_rows, is_abandoned, parquet_files
from features.erasure.search import files_below, holds
from features.errors import FileError
from features.log.erasure.log_lines import Ends, erase_lines, find_lines, line_files
from features.log.erasure.person import Person
from features.log.export import LOCK as EXPORT_LOCK
from features.log.export import PARTS
from features.log.segments import exclusive
from features.store.redis_users import RedisUsers


@dataclass(frozen=True)
class Finding:
    """What a search has found.

    files, bytes: searched; n: lines, rows, keys or files that hold the person; where: the first of them; unsearched:
    files of a kind in which a short id proves nothing.
    """

    files: int
    bytes: int
    n: int
    where: tuple[str, ...]
    unsearched: int = 0


class Place(Protocol):
    """A place where a person's data can be. name: of its kind; path: folder, file or address."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...

    def find(self, person: Person) -> Finding:
        """Search all of the place. Raises OSError and RecsysError."""
        ...

    def erase(self, person: Person) -> int:
        """Erase the person; the number of lines, rows or keys. Raises OSError and RecsysError."""
        ...


NAMED = 20
"""Places of the person that a finding names, the first ones."""


@dataclass(frozen=True)
class LogPlace:
    """The event log. until: how long its files were when the erasure began: later lines are a new person's."""

    folder: Path
    until: Ends
    name: str = "event log"

    @property
    def path(self) -> str:
        """The folder."""
        return str(self.folder)

    def find(self, person: Person) -> Finding:
        """See Place."""
        where = []
        for found in find_lines(self.folder, person, self.until):
            where += [f"{found.path} from byte {offset:,}" for offset, _ in found.pieces]
        lines = set(line_files(self.folder))
        rest = _search([path for path in files_below(self.folder) if path not in lines], person)
        files, size = len(self.until) + rest.files, sum(self.until.values()) + rest.bytes
        return Finding(files, size, len(where) + rest.n, (*where[:NAMED], *rest.where), rest.unsearched)

    def erase(self, person: Person) -> int:
        """See Place."""
        return sum(len(found.pieces) for found in erase_lines(self.folder, person, self.until))


@dataclass(frozen=True)
class ParquetPlace:
    """Parquet files that the product wrote, below a folder, or one file.

    unfinished: pattern of the names of files that an interrupted job leaves there, "" for none.
    """

    name: str
    root: Path
    unfinished: str = ""

    @property
    def path(self) -> str:
        """The folder or file."""
        return str(self.root)

    def find(self, person: Person) -> Finding:
        """See Place."""
        tables = parquet_files(self.root)
        n, where = 0, []
        for path in tables:
            if is_abandoned(path):
                n += 1
                where.append(f"{path}: an unfinished file of a job that has ended")
            elif rows := count_rows(path, person):
                n += rows
                where.append(f"{path}: {rows:,} rows")
        rest = _search([path for path in files_below(self.root) if path not in set(tables)], person)
        size = sum(path.stat().st_size for path in tables) + rest.bytes
        return Finding(len(tables) + rest.files, size, n + rest.n, (*where[:NAMED], *rest.where), rest.unsearched)

    def erase(self, person: Person) -> int:
        """See Place. What an interrupted job has left there is deleted."""
        with ExitStack() as stack:
            if (self.root / EXPORT_LOCK).exists():
                if not stack.enter_context(exclusive(self.root / EXPORT_LOCK)):
                    raise FileError(f"an export writes to {self.root}: wait until it has ended, and erase again")
                for folder in self.root.glob(f"{PARTS}*"):
                    shutil.rmtree(folder)
            for left in self.root.glob(self.unfinished) if self.unfinished else ():
                left.unlink()
            n = 0
            for path in parquet_files(self.root):
                if is_abandoned(path):
                    path.unlink()
                    n += 1
                else:
                    n += erase_rows(path, person)
            return n


@dataclass(frozen=True)
class SearchedPlace:
    """Files that hold no users, by what the product writes into them: they are searched, and nothing is erased."""

    name: str
    root: Path

    @property
    def path(self) -> str:
        """The folder or file."""
        return str(self.root)

    def find(self, person: Person) -> Finding:
        """See Place."""
        return ParquetPlace(self.name, self.root).find(person) if self.root.is_dir() else _search([self.root], person)

    def erase(self, person: Person) -> int:
        """Does nothing."""
        return 0


@dataclass(frozen=True)
class StorePlace:
    """The stores on a Redis server."""

    users: RedisUsers
    name: str = "feature store"

    @property
    def path(self) -> str:
        """The address."""
        return self.users.place

    def find(self, person: Person) -> Finding:
        """See Place."""
        keys = [key.replace(person.user, "USER") for found in self.users.find(person.user) for key in found.keys]
        return Finding(self.users.count_keys(), 0, len(keys), tuple(keys[:NAMED]))

    def erase(self, person: Person) -> int:
        """See Place."""
        n = sum(len(found.keys) for found in self.users.find(person.user))
        self.users.erase(person.user)
        return n


def _search(paths: Sequence[Path], person: Person) -> Finding:
    """The search of files of any kind; an id that is not distinctive is not searched for."""
    if not person.is_distinctive:
        return Finding(0, 0, 0, (), len(paths))
    where = [str(path) for path in paths if holds(path, person)]
    return Finding(len(paths), sum(path.stat().st_size for path in paths), len(where), tuple(where[:NAMED]))
