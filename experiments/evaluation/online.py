"""The analysis of a running test: the arms of an experiment compared, from a file of `recsys log outcomes`.

Users are the unit, because the answers to one user depend on each other. A user counts in the arm that answered,
whether or not the user then did anything. Users whom several arms answered are left out, and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from experiments.evaluation.ranking import interval_dict
from experiments.statistics.arms import Arm, cuped, difference, p_value, sample_ratio_mismatch
from experiments.statistics.power import detectable
from experiments.statistics.sequential import confidence_sequence
from experiments.statistics.significance import holm
from features.arrays import Bools, Doubles
from features.errors import DataError
from features.log.outcomes.table import COLUMNS
from features.schema import REQUEST_ID, USER
from features.tables.files.parquet import scan_parquet
from features.tables.scan import reading
from recsys.assignment import CONTROL
from recsys.evaluation.bootstrap import Interval

ANSWERS = "answers to the user"
"""Column of the number of answers."""

ALARM = 0.01
"""P-value of the sample ratio below which no result can be believed."""


@dataclass(frozen=True)
class Change:
    """A metric of one arm against the control's.

    control_value, arm_value: their values; change: the difference with its 95 % interval, for one look at the planned
    end; always: the interval that holds at all looks; p, p_adjusted: of the difference, alone and by Holm's method
    over all rows; detectable: the difference that so many users show with a probability of 80 %.
    """

    arm: str
    metric: str
    control_value: float
    arm_value: float
    change: Interval
    always: Interval
    p: float
    p_adjusted: float
    detectable: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "change": interval_dict(self.change), "always": interval_dict(self.always)}


@dataclass(frozen=True)
class Analysis:
    """users: of each arm; bundles: fingerprints of the answers of each arm; sample_ratio_p: p-value of the numbers of
    users by the planned shares; planned: users of the whole test, None where it was not given. Left out: in_several:
    users whom several arms answered; anonymous, open_rows: rows without a user, and rows whose window is still open.
    """

    control: str
    users: Mapping[str, int]
    bundles: Mapping[str, list[str]]
    sample_ratio_p: float
    planned: int | None
    in_several: int
    anonymous: int
    open_rows: int
    changes: list[Change]

    @property
    def warning(self) -> str:
        """Why no result can be believed, "" if there is no reason known."""
        if self.sample_ratio_p >= ALARM:
            return ""
        return (
            f"the numbers of users do not agree with the shares (p = {self.sample_ratio_p:.1e}): the assignment or "
            "the log is broken; find out why before you read the rows"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [change.to_dict() for change in self.changes]
        return {**asdict(self), "changes": rows, "warning": self.warning}

    def render(self) -> Table:
        """A table for a rich console."""
        counts = " · ".join(f"{arm} {n:,} users" for arm, n in self.users.items())
        head = f"{counts}\nsample ratio p = {self.sample_ratio_p:.3g}" + (f"\n{self.warning}" if self.warning else "")
        caption = (
            f"Δ: arm minus {self.control}, 95 % interval of one look at the planned end; always: interval that holds "
            "at all looks;\np: adjusted for all rows by Holm's method; detectable: shown with a probability of 80 %\n"
            f"left out: {self.in_several:,} users in several arms, {self.anonymous:,} rows without a user, "
            f"{self.open_rows:,} rows whose window is open"
        )
        table = Table(
            *("arm", "metric", self.control, "arm's", "Δ", "always", "p", "detectable"), title=head, caption=caption
        )
        for row in self.changes:
            values = (row.control_value, row.arm_value)
            cells = [f"{value:.4g}" for value in values] + [_show(row.change), _show(row.always)]
            table.add_row(row.arm, row.metric, *cells, f"{row.p_adjusted:.4f}", f"{row.detectable:.4g}")
        return table


def analyse(
    path: Path,
    types: Sequence[str],
    *,
    experiment: str | None = None,
    control: str | None = None,
    shares: Mapping[str, float] | None = None,
    before: Path | None = None,
    planned: int | None = None,
) -> Analysis:
    """Compare the arms of one experiment by the events of some types.

    For each type: the events of a user, the share of users with one, and the events for each answer. experiment: one
    that `variant` names, as "experiment:arm" with commas between; None: `variant` as a whole is the arm. control:
    None: `control`, or the first arm by name; shares: of the users of each arm, None: equal; before: outcomes of the
    time before the test, whose events of a user explain part of the variance (CUPED); planned: users of the whole
    test, for which `always` is narrowest, None: those that are there. An arm of a single user, such as one for
    testing, is not compared. Raises DataError where a file cannot be read or lacks a type, with fewer than two arms,
    and for arms that are not there.
    """
    types = list(dict.fromkeys(types))
    rows = _read(path, types)
    complete = rows.filter("complete")
    if experiment is None and (names := _experiments(complete)):
        raise DataError(f"{path}: `variant` names experiments, {', '.join(names)}: name one")
    known = complete.filter(pl.col(USER).is_not_null()).with_columns(_arm(experiment).alias("arm"))
    known = known.filter(pl.col("arm").is_not_null())
    several = known.group_by(USER).agg(pl.col("arm").n_unique().alias("arms")).filter(pl.col("arms") > 1)
    users = _by_user(known.join(several, on=USER, how="anti"), types, "arm")
    assigned = {str(arm): int(n) for arm, n in users.group_by("arm").len().sort("arm").iter_rows()}
    counts = {arm: n for arm, n in assigned.items() if n > 1}  # a single user has no variance
    if control is None:
        control = CONTROL if CONTROL in counts else next(iter(counts), "")
    if len(counts) < 2 or control not in counts:
        there = ", ".join(f"{arm} {n}" for arm, n in assigned.items()) or "none"
        raise DataError(f"{path}: arms with users: {there}; at least two are needed, the control among them")
    users = users.filter(pl.col("arm").is_in(list(counts)))
    if before is not None:
        past = _by_user(_read(before, types).filter(pl.col(USER).is_not_null()), types)
        users = users.join(past, on=USER, how="left", suffix=" before").fill_null(0)
    arms = {arm: (users.get_column("arm") == arm).to_numpy() for arm in counts}
    changes = [
        _change(arm, name, _of(totals, weights, at), _of(totals, weights, arms[control]), planned)
        for name, totals, weights in _metrics(users, types, adjusted=before is not None)
        for arm, at in arms.items()
        if arm != control
    ]
    adjusted = holm(np.array([change.p for change in changes]))
    return Analysis(
        control,
        assigned,
        dict(known.group_by("arm").agg(pl.col("fingerprint").drop_nulls().unique().sort()).sort("arm").iter_rows()),
        sample_ratio_mismatch(*_as_planned(assigned, shares or dict.fromkeys(counts, 1.0), path)),
        planned,
        len(several),
        int(complete.get_column(USER).null_count()),
        len(rows) - len(complete),
        [replace(change, p_adjusted=float(p)) for change, p in zip(changes, adjusted, strict=True)],
    )


def _as_planned(
    users: Mapping[str, int], shares: Mapping[str, float], path: Path
) -> tuple[dict[str, int], Mapping[str, float]]:
    """The numbers of users of the planned arms, 0 where none came, and the shares."""
    if unplanned := [arm for arm, n in users.items() if n > 1 and arm not in shares]:
        raise DataError(
            f"{path}: no share is planned for {', '.join(unplanned)}: give one for each arm, or none at all"
        )
    return {arm: users.get(arm, 0) for arm in shares}, shares


def _experiments(rows: pl.DataFrame) -> list[str]:
    """The experiments that `variant` names."""
    parts = rows.get_column("variant").unique().str.split(",").explode().drop_nulls()
    names = parts.filter(parts.str.contains(":", literal=True)).str.split(":").list.first()
    return list(names.unique().sort())


def _read(path: Path, types: Sequence[str]) -> pl.DataFrame:
    """The rows of a file of outcomes."""
    with reading(f"{path}: outcomes"):
        frame = scan_parquet(path).collect()
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise DataError(f"{path} is no file of `recsys log outcomes`: it has no column {', '.join(missing)}")
    if missing := [name for name in types if f"{name}_count" not in frame.columns]:
        known = [name.removesuffix("_count") for name in frame.columns if name.endswith("_count")]
        raise DataError(f"{path}: no event of type {', '.join(missing)}; it has {', '.join(known) or 'none'}")
    return frame


def _arm(experiment: str | None) -> pl.Expr:
    """The arm of each row in an experiment; null where it had none."""
    if experiment is None:
        return pl.col("variant")
    parts = (
        pl.col("variant")
        .str.split(",")
        .list.eval(pl.element().filter(pl.element().str.starts_with(f"{experiment}:")))
    )
    return parts.list.first().str.strip_prefix(f"{experiment}:")


def _by_user(rows: pl.DataFrame, types: Sequence[str], *keys: str) -> pl.DataFrame:
    """Answers and events of each type of every user, and of `keys`; by user."""
    counts = (pl.col(f"{name}_count").sum().cast(pl.Float64).alias(name) for name in types)
    answers = pl.col(REQUEST_ID).n_unique().cast(pl.Float64).alias(ANSWERS)
    return rows.group_by(USER, *keys).agg(answers, *counts).sort(USER)


def _metrics(
    users: pl.DataFrame, types: Sequence[str], *, adjusted: bool
) -> Iterator[tuple[str, Doubles, Doubles | None]]:
    """(name, totals (u,), weights (u,) or None for a mean) of each metric."""
    answers = users.get_column(ANSWERS).to_numpy()
    for name in types:
        events = users.get_column(name).to_numpy()
        yield f"{name} per user", events, None
        if adjusted:
            yield f"{name} per user, CUPED", cuped(events, users.get_column(f"{name} before").to_numpy()), None
        yield f"users with {name}", (events > 0).astype(np.float64), None
        yield f"{name} per answer", events, answers


def _of(totals: Doubles, weights: Doubles | None, at: Bools) -> Arm:
    return Arm.of_means(totals[at]) if weights is None else Arm.of_ratios(totals[at], weights[at])


def _change(name: str, metric: str, arm: Arm, control: Arm, planned: int | None) -> Change:
    users = arm.users + control.users
    error = (arm.variance + control.variance) ** 0.5
    change = difference(arm, control)
    always = confidence_sequence(change.mean, error * users**0.5, users, planned=planned or users)
    p = p_value(arm, control)
    least = detectable(error, 1)
    return Change(name, metric, control.estimate, arm.estimate, change, always, p, p, least)


def _show(interval: Interval) -> str:
    return f"{interval.mean:+.4g} [{interval.low:+.4g}, {interval.high:+.4g}]"
