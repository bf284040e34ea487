"""Corrections of what was logged: users are merged, and events are undone. This module defines what both mean.

Merge: the events of the id `from_id` whose time is `until` or earlier belong to `user_id`; later ones stay its own.
Of several merges of an id, the one with the earliest `until` takes an event. What an id was given is merged on with
it. A merge that would close a circle does not count.

Undo: an event with this event_id does not count if it belongs to the user of the undo, or to an id that this user was
merged into, whenever it is logged: what was undone stays undone.

The rules ask for the user, the time and the event_id of an event, and not where it is stored or in which order it was
logged. So they hold for tables and log alike, and every process that knows the same corrections comes to the same
result. Events that then have one owner and one event_id count once. Corrections are a stream of their own: it is
small, it is never deleted, and every reader has all of it before it reads events.
"""

import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock

import orjson
import polars as pl

from features.errors import LogError, describe_os_error
from features.log.reader import read
from features.log.records import CORRECTIONS, Correction, Event, EventUndone, UsersMerged, record_of
from features.log.segments import CLOCK_TICK, READ_BYTES, chunks, segment_paths
from features.schema import EVENT_ID, TIME, USER


class Corrections:
    """A set of corrections. The order in which they are added does not matter."""

    def __init__(self, records: Iterable[Correction] = ()) -> None:
        self._merges: list[UsersMerged] = []  # by `_order`
        self._undos: list[EventUndone] = []
        self._given: dict[str, list[tuple[int, str]]] = {}  # id -> (until, id that takes its events), ascending
        self._undone: dict[str, frozenset[str]] = {}  # owner -> event_ids that do not count
        self.add(records)

    def __bool__(self) -> bool:
        return bool(self._given or self._undone)

    def add(self, records: Iterable[Correction]) -> None:
        """Add corrections. Other threads may ask meanwhile."""
        merges, undos = list[UsersMerged](), list[EventUndone]()
        for record in records:
            if isinstance(record, UsersMerged):
                merges.append(record)
            else:
                undos.append(record)
        merges.sort(key=_order)
        if merges and self._merges and _order(merges[0]) < _order(self._merges[-1]):
            # which merge closes a circle depends on the others: begin anew
            anew = Corrections([*sorted([*self._merges, *merges], key=_order), *self._undos, *undos])
            self.__dict__.update(anew.__dict__)
            return
        for merge in merges:
            self._add_merge(merge)
        for undo in undos:
            self._undos.append(undo)
            for owner in self.takers(undo.user_id):
                self._undone[owner] = self._undone.get(owner, frozenset()) | {undo.event_id}

    def _add_merge(self, merge: UsersMerged) -> None:
        self._merges.append(merge)
        if self.closes_circle(merge.from_id, merge.user_id):
            return
        given = list(self._given.get(merge.from_id, ()))
        # of those with the same end, the first merge takes the events
        given.insert(bisect_right([until for until, _ in given], merge.until), (merge.until, merge.user_id))
        self._given[merge.from_id] = given
        for owner in self.takers(merge.user_id) if merge.from_id in self._undone else ():
            self._undone[owner] = self._undone.get(owner, frozenset()) | self._undone[merge.from_id]

    def takers(self, user: str) -> set[str]:
        """The id, those that took events of it, those that took events of these, and so on."""
        found, pending = {user}, [user]
        while pending:
            new = {to for _, to in self._given.get(pending.pop(), ())} - found
            found |= new
            pending += new
        return found

    def closes_circle(self, from_id: str, user: str) -> bool:
        """Whether `user` was merged into `from_id` already, or is the same id."""
        return from_id in self.takers(user)

    def next_until(self, from_id: str, until: int) -> int:
        """`until`, or the end of the last merge of the id and 1 µs when that is later.

        A new merge must take no event that another has taken: the store cannot tell such events from others.
        """
        given = self._given.get(from_id)
        return max(until, given[-1][0] + 1) if given else until

    def takings(self, user: str) -> list[tuple[int, str]]:
        """The ends (µs) of the merges of an id, ascending, and who owns what the id had at each of them."""
        return [(until, self.path(user, until)[-1]) for until, _ in self._given.get(user, ())]

    def path(self, user: str, time: int) -> list[str]:
        """The id that an event of this time (µs) was logged with, and those it was given to. The last one owns it."""
        path = [user]
        while given := self._given.get(path[-1]):
            at = bisect_left(given, (time,))
            if at == len(given):
                break
            path.append(given[at][1])
        return path

    def undone_of(self, owner: str) -> frozenset[str]:
        """The event_ids that do not count among the events of an owner."""
        return self._undone.get(owner, frozenset())

    def affected(self, records: Iterable[Correction]) -> set[str]:
        """The ids whose events change their owner, or no longer count, because of corrections that were added."""
        users: set[str] = set()
        for record in records:
            if isinstance(record, UsersMerged):
                users.add(record.from_id)
                users |= self.takers(record.user_id) if self.undone_of(record.from_id) else set()
            else:
                users |= self.takers(record.user_id)
        return users

    def corrected(self, events: Iterable[Event]) -> tuple[list[Event], set[str]]:
        """The logged events that count, with their owners as users; and the ids that they may wrongly be kept under.

        The second result is empty unless events have another owner, or do not count.
        """
        if not self:
            return list(events), set()
        counting, elsewhere = list[Event](), set[str]()
        for event in events:
            *before, owner = self.path(event.user_id, event.timestamp)
            elsewhere.update(before)
            if event.event_id in self.undone_of(owner):
                elsewhere.add(owner)
            else:
                counting.append(replace(event, user_id=owner) if before else event)
        return counting, elsewhere

    def corrected_frame(self, events: pl.DataFrame) -> pl.DataFrame:
        """The canonical events that count, in their order, with their owners as users."""
        return self._counting(events, self.owners(events)) if self else events

    def counting_frame(self, events: pl.DataFrame) -> pl.DataFrame:
        """The canonical events that count, in their order, with the users that they were logged with."""
        if not self:
            return events
        kept = self._counting(events.with_row_index("__row"), self.owners(events))
        return events[kept.get_column("__row")]

    def owners(self, events: pl.DataFrame) -> pl.Series:
        """The owner of each event or exposure, by its user and time."""
        rows = [(user, until, to) for user, given in list(self._given.items()) for until, to in given]
        moves = pl.DataFrame(rows, {USER: pl.String, "until": pl.Int64, "to": pl.String}, orient="row")
        moves = moves.unique([USER, "until"], keep="first", maintain_order=True).sort("until")
        given = pl.col(USER).is_in(moves.get_column(USER).unique().implode())
        users = events.get_column(USER).cast(pl.String)
        table = pl.DataFrame({USER: users, TIME: events.get_column(TIME).to_physical().cast(pl.Int64)})
        pending = table.with_row_index("row").filter(given).sort(TIME)
        owners = pending.select("row", USER).clear()
        while len(pending):
            taken = pending.join_asof(
                moves, left_on=TIME, right_on="until", by=USER, strategy="forward", check_sortedness=False
            ).drop_nulls("to")
            pending = taken.select("row", pl.col("to").alias(USER), TIME)
            owners = pl.concat([owners, pending.select("row", USER)]).unique("row", keep="last", maintain_order=True)
            pending = pending.filter(given)
        return users.scatter(owners.get_column("row"), owners.get_column(USER)) if len(owners) else users

    def _counting(self, events: pl.DataFrame, owners: pl.Series) -> pl.DataFrame:
        """The events that are not undone, with their owners as users."""
        events = events.with_columns(owners.alias(USER))
        pairs = [(owner, name) for owner, names in list(self._undone.items()) for name in names]
        undone = pl.DataFrame(pairs, {USER: pl.String, EVENT_ID: pl.String}, orient="row")
        return events.join(undone, on=(USER, EVENT_ID), how="anti", maintain_order="left") if pairs else events


def _order(merge: UsersMerged) -> tuple[int, str, str, int]:
    """The order of merges, for the rule on circles; equal for equal records."""
    return merge.timestamp, merge.from_id, merge.user_id, merge.until


class CorrectionFeed:
    """The corrections of a log, and those that any process adds. Threads may share it.

    A read costs a look at the folder and at each segment that is being written, however many there are.
    folder: of the log; None: there is no log.
    """

    def __init__(self, folder: Path | None) -> None:
        self.corrections = Corrections()
        self.known = 0
        """Number of corrections that were read."""
        self._folder = None if folder is None else folder / CORRECTIONS
        self._listed: tuple[int, int] | None = None  # inode and time of the last change of the folder that was listed
        self._offsets: dict[Path, int] = {}  # segment -> bytes read
        self._open: list[Path] = []  # segments that may grow
        self._lock = Lock()

    def read(self) -> int:
        """Take over what is new; returns `known`. Raises LogError when a segment cannot be read."""
        with self._lock:
            try:
                self._list()
                for path in [*self._open]:
                    self._read(path)
            except OSError as error:
                raise LogError(f"{self._folder} cannot be read: {describe_os_error(error)}") from error
            return self.known

    def restart(self) -> None:
        """Read all corrections again, without those of users who were erased meanwhile. Raises LogError."""
        fresh = CorrectionFeed(self._folder and self._folder.parent)
        fresh.read()
        with self._lock:
            self.corrections, self.known = fresh.corrections, fresh.known
            self._listed, self._offsets, self._open = fresh._listed, fresh._offsets, fresh._open

    def _list(self) -> None:
        """Look for new segments."""
        if self._folder is None or not self._folder.is_dir():
            return
        status = self._folder.stat()
        listed = status.st_ino, status.st_mtime_ns
        if listed == self._listed:
            return
        # a change within the same tick of the clock would leave the time as it is
        self._listed = listed if time.time_ns() - status.st_mtime_ns > CLOCK_TICK else None
        new = [path for path in segment_paths(self._folder) if path not in self._offsets]
        self._offsets |= dict.fromkeys(new, 0)
        self._open += new

    def _read(self, path: Path) -> None:
        """Take over the new corrections of a segment."""
        try:
            status = path.stat()
        except FileNotFoundError:  # the log was moved away while it was written: `EventLog.loss` says so
            self._open.remove(path)
            return
        if status.st_size > self._offsets[path]:
            for lines, end, _ in chunks(path, self._offsets[path], READ_BYTES):
                records = (record_of(orjson.loads(payload)) for _, payload in lines)
                new = [record for record in records if isinstance(record, UsersMerged | EventUndone)]
                self.corrections.add(new)
                self.known += len(new)
                self._offsets[path] = end
        if not status.st_mode & stat.S_IWUSR:  # it has ended
            self._open.remove(path)


def corrections_since(folder: Path | None, since: Mapping[str, int]) -> tuple[list[Correction], dict[str, int]]:
    """The corrections of a log after a position, and the position after them.

    since: may hold positions in other streams too. Raises LogError when a segment cannot be read.
    """
    position = {key: at for key, at in since.items() if key.startswith(f"{CORRECTIONS}/")}
    records: list[Correction] = []
    while folder is not None:
        part = read(folder, position, stream=CORRECTIONS)
        records += [record for record in part.records if isinstance(record, UsersMerged | EventUndone)]
        if part.position == position:
            break
        position = part.position
    return records, position


def corrections_of(folder: Path | None) -> Corrections:
    """All corrections of a log. Raises LogError when a segment cannot be read."""
    feed = CorrectionFeed(folder)
    feed.read()
    return feed.corrections
