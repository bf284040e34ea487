"""The lift of cold items: what it gives and costs in lists of ten, and how far it goes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.evaluation.ranking import DEPTH, K
from experiments.splits import Targets
from features.arrays import Bools, Doubles, Floats
from recsys.evaluation import metrics
from recsys.evaluation.calibration import ReliabilityBin
from recsys.interfaces import Candidates

COLD_PRICE = 0.01
"""Share of NDCG@10 on the validation window that the lift of cold items may cost, where `discovery` is not set."""

LIFTS = np.append(np.arange(0, 1, 0.05), np.arange(1, 4, 0.25)).astype(np.float32)
"""Lifts of cold items that are tried, in standard deviations of the scores."""


@dataclass(frozen=True)
class LiftResult:
    """What a lift of cold items gives and costs in lists of ten, on the validation window.

    lift: added to the scores of cold items; ndcg, hr_cold, hr_warm: means over all events, and over those with cold
    and with warm items (NaN where there are none); share: of the places that cold items take; wanted: share of the
    events that are with cold items. The means are not over users, of whom a window may have too few.
    """

    lift: float
    ndcg: float
    hr_cold: float
    hr_warm: float
    share: float
    wanted: float


@dataclass(frozen=True)
class Judgement:
    """How the lift of a reranker was chosen, and how far its probabilities can be believed.

    lifts: what was tried; chosen: the lift; reliability: of probabilities that were calibrated on other users, empty
    where there are too few users.
    """

    lifts: tuple[LiftResult, ...]
    chosen: float
    reliability: tuple[ReliabilityBin, ...]

    def lines(self) -> Iterator[str]:
        """For people to read."""
        tried = [result for result in self.lifts if not np.isnan(result.hr_cold)]
        if tried:
            yield "cold items in lists of ten on the validation window, by their lift:"
        else:
            yield "no event of the validation window is with a cold item: cold items are not lifted"
        for number, result in enumerate(tried):
            is_chosen = result.lift == self.chosen
            if is_chosen or number % 4 == 0:
                yield (
                    f"  +{result.lift:.3f}: NDCG@10 {result.ndcg:.4f}, HR@10 of cold items {result.hr_cold:.4f}, "
                    f"of others {result.hr_warm:.4f}, {result.share:.1%} of the places"
                    + (" <- chosen" if is_chosen else "")
                )
        for each in self.reliability:
            yield f"probability {each.predicted:.4f}: {each.observed:.4f} of {each.n:,} candidates were the next item"


def lift_results(targets: Targets, candidates: Candidates, scores: Floats, cold: Bools) -> Iterator[LiftResult]:
    """The results of LIFTS. candidates (b, k) of the states of targets; scores (b, k): without a lift; cold (n,)."""
    is_item = candidates.rows >= 0
    is_cold = is_item & cold[candidates.rows]  # (b, k)
    cold_target = cold[targets.item]  # (m,)
    for lift in LIFTS * scores[is_item].std():
        lists = candidates.sorted(np.where(is_cold, scores + lift, scores), DEPTH)
        ranks = metrics.target_ranks(lists, targets.state, targets.item)
        hits = metrics.hit(ranks, K, depth=DEPTH)
        top = lists.rows[:, :K]
        yield LiftResult(
            lift=float(lift),
            ndcg=float(metrics.ndcg(ranks, K, depth=DEPTH).mean()),
            hr_cold=_mean(hits[cold_target]),
            hr_warm=_mean(hits[~cold_target]),
            share=_mean(cold[top[top >= 0]]),
            wanted=_mean(cold_target),
        )


def choose_lift(curve: Sequence[LiftResult], cold_share: float | None, price: float | None) -> float:
    """The largest lift up to which cold items take at most `cold_share` of the places.

    None: up to which NDCG@10 is lower by at most the share `price` than without a lift. With neither, the price is
    COLD_PRICE, and cold items take at most the share of the places that they have of the events: a small window may
    not show what more would cost. In all cases a lift ends where cold items are found as often as warm ones.
    curve: by ascending lifts, the first is 0.
    """
    chosen, lowest = 0.0, (1 - (COLD_PRICE if price is None else price)) * curve[0].ndcg
    for result in curve[1:]:
        if cold_share is not None:
            too_much = result.share > cold_share
        else:
            too_much = result.ndcg < lowest or (price is None and result.share > result.wanted)
        if too_much or not result.hr_cold <= result.hr_warm:
            break
        chosen = result.lift
    return chosen


def _mean(values: Doubles | Bools) -> float:
    return float(values.mean()) if len(values) else float("nan")
