"""Windows against naive loops: each pair of an epoch once, and never the moment of the target itself."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_data import chain, toy_log

from features.errors import DataError
from recsys.towers.history import hours_of_week, wait_buckets
from recsys.towers.training_batches import TrainingSequences

HOUR = 3600 * 10**6


def numbered(rows, n_users=5):
    """A log whose item rows are all different, so that a pair of items names a pair of events."""
    return toy_log([(u, i, t, p) for i, (u, t, p) in enumerate(rows)], n_users, max(1, len(rows)))


def pairs(batches):
    """(query item, target) of every pair in the batches."""
    out = []
    for batch in batches:
        query = batch.history.items[batch.row, batch.column]
        out += zip(query[batch.pair_to_query].tolist(), batch.target.tolist(), strict=True)
    return out


def naive(rows):
    """Every positive event with the last event of its user strictly before it, by a loop."""
    out = []
    for user in {r[0] for r in rows}:
        mine = sorted((t, n, p) for n, (u, t, p) in enumerate(rows) if u == user)
        for time, item, positive in mine:
            before = [m for m in mine if m[0] < time]
            if before and positive:
                out.append((before[-1][1], item))
    return out


events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.booleans()), max_size=40)


@given(events, st.integers(1, 6), st.integers(1, 30), st.integers(0, 3))
def test_every_pair_occurs_exactly_once_in_an_epoch(rows, length, batch_events, seed):
    expected = naive(rows)
    if not expected:
        with pytest.raises(DataError, match="nothing to train on"):
            TrainingSequences.build(numbered(rows))
        return
    batches = list(TrainingSequences.build(numbered(rows)).batches(length, batch_events, np.random.default_rng(seed)))
    assert Counter(pairs(batches)) == Counter(expected)
    assert all(batch.history.items.shape[1] <= length for batch in batches)


@given(events, st.integers(1, 6), st.integers(0, 3))
def test_windows_hold_their_users_events_in_order(rows, length, seed):
    """Before each query lie events of its user, oldest first, with the time to the next, and nothing else."""
    rows = [(user, 5 * HOUR * time, positive) for user, time, positive in rows]
    if not naive(rows):
        return
    log = numbered(rows)
    place = {item: at for at, item in enumerate(log.items.tolist())}
    for batch in TrainingSequences.build(replace(log, types=log.items)).batches(
        length, 20, np.random.default_rng(seed)
    ):
        for row, column in zip(batch.row.tolist(), batch.column.tolist(), strict=True):
            window = batch.history.items[row, : column + 1].tolist()
            at = place[window[-1]]
            assert window == log.items[at - column : at + 1].tolist()
            assert set(log.users[at - column : at + 1]) == {log.users[at]}
            waits = np.diff(log.times[at - column : at + 2])  # what is predicted follows, so that there is a next
            assert batch.history.waits[row, : column + 1].tolist() == wait_buckets(waits).tolist()
            assert batch.history.types[row, : column + 1].tolist() == log.items[at - column : at + 1].tolist()
            hours = hours_of_week(log.times[at - column + 1 : at + 2])
            assert batch.history.hours[row, : column + 1].tolist() == hours.tolist()
            assert batch.history.positive[row, : column + 1].tolist() == log.positive[at - column : at + 1].tolist()


def test_a_moment_is_never_its_own_input():
    log = toy_log([(0, 0, 1), (0, 1, 1), (0, 2, 5), (0, 3, 5), (0, 4, 9)])
    windows = TrainingSequences.build(log)
    assert windows.query.tolist() == [1, 3]  # after the last event of each moment that has a later one
    assert windows.pair_to_query.tolist() == [0, 0, 1]
    assert windows.target.tolist() == [2, 3, 4]
    (batch,) = windows.batches(10, 100, np.random.default_rng(0))
    assert batch.history.items.tolist() == [[0, 1, 2, 3, 4]]
    assert batch.column.tolist() == [1, 3]


def test_long_histories_are_cut_at_another_place_in_each_epoch():
    windows = TrainingSequences.build(toy_log([(0, i, i) for i in range(30)], 1, 30))
    rng = np.random.default_rng(0)
    starts = {
        tuple(sorted(b.history.items[:, 0].tolist())) for _ in range(8) for b in windows.batches(10, 10**6, rng)
    }
    assert len(starts) > 1


def test_a_batch_holds_about_the_events_asked_for():
    sizes = [
        b.history.items.size
        for b in TrainingSequences.build(chain(60, 12, 10)).batches(10, 100, np.random.default_rng(0))
    ]
    assert sizes == [100] * 6
    one = [
        b.history.items.size
        for b in TrainingSequences.build(chain(5, 12, 10)).batches(10, 3, np.random.default_rng(0))
    ]
    assert one == [10] * 5  # a window longer than that is a batch of its own


def test_the_same_seed_gives_the_same_batches():
    windows = TrainingSequences.build(chain(20, 12, 10))
    first, again, other = (
        [b.history.items.tolist() for b in windows.batches(4, 30, np.random.default_rng(seed))] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(("parts", "batch_events"), [(2, 12), (3, 12), (2, 4)])
def test_processes_share_each_batch_window_by_window(parts, batch_events):
    windows = TrainingSequences.build(chain(7, 12, 10))

    def batches(part, of):
        return windows.batches(4, batch_events, np.random.default_rng(0), part=part, parts=of)

    borrowed = 0
    for whole, *shares in zip(batches(0, 1), *(batches(part, parts) for part in range(parts)), strict=True):
        assert whole.share == 1
        assert sum(share.share for share in shares) == pytest.approx(1)
        assert all(
            share.share == pytest.approx(len(share.target) / len(whole.target)) for share in shares if share.share
        )
        assert Counter(pairs([share for share in shares if share.share])) == Counter(pairs([whole]))
        borrowed += sum(share.share == 0 for share in shares)
    assert bool(borrowed) == (batch_events == 4)  # one window for two processes: both must take the step


def test_a_pair_weighs_as_its_target_and_all_together_one_on_average():
    weights = np.array([7, 1, 5, 9, 3], dtype=np.float32)
    log = replace(toy_log([(0, 0, 1), (0, 1, 2), (0, 2, 3, False), (1, 3, 1), (1, 4, 2)]), weights=weights)
    windows = TrainingSequences.build(log)  # what weighs 7 and 9 is a first event, what weighs 5 is not positive
    assert windows.target.tolist() == [1, 4]
    assert windows.weight.tolist() == [0.5, 1.5]
    batches = windows.batches(10, 1, np.random.default_rng(0))
    assert sorted((batch.target.item(), batch.weight.item()) for batch in batches) == [(1, 0.5), (4, 1.5)]
    assert TrainingSequences.build(replace(log, weights=None)).weight.tolist() == [1.0, 1.0]


def test_only_what_comes_after_a_moment_is_predicted_from_all_that_was_before():
    log = toy_log([(0, 0, 1), (0, 1, 2), (0, 2, 11), (0, 3, 12), (1, 4, 3), (1, 5, 4)])
    (batch,) = TrainingSequences.build(log, since=10).batches(10, 100, np.random.default_rng(0))
    assert batch.history.items.tolist() == [[0, 1, 2, 3]]
    assert pairs([batch]) == [(1, 2), (2, 3)]
    with pytest.raises(DataError, match=r"among 6 since 1970-01-01T00:00:00\.000012 UTC: nothing to train on"):
        TrainingSequences.build(log, since=12)
