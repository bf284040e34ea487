"""The guard after a publication: what users do since then, against what they did with the bundle before.

The same service answers other users at another time: a guard sees a break, not a small difference, for which there
are tests with arms (`experiments.evaluation.online`). Users are the unit; an answer to nobody is one of its own.
"""

import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table
from scipy.special import ndtri

from experiments.evaluation.ranking import interval_dict
from experiments.statistics.arms import Arm
from experiments.statistics.sequential import confidence_sequence
from experiments.tracking.mlflow import champion
from features.errors import BundleError, DataError
from features.files import working_folder
from features.instants import DAY
from features.log.corrections import corrections_of
from features.log.outcomes.table import write_outcomes
from features.log.reader import frame_of_exposures, read_lines
from features.log.records import EXPOSURES
from features.schema import REQUEST_ID, TIME, USER
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import (
    HISTORY,
    Publication,
    current_bundle,
    find_bundle,
    publications,
    publish_bundle,
)
from recsys.evaluation.bootstrap import Interval

SPAN = 14 * DAY
"""µs before the publication whose answers count: two whole weeks, so that every day of the week has its share."""

MIN_USERS = 100
"""Users that both sides need: the intervals need the central limit theorem."""

WHOLE = "answers that are neither degraded nor empty"

_ANSWERS = (REQUEST_ID, USER, TIME, "fingerprint", "degraded", "items")


@dataclass(frozen=True)
class Guarded:
    """A metric since the publication against the time before; more is better.

    change: the difference with its interval, which holds at all looks; bound: the change that is tolerated, below 0.
    """

    metric: str
    before: float
    after: float
    change: Interval
    bound: float

    @property
    def breached(self) -> bool:
        """Whether the whole interval lies below the bound."""
        return self.change.high < self.bound


@dataclass(frozen=True)
class GuardReport:
    """publication: the one that is watched; users: before and after it, whose windows are over; rows: of each metric,
    none with fewer than MIN_USERS on either side."""

    publication: Publication
    users: tuple[int, int]
    rows: list[Guarded]

    @property
    def breaches(self) -> list[str]:
        """Each breached metric as one clause."""
        return [
            f"{row.metric}: {row.before:.4g} before, {row.after:.4g} since, {row.change.mean:+.4g} "
            f"[{row.change.low:+.4g}, {row.change.high:+.4g}], tolerated {row.bound:+.4g}"
            for row in self.rows
            if row.breached
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [asdict(row) | {"change": interval_dict(row.change), "breached": row.breached} for row in self.rows]
        return {"publication": asdict(self.publication), "users": list(self.users), "rows": rows}

    def render(self) -> Table:
        """A table for a rich console."""
        of, (before, after) = self.publication, self.users
        table = Table(
            *("metric", "before", "since", "Δ", "tolerated", ""),
            title=f"{of.bundle}, published {of.at}, against {of.previous}",
            caption=f"{before:,} users before, {after:,} since; {MIN_USERS} are needed on both sides\n"
            "Δ: since minus before, with an interval that holds at all looks and all metrics together",
        )
        for row in self.rows:
            change = f"{row.change.mean:+.4g} [{row.change.low:+.4g}, {row.change.high:+.4g}]"
            state = "BREACH" if row.breached else ""
            table.add_row(row.metric, f"{row.before:.4g}", f"{row.after:.4g}", change, f"{row.bound:+.4g}", state)
        return table


def guard(
    log: Path, root: Path, types: Sequence[str], *, within: int, tolerated: float, now: int | None = None
) -> GuardReport:
    """Compare the answers of the current bundle with those of the one before it.

    Metrics are the events of each type for each answer, and the share of answers that are WHOLE. log: folder of the
    event log; root: of the bundles; within: µs after an answer in which events count; tolerated: the share of the
    value before that may be lost; now: µs. Raises BundleError where no bundle was published after another one,
    DataError for a type without events, and LogError.
    """
    publication = watched(root)
    until = time.time_ns() // 1000 if now is None else now
    answers = _answers(log, publication, until - within)
    with working_folder(Path(tempfile.gettempdir()), "recsys-guard-") as folder:
        file = folder / "outcomes.parquet"
        report = write_outcomes(log, file, within, now=until)
        if missing := [name for name in types if name not in report.types]:
            known = ", ".join(report.types) or "none"
            raise DataError(f"no event of type {', '.join(missing)} in {log}; there are: {known}")
        counts = (pl.col(f"{name}_count").sum().cast(pl.Float64).alias(name) for name in types)
        events = pl.scan_parquet(file).group_by(REQUEST_ID).agg(counts).collect()
    answers = answers.join(events, on=REQUEST_ID, how="left").with_columns(pl.col(*types).fill_null(0.0))
    sums = (pl.col(name).sum() for name in (*types, WHOLE))
    users = answers.group_by("since", USER).agg(pl.len().cast(pl.Float64).alias("answers"), *sums).sort("since", USER)
    before, after = (users.filter(pl.col("since") == since) for since in (False, True))
    if min(len(before), len(after)) < MIN_USERS:
        return GuardReport(publication, (len(before), len(after)), [])
    names = {name: f"{name} per answer" for name in types} | {WHOLE: f"share of {WHOLE}"}
    level = 1 - 0.05 / len(names) / 2  # Bonferroni over metrics and the two sides
    rows = [_row(names[name], _arm(before, name), _arm(after, name), tolerated, level) for name in names]
    return GuardReport(publication, (len(before), len(after)), rows)


def roll_back_command(report: GuardReport, root: Path) -> str:
    """The command that publishes the bundle before."""
    options = "" if root == Path("bundles") else f" --bundles {shlex.quote(str(root))}"
    return f"recsys bundle publish {report.publication.previous}{options}"


def rolled_back(report: GuardReport, root: Path) -> str:
    """Publish the bundle before, and return what was done, in one line.

    Raises BundleError, also where another bundle was published while the log was read; and OSError.
    """
    assert report.publication.previous is not None
    if watched(root) != report.publication:
        raise BundleError(f"{root}: another bundle was published meanwhile; nothing was rolled back: guard it anew")
    bundle = find_bundle(root, report.publication.previous)
    load_bundle(bundle)
    why = f"recsys experiment guard: {'; '.join(report.breaches)}"
    publish_bundle(bundle, why)
    champion(bundle, {"rolled_back": why})
    return f"rolled back: bundle {bundle} is current"


def watched(root: Path) -> Publication:
    """The publication of the current bundle. Raises BundleError where it is not known, or had none before it."""
    current, known = current_bundle(root).name, publications(root)
    if not known or known[-1].bundle != current:
        raise BundleError(
            f"{root / HISTORY} does not say when {current} was published: an earlier version did it; guard the next "
            "publication"
        )
    if known[-1].previous is None:
        raise BundleError(f"{current} is the first bundle that was published in {root}: there is none before it")
    return known[-1]


def _answers(log: Path, publication: Publication, until: int) -> pl.DataFrame:
    """REQUEST_ID, USER (or the request), `since` and WHOLE of the answers of both bundles, until a time (µs).

    Within a day of the publication, answers before it count at the hours that have passed since.
    """
    corrections, frames, position = corrections_of(log), [], dict[str, int]()
    at, empty = publication.time, frame_of_exposures([], _ANSWERS)
    while (part := read_lines(log, position, stream=EXPOSURES)).position != position:
        position = part.position
        frame = frame_of_exposures(part.lines, _ANSWERS)
        moment = pl.col(TIME).to_physical()
        after = (pl.col("fingerprint") == publication.bundle) & moment.is_between(at, until, closed="left")
        earlier = moment.is_between(at - SPAN, min(at, until), closed="left")
        # in a first day, of the days before only the hours that it has had: nights are not compared with days
        same_hours = (moment - at + SPAN) % DAY < max(until - at, 0)
        before = (pl.col("fingerprint") == publication.previous) & earlier & (same_hours | (until - at >= DAY))
        frame = frame.with_columns(after.alias("since")).filter(before | after)
        frames.append(frame.with_columns(corrections.owners(frame).alias(USER)))
    frame = pl.concat(frames) if frames else empty.with_columns(since=pl.lit(False))
    whole = (pl.col("degraded").list.len().fill_null(0) == 0) & (pl.col("items").list.len() > 0)
    user = pl.when(pl.col(USER).fill_null("") == "").then(REQUEST_ID).otherwise(USER)
    return frame.select(REQUEST_ID, user.alias(USER), "since", whole.cast(pl.Float64).alias(WHOLE))


def _arm(users: pl.DataFrame, name: str) -> Arm:
    return Arm.of_ratios(users.get_column(name).to_numpy(), users.get_column("answers").to_numpy())


def _row(metric: str, before: Arm, after: Arm, tolerated: float, level: float) -> Guarded:
    """The time before is over: it has one interval. The time since has one that holds at all looks."""
    half = float(ndtri((1 + level) / 2)) * before.variance**0.5
    # of rare events there may be none so far: then the deviation since is that of before
    deviation = float(np.sqrt(max(after.variance * after.users, before.variance * before.users)))
    always = confidence_sequence(after.estimate, deviation, after.users, planned=before.users, level=level)
    mean = after.estimate - before.estimate
    change = Interval(mean, always.low - before.estimate - half, always.high - before.estimate + half)
    return Guarded(metric, before.estimate, after.estimate, change, -tolerated * before.estimate)
