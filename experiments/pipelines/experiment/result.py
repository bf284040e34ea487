"""The result of an experiment: every variant against the control, on the same events, and the decision."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from experiments.evaluation.outcomes import EVENT, METRICS, read_outcomes
from experiments.evaluation.ranking import DEPTH, K, interval_dict
from experiments.evaluation.verdict import Rule, verdict
from experiments.pipelines.experiment.cells import Cell
from experiments.pipelines.experiment.definition import Experiment
from experiments.statistics.power import detectable
from experiments.statistics.significance import holm, permutation_test
from features.arrays import Doubles
from features.errors import DataError
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import Interval, bootstrap


@dataclass(frozen=True)
class ExperimentResult:
    """rows: one for each placement, metric and variant; decisions: of each variant but the control; facts: what the
    result depends on."""

    name: str
    control: str
    rows: list[dict[str, Any]]
    decisions: list[dict[str, str]]
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "control": self.control,
            "rows": self.rows,
            "decisions": self.decisions,
            "facts": self.facts,
        }

    def render(self) -> Table:
        """A table for a rich console."""
        seeds = ", ".join(map(str, self.facts["seeds"]))
        caption = (
            f"in brackets: 95 % interval over users, and over seeds where there are several; Δ: minus "
            f"{self.control}, paired by event and user;\np: permutation test over users, adjusted for all rows by "
            "Holm's method; "
            "detectable: the difference that so many users show with a probability of 80 %\n"
        )
        caption += "\n".join(
            f"{row['variant']}: {row['decision'].upper()}. {row['reason']}" for row in self.decisions
        )
        title = f"{self.name} · seeds {seeds} · data {self.facts['data_hash']} · code {self.facts['code_version']}"
        columns = ("placement", "metric", "variant", "users", "mean", "Δ", "between seeds", "p", "detectable")
        table = Table(*columns, title=title, caption=caption, caption_justify="left")
        for row in self.rows:
            change = row["change"]
            table.add_row(
                row["placement"],
                f"{row['metric'].upper()}@{K}",
                row["variant"],
                f"{row['users']:,}",
                f"{row['mean']:.4f}",
                *(["", "", "", ""] if change is None else _cells(row)),
                style="bold" if row["variant"] == self.control else None,
            )
        return table

    def markdown(self) -> str:
        """The same as text for a pull request."""
        lines = [f"## {self.name}", "", f"Control: {self.control}. Seeds: {self.facts['seeds']}.", ""]
        lines += ["| placement | metric | variant | mean | Δ [95 %] | p (Holm) |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            change = "" if row["change"] is None else _cells(row)[0]
            p = "" if row["change"] is None else f"{row['p_adjusted']:.4f}"
            lines.append(
                f"| {row['placement']} | {row['metric'].upper()}@{K} | {row['variant']} | {row['mean']:.4f} | "
                f"{change} | {p} |"
            )
        lines += ["", *(f"**{row['variant']}: {row['decision']}.** {row['reason']}" for row in self.decisions), ""]
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items() if key != "seeds")
        return "\n".join([*lines, facts, ""])


def _cells(row: Mapping[str, Any]) -> list[str]:
    change = row["change"]
    least = "" if row["detectable"] is None else f"{row['detectable']:.4f}"
    spread = "" if row["between_seeds"] is None else f"{row['between_seeds']:.4f}"
    interval = f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
    return [interval, spread, f"{row['p_adjusted']:.4f}", least]


def result_of(experiment: Experiment, cells: Sequence[Cell], facts: dict[str, Any]) -> ExperimentResult:
    """Compare the outcomes of all cells. The figure of a user is the mean over seeds, then over the user's events.

    Raises DataError where variants were not evaluated on the same events.
    """
    control = experiment.control
    by_user = _by_user(cells)  # (placement, metric) -> variant -> (seeds, u)
    rows, intervals = [], dict[tuple[str, str, str], tuple[float, Interval]]()
    for (placement, metric), variants in by_user.items():
        ours = variants[control]
        for name, values in variants.items():
            row: dict[str, Any] = {"placement": placement, "metric": metric, "variant": name}
            row |= {"users": values.shape[1], "mean": float(values.mean()), "change": None}
            if name != control:
                change, spread = _change(values, ours)
                intervals[name, metric, placement] = float(ours.mean()), change
                difference = values.mean(0) - ours.mean(0)  # (u,)
                enough = len(difference) > 1
                row |= {
                    "change": interval_dict(change),
                    "between_seeds": spread,
                    "p": permutation_test(difference, seed=0),
                    "detectable": detectable(float(difference.std(ddof=1)), len(difference)) if enough else None,
                }
            rows.append(row)
    tested = [row for row in rows if row["change"] is not None]
    for row, p in zip(tested, holm(np.array([row["p"] for row in tested])), strict=True):
        row["p_adjusted"] = float(p)
    rule, placements = experiment.definition.decision, list(dict.fromkeys(placement for placement, _ in by_user))
    decisions = [
        _decision(rule, name, placements, intervals) for name in experiment.definition.variants if name != control
    ]
    return ExperimentResult(experiment.definition.name, control, rows, decisions, facts)


def _by_user(cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, Doubles]]:
    """(placement, metric) -> variant -> values of all users (seeds, u), users in one order."""
    out: dict[tuple[str, str], dict[str, list[Doubles]]] = {}
    events: pl.DataFrame | None = None
    for cell in cells:
        table = read_outcomes(cell.path).sort(EVENT)
        named = table.select(EVENT)
        if events is None:
            events = named
        if not named.equals(events):
            raise DataError(
                f"{cell.variant}, seed {cell.seed}, was evaluated on other events than {cells[0].variant}"
            )
        for (placement,), part in table.group_by("placement", maintain_order=True):
            users = part.get_column("user").rank("dense").cast(pl.Int64).to_numpy() - 1
            ranks = part.get_column("rank").to_numpy()
            for metric, function in METRICS.items():
                values = metrics.per_user(function(ranks, K, depth=DEPTH), users)[0]
                out.setdefault((str(placement), metric), {}).setdefault(cell.variant, []).append(values)
    return {key: {name: np.stack(values) for name, values in of.items()} for key, of in out.items()}


def _change(ours: Doubles, control: Doubles) -> tuple[Interval, float | None]:
    """The mean difference of (seeds, u) values, with its interval, and the standard deviation between seeds.

    The interval over users is that of differences that are means over seeds. Their variance between seeds is added:
    other seeds would have given another mean.
    """
    differences = ours - control
    interval = bootstrap(differences.mean(0), seed=0)
    if len(differences) == 1 or not np.isfinite(interval.low):
        return interval, None
    spread = float(differences.mean(1).std(ddof=1))
    over_users = float(differences.mean(0).std(ddof=1)) / differences.shape[1] ** 0.5
    wider = (1 + spread**2 / len(differences) / over_users**2) ** 0.5 if over_users > 0 else 1.0
    mean = interval.mean
    return Interval(mean, mean - wider * (mean - interval.low), mean + wider * (interval.high - mean)), spread


def _decision(
    rule: Rule, name: str, placements: Sequence[str], intervals: Mapping[tuple[str, str, str], tuple[float, Interval]]
) -> dict[str, str]:
    at = rule.placement or placements[0]
    if at not in placements:
        raise DataError(f"decision.placement: {at!r} is none of {', '.join(placements)}")
    mean, change = intervals[name, rule.metric, at]
    guardrails = {
        f"{metric}, {placement}": intervals[name, metric, placement]
        for metric in rule.guardrails
        for placement in placements
    }
    decision, reason = verdict(rule, mean, change, guardrails)
    return {"variant": name, "decision": decision, "reason": reason}


def write_result(folder: Path, result: ExperimentResult) -> None:
    """Write result.json and result.md."""
    (folder / "result.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    (folder / "result.md").write_text(result.markdown(), encoding="utf-8")
