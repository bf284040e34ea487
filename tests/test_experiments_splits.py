"""Splits against a naive loop and values by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_data import rows_of_targets, toy_log

from experiments.splits import SplitConfig, leave_last_out, time_split, window_cuts
from features.errors import DataError
from features.ids import IdMap

event = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9), st.booleans(), st.booleans())


def naive(rows, start, end, *, history, repeats):
    """The expected value of `rows_of_targets`, by a loop over the log."""
    out = set()
    for user, item, time, positive, _ in rows:
        if not (positive and start <= time < end):
            continue
        as_of = start if history == "fixed" else time
        past = sorted((r for r in rows if r[0] == user and r[2] < as_of), key=lambda r: r[2])  # a stable sort
        seen = tuple(r[1] for r in past if r[4])
        if repeats or item not in seen:
            out.add((user, as_of, seen, tuple(r[1] for r in past if r[3]), item))
    return sorted(out)


@given(
    st.lists(event, min_size=1, max_size=25),
    st.lists(st.integers(0, 10), min_size=3, max_size=3, unique=True).map(sorted),
    st.sampled_from(["prequential", "fixed"]),
    st.booleans(),
)
def test_time_split_equals_a_naive_loop(rows, window, history, repeats):
    log = toy_log(rows)
    validation_cut, cut, end = window
    validation = naive(rows, validation_cut, cut, history=history, repeats=repeats)
    test = naive(rows, cut, end, history=history, repeats=repeats)
    if not validation or not test:
        with pytest.raises(DataError, match="nothing to predict"):
            time_split(log, tuple(window), history=history, repeats=repeats)
        return
    split = time_split(log, tuple(window), history=history, repeats=repeats)
    assert rows_of_targets(split.validation) == validation
    assert rows_of_targets(split.test) == test
    for part, limit in ((split.fit, validation_cut), (split.train, cut)):
        kept = [(u, i, t) for u, i, t, _, _ in sorted(rows, key=lambda r: (r[0], r[2])) if t < limit]
        assert list(zip(part.users, part.items, part.times, strict=True)) == kept


def test_histories_end_strictly_before_the_target_and_new_users_are_tested():
    log = toy_log([(0, 1, 5), (0, 2, 10), (0, 3, 10), (0, 4, 12), (1, 5, 11), (1, 0, 13)])
    split = time_split(log, (5, 10, 14), history="prequential", repeats=False)
    assert rows_of_targets(split.test) == [
        (0, 10, (1,), (1,), 2),  # items 2 and 3 have the same time: neither is in the history of the other
        (0, 10, (1,), (1,), 3),
        (0, 12, (1, 2, 3), (1, 2, 3), 4),
        (1, 11, (), (), 5),  # user 1 has no event before the cut
        (1, 13, (5,), (5,), 0),
    ]
    assert len(split.test.states) == 4  # the two targets of one time share a state


def test_fixed_history_ends_at_the_cut():
    log = toy_log([(0, 1, 5), (0, 2, 10), (0, 3, 10), (0, 4, 12), (1, 5, 11)])
    split = time_split(log, (4, 10, 13), history="fixed", repeats=False)
    assert rows_of_targets(split.test) == [(0, 10, (1,), (1,), i) for i in (2, 3, 4)] + [(1, 10, (), (), 5)]
    assert "fixed" in split.note


def test_without_repeats_targets_seen_before_are_dropped():
    log = toy_log([(0, 1, 5), (0, 2, 6, False, True), (0, 3, 7, True, False), (0, 1, 11), (0, 2, 12), (0, 3, 13)])
    window = (6, 10, 14)
    without = time_split(log, window, history="prequential", repeats=False)
    assert [row[4] for row in rows_of_targets(without.test)] == [3]  # its earlier event does not count as seen
    with_repeats = time_split(log, window, history="prequential", repeats=True)
    assert [row[4] for row in rows_of_targets(with_repeats.test)] == [1, 2, 3]


def test_rolling_windows_partition_the_test_events():
    times = np.arange(100) * 7
    log = toy_log([(0, 0, int(t)) for t in times])
    windows = window_cuts(log, SplitConfig(test=0.4, validation=0.25, windows=4))
    assert [w[1] for w in windows] == [60 * 7, 70 * 7, 80 * 7, 90 * 7]  # the newest 40 % in four windows
    assert [w[2] for w in windows] == [
        70 * 7,
        80 * 7,
        90 * 7,
        99 * 7 + 1,
    ]  # each window ends where the next one starts
    assert [w[0] for w in windows] == [
        45 * 7,
        52 * 7,
        60 * 7,
        67 * 7,
    ]  # the newest quarter of the events before the cut
    tested = np.concatenate(
        [time_split(log, w, history="prequential", repeats=True).test.states.as_of for w in windows]
    )
    assert tested.tolist() == times[60:].tolist()  # every test event is in one window


def test_events_at_the_time_of_the_cut_are_test_events():
    log = toy_log([(0, i % 6, t) for i, t in enumerate([0, 1, 2, 3, 4, 5, 5, 5, 8, 9])])
    (window,) = window_cuts(log, SplitConfig(test=0.3, validation=0.2))
    split = time_split(log, window, history="prequential", repeats=True)
    assert window[1] == 5
    assert split.train.latest == 4
    assert len(split.test) == 5


@pytest.mark.parametrize("times", [[], [5], [5] * 20, [1] * 19 + [2]])
def test_times_without_room_for_cuts_are_refused(times):
    log = toy_log([(0, 0, t) for t in times])
    with pytest.raises(DataError, match="needs events before, between and after"):
        window_cuts(log, SplitConfig())


def test_the_error_of_a_window_without_targets_says_why():
    log = toy_log([(0, 1, 1), (0, 2, 2), (0, 1, 3), (0, 3, 4, False)])
    with pytest.raises(
        DataError, match=r"000003, 1970-01-01T00:00:00.000004\) UTC.* all 1 positive events are of items that"
    ):
        time_split(log, (2, 3, 4), history="prequential", repeats=False)
    with pytest.raises(DataError, match=r"000004, .* no event is positive; check data.events"):
        time_split(log, (2, 4, 5), history="prequential", repeats=True)
    with pytest.raises(DataError, match=r"three positive events; the maximum over 4 users is 2"):
        leave_last_out(toy_log([(0, 1, 1), (0, 2, 2), (0, 3, 3, False), (1, 1, 1)]), repeats=True)


def test_the_error_of_a_window_names_the_user_with_most_of_its_events():
    rows = [(0, 1, 1), (0, 2, 2), *((3, item % 2, 3 + item) for item in range(8))]
    ids = IdMap(("ann", "bea", "cid", "bot"))
    with pytest.raises(
        DataError, match=r"all 4 positive .* seen; 4 of them \(100%\) are of the user 'bot': if it is no"
    ):
        time_split(toy_log(rows), (2, 7, 11), history="prequential", repeats=False, user_ids=ids)


def test_events_of_one_time_are_named_as_the_cause():
    log = toy_log([(user, item, 10 * user) for user in range(4) for item in range(5)])
    with pytest.raises(
        DataError, match=r"nothing to train on: the events of each user all have one time.*one second"
    ):
        log.check_targets()
    with pytest.raises(DataError, match="each of the 4 users has one event only"):
        toy_log([(user, 0, user) for user in range(4)]).check_targets()
    with pytest.raises(DataError, match="no event is positive"):
        toy_log([(0, 0, 1, False), (0, 1, 2, False)]).check_targets()
    with pytest.raises(DataError, match="add events"):
        toy_log([(0, 0, 1), (0, 1, 2, False)]).check_targets()
    with pytest.raises(DataError, match="no event is positive"):
        toy_log([]).check_targets()
    toy_log([(0, 0, 1, False), (0, 1, 2)]).check_targets()


def test_the_error_of_too_few_times_says_what_to_do():
    log = toy_log([(0, 0, 0)] * 5 + [(0, 0, 1)] * 5)
    with pytest.raises(
        DataError,
        match=r"of 10 events lacks some: 5 of them have the same time, 1970-01-01T00.*use fewer",
    ):
        window_cuts(log, SplitConfig(windows=5))


def test_events_of_the_same_time_keep_the_order_of_the_log():
    first = toy_log([(0, 3, 1), (0, 1, 1), (0, 2, 1), (0, 5, 2)])
    other = toy_log([(0, 2, 1), (0, 1, 1), (0, 3, 1), (0, 5, 2)])
    for log, history in ((first, (3, 1, 2)), (other, (2, 1, 3))):
        test = time_split(log, (0, 2, 3), history="prequential", repeats=True).test
        assert rows_of_targets(test) == [(0, 2, history, history, 5)]
    assert leave_last_out(first, repeats=True).validation.item.tolist() == [2]
    assert leave_last_out(other, repeats=True).validation.item.tolist() == [3]


def test_targets_where_keeps_the_states_they_need():
    log = toy_log([(0, 1, 5), (0, 2, 10), (0, 3, 10), (1, 5, 11), (0, 4, 12)])
    test = time_split(log, (4, 10, 14), history="prequential", repeats=True).test
    kept = test.where(np.isin(test.item, [4, 3]))
    assert rows_of_targets(kept) == [row for row in rows_of_targets(test) if row[4] in (3, 4)]
    assert len(kept.states) == 2


ROWS = [(0, 1, 1), (0, 2, 4), (1, 3, 5), (0, 3, 7, True, False), (1, 4, 8), (2, 5, 9), (1, 1, 10)]


def split_of(rows, window=(4, 7, 11), **options):
    settings: dict[str, Any] = {"history": "prequential", "repeats": True} | options
    return time_split(toy_log(rows), window, **settings)


def test_the_hash_depends_on_the_events_only():
    assert split_of(ROWS).hash == split_of(ROWS).hash
    assert (
        split_of(ROWS).hash == split_of(ROWS[::-1]).hash
    )  # no user has two events at one time: the sorted log is the same
    assert len(split_of(ROWS).hash) == 16


def changes():
    for i, row in enumerate(ROWS):
        yield f"{i} removed", ROWS[:i] + ROWS[i + 1 :]
        for part, other in ((0, 3), (1, 0), (2, row[2] + 1)):
            yield f"{i} {part}", [*ROWS[:i], (*row[:part], other, *row[part + 1 :]), *ROWS[i + 1 :]]
        if row[2] < 7:  # from the cut on, seen events are not part of the split
            yield f"{i} seen", [*ROWS[:i], (*row[:3], True, False), *ROWS[i + 1 :]]
        yield f"{i} positive", [*ROWS[:i], (*row[:3], False, True), *ROWS[i + 1 :]]


@pytest.mark.parametrize("rows", [pytest.param(rows, id=name) for name, rows in changes()])
def test_the_hash_changes_with_any_event(rows):
    assert split_of(rows).hash != split_of(ROWS).hash


def test_the_hash_changes_with_the_kind_of_split():
    hashes = {
        split_of(ROWS).hash,
        split_of(ROWS, window=(4, 8, 11)).hash,
        split_of(ROWS, window=(5, 7, 11)).hash,
        split_of(ROWS, window=(4, 7, 10)).hash,
        split_of(ROWS, history="fixed").hash,
        leave_last_out(toy_log(ROWS), repeats=True).hash,
    }
    assert len(hashes) == 6


HISTORY = [(0, 1, 1), (0, 2, 2), (1, 3, 1), (1, 4, 4), (0, 3, 5), (0, 4, 6, False), (0, 5, 7), (1, 2, 9)]


@pytest.mark.parametrize(
    ("at", "row"),
    [
        (5, None),  # removed: the last history is shorter
        (5, (0, 0, 6, False)),  # another item
        (5, (0, 4, 5, False)),  # another time
        (5, (0, 4, 6, False, False)),  # not seen
    ],
)
def test_the_hash_changes_with_an_event_of_a_history_after_the_cut(at, row):
    """Event 5 is no target and no training event. It is in the history of the target at time 7."""
    changed = HISTORY[:at] + ([] if row is None else [row]) + HISTORY[at + 1 :]
    assert split_of(changed, window=(2, 5, 8)).hash != split_of(HISTORY, window=(2, 5, 8)).hash


def test_the_hash_does_not_change_with_an_event_that_no_part_of_the_split_has():
    outside = [*HISTORY[:7], (1, 5, 9), (2, 1, 8)]  # after the end of the window
    assert split_of(outside, window=(2, 5, 8)).hash == split_of(HISTORY, window=(2, 5, 8)).hash


def test_the_hash_changes_with_the_type_of_an_event_in_a_history():
    log = toy_log(HISTORY)
    hashes = set()
    for type_of_event in (0, 1):
        types = np.zeros(len(log), np.int64)
        types[np.flatnonzero((log.users == 0) & (log.times == 6))] = type_of_event
        typed = replace(log, types=types, n_types=2)
        hashes.add(time_split(typed, (2, 5, 8), history="prequential", repeats=True).hash)
    assert len(hashes) == 2
