"""Splits that cannot leak: what may be fitted on, and which events are to be predicted from what."""

import hashlib
import itertools
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from features.arrays import Bools, Ints
from features.errors import DataError, LeakError
from features.interactions import Interactions, UserStates
from features.schema import Strict


class SplitConfig(Strict):
    """How time is cut."""

    kind: Literal["time", "leave-last-out"] = "time"
    """time: global cuts (default). leave-last-out: for comparison with papers; lets other users' future in."""

    history: Literal["prequential", "fixed"] = "prequential"
    """prequential: each test event is predicted from its user's events strictly before it. fixed: before the cut."""

    test: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the events, the newest, that are tested."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the events before each cut, the newest, that choose epochs and train the reranker."""

    windows: Annotated[int, Field(ge=1)] = 1
    """The tested events are cut in this many windows, each with models of its own (small data needs several)."""


@dataclass(frozen=True)
class Targets:
    """m events to predict from b states.

    states: b point-in-time histories; state (m,) int64: which of them; item (m,) int64 row of the item.
    """

    states: UserStates
    state: Ints
    item: Ints

    def __len__(self) -> int:
        return len(self.item)

    @property
    def users(self) -> Ints:
        """(m,) int64 user row of each target."""
        return self.states.users[self.state]

    def where(self, keep: Bools) -> "Targets":
        """The targets where keep (m,) is True, and the states they need."""
        used, state = np.unique(self.state[keep], return_inverse=True)
        return Targets(self.states[used], state.astype(np.int64), self.item[keep])


@dataclass(frozen=True)
class Split:
    """One cut: fit on `fit`, choose on `validation`, refit on `train`, report on `test`.

    cut, validation_cut: int64 µs, None for leave-last-out, where `train` is `fit` (nothing is refitted).
    """

    kind: str
    cut: int | None
    validation_cut: int | None
    fit: Interactions
    train: Interactions
    validation: Targets
    test: Targets

    @property
    def note(self) -> str:
        """What a reader of the figures must know of this kind of split."""
        if self.cut is None:
            return "leave-last-out: fitted without the last two items of each user; other users' future is let in"
        return f"{self.kind}: models see only events before {np.datetime64(self.cut, 'us')} UTC"

    @property
    def hash(self) -> str:
        """16 hex digits that change with any event of any part."""
        digest = hashlib.sha256(f"{self.kind} {self.cut} {self.validation_cut}".encode())
        for log in (self.fit, self.train):
            for array in (log.users, log.items, log.times, log.positive, log.seen, log.weights, log.types):
                if array is not None:
                    digest.update(np.ascontiguousarray(array).tobytes())
        for targets in (self.validation, self.test):
            states = targets.states
            for array in (states.users, states.as_of, states.items.lengths, targets.state, targets.item):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


class Fitted(Protocol):
    """Whatever was fitted on events."""

    @property
    def fitted_until(self) -> int:
        """Time (µs) of the latest event it has seen."""
        ...


def check_no_leak(cut: int | None, **fitted: Fitted) -> None:
    """Fail the run when something fitted has seen an event at or after the cut.

    Raises LeakError naming each such part. A leave-last-out split has no cut and nothing to guard.
    """
    if cut is None:
        return
    leaks = {name: part.fitted_until for name, part in fitted.items() if part.fitted_until >= cut}
    if leaks:
        told = "; ".join(f"{name} has seen {np.datetime64(at, 'us')}" for name, at in leaks.items())
        raise LeakError(
            f"leak: the cut is {np.datetime64(cut, 'us')} UTC, but {told}; fit on split.train or split.fit"
        )


def window_cuts(events: Interactions, config: SplitConfig) -> list[tuple[int, int, int]]:
    """(validation cut, cut, end) in µs of each window, by quantiles of event times; end is exclusive.

    Raises DataError when the events have too few distinct times.
    """
    times = np.sort(events.times)
    if not len(times):
        raise DataError("a time cut needs events before, between and after: there are none; check the events table")
    shares = np.linspace(1 - config.test, 1, config.windows + 1)
    edges = [int(times[int(len(times) * s)]) for s in shares[:-1]] + [int(times[-1]) + 1]
    out = []
    for cut, end in itertools.pairwise(edges):
        past = times[: np.searchsorted(times, cut)]
        validation = int(past[int(len(past) * (1 - config.validation))]) if len(past) else cut
        if not int(times[0]) < validation < cut < end:
            raise DataError(
                f"a time cut needs events before, between and after: window [{np.datetime64(cut, 'us')}, "
                f"{np.datetime64(end, 'us')}) of {len(times)} events has none; use fewer windows or leave-last-out"
            )
        out.append((validation, cut, end))
    return out


def time_split(events: Interactions, window: tuple[int, int, int], *, history: str, repeats: bool) -> Split:
    """Split at one global cut. repeats=False drops targets that the user has seen: excluded, they are never right.

    Raises DataError when that leaves nothing to predict in the validation or the test window.
    """
    validation_cut, cut, end = window
    return Split(
        kind=f"time cut, {history}",
        cut=cut,
        validation_cut=validation_cut,
        fit=events.before(validation_cut),
        train=events.before(cut),
        validation=targets(events, validation_cut, cut, history, repeats),
        test=targets(events, cut, end, history, repeats),
    )


def targets(events: Interactions, start: int, end: int, history: str, repeats: bool) -> Targets:
    """The positive events of [start, end) µs, each to be predicted from what its user did before.

    history, repeats: as in `time_split`. Raises DataError when there is none.
    """
    inside = events.positive & (events.times >= start) & (events.times < end)
    chosen = events.where(inside)
    as_of = np.full(len(chosen), start) if history == "fixed" else chosen.times
    # one state for all events of a user at one moment; one target for each item in it
    order = np.lexsort((chosen.items, as_of, chosen.users))
    users, as_of, items = chosen.users[order], as_of[order], chosen.items[order]
    first = np.append(True, (users[1:] != users[:-1]) | (as_of[1:] != as_of[:-1]))[: len(users)]
    new = first | np.append(True, items[1:] != items[:-1])[: len(users)]
    asked = Targets(
        states=events.states(users[first], as_of[first]),
        state=(np.cumsum(first, dtype=np.int64) - 1)[new],
        item=items[new],
    )
    kept = asked if repeats else asked.where(~_seen(asked, events.n_items))
    if not len(kept):
        reason = (
            "none is positive" if not len(chosen) else f"all {len(chosen)} positive ones are of items seen before"
        )
        raise DataError(
            f"nothing to predict in [{np.datetime64(start, 'us')}, {np.datetime64(end, 'us')}) UTC: of its events "
            f"{reason}; check data.events, use fewer windows or a larger share, or a placement with repeats"
        )
    return kept


def _seen(targets: Targets, n_items: int) -> Bools:
    """(m,) bool: the target's item is in the seen items of its state."""
    which, items = targets.states.seen_items().pairs()
    return np.isin(targets.state * n_items + targets.item, which * n_items + items)


def leave_last_out(events: Interactions) -> Split:
    """Strict leave-last-out on positive events: test the last, validate on the one before, train on the rest.

    The test history includes the validation item (as SASRec and its successors evaluate). Users with fewer than
    three positive events are trained on and not tested. Raises DataError when there are no others.
    """
    log = events.positives()
    offsets = log.offsets
    size = np.diff(offsets)
    users = np.flatnonzero(size >= 3)
    if not len(users):
        raise DataError(
            f"leave-last-out needs users with three positive events; the most of {len(size)} users is "
            f"{size.max(initial=0)}; check data.events, or use a time split"
        )
    held = np.zeros(len(log), dtype=np.bool_)

    def target(back: int) -> Targets:
        at = offsets[users + 1] - back
        held[at] = True
        states = log.states_at(users, log.times[at], offsets[users], at)
        return Targets(states, np.arange(len(users), dtype=np.int64), log.items[at])

    validation, test = target(2), target(1)
    train = log.where(~held)
    return Split("strict leave-last-out", None, None, train, train, validation, test)
