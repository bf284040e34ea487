"""What judged policies would have earned on the explored slots of a log, as figures and as a table.

The value of a policy is the expected number of events at an explored slot if the policy chooses there and all other
positions are as they were logged. A gain is a difference of two values on the same slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from experiments.evaluation.off_policy.policies import Policy, no_exploration
from experiments.evaluation.off_policy.reward_model import predicted_rewards
from experiments.evaluation.off_policy.slots import Slots
from experiments.evaluation.ranking import interval_dict
from experiments.statistics.off_policy import LoggedRows, Overlap, estimates, gains, overlap
from recsys.evaluation.bootstrap import Interval, bootstrap_ratios

PREFERRED = ("DR", "IPS")
"""The estimator that the table shows: the first one that there is."""


@dataclass(frozen=True)
class Judged:
    """One policy. agrees: share of the slots where it shows the own item; overlap: diagnostics; refusal: why no
    estimate can be believed, "" if one can; then `values`, by estimator, and the gains over what was logged and over
    the own items are empty."""

    name: str
    agrees: float
    overlap: Overlap
    refusal: str
    values: Mapping[str, Interval]
    over_logged: Mapping[str, Interval]
    over_own: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        groups = {
            name: {estimator: interval_dict(found) for estimator, found in getattr(self, name).items()}
            for name in ("values", "over_logged", "over_own")
        }
        return {
            "name": self.name,
            "agrees": self.agrees,
            "refusal": self.refusal,
            "overlap": asdict(self.overlap) | {"mean": interval_dict(self.overlap.mean)},
            **groups,
        }


@dataclass(frozen=True)
class Judgement:
    """All policies. event: the reward; logged: mean reward of a slot as it was shown; open, unknown: see `Slots`."""

    event: str
    slots: int
    answers: int
    users: int
    open: int
    unknown: int
    logged: Interval
    policies: tuple[Judged, ...]

    @property
    def estimator(self) -> str:
        """The one that the table shows."""
        known = {name for policy in self.policies for name in policy.values}
        return next((name for name in PREFERRED if name in known), PREFERRED[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        facts = {name: getattr(self, name) for name in ("event", "slots", "answers", "users", "open", "unknown")}
        policies = [policy.to_dict() for policy in self.policies]
        return {**facts, "logged": interval_dict(self.logged), "estimator": self.estimator, "policies": policies}

    def render(self) -> Table:
        """A table for a rich console."""
        counts = f"{self.slots:,} slots of {self.answers:,} answers to {self.users:,} users"
        title = f"{self.event} at an explored slot: {counts}"
        refusals = "".join(f"\n{p.name}: no estimate: {p.refusal}" for p in self.policies if p.refusal)
        caption = (
            f"{self.estimator}, 95 % intervals over users; agrees: share of slots where it shows the own item; "
            "effective: slots that the weighted ones are worth\n"
            f"left out: {self.open:,} slots with an open window, {self.unknown:,} whose choices the log lacks"
            f"{refusals}"
        )
        columns = ("policy", "value", "Δ to logged", "Δ to own items", "agrees", "effective", "largest weight")
        table = Table(*columns, title=title, caption=caption)
        table.add_row("as logged", _show(self.logged, ""), "", "", "", f"{self.slots:,}", "")
        for policy in self.policies:
            cells = [
                _show(found.get(self.estimator), sign)
                for found, sign in ((policy.values, ""), (policy.over_logged, "+"), (policy.over_own, "+"))
            ]
            diagnostics = (f"{policy.overlap.effective:,.0f}", f"{policy.overlap.largest:.2%}")
            table.add_row(policy.name, *cells, f"{policy.agrees:.1%}", *diagnostics)
        return table


def judge(slots: Slots, event: str, policies: Sequence[Policy], *, seed: int = 0) -> Judgement:
    """Judge the policy that shows own items, and then each of `policies`, on the slots."""
    own = no_exploration(slots)
    ones = np.ones(len(slots))
    by_user = [np.bincount(slots.users, values).astype(np.float64)[:, None] for values in (slots.rewards, ones)]
    logged = bootstrap_ratios(*by_user, seed=seed)[0]
    judged = tuple(_judge(slots, policy, own, seed) for policy in (own, *policies))
    answers = len(np.unique(slots.answers))
    return Judgement(event, len(slots), answers, len(slots.user_ids), slots.open, slots.unknown, logged, judged)


def _judge(slots: Slots, policy: Policy, own: Policy, seed: int) -> Judged:
    predicted = predicted_rewards(slots, policy, seed=seed)

    def rows_of(shows: Policy) -> LoggedRows:
        target = (slots.shown == shows.shows).astype(np.float64)
        models = (None, None) if predicted is None else (predicted[slots.shown], predicted[shows.shows])
        return LoggedRows(slots.rewards, slots.logged, target, slots.users, *models)

    rows, of_own = rows_of(policy), rows_of(own)
    as_logged = replace(rows, target=rows.logged, model_target=rows.model)
    agrees = float((policy.shows == own.shows).mean())
    found = overlap(rows)
    if found.refusal:
        return Judged(policy.name, agrees, found, found.refusal, {}, {}, {})
    over_own = {} if policy is own or overlap(of_own).refusal else gains(rows, of_own, seed=seed)
    return Judged(
        policy.name, agrees, found, "", estimates(rows, seed=seed), gains(rows, as_logged, seed=seed), over_own
    )


def _show(interval: Interval | None, sign: str) -> str:
    if interval is None:
        return "–"
    return f"{interval.mean:{sign}.4g} [{interval.low:{sign}.4g}, {interval.high:{sign}.4g}]"
