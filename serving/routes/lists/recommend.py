"""A list for one user: store, user tower, index, reranker, slate."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from features.arrays import Ints, Keys
from features.log.records import Event
from features.store.user_state import UserState
from recsys.ranking.slate_rules import SlateRules
from serving.cursor import MAX_SHOWN, Page
from serving.routes.explain import Answer
from serving.routes.responses import DEADLINE, is_sampled, number_of, timed
from serving.state.arms import Arm
from serving.state.service import ServiceState
from serving.state.snapshot import Recommended, ServingSnapshot

logger = logging.getLogger("recsys.serving")

NOTHING: Final[Keys] = np.zeros(0, dtype=np.uint64)

Choose = Callable[[Ints, int, dict[str, float], SlateRules | None], Recommended]
"""Rows to leave out, k, trace and rules -> the slate; see `ServingSnapshot.recommend`."""


def recommend(
    service: ServiceState,
    arm: Arm,
    user_id: str,
    k: int,
    placement: str,
    page: Page,
    request_id: str = "",
    session: Sequence[Event] = (),
    *,
    besides: Keys = NOTHING,
    at_once: bool = False,
) -> Answer:
    """What one user is recommended in a placement, at most k items: a page of the list.

    user_id: "" for a visitor who is in no store; session: further events, which are not stored; request_id: decides
    what is explored, and whether the candidates are kept; without it neither is done; besides: keys of products that
    other lists of the same call show; at_once: no time is left, so neither the store nor the model is asked.
    """
    trace, snapshot = dict[str, float](), arm.snapshot
    with timed(trace, "store"):
        shown = arm.rules.ask_for_shown(placement)
        state, degraded = UserState(), list[str]()
        if user_id:
            state, degraded = service.keeper.read_user(snapshot.store, user_id, shown=shown, ask=not at_once)
        if session:
            state = state.with_events(session, snapshot.bundle.data.events)
    degraded = [*([DEADLINE] if at_once else []), *degraded, *arm.failed]
    with timed(trace, "rank"):
        repeats = snapshot.bundle.data.placements[placement].repeats
        seen = snapshot.rows(()) if repeats else snapshot.seen_rows(state)
        states = snapshot.states([state], service.now())
        cold = not states.positive.any()
        rules = arm.rules.of(snapshot.bundle, placement, cold=cold, now=service.now())
        if rules is not None:
            unknown = rules.rotation is not None and (at_once or "store" in degraded)  # what the user was shown
            if rules.notes or unknown or not snapshot.available[[*rules.pins.values()]].all():
                degraded = [*degraded, "rules"]
            rules = snapshot.rotated(rules.after(page.shown), state, page.begun)
        left_out = np.union1d(seen, page.rows(snapshot.products))
        if len(besides):
            left_out = np.union1d(left_out, snapshot.products.rows_of(besides))
        seed = number_of(request_id, "explore") if request_id else None
        keep = bool(request_id) and is_sampled(request_id, service.settings.exposure_sample)
        popular = partial(snapshot.popular, seed=seed, keep=keep)
        personal = partial(snapshot.recommend, states, seed=seed, keep=keep)
        source, choose = ("popular", popular) if cold or at_once else ("model", personal)
        try:
            recommended, cursor = _paged(choose, snapshot, page, left_out, k, trace, rules)
        except Exception:  # a model that fails on one user must not fail the request
            if source == "popular":
                raise
            logger.exception("the recommender failed for a history of %d items", len(state.items))
            source, degraded = "popular", [*degraded, "recommender"]
            recommended, cursor = _paged(popular, snapshot, page, left_out, k, trace, rules)
    return Answer(recommended, source, degraded, state, states, seen, rules, cursor)


def _paged(
    choose: Choose,
    snapshot: ServingSnapshot,
    page: Page,
    left_out: Ints,
    k: int,
    trace: dict[str, float],
    rules: SlateRules | None,
) -> tuple[Recommended, str | None]:
    """What is chosen for a page, and the cursor of the next page. left_out: rows that were seen or shown."""
    k = min(k, MAX_SHOWN - page.shown)
    recommended = choose(left_out, k, trace, rules)
    slate = recommended.slate
    more = snapshot.continues(slate, k, left_out, rules)
    if more and rules is not None and rules.minimum > -np.inf:  # whether an item that remains reaches it
        shown = np.union1d(left_out, np.flatnonzero(snapshot.products.variants(slate.rows)))
        more = len(choose(shown, 1, {}, rules.after(len(slate))).slate) > 0
    cursor = page.next(slate, snapshot.products) if more else None
    return replace(recommended, slate=slate.after(page.shown)), cursor
