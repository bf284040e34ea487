"""The event log sorted by user and time, and point-in-time states, compared with a naive loop."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.interactions import Interactions, Ragged


def log(rows, n_users=4, n_items=6):
    """From (user, item, time, positive, seen) tuples in log order."""
    columns = zip(*rows, strict=True) if rows else ([],) * 5
    users, items, times, positive, seen = (np.array(c, dtype=np.int64) for c in columns)
    return Interactions.sort(users, items, times, positive.astype(np.bool_), seen.astype(np.bool_), n_users, n_items)


def lists(ragged):
    return [ragged.flat[b:e].tolist() for b, e in zip(ragged.begin, ragged.end, strict=True)]


def test_ragged_by_hand():
    ragged = Ragged.of([[3, 1], [], [2, 2, 5]])
    assert len(ragged) == 3
    assert ragged.lengths.tolist() == [2, 0, 3]
    slices, values = ragged.pairs()
    assert slices.tolist() == [0, 0, 2, 2, 2]
    assert values.tolist() == [3, 1, 2, 2, 5]
    assert ragged.tail(2).tolist() == [[3, 1], [-1, -1], [2, 5]]
    assert ragged.tail(4, fill=9).tolist() == [[9, 9, 3, 1], [9, 9, 9, 9], [9, 2, 2, 5]]
    assert lists(ragged[np.array([2, 0])]) == [[2, 2, 5], [3, 1]]
    assert lists(ragged[1:]) == [[], [2, 2, 5]]


def test_ragged_slices_may_overlap():
    ragged = Ragged(np.array([7, 8, 9]), np.array([0, 1, 0]), np.array([2, 3, 3]))
    slices, values = ragged.pairs()
    assert slices.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert values.tolist() == [7, 8, 8, 9, 7, 8, 9]


def test_ragged_of_nothing():
    assert Ragged.of([]).pairs()[0].tolist() == []
    empty = Ragged.of([[], []])
    assert empty.tail(2).tolist() == [[-1, -1], [-1, -1]]


events_of = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans()))


@given(events_of, st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 10)), max_size=6), st.booleans())
def test_compact_states_are_equal(rows, queries, typed):
    events = log(rows, n_users=4)
    events = replace(events, types=events.items % 3, n_types=3) if typed else events
    users, as_of = (np.array([query[field] for query in queries], dtype=np.int64) for field in (0, 1))
    states = events.states(users, as_of)
    compact = states.compact()
    assert len(compact.times) == len(compact.items.flat) == states.items.lengths.sum()
    for name in ("users", "as_of"):
        np.testing.assert_array_equal(getattr(compact, name), getattr(states, name))
    assert lists(compact.items) == lists(states.items)
    for part in ("positives", "positive_times", "seen_items"):
        assert lists(getattr(compact, part)()) == lists(getattr(states, part)())
    for name in ("times", "positive", "seen", *(["types"] if typed else [])):
        expected = Ragged(getattr(states, name), states.items.begin, states.items.end)
        assert getattr(compact, name).tolist() == expected.pairs()[1].tolist()
    assert (compact.types is None) == (not typed)


def test_sort_keeps_log_order_where_times_are_equal():
    events = log([(1, 5, 10, 1, 1), (0, 4, 10, 1, 1), (1, 3, 10, 1, 1), (1, 2, 9, 1, 1), (1, 4, 10, 1, 1)])
    assert events.users.tolist() == [0, 1, 1, 1, 1]
    assert events.items.tolist() == [4, 2, 5, 3, 4]
    assert events.offsets.tolist() == [0, 1, 5, 5, 5]


def test_states_hold_events_strictly_before():
    events = log([(0, 1, 10, 1, 1), (0, 2, 20, 0, 1), (0, 3, 20, 1, 0), (0, 4, 30, 1, 1), (2, 5, 20, 1, 1)])
    states = events.states(np.array([0, 0, 0, 0, 2, 1, -1]), np.array([10, 20, 21, 99, 20, 99, 99]))
    assert lists(states.items) == [[], [1], [1, 2, 3], [1, 2, 3, 4], [], [], []]
    assert lists(states.positives()) == [[], [1], [1, 3], [1, 3, 4], [], [], []]
    assert lists(states.positive_times()) == [[], [10], [10, 20], [10, 20, 30], [], [], []]
    assert lists(states.seen_items()) == [[], [1], [1, 2], [1, 2, 4], [], [], []]
    selected = states[np.array([3, 1])]
    assert lists(selected.positives()) == [[1, 3, 4], [1]]
    assert selected.as_of.tolist() == [99, 20]
    assert lists(states[2:4].seen_items()) == [[1, 2], [1, 2, 4]]


def test_before_and_positives_filter_events():
    events = log([(0, 1, 10, 1, 1), (0, 2, 20, 0, 1), (1, 3, 15, 1, 1)])
    assert events.before(20).items.tolist() == [1, 3]
    assert events.positives().items.tolist() == [1, 3]
    assert events.latest == 20
    assert events.before(10).latest == np.iinfo(np.int64).min


def test_an_empty_log_has_states_without_history():
    states = log([]).states(np.array([0, 3, -1]), np.array([5, 5, 5]))
    assert lists(states.positives()) == [[], [], []]


event = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(-3, 6), st.booleans(), st.booleans())
query = st.tuples(st.integers(-1, 3), st.integers(-4, 8))


@given(st.lists(event, max_size=30), st.lists(query, min_size=1, max_size=10))
def test_states_equal_a_naive_loop(rows, queries):
    events = log(rows)
    states = events.states(*(np.array(c, dtype=np.int64) for c in zip(*queries, strict=True)))
    for i, (user, as_of) in enumerate(queries):
        history = sorted((r for r in rows if r[0] == user and r[2] < as_of), key=lambda r: r[2])  # sorted is stable
        assert lists(states.items)[i] == [r[1] for r in history]
        assert lists(states.positives())[i] == [r[1] for r in history if r[3]]
        assert lists(states.positive_times())[i] == [r[2] for r in history if r[3]]
        assert lists(states.seen_items())[i] == [r[1] for r in history if r[4]]


def test_types_go_with_their_events():
    types = np.array([1, 2, 0, 2])
    rows = [(1, 0, 5, True, True), (0, 1, 9, True, True), (0, 2, 3, True, True), (1, 3, 2, False, True)]
    plain = log(rows)
    labels = np.array([r[3] for r in rows]), np.array([r[4] for r in rows])
    users, items, times = (np.array(c) for c in list(zip(*rows, strict=True))[:3])
    typed = Interactions.sort(users, items, times, *labels, 4, 6, types=types, n_types=3)
    positives, states = typed.positives(), typed.states(np.array([0]), np.array([4]))
    assert plain.types is None
    assert typed.types is not None
    assert positives.types is not None
    assert states.types is not None
    assert typed.types.tolist() == [0, 2, 2, 1]  # by user and time
    assert positives.types.tolist() == [0, 2, 1]
    assert positives.n_types == 3
    assert states.types.tolist() == [0, 2, 2, 1]  # aligned with items.flat, the items of the whole log
