"""The decision whether a new bundle replaces the one that is served, from both evaluated on the same events.

The new one is published unless it is shown to be worse: unless the whole confidence interval of its difference,
paired by user, lies below what the margin tolerates. The two models are closely related, and the new one knows more.
So the doubt of a small sample is no reason to keep the old one. A broken model is found all the same: from 30 users
on, its interval lies far below zero. Small losses that no night can show do not add up for ever, because a full
training starts anew every so many nights.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.evaluation.ranking import K, Outcome
from recsys.evaluation.bootstrap import Interval, paired_bootstrap

MARGINS = {"ndcg": 0.01}
"""Metric -> the tolerated loss, as a share of the served bundle's mean over users."""

MIN_USERS = 30
"""Users that a placement needs to be judged: intervals of fewer users are not reliable."""


@dataclass(frozen=True)
class Difference:
    """New minus served, in one metric of one placement.

    users: number of users; served: mean over users of the served bundle; change: the mean difference and its 95 %
    interval; tolerated: the loss, 0 or more, that is not yet worse.
    """

    placement: str
    metric: str
    users: int
    served: float
    change: Interval
    tolerated: float

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below the tolerated loss."""
        return self.change.high < -self.tolerated

    def __str__(self) -> str:
        """One clause for people."""
        change = self.change
        return (
            f"{self.placement}: {self.metric.upper()}@{K} {change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}] "
            f"against {self.served:.4f}, {self.users:,} users"
        )


@dataclass(frozen=True)
class Decision:
    """publish: whether the new bundle replaces the served one; reason: why, in one line; differences: what it is
    based on."""

    publish: bool
    reason: str
    differences: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "differences": [asdict(difference) for difference in self.differences]}


def decide(
    outcomes: Mapping[str, tuple[Outcome, Outcome]], margins: Mapping[str, float] = MARGINS, *, seed: int = 0
) -> Decision:
    """Whether to publish, from the outcomes (new, served) of each placement on the same targets.

    A placement with fewer than MIN_USERS users is not judged. When none can be judged, nothing is published: the
    events count again the next time. seed: of the bootstrap.
    """
    users = {placement: len(np.unique(new.users)) for placement, (new, _) in outcomes.items()}
    differences = tuple(
        _difference(placement, metric, margin, *outcomes[placement], seed)
        for placement in outcomes
        if users[placement] >= MIN_USERS
        for metric, margin in margins.items()
    )
    if not differences:
        return Decision(False, too_few(users))
    worse = [difference for difference in differences if difference.worse]
    if worse:
        shown = "; ".join(f"{difference} (tolerated: {-difference.tolerated:.4f})" for difference in worse)
        return Decision(False, f"worse than what is served: {shown}", differences)
    return Decision(True, f"not worse than what is served: {'; '.join(map(str, differences))}", differences)


def too_few(users: Mapping[str, int]) -> str:
    """Why nothing can be judged. users: number of users of each placement."""
    counts = ", ".join(f"{placement} {n}" for placement, n in users.items()) or "none"
    return f"too few users to judge: {counts}; {MIN_USERS} are needed; the events count again the next time"


def _difference(placement: str, metric: str, margin: float, new: Outcome, served: Outcome, seed: int) -> Difference:
    ours, theirs = new.per_user(metric), served.per_user(metric)  # (u,), (u,)
    mean = float(theirs.mean())
    return Difference(placement, metric, len(ours), mean, paired_bootstrap(ours, theirs, seed=seed), margin * mean)
