"""Splits of the interactions into fitting, validation and test events, and the guard against leaks between them."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from features.arrays import Bools, Ints
from features.errors import DataError, LeakError
from features.ids import IdMap
from features.interactions import Interactions, UserStates
from features.schema import StrictModel


class SplitConfig(StrictModel):
    """How the events are split by time."""

    kind: Literal["time", "leave-last-out"] = "time"
    """time: one cut for all users (default). leave-last-out: one cut for each user, for comparison with papers.

    With leave-last-out, models are fitted on events of other users that are later than a target.
    """

    history: Literal["prequential", "fixed"] = "prequential"
    """prequential: predict a test event from all earlier events of its user; fixed: from those before the cut."""

    test: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the events, the newest ones, that are test events."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the events before each cut, the newest ones, that choose the epochs and train the reranker."""

    windows: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Number of windows of the test events. Models are fitted for each window. Small data needs several."""


@dataclass(frozen=True)
class Targets:
    """m events to predict from b states.

    states: b point-in-time histories; state (m,) int64 index into `states`; item (m,) int64 row of the item;
    repeated: events that are not among the m, because repeats are excluded and their users had seen the items.
    """

    states: UserStates
    state: Ints
    item: Ints
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.item)

    @property
    def users(self) -> Ints:
        """(m,) int64 user row of each target."""
        return self.states.users[self.state]

    def where(self, keep: Bools) -> "Targets":
        """The targets where keep (m,) is True, with only the states that these targets refer to."""
        used, state = np.unique(self.state[keep], return_inverse=True)
        return Targets(self.states[used], state.astype(np.int64), self.item[keep], self.repeated)

    def sample(self, max_states: int, seed: int) -> "Targets":
        """A random sample of at most `max_states` states, with all their targets."""
        n = len(self.states)
        if n <= max_states:
            return self
        chosen = np.zeros(n, dtype=np.bool_)
        chosen[np.random.default_rng(seed).permutation(n)[:max_states]] = True
        return self.where(chosen[self.state])

    def unseen(self) -> "Targets":
        """The targets whose users have not seen their items. The others are counted in `repeated`.

        Without repeats, the items that a user has seen are excluded from the list: such a target cannot be hit.
        """
        state, item = self.states.seen_items().pairs()  # two (total length of the histories,)
        width = 1 + int(max(item.max(initial=0), self.item.max(initial=0)))  # key of a pair: state * width + item
        seen = np.isin(self.state * width + self.item, state * width + item)  # (m,)
        return replace(self.where(~seen), repeated=self.repeated + int(seen.sum()))


@dataclass(frozen=True)
class Split:
    """The events around one cut: fit on `fit`, select on `validation`, refit on `train`, report on `test`.

    cut, validation_cut: µs; None for leave-last-out, where `train` is `fit` and nothing is refitted.
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
        """One sentence on the split, printed above its figures."""
        if self.cut is None:
            return (
                "leave-last-out: fitted without the last two items of each user, but with later events of other users"
            )
        return f"{self.kind}: models see only events before {np.datetime64(self.cut, 'us')} UTC"

    @property
    def hash(self) -> str:
        """16 hex digits, a digest of all training events and targets, and of the events in the targets' histories."""
        digest = hashlib.sha256(f"{self.kind} {self.cut} {self.validation_cut}".encode())
        for log in (self.fit, self.train):
            for array in (log.users, log.items, log.times, log.positive, log.seen, log.weights, log.types):
                if array is not None:
                    digest.update(np.ascontiguousarray(array).tobytes())
        for targets in (self.validation, self.test):
            for array in (*_history_arrays(targets.states), targets.state, targets.item):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def _history_arrays(states: UserStates) -> Iterator[np.ndarray]:
    """Arrays that differ when any state differs: users and times (b,), slices (b,), and the events in any slice.

    An event that is in many histories is given once.
    """
    begin, end, n = states.items.begin, states.items.end, len(states.items.flat)
    slices = np.cumsum(np.bincount(begin, minlength=n + 1) - np.bincount(end, minlength=n + 1))  # (n + 1,)
    used = slices[:n] > 0  # (n,): whether a history contains the event
    position = np.concatenate([np.zeros(1, np.int64), np.cumsum(used, dtype=np.int64)])  # (n + 1,): among the used
    yield from (states.users, states.as_of, position[begin], states.items.lengths)
    for array in (states.items.flat, states.times, states.positive, states.seen, states.types):
        if array is not None:
            yield array[used]


def check_split(events: Interactions, split: Split) -> None:
    """Raise LeakError unless a split has for training exactly what lies before its cuts. events: all events.

    Strict leave-last-out trains on the positive events but the last two of each user who has three. The histories of
    the validation window are looked through, too.
    """
    if split.cut is None:
        log = events.positives()
        ends, lengths = log.offsets[1:][log.users], np.diff(log.offsets)[log.users]  # (n,): of the event's user
        earlier = log.where((lengths < 3) | (ends - np.arange(len(log)) > 2))
        parts = [("train", split.train, earlier, "last two of each user")]
    else:
        parts = [("train", split.train, events.before(split.cut), "cut")]
        if split.validation_cut is not None:
            parts.append(("fit", split.fit, events.before(split.validation_cut), "validation cut"))
    refuse_leaks(split.cut, [text for part in parts if (text := _other_events(*part))])
    check_histories(split.validation, split.cut)


def check_histories(targets: Targets, cut: int | None) -> None:
    """Raise LeakError when a history holds an event that is not earlier than the moment of its prediction.

    Leave-last-out splits by the order of events, where an event of the same time may be an earlier one: there each
    history must end just before its target.
    """
    states = targets.states
    begin, end = states.items.begin, states.items.end
    descents = np.append(0, np.cumsum(np.diff(states.times) < 0))  # (n,): none within a slice, so its last is latest
    filled = np.flatnonzero(end > begin)
    last = end[filled] - 1
    bound = states.as_of[filled] - (0 if cut is None else 1)
    late = np.zeros(len(states), dtype=np.bool_)
    late[filled] = (states.times[last] > bound) | (descents[last] != descents[begin[filled]])
    if cut is None and len(states.items.flat):
        following = np.minimum(end, len(states.items.flat) - 1)  # (b,)
        is_target = ((states.times[following] == states.as_of) & (end == following))[targets.state]
        late[targets.state] |= ~is_target | (states.items.flat[following][targets.state] != targets.item)
    if late.any():
        user = states.users[late.argmax()]
        text = f"{int(late.sum()):,} histories hold events that are not earlier than what they predict"
        refuse_leaks(cut, [f"{text}, the first that of user row {user}"])


def refuse_leaks(cut: int | None, wrong: list[str], remedy: str = "fit on split.train or split.fit") -> None:
    """Raise LeakError with everything that is wrong. cut: µs, None for leave-last-out."""
    if wrong:
        at = "the split is leave-last-out" if cut is None else f"the cut is {np.datetime64(cut, 'us')} UTC"
        raise LeakError(f"leak: {at}, but {'; '.join(wrong)}; {remedy}")


def _other_events(name: str, given: Interactions, past: Interactions, bound: str) -> str:
    """How given events differ from those before a bound, as a clause; "" when they are the same."""
    fields = ("users", "items", "times", "positive", "seen")
    if len(given) == len(past) and all(np.array_equal(getattr(given, f), getattr(past, f)) for f in fields):
        return ""
    later = int((given.times > past.latest).sum())
    late = f", {later:,} of them later, up to {np.datetime64(given.latest, 'us')}" if later else ""
    return f"{name} has {len(given):,} events that are not the {len(past):,} before the {bound}{late}"


def window_cuts(events: Interactions, config: SplitConfig) -> list[tuple[int, int, int]]:
    """(validation cut, cut, end) of each window in µs, at quantiles of the event times; end is exclusive.

    Raises DataError when the events have too few distinct times.
    """
    times = np.sort(events.times)
    if not len(times):
        raise DataError(
            "a time cut needs events before, between and after its cuts; there are no events: check the events table"
        )
    shares = np.linspace(1 - config.test, 1, config.windows + 1)
    edges = [int(times[int(len(times) * s)]) for s in shares[:-1]] + [int(times[-1]) + 1]
    out = []
    for cut, end in itertools.pairwise(edges):
        past = times[: np.searchsorted(times, cut)]
        validation = int(past[int(len(past) * (1 - config.validation))]) if len(past) else cut
        if not int(times[0]) < validation < cut < end:
            raise DataError(
                f"a time cut needs events before, between and after its cuts; window [{np.datetime64(cut, 'us')}, "
                f"{np.datetime64(end, 'us')}) of {len(times)} events lacks some{_crowded(times)}; "
                "use fewer windows or leave-last-out"
            )
        out.append((validation, cut, end))
    return out


def _crowded(times: Ints) -> str:
    """The time that a tenth of the events or more share, as a clause; "" when there is none. times: (n,) µs."""
    distinct, counts = np.unique(times, return_counts=True)
    most = int(counts.argmax())
    if counts[most] == 1 or 10 * counts[most] < len(times):
        return ""
    return f": {counts[most]} of them have the same time, {np.datetime64(int(distinct[most]), 'us')}"


def time_split(
    events: Interactions,
    window: tuple[int, int, int],
    *,
    history: str,
    repeats: bool,
    user_ids: IdMap | None = None,
) -> Split:
    """The split at the cuts of one window of `window_cuts`; history: as in `SplitConfig`.

    repeats=False drops targets that the user has seen: they are excluded from the lists and cannot be hit. Raises
    DataError when there is no target in the validation or in the test window; with user_ids, it names the user with
    most of the events.
    """
    validation_cut, cut, end = window
    return Split(
        kind=f"time cut, {history}",
        cut=cut,
        validation_cut=validation_cut,
        fit=events.before(validation_cut),
        train=events.before(cut),
        validation=targets(events, validation_cut, cut, history, repeats, user_ids),
        test=targets(events, cut, end, history, repeats, user_ids),
    )


def targets(
    events: Interactions,
    start: int,
    end: int,
    history: str,
    repeats: bool,
    user_ids: IdMap | None = None,
    only: Bools | None = None,
) -> Targets:
    """The positive events of [start, end) µs as targets, with the earlier events of their users as states.

    history, repeats, user_ids: as in `time_split`; only (n,): the events that may be targets, None for all. Raises
    DataError when there is no target.
    """
    inside = events.positive & (events.times >= start) & (events.times < end)
    if only is not None:
        inside &= only
    chosen = events.where(inside)
    as_of = np.full(len(chosen), start) if history == "fixed" else chosen.times
    # one state for all events of a user at one time; one target for each distinct item of a state
    order = np.lexsort((chosen.items, as_of, chosen.users))
    users, as_of, items = chosen.users[order], as_of[order], chosen.items[order]
    first = np.append(True, (users[1:] != users[:-1]) | (as_of[1:] != as_of[:-1]))[: len(users)]  # opens a state
    distinct = first | np.append(True, items[1:] != items[:-1])[: len(users)]
    in_window = Targets(
        states=events.states(users[first], as_of[first]),
        state=(np.cumsum(first, dtype=np.int64) - 1)[distinct],
        item=items[distinct],
    )
    kept = in_window if repeats else in_window.unseen()
    if not len(kept):
        reason = (
            "no event is positive"
            if not len(chosen)
            else f"all {len(chosen)} positive events are of items that their users have seen"
            + _busiest_user(chosen, user_ids)
        )
        raise DataError(
            f"nothing to predict in [{np.datetime64(start, 'us')}, {np.datetime64(end, 'us')}) UTC: "
            f"{reason}; check data.events, use fewer windows or a larger share, or a placement with repeats"
        )
    return kept


def _busiest_user(events: Interactions, user_ids: IdMap | None) -> str:
    """The user with half of the events or more, as a clause; "" when there is none or its id is not known."""
    counts = np.bincount(events.users)
    user = int(counts.argmax())
    if user_ids is None or 2 * counts[user] < len(events):
        return ""
    return (
        f"; {counts[user]} of them ({counts[user] / len(events):.0%}) are of the user {user_ids.ids[user]!r}: "
        "if it is no person, leave its events out of the table"
    )


def leave_last_out(events: Interactions, *, repeats: bool) -> Split:
    """Strict leave-last-out on positive events: the last event of a user is the test target, the one before it the
    validation target, and the others are training events.

    The test history includes the validation item, as in the evaluation of SASRec and its successors. Users with fewer
    than three positive events are only trained on. repeats=False drops targets that the user has seen, as
    `time_split` does; they stay out of the training events. Raises DataError when no target is left.
    """
    log = events.positives()
    offsets = log.offsets
    n_events = np.diff(offsets)  # (users,)
    users = np.flatnonzero(n_events >= 3)
    if not len(users):
        raise DataError(
            f"leave-last-out needs users with three positive events; the maximum over {len(n_events)} users is "
            f"{n_events.max(initial=0)}; check data.events, or use a time split"
        )
    held_out = np.zeros(len(log), dtype=np.bool_)

    def target(back: int, name: str) -> Targets:
        """The `back`-th newest event of each user, counted from 1."""
        at = offsets[users + 1] - back
        held_out[at] = True
        states = log.states_at(users, log.times[at], offsets[users], at)
        last = Targets(states, np.arange(len(users), dtype=np.int64), log.items[at])
        kept = last if repeats else last.unseen()
        if not len(kept):
            raise DataError(
                f"leave-last-out has nothing to predict: all {len(users)} users had seen the item of their {name} "
                "positive event; use a placement with repeats, or a time split"
            )
        return kept

    validation, test = target(2, "last but one"), target(1, "last")
    train = log.where(~held_out)
    return Split("strict leave-last-out", None, None, train, train, validation, test)
