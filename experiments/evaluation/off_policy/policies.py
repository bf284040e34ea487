"""Policies that can be judged exactly from the explored slots: each shows one of the choices of every slot.

The other positions of an answer stay as they were logged: what is judged is which item a policy shows at an explored
position, among the own item and the pool, and not a whole slate.
"""

from dataclasses import dataclass

import numpy as np

from experiments.dataset import Dataset
from experiments.evaluation.off_policy.slots import Slots
from features.arrays import Bools, Doubles, Ints
from features.interactions import Ragged
from recsys.bundle.model import Bundle
from recsys.interfaces import Candidates

NO_EXPLORATION = "no exploration"
"""Name of the policy that shows the own item of every slot."""

ANSWERS_AT_ONCE = 128
"""Answers whose candidates are in memory at the same time."""


@dataclass(frozen=True)
class Policy:
    """One judged policy. shows (m,): index in `choices.flat` of what it shows at each slot; scores (c,): its score of
    each choice, NaN where it has none."""

    name: str
    shows: Ints
    scores: Doubles


def no_exploration(slots: Slots) -> Policy:
    """Shows the own item of each slot, as the service does without the rule."""
    return Policy(NO_EXPLORATION, slots.choices.begin, np.full(len(slots.choices.flat), np.nan))


def of_bundle(name: str, bundle: Bundle, dataset: Dataset, slots: Slots) -> Policy:
    """Shows the choice that a bundle ranks first for the user as of the time of the answer.

    dataset: tables and log in the rows of the bundle's catalogue. The history is that of the events before the
    answer; without a positive event the bundle ranks by popularity, as when it is served. Items that the bundle does
    not have come last; where it has none of the choices, it shows the own item. Rules do not apply.
    """
    rows = bundle.catalog.ids.rows(slots.item_ids)[slots.choices.flat]  # (c,)
    slot = slots.choices.places()[0]  # (c,)
    begin = np.flatnonzero(np.diff(slots.answers[slot], prepend=-1))  # first choice of each answer
    answers = Ragged(rows, begin, np.append(begin[1:], len(rows)))
    users, times = dataset.users.rows(slots.user_ids)[slots.users[slot[begin]]], slots.times[slot[begin]]
    places, scores = np.full(len(rows), len(rows)), np.full(len(rows), np.nan)
    for at in range(0, len(answers), ANSWERS_AT_ONCE):
        part = slice(at, at + ANSWERS_AT_ONCE)
        asked, lengths = answers[part].tail(int(answers.lengths[part].max())), answers.lengths[part]  # (b, w)
        ranked = bundle.recommender.rank_each(dataset.events.states(users[part], times[part]).compact(), asked)
        inside = np.arange(asked.shape[1]) >= asked.shape[1] - lengths[:, None]
        own = slice(int(answers.begin[part][0]), int(answers.end[part][-1]))
        places[own], scores[own] = _in_order_of(asked, inside, ranked, len(rows))
    shows = np.lexsort((places, slot))[slots.choices.begin]  # of choices of one place the first
    return Policy(name, shows, scores)


def _in_order_of(asked: Ints, inside: Bools, ranked: Candidates, last: int) -> tuple[Ints, Doubles]:
    """Place and score in `ranked` of each item of asked (b, w) that is inside; `last` and NaN of those of no row."""
    line, place = np.nonzero(ranked.rows >= 0)
    width = int(max(asked.max(initial=0), 0)) + 1
    keys = line * width + ranked.rows[line, place]
    order = np.argsort(keys)
    wanted = (np.arange(len(asked))[:, None] * width + asked)[inside]
    known = asked[inside] >= 0
    at = order[np.searchsorted(keys[order], wanted[known])]
    places, scores = np.full(len(wanted), last), np.full(len(wanted), np.nan)
    places[known], scores[known] = place[at], ranked.scores[line[at], place[at]]
    return places, scores
