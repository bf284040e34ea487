"""Training sequences against naive loops: each pair occurs once in an epoch, and no input has the target's time."""

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
    out: list[tuple[int, int]] = []
    for batch in batches:
        query = batch.history.items[batch.row, batch.column]
        out += zip(query[batch.pair_to_query].tolist(), batch.target.tolist(), strict=True)
    return out


def naive(rows):
    """(item of the query, target) of every positive event that follows an earlier event of its user, by a loop."""
    out = []
    for user in {r[0] for r in rows}:
        history = sorted((t, n, p) for n, (u, t, p) in enumerate(rows) if u == user)
        for time, item, positive in history:
            before = [event for event in history if event[0] < time]
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
def test_sequences_hold_the_events_of_one_user_in_order(rows, length, seed):
    """A sequence up to a query holds consecutive events of one user, oldest first, with the wait to the next."""
    rows = [(user, 5 * HOUR * time, positive) for user, time, positive in rows]
    if not naive(rows):
        return
    log = numbered(rows)
    place = {item: at for at, item in enumerate(log.items.tolist())}
    for batch in TrainingSequences.build(replace(log, types=log.items)).batches(
        length, 20, np.random.default_rng(seed)
    ):
        for row, column in zip(batch.row.tolist(), batch.column.tolist(), strict=True):
            sequence = batch.history.items[row, : column + 1].tolist()
            at = place[sequence[-1]]
            assert sequence == log.items[at - column : at + 1].tolist()
            assert set(log.users[at - column : at + 1]) == {log.users[at]}
            waits = np.diff(log.times[at - column : at + 2])  # every query has a next event: its target
            assert batch.history.gaps[row, : column + 1].tolist() == wait_buckets(waits).tolist()
            assert batch.history.types[row, : column + 1].tolist() == log.items[at - column : at + 1].tolist()
            hours = hours_of_week(log.times[at - column + 1 : at + 2])
            assert batch.history.hours[row, : column + 1].tolist() == hours.tolist()
            assert batch.history.positive[row, : column + 1].tolist() == log.positive[at - column : at + 1].tolist()


def test_an_event_at_the_time_of_a_target_is_never_its_input():
    log = toy_log([(0, 0, 1), (0, 1, 1), (0, 2, 5), (0, 3, 5), (0, 4, 9)])
    sequences = TrainingSequences.build(log)
    assert sequences.query.tolist() == [1, 3]  # the last event of each timestamp that has a later one
    assert sequences.pair_to_query.tolist() == [0, 0, 1]
    assert sequences.target.tolist() == [2, 3, 4]
    (batch,) = sequences.batches(10, 100, np.random.default_rng(0))
    assert batch.history.items.tolist() == [[0, 1, 2, 3, 4]]
    assert batch.column.tolist() == [1, 3]


def test_long_histories_are_cut_differently_in_each_epoch():
    sequences = TrainingSequences.build(toy_log([(0, i, i) for i in range(30)], 1, 30))
    rng = np.random.default_rng(0)
    starts = {
        tuple(sorted(b.history.items[:, 0].tolist())) for _ in range(8) for b in sequences.batches(10, 10**6, rng)
    }
    assert len(starts) > 1


def test_a_batch_holds_about_batch_events_events():
    sizes = [
        b.history.items.size
        for b in TrainingSequences.build(chain(60, 12, 10)).batches(10, 100, np.random.default_rng(0))
    ]
    assert sizes == [100] * 6
    single = [
        b.history.items.size
        for b in TrainingSequences.build(chain(5, 12, 10)).batches(10, 3, np.random.default_rng(0))
    ]
    assert single == [10] * 5  # a sequence longer than batch_events is a batch of its own


def test_batches_mix_sequences_whose_lengths_differ_by_less_than_four():
    """Forty users each with 2, 5 and 9 events. Batches of about ten sequences: one may span any two neighbours."""
    lengths = [2] * 40 + [5] * 40 + [9] * 40
    log = toy_log([(u, i, i) for u, n in enumerate(lengths) for i in range(n)], len(lengths), 9)
    sequences, rng = TrainingSequences.build(log), np.random.default_rng(0)
    near, far = 0, 0
    for _ in range(10):
        held = []
        for batch in sequences.batches(9, 50, rng):
            users = np.bincount(batch.row)  # one query less than events in each sequence
            held.append(set((users + 1).tolist()))
        near += sum({2, 5} <= each for each in held) > 1
        far += sum({5, 9} <= each for each in held) > 1
    assert near >= 8  # of ten epochs
    assert far == 0


def test_the_same_seed_gives_the_same_batches():
    sequences = TrainingSequences.build(chain(20, 12, 10))
    first, repeated, different = (
        [b.history.items.tolist() for b in sequences.batches(4, 30, np.random.default_rng(seed))]
        for seed in (1, 1, 2)
    )
    assert first == repeated
    assert first != different


@pytest.mark.parametrize(("parts", "batch_events"), [(2, 12), (3, 12), (2, 4)])
def test_processes_share_the_sequences_of_each_batch(parts, batch_events):
    sequences = TrainingSequences.build(chain(7, 12, 10))

    def batches(part, parts):
        return sequences.batches(4, batch_events, np.random.default_rng(0), part=part, parts=parts)

    empty = 0
    for undivided, *shares in zip(batches(0, 1), *(batches(part, parts) for part in range(parts)), strict=True):
        assert undivided.share == 1
        assert sum(share.share for share in shares) == pytest.approx(1)
        assert all(
            share.share == pytest.approx(len(share.target) / len(undivided.target)) for share in shares if share.share
        )
        assert Counter(pairs([share for share in shares if share.share])) == Counter(pairs([undivided]))
        empty += sum(share.share == 0 for share in shares)
    assert bool(empty) == (batch_events == 4)  # one sequence for two processes: both must take the step


def test_a_pair_has_the_weight_of_its_target_scaled_to_mean_one():
    weights = np.array([7, 1, 5, 9, 3], dtype=np.float32)
    log = replace(toy_log([(0, 0, 1), (0, 1, 2), (0, 2, 3, False), (1, 3, 1), (1, 4, 2)]), weights=weights)
    sequences = TrainingSequences.build(log)  # no targets: weights 7 and 9 are first events, 5 is not positive
    assert sequences.target.tolist() == [1, 4]
    assert sequences.weight.tolist() == [0.5, 1.5]
    batches = sequences.batches(10, 1, np.random.default_rng(0))
    assert sorted((batch.target.item(), batch.weight.item()) for batch in batches) == [(1, 0.5), (4, 1.5)]
    assert TrainingSequences.build(replace(log, weights=None)).weight.tolist() == [1.0, 1.0]


def test_only_the_given_events_are_targets_and_all_earlier_ones_are_inputs():
    log = toy_log([(0, 0, 1), (0, 1, 2), (0, 2, 11), (0, 3, 12), (1, 4, 3), (1, 5, 4)])
    (batch,) = TrainingSequences.build(log, only=log.times > 10).batches(10, 100, np.random.default_rng(0))
    assert batch.history.items.tolist() == [[0, 1, 2, 3]]
    assert pairs([batch]) == [(1, 2), (2, 3)]
    with pytest.raises(DataError, match=r"among the 0 new events: nothing to train on"):
        TrainingSequences.build(log, only=log.times > 12)
