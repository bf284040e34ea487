"""The slate: what is shown of the candidates. The service, batch jobs and the evaluation fill it by one function."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl

from features.arrays import Bools, Doubles, Floats, Ints
from features.catalog import Catalog
from features.interactions import Ragged, UserStates
from features.schema import GROUP
from recsys.interfaces import Candidates, Recommender, first_occurrences, in_slices
from recsys.ranking.exploration import Drawn, Draws
from recsys.ranking.slate_rules import CANDIDATES, SlateRules

Find = Callable[[Ints, int], Candidates]
"""(indices of states (c,), n) -> the n best candidates of these states: (c, n)."""


@dataclass(frozen=True)
class Slate:
    """k items, best first.

    items (k,): external ids; rows (k,) int64: their rows in the bundle with this fingerprint; positions (k,) int64
    from 1; scores (k,) float32; propensities (k,) float64: the probability that the item is shown at this position,
    given the user (1 for a deterministic policy); reasons (k,): the source of each item; trace: stage ->
    milliseconds; drawn: what was drawn by a rule of exploration, None without one.
    """

    items: tuple[str, ...]
    rows: Ints
    positions: Ints
    scores: Floats
    propensities: Doubles
    reasons: tuple[str, ...]
    trace: dict[str, float]
    fingerprint: str
    drawn: Drawn | None = None

    def __len__(self) -> int:
        return len(self.items)

    def after(self, shown: int) -> "Slate":
        """The slate as a page that follows `shown` items of a list: its positions go on counting."""
        return replace(self, positions=self.positions + shown)

    @property
    def explored(self) -> Bools:
        """(k,) bool: the items that stand there by exploration."""
        return np.zeros(len(self), np.bool_) if self.drawn is None else self.drawn.explored(len(self))


def item_groups(catalog: Catalog) -> Ints:
    """Group of each item, (n,) int64: variants of a product (column group_id) share one; others have their own."""
    if GROUP not in catalog.frame.columns:
        return np.arange(len(catalog), dtype=np.int64)
    names = catalog.frame.get_column(GROUP)
    codes = names.rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
    return np.where(codes < 0, np.arange(len(catalog)), len(catalog) + codes).astype(np.int64)


def fill_slates(
    find: Find,
    states: int,
    k: int,
    groups: Ints,
    rules: SlateRules | None = None,
    *,
    allow: Bools | None = None,
    exclude: Ragged | None = None,
    draws: Draws | None = None,
) -> Candidates:
    """The slates of b states: the best item of each group, at most k, then padding: (b, k).

    groups (n,): of `item_groups`. rules: choose among the candidates instead, of which `find` must leave out those
    that `SlateRules.allowed` leaves out. allow (n,), exclude: as `find` applies them; pins are checked by them. Where
    the candidates do not fill a slate, four times as many are asked for, until there are no more. draws: of the b
    states, for rules that explore; without them nothing is explored.
    """
    filled, pending = Candidates.empty(states, k), np.arange(states)
    asked = k if rules is None else max(k, min(CANDIDATES, len(groups)))

    def may_show(at: int, rows: Ints) -> Bools:
        state = pending[at : at + 1]
        shown = np.ones(len(rows), dtype=np.bool_) if allow is None else allow[rows]
        return shown if exclude is None else shown & ~in_slices(exclude[state], np.zeros(1, np.int64), rows)

    while len(pending):
        found = find(pending, asked)
        ended = ((found.rows >= 0).sum(1) < asked) | (asked >= len(groups))  # (c,): there are no more candidates
        if rules is None:
            chosen = distinct_groups(found, groups, k)
        else:
            chosen = rules.choose(found, groups, k, may_show, ended, None if draws is None else draws[pending])
        filled.put(pending, chosen)
        is_done = (chosen.rows >= 0).all(1) | ended
        pending, asked = pending[~is_done], min(4 * asked, len(groups))
    return filled


def recommend_slates(
    recommender: Recommender,
    states: UserStates,
    k: int,
    groups: Ints,
    rules: Callable[[bool], SlateRules] | None = None,
    *,
    allow: Bools,
    exclude: Ragged | None,
    draws: Draws | None = None,
) -> Candidates:
    """The slates of b states from a recommender: (b, k); see `fill_slates`.

    rules: those of users without a positive event (True) and of others (False). allow (n,): items that may be shown;
    exclude: b slices, rows that the state must not be shown; draws: see `fill_slates`.
    """
    cold, filled = states.positives().lengths == 0, Candidates.empty(len(states), k)
    parts: list[tuple[Ints, SlateRules | None]] = [(np.arange(len(states)), None)]
    if rules is not None:
        parts = [(np.flatnonzero(cold == is_cold), rules(is_cold)) for is_cold in (False, True)]
    for at, own in parts:
        if len(at):
            some, shown = states[at].compact(), allow if own is None else allow & own.allowed
            left_out = None if exclude is None else exclude[at]
            find = partial(_find, recommender, some, shown, left_out)
            drawing = None if draws is None else draws[at]
            filled.put(at, fill_slates(find, len(at), k, groups, own, allow=shown, exclude=left_out, draws=drawing))
    return filled


def _find(
    recommender: Recommender, states: UserStates, allow: Bools, exclude: Ragged | None, at: Ints, n: int
) -> Candidates:
    """The n best items of the states at `at`; see `Recommender`."""
    if len(at) == len(states):
        return recommender.recommend(states, n, allow=allow, exclude=exclude)
    left_out = None if exclude is None else exclude[at]
    return recommender.recommend(states[at].compact(), n, allow=allow, exclude=left_out)


def distinct_groups(found: Candidates, groups: Ints, k: int) -> Candidates:
    """The first k candidates of each line with a finite score, one of each group: (b, k)."""
    is_usable = (found.rows >= 0) & np.isfinite(found.scores)
    is_first = first_occurrences(np.where(is_usable, groups[found.rows], -1))
    return found.where(is_first, k)


def slate_of(
    chosen: Candidates,
    catalog: Catalog,
    *,
    reason: str,
    trace: dict[str, float],
    fingerprint: str,
    drawn: Drawn | None = None,
) -> Slate:
    """The slate of one state, whose items were chosen: (1, k). reason: of items whose source is not known."""
    kept = chosen.rows[0] >= 0
    rows, scores = chosen.rows[0][kept], chosen.scores[0][kept]
    return Slate(
        items=tuple(catalog.ids.ids[row] for row in rows.tolist()),
        rows=rows,
        positions=np.arange(1, len(rows) + 1, dtype=np.int64),
        scores=scores,
        propensities=np.ones(len(rows)) if drawn is None else drawn.propensities(len(rows)),
        reasons=tuple(name or reason for name in chosen.source_names(0)[: len(rows)]),
        trace=trace,
        fingerprint=fingerprint,
        drawn=drawn,
    )
