"""The leave-last-out split: values by hand, targets that users have seen, and the rule of each placement."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_experiments_leaks import CONFIG
from test_experiments_splits import event
from toy_data import rows_of, toy_catalog, toy_log

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.splits import leave_last_out
from features.errors import DataError
from features.ids import IdMap
from features.tables.report import Report


def test_leave_last_out_by_hand():
    log = toy_log(
        [
            (0, 1, 1),
            (0, 2, 2),
            (0, 5, 3, False),
            (0, 3, 4),
            (0, 4, 5),
            (1, 1, 1),
            (1, 2, 2),
            (2, 5, 1),
            (2, 4, 2),
            (2, 3, 3),
        ]
    )
    split = leave_last_out(log, repeats=False)
    pairs = list(zip(split.train.users.tolist(), split.train.items.tolist(), strict=True))
    assert pairs == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
        (2, 5),
    ]  # all but the last two positive events; user 1 has too few and is not tested
    assert split.fit is split.train
    assert split.cut is None
    assert split.validation.users.tolist() == [0, 2]
    assert split.validation.item.tolist() == [3, 4]
    assert rows_of(split.validation.states.positives()) == [[1, 2], [5]]
    assert split.test.users.tolist() == [0, 2]
    assert split.test.item.tolist() == [4, 3]
    assert rows_of(split.test.states.positives()) == [[1, 2, 3], [5, 4]]  # with the validation item
    assert "later events of other users" in split.note


REPEATED = [
    *((0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 1, 4)),  # the test target was seen
    *((1, 1, 1), (1, 2, 2), (1, 1, 3), (1, 3, 4)),  # the validation target was seen
    *((2, 1, 1), (2, 2, 2), (2, 2, 3), (2, 1, 4)),  # both were
    *((3, 4, 1, True, False), (3, 5, 2), (3, 4, 3)),  # its earlier event does not count as seen
]


def test_leave_last_out_drops_and_counts_targets_that_no_list_may_contain():
    log = toy_log(REPEATED)
    split = leave_last_out(log, repeats=False)
    assert (split.validation.users.tolist(), split.validation.item.tolist()) == ([0, 3], [3, 5])
    assert (split.test.users.tolist(), split.test.item.tolist()) == ([1, 3], [3, 4])
    assert (split.validation.repeated, split.test.repeated) == (2, 2)
    allowed = leave_last_out(log, repeats=True)
    assert allowed.test.item.tolist() == [1, 3, 1, 4]
    assert allowed.validation.item.tolist() == [3, 1, 2, 5]
    assert (allowed.validation.repeated, allowed.test.repeated) == (0, 0)
    for name in ("users", "items", "times"):  # a dropped target is not trained on: both placements share the models
        assert getattr(split.train, name).tolist() == getattr(allowed.train, name).tolist()
    assert split.train.items.tolist() == [1, 2, 1, 2, 1, 2, 4]
    assert split.hash != allowed.hash


@given(st.lists(event, min_size=1, max_size=25))
def test_without_repeats_no_target_is_excluded_from_its_own_list(rows):
    """Of every user with three positive events, the last two are targets or are counted, never both."""
    log = toy_log(rows)
    n_users = int((np.bincount(log.users[log.positive], minlength=4) >= 3).sum())
    try:
        split = leave_last_out(log, repeats=False)
    except DataError:
        return
    for targets in (split.validation, split.test):
        seen = rows_of(targets.states.seen_items())
        assert not any(item in seen[s] for s, item in zip(targets.state, targets.item, strict=True))
        assert len(targets) + targets.repeated == n_users


def test_leave_last_out_without_any_unseen_target_says_what_to_do():
    log = toy_log([(0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 1, 4)])
    with pytest.raises(
        DataError, match=r"all 1 users had seen the item of their last positive event; use a placement with repeats"
    ):
        leave_last_out(log, repeats=False)
    with pytest.raises(DataError, match=r"had seen the item of their last but one positive event"):
        leave_last_out(toy_log([(0, 1, 1), (0, 1, 2), (0, 2, 3)]), repeats=False)


def test_each_placement_of_a_leave_last_out_run_has_its_own_rule():
    users = IdMap(("u0", "u1", "u2", "u3"))
    repeated = Dataset(toy_catalog(6), users, toy_log(REPEATED), "0" * 16, Report(()))
    placements = {"home": {"repeats": False}, "again": {"repeats": True}, "mail": {"repeats": False}}
    data = CONFIG.data.model_dump() | {"placements": placements}
    split = {"kind": "leave-last-out"}
    config = RunConfig.model_validate(CONFIG.model_dump() | {"data": data, "split": split})
    ((_, splits),) = evaluation_windows(config, repeated)
    assert {name: len(split.test) for name, split in splits.items()} == {"home": 2, "again": 4, "mail": 2}
    assert splits["mail"] is splits["home"]
