"""Explanations of one user's recommendations: why the shown items are shown, and why another item is not."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from features.arrays import Ints
from features.instants import format_instant
from features.interactions import UserStates
from features.store.user_state import UserState
from recsys.ranking.explain import Why
from recsys.ranking.slate import Slate
from recsys.ranking.slate_rules import SlateRules
from serving.routes.responses import not_live_yet, require_item
from serving.state.service import ServiceState
from serving.state.snapshot import Recommended, ServingSnapshot


@dataclass(frozen=True)
class Answer:
    """What one user is recommended, and from what.

    source: "model" or "popular"; degraded: components that failed; state, states: the user's, as read and in rows of
    the bundle; seen: rows that the placement leaves out; rules: those of the shop that apply, None for none; cursor:
    of the next page, None for none.
    """

    recommended: Recommended
    source: str
    degraded: list[str]
    state: UserState
    states: UserStates
    seen: Ints
    rules: SlateRules | None = None
    cursor: str | None = None

    @property
    def slate(self) -> Slate:
        """The items that are shown."""
        return self.recommended.slate


def why_shown(service: ServiceState, snapshot: ServingSnapshot, answer: Answer) -> list[Why]:
    """Why each item of the slate is shown. Items that were deleted are not named."""
    catalog, rules = snapshot.bundle.catalog, snapshot.bundle.data.events
    taken = np.unique(answer.states.positives().pairs()[1])
    known = [service.catalog_updater.has_item(catalog.ids.ids[row]) for row in taken.tolist()]
    complete = len(answer.state.items) < rules.history and rules.history_days is None and not answer.degraded
    whys = snapshot.bundle.explainer.explain(
        answer.states,
        answer.slate.rows,
        answer.slate.reasons,
        answer.recommended.contributions(),
        history=taken[np.array(known, dtype=np.bool_)],
        complete=complete,
    )
    losses = _losses(snapshot, answer.rules, answer.slate.rows)
    return [replace(why, loss=round(loss, 4)) for why, loss in zip(whys, losses, strict=True)]


def _losses(snapshot: ServingSnapshot, rules: SlateRules | None, rows: Ints) -> list[float]:
    """What a rule of rotation takes from the scores of rows (m,), in standard deviations."""
    if rules is None or rules.losses is None:
        return [0.0] * len(rows)
    losses: list[float] = rules.losses.among(snapshot.groups[rows]).tolist()
    return losses


def why_not(service: ServiceState, snapshot: ServingSnapshot, answer: Answer, item_id: str) -> dict[str, Any]:
    """The stage at which an item leaves the way into the slate; "shown" where it does not.

    score: of the ranking, or that of the retrieval for an item that is no candidate; rank: place of the item's
    product in the list if the list had no end. Both are null where the item has none.
    Raises ApiError 404 when the item is unknown, and when it is not searchable yet.
    """
    if (row := snapshot.bundle.catalog.ids.row(item_id)) < 0:
        require_item(service, item_id)
        raise not_live_yet()
    slate = answer.slate
    if (at := np.flatnonzero(slate.rows == row)).size:
        position = int(slate.positions[at[0]])
        rotated = _rotated(snapshot, answer.rules, row)
        return _stage("shown", f"shown at position {position}{rotated}", float(slate.scores[at[0]]), position)
    if not service.catalog_updater.has_item(item_id):
        return _stage("unavailable", "the item was deleted")
    if (published := int(snapshot.bundle.catalog.published[row])) > snapshot.now():
        return _stage("unpublished", f"the item is published at {format_instant(published)}")
    if not snapshot.available[row]:
        return _stage("unavailable", "the item is not available")
    if row in answer.seen:
        return _stage("seen", "the user has seen the item, and the placement does not repeat items")
    if answer.rules is not None and not answer.rules.allowed[row]:
        return _stage("rule", "a rule of the shop does not allow the item")
    return _not_ranked_high(snapshot, answer.recommended, row, answer.rules)


def _not_ranked_high(
    snapshot: ServingSnapshot, recommended: Recommended, row: int, rules: SlateRules | None
) -> dict[str, Any]:
    """The stage of an item that may be shown and is not."""
    ranked, slate, groups = recommended.ranked(), recommended.slate, snapshot.groups
    rows = ranked.rows[0][ranked.rows[0] >= 0]
    at = np.flatnonzero(rows == row)
    if not at.size:
        scores = recommended.retrieval_scores()
        if scores is None:
            return _stage("not_retrieved", f"the item is not among the {len(rows)} candidates")
        lowest = f"; the lowest of a candidate is {scores[rows].min():.4g}" if len(rows) else ""
        return _stage(
            "not_retrieved",
            f"the item is not among the {len(rows)} candidates: its retrieval score is {scores[row]:.4g}{lowest}",
            float(scores[row]),
        )
    score = float(ranked.scores[0][at[0]])
    if (variant := np.flatnonzero(groups[slate.rows] == groups[row])).size:
        position = int(slate.positions[variant[0]])
        shown = slate.items[variant[0]]
        return _stage("variant", f"a variant of {shown}, which is shown at position {position}", score, position)
    others = groups[rows[~np.isin(groups[rows], groups[slate.rows])]]  # products that are not shown, best first
    before = len(np.unique(others[: int(np.argmax(others == groups[row]))]))
    if rules is not None and rules.reorders:  # the order of the slate is theirs
        place = int(at[0]) + 1
        why = f"candidate {place} of {len(rows)}; the rules of the shop chose others{_rotated(snapshot, rules, row)}"
        return _stage("rule", why, score, place)
    rank = len(slate) + before + 1
    return _stage("below", f"ranked {rank}, below the {len(slate)} items of the list", score, rank)


def _rotated(snapshot: ServingSnapshot, rules: SlateRules | None, row: int) -> str:
    """What a rule of rotation takes from the score of an item; "" for nothing."""
    (loss,) = _losses(snapshot, rules, np.array([row]))
    if rules is None or not loss:
        return ""
    return (
        f"; it was shown and not touched since: rule {rules.rotation_name!r} lowers its score by {loss:.3g} standard "
        "deviations"
    )


def _stage(stage: str, detail: str, score: float | None = None, rank: int | None = None) -> dict[str, Any]:
    return {"stage": stage, "detail": detail, "score": score, "rank": rank}
