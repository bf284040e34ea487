"""The decision of an experiment by a rule that is written before it: ship, do not ship, or inconclusive."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from features.schema import StrictModel
from recsys.evaluation.bootstrap import Interval

Metric = Literal["ndcg", "hr"]
Share = Annotated[float, Field(ge=0, lt=1)]

SHIP, DO_NOT, INCONCLUSIVE = "ship", "do not ship", "inconclusive"


class Rule(StrictModel):
    """When a variant takes the place of the control."""

    metric: Metric = "ndcg"
    placement: str | None = None
    """null: the first placement."""

    must_be: Literal["better", "not worse"] = "better"
    """better: the interval of the difference lies above `margin`; not worse: above -`margin`."""

    margin: Share = 0.0
    """Share of the control's mean."""

    guardrails: dict[Metric, Share] = Field(default={})
    """Metric -> share of the control's mean that may be lost at most, in every placement."""


def verdict(
    rule: Rule, control: float, change: Interval, guardrails: Mapping[str, tuple[float, Interval]]
) -> tuple[str, str]:
    """(SHIP, DO_NOT or INCONCLUSIVE; the reason in one line) for one variant.

    control: mean of the control in the metric and placement of the rule; change: the variant minus the control there;
    guardrails: "metric, placement" -> the same two, for every metric of `rule.guardrails`.

    A bound is passed when the whole interval lies above it, and missed when the whole interval lies below it. Ship:
    all are passed. Do not ship: one is missed. Otherwise more users or seeds are needed.
    """
    bound = rule.margin * control * (1 if rule.must_be == "better" else -1)
    tests = [(f"{rule.metric} must be {rule.must_be}", change, bound)]
    tests += [
        (f"guardrail {name}", other, -tolerated * mean)
        for metric, tolerated in rule.guardrails.items()
        for name, (mean, other) in guardrails.items()
        if name.startswith(f"{metric},")
    ]
    texts = {
        name: f"{name}: {change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}], bound {bound:+.4f}"
        for name, change, bound in tests
    }
    missed = [texts[name] for name, change, bound in tests if change.high < bound]
    unclear = [texts[name] for name, change, bound in tests if change.low <= bound <= change.high]
    if missed:
        return DO_NOT, "; ".join(missed)
    return (INCONCLUSIVE, "; ".join(unclear)) if unclear else (SHIP, "; ".join(texts.values()))
