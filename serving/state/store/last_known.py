"""The last known states of users, from which a process answers while the store does not.

A state is what the last read has found, or the events that were pushed where nothing was read, with the events that
this process has accepted since. Corrections are applied when a state is asked for. Users who were erased have none.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from features.errors import LogError
from features.instants import now_micros
from features.log.corrections import CorrectionFeed
from features.log.erasure.erased_users import ERASED_FILE, ErasedUsers
from features.log.records import Event
from features.schema import EventRules
from features.store.corrections import split
from features.store.user_state import Shown, UserState
from serving.shop.rules import file_version

KEPT_SECONDS = 600.0
"""Seconds that a state is kept after it was read. Most outages (a restart, a failover) end within minutes, and what
changes in the store without this process must not be missing for longer."""

MAX_USERS = 10_000
"""Users whose states are kept; those that were read last."""

MAX_BYTES = 64 << 20
"""Bytes of the states that are kept, about: 7,000 users with 50 events each."""

PENDING = 50
"""Events of a user that are kept beside the state; with more, they are joined to it. A join costs 0.1 ms."""

EVENT_BYTES = 400
"""Bytes of an event in memory, about."""


@dataclass
class _Known:
    """What is known of one user. until: when it is forgotten (s of the clock); bytes: that it takes, about."""

    state: UserState
    until: float
    pending: list[Event] = field(default_factory=list)
    bytes: int = 0

    def weigh(self) -> int:
        """Set `bytes`; returns the change."""
        before, state = self.bytes, self.state
        texts = 2 * sum(map(len, state.items))  # the ids, and the bytes that they were read from
        self.bytes = 2500 + 100 * len(state.items) + texts + 8 * len(state.seen) + EVENT_BYTES * len(self.pending)
        return self.bytes - before


class LastKnown:
    """The last known states. Threads may share it.

    log: its folder, with the list of erased users; clock: returns monotonic seconds; now: the time (µs).
    """

    def __init__(
        self,
        log: Path,
        corrections: CorrectionFeed,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = now_micros,
    ) -> None:
        self._log, self._corrections, self._clock, self._now = log, corrections, clock, now
        self._known: OrderedDict[str, _Known] = OrderedDict()  # by the time at which they are forgotten
        self._bytes, self._lock = 0, Lock()
        self._erased: tuple[object, ErasedUsers] = None, ErasedUsers(b"", {})
        self.era = 0
        """How often all was forgotten."""

    def __len__(self) -> int:
        return len(self._known)

    @property
    def bytes(self) -> int:
        """Bytes that the states take, about."""
        return self._bytes

    def keep(self, user: str, state: UserState, era: int) -> None:
        """Keep what a read has found of a user. era: that of when it began; one of an earlier era is not kept."""
        with self._lock:
            self._forget(user)
            if era == self.era and (state.items or len(state.seen)):
                self._add(user, state)
                self._shrink()

    def add(self, events: Sequence[Event], rules: EventRules) -> None:
        """Add accepted events, whether the store has them or not."""
        corrections = self._corrections.corrections
        events = [event for event in corrections.corrected(events)[0] if not rules.ignores(event.event)]
        with self._lock:
            for event in events:
                known = self._known.get(event.user_id) or self._add(event.user_id, UserState())
                known.pending.append(event)
                if len(known.pending) > PENDING:
                    known.state, known.pending = known.state.with_events(known.pending, rules), []
                self._bytes += known.weigh()
            self._shrink()

    def state(self, user: str, rules: EventRules) -> UserState | None:
        """The last known state of a user, without what was shown; None where nothing is known."""
        with self._lock:
            self._shrink()
            if (known := self._known.get(user)) is None:
                return None
            state, pending = known.state, [*known.pending]
        try:
            self._corrections.read()
            if self._is_erased(user):
                return None
        except LogError:  # what does not count any more is not known
            return None
        state = state.with_events(pending, rules)
        if self._corrections.corrections:
            own = split(user, state, rules, self._corrections.corrections).get(user)
            if own is None:
                return None
            state = replace(own, status=state.status)
        return state.within(rules.history_days, self._now())

    def forget_all(self) -> None:
        """Forget all states: others are served."""
        with self._lock:
            self.era += 1
            self._known.clear()
            self._bytes = 0

    def sweep(self) -> None:
        """Forget what is too old."""
        with self._lock:
            self._shrink()

    def _add(self, user: str, state: UserState) -> _Known:
        known = _Known(replace(state, shown=Shown()), self._clock() + KEPT_SECONDS)
        self._known[user] = known
        self._bytes += known.weigh()
        return known

    def _forget(self, user: str) -> None:
        if (known := self._known.pop(user, None)) is not None:
            self._bytes -= known.bytes

    def _shrink(self) -> None:
        """Forget the states that are too old, and the oldest ones while there are too many."""
        now = self._clock()
        while self._known:
            user, known = next(iter(self._known.items()))
            if known.until > now and len(self._known) <= MAX_USERS and self._bytes <= MAX_BYTES:
                return
            self._forget(user)

    def _is_erased(self, user: str) -> bool:
        """Whether a user of this id was erased at any time. Raises LogError when the list cannot be read."""
        file = file_version(self._log / ERASED_FILE)
        if file != self._erased[0]:
            self._erased = file, ErasedUsers.of(self._log)
        erased = self._erased[1]
        return bool(erased.users) and erased.hash(user) in erased.users
