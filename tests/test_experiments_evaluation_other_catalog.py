"""A recommender in the rows of another catalogue: states, allowed and excluded items, and lists by hand."""

import numpy as np
from toy_data import rows_of, toy_log

from experiments.evaluation.other_catalog import InCatalog
from features.ids import IdMap, id_keys
from features.interactions import Interactions, Ragged
from features.schema import EventRules
from recsys.interfaces import Candidates

OWN, ITEMS = IdMap(("a", "b", "c", "gone")), IdMap(("c", "new", "a", "b"))
"""Rows of `ITEMS` in `OWN`: c 2, new none, a 0, b 1."""


class Asked:
    """Keeps what it was asked, and lists the allowed items from the highest row down."""

    def recommend(self, states, k, *, allow=None, exclude=None):
        self.states, self.allow, self.exclude = states, allow, exclude
        rows = np.full((len(states), k), -1)
        best = np.flatnonzero(allow)[::-1][:k]
        rows[:, : len(best)] = best
        scores = np.where(rows >= 0, 1.0 - np.arange(k) / 10, -np.inf)
        return Candidates(rows, scores.astype(np.float32))


def asked(**options):
    """(what the recommender was asked, its answer in rows of `ITEMS`): a user took c, new, b, and another one new."""
    events = toy_log([(0, 0, 1), (0, 1, 2), (0, 3, 3, False), (1, 1, 4)], n_users=2, n_items=4)
    states = events.states(np.array([0, 1]), np.array([9, 9]))
    inner = Asked()
    answer = InCatalog(inner, OWN, ITEMS).recommend(states, 4, **options)
    return inner, answer


def test_histories_are_in_the_other_rows_without_unknown_items():
    inner, _ = asked()
    assert rows_of(inner.states.items) == [[2, 1], []]
    assert inner.states.times.tolist() == [1, 3]
    assert inner.states.positive.tolist() == [True, False]
    assert rows_of(inner.states.seen_items()) == [[2, 1], []]


def test_only_items_of_both_are_listed_in_the_callers_rows():
    inner, answer = asked()
    assert inner.allow.tolist() == [True, True, True, False]  # not "gone"
    assert answer.rows.tolist() == [[0, 3, 2, -1]] * 2  # c, b, a
    assert np.isneginf(answer.scores[:, 3]).all()
    assert InCatalog(inner, OWN, ITEMS).common.tolist() == [True, False, True, True]


def test_allowed_and_excluded_items_are_translated():
    inner, answer = asked(allow=np.array([True, True, False, True]), exclude=Ragged.of([[0, 1], [3]]))
    assert inner.allow.tolist() == [False, True, True, False]
    assert rows_of(inner.exclude) == [[2], [1]]
    assert answer.rows.tolist() == [[0, 3, -1, -1]] * 2


def test_the_other_model_gets_histories_within_their_limits():
    keys = id_keys(ITEMS.ids)
    rules = EventRules(positive={"x": None}, history=2, seen_items=2)
    rows, zeros, all_true = np.array([0, 2, 3]), np.zeros(3, np.int64), np.ones(3, np.bool_)
    events = Interactions.sort(zeros, rows, np.arange(3), all_true, all_true, 1, 4, rules=rules, item_keys=keys[rows])
    inner = Asked()
    InCatalog(inner, OWN, ITEMS).recommend(events.states(np.array([0]), np.array([9])), 1)
    assert rows_of(inner.states.items) == [OWN.rows([ITEMS.ids[2], ITEMS.ids[3]]).tolist()]
