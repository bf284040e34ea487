"""The result of an experiment: every variant against the control, on the same events, and the decision."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import polars as pl
from pydantic_core import to_jsonable_python
from scipy.special import ndtri
from scipy.stats import t

from experiments.evaluation.outcomes import EVENT, METRICS, SEGMENTS, read_outcomes
from experiments.evaluation.ranking import DEPTH, LISTS, K, finite, interval_dict
from experiments.evaluation.verdict import Rule, verdict
from experiments.pipelines.experiment.cells import Cell
from experiments.pipelines.experiment.definition import Experiment
from experiments.statistics.power import detectable_of
from experiments.statistics.significance import benjamini_hochberg, holm, permutation_test
from experiments.tracking.record import metric_name
from features.arrays import Doubles
from features.errors import DataError
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import Interval, bootstrap

ALL = "all"
"""The segment of all events."""

MIN_USERS = 30
"""Users that a segment needs: intervals of fewer are not reliable."""

QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")
"""Segments by time, with as many events each; events of one time are in one of them."""

CATEGORIES = 8
"""Categories that are segments, those with most events."""


@dataclass(frozen=True)
class ExperimentResult:
    """rows: one for each placement, segment, metric and variant; decisions: of each variant but the control.

    lists: one for each placement and variant: what its lists have, means over seeds and windows (`Outcome.of_lists`);
    facts: what the result depends on; variants: configuration, model and rules of each, as `variant_facts` has them.
    """

    name: str
    control: str
    rows: list[dict[str, Any]]
    decisions: list[dict[str, str]]
    lists: list[dict[str, Any]]
    facts: dict[str, Any]
    variants: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null for a bound that is infinite: of a single user."""
        return {
            "name": self.name,
            "control": self.control,
            "rows": finite(self.rows),
            "decisions": self.decisions,
            "lists": finite(self.lists),
            "facts": self.facts,
            "variants": self.variants,
        }

    def figures(self, variant: str) -> dict[str, float]:
        """Mean of each metric of a variant, and its change with the interval, by names for a tracker."""
        out = {}
        for row in self.rows:
            if row["variant"] == variant:
                of = "" if row["segment"] == ALL else f".{metric_name(row['segment'])}"
                name = f"{row['placement']}.{row['metric']}_at_{K}{of}"
                out[name] = row["mean"]
                out |= {f"{name}.change.{bound}": value for bound, value in (row["change"] or {}).items()}
        for row in self.lists:
            if row["variant"] == variant:
                out |= {f"{row['placement']}.{name}": row[name] for name in LISTS if np.isfinite(row[name])}
        return out


def result_of(
    experiment: Experiment, cells: Sequence[Cell], facts: dict[str, Any], categories: Mapping[str, str]
) -> ExperimentResult:
    """Compare the outcomes of all cells. The figure of a user is the mean over seeds, then over the user's events.

    categories: item -> its first category. Raises DataError where variants were not evaluated on the same events.
    """
    control = experiment.control
    by_user = _by_user(cells, categories)  # (placement, segment, metric) -> variant -> (seeds, u)
    rows, intervals = [], dict[tuple[str, str, str], tuple[float, Interval]]()
    for (placement, segment, metric), variants in by_user.items():
        ours = variants[control]
        for name, values in variants.items():
            row: dict[str, Any] = {"placement": placement, "segment": segment, "metric": metric, "variant": name}
            row |= {"users": values.shape[1], "mean": float(values.mean()), "change": None}
            if name != control:
                change, spread, p = _change(values, ours)
                if segment == ALL:
                    intervals[name, metric, placement] = float(ours.mean()), change
                row |= {
                    "change": interval_dict(change),
                    "between_seeds": spread,
                    "p": p,
                    "detectable": detectable_of(values.mean(0) - ours.mean(0)),
                    "better": float((values.mean(0) > ours.mean(0)).mean()),
                    "worse": float((values.mean(0) < ours.mean(0)).mean()),
                }
            rows.append(row)
    tested = [row for row in rows if row["change"] is not None]
    for adjust, of in (
        (holm, [row for row in tested if row["segment"] == ALL]),
        (benjamini_hochberg, [row for row in tested if row["segment"] != ALL]),
    ):
        for row, p in zip(of, adjust(np.array([row["p"] for row in of])), strict=True):
            row["p_adjusted"] = float(p)
    rule, placements = experiment.definition.decision, list(dict.fromkeys(placement for placement, _, _ in by_user))
    decisions = [
        _decision(rule, name, placements, intervals) for name in experiment.definition.variants if name != control
    ]
    return ExperimentResult(
        experiment.definition.name, control, rows, decisions, _lists(cells), facts, variant_facts(experiment)
    )


def variant_facts(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """What a bundle must have been trained with to be the variant: config, model, and a digest of rules or None.

    bundle: the fingerprint of a variant that is a bundle itself, otherwise None.
    """
    return {
        name: {
            "config": to_jsonable_python(experiment.configs[name].recorded()),
            "model": variant.model,
            "rules": sha256(experiment.rules[name].read_bytes()).hexdigest() if name in experiment.rules else None,
            "bundle": experiment.bundles[name].name if name in experiment.bundles else None,
        }
        for name, variant in experiment.definition.variants.items()
    }


def _lists(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The figures of the lists of each placement and variant."""
    found: dict[tuple[str, str], list[dict[str, float | None]]] = {}
    for cell in cells:
        for window in json.loads(pl.read_parquet_metadata(cell.path)["lists"]):
            for placement, figures in window.items():
                found.setdefault((placement, cell.variant), []).append(figures)
    return [
        {"placement": placement, "variant": variant}
        | {name: float(np.mean([np.nan if of[name] is None else of[name] for of in figures])) for name in LISTS}
        for (placement, variant), figures in found.items()
    ]


def _parts(whole: pl.DataFrame, categories: Mapping[str, str]) -> dict[str, pl.DataFrame]:
    """Segment -> its events, of one placement: ALL, SEGMENTS, quarters by time, and the largest categories."""
    category = pl.col("item").replace_strict(categories, default=None, return_dtype=pl.String)
    quarter = (pl.col("time").rank("min") - 1) * len(QUARTERS) // pl.len()
    events = whole.with_columns(category.alias("category"), quarter.alias("quarter"))
    counts = events.get_column("category").drop_nulls().value_counts(sort=True, name="n").sort("n", "category")
    largest = counts.get_column("category").tail(CATEGORIES).reverse().to_list()
    return (
        {ALL: whole}
        | {name: whole.filter(segment) for name, segment in SEGMENTS.items()}
        | {name: events.filter(quarter=number) for number, name in enumerate(QUARTERS)}
        | {f"category {name}": events.filter(category=name) for name in largest}
    )


def _by_user(cells: Sequence[Cell], categories: Mapping[str, str]) -> dict[tuple[str, str, str], dict[str, Doubles]]:
    """(placement, segment, metric) -> variant -> values of all users (seeds, u), users in one order.

    A segment with fewer than MIN_USERS users is left out, and one that has all events of its placement.
    """
    out: dict[tuple[str, str, str], dict[str, list[Doubles]]] = {}
    events: pl.DataFrame | None = None
    for cell in cells:
        table = read_outcomes(cell.path).sort(EVENT)
        named = table.select(EVENT)
        if events is None:
            events = named
        if not named.equals(events):
            first = cells[0].variant
            raise DataError(f"{cell.variant}, seed {cell.seed}, was evaluated on other events than {first}")
        for (placement,), whole in table.group_by("placement", maintain_order=True):
            for segment, part in _parts(whole, categories).items():
                if segment == ALL or (len(part) < len(whole) and part.get_column("user").n_unique() >= MIN_USERS):
                    for metric, values in _metrics(part).items():
                        of = out.setdefault((str(placement), segment, metric), {})
                        of.setdefault(cell.variant, []).append(values)
    return {key: {name: np.stack(values) for name, values in of.items()} for key, of in out.items()}


def _metrics(events: pl.DataFrame) -> dict[str, Doubles]:
    """Metric -> its mean of each user (u,), by user."""
    users = events.get_column("user").rank("dense").cast(pl.Int64).to_numpy() - 1
    ranks = events.get_column("rank").to_numpy()
    return {
        metric: metrics.per_user(function(ranks, K, depth=DEPTH), users)[0] for metric, function in METRICS.items()
    }


def _change(ours: Doubles, control: Doubles) -> tuple[Interval, float | None, float]:
    """The mean difference of (seeds, u) values with its interval; the standard deviation between seeds; the p-value.

    Interval and p-value are those of differences that are means over seeds: bootstrap and permutation test over
    users. With several seeds, the variance between seeds is added: other seeds would have given another mean. The
    interval is then wider, by standard errors and by quantiles of t, with the degrees of freedom of Satterthwaite
    1946, instead of the normal distribution; the p-value is that of this t, if it is larger.
    """
    differences = ours - control
    over_users = differences.mean(0)  # (u,)
    interval, p = bootstrap(over_users, seed=0), permutation_test(over_users, seed=0)
    (k, n), mean = differences.shape, interval.mean
    if k == 1 or n == 1:
        return interval, None, p
    spread = float(differences.mean(1).std(ddof=1))
    parts = np.array([spread**2 / k, over_users.var(ddof=1) / n])  # variance of the mean, by seeds and by users
    error = float(parts.sum()) ** 0.5
    if error == 0:
        return interval, spread, p
    freedom = error**4 / float((parts**2 / [k - 1, n - 1]).sum())
    p = max(p, float(2 * t.sf(abs(mean) / error, freedom)))
    quantile = float(t.ppf(0.975, freedom))
    if parts[1] == 0:
        return Interval(mean, mean - quantile * error, mean + quantile * error), spread, p
    wider = quantile * error / (float(ndtri(0.975)) * float(parts[1]) ** 0.5)
    return Interval(mean, mean - wider * (mean - interval.low), mean + wider * (interval.high - mean)), spread, p


def _decision(
    rule: Rule, name: str, placements: Sequence[str], intervals: Mapping[tuple[str, str, str], tuple[float, Interval]]
) -> dict[str, str]:
    at = rule.placement or placements[0]
    mean, change = intervals[name, rule.metric, at]
    guardrails = {
        f"{metric}, {placement}": intervals[name, metric, placement]
        for metric in rule.guardrails
        for placement in placements
    }
    decision, reason = verdict(rule, mean, change, guardrails)
    return {"variant": name, "decision": decision, "reason": reason}
