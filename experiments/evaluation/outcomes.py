"""Outcomes on disk: the rank of every evaluated event, and the paired comparison of two such files.

One row for each (model, placement, window, event). Two files that were written from the same split pair event by
event, whatever version of the code wrote them. So a change is judged on the same users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from experiments.evaluation.ranking import DEPTH, K, Outcome, interval_dict, show_interval
from experiments.statistics.power import detectable_of
from experiments.statistics.significance import holm, permutation_test
from features.arrays import Doubles
from features.errors import DataError, FileError, describe_os_error, describe_write_error
from features.files import put_file
from features.ids import IdMap
from features.tables.files.parquet import scan_parquet
from features.tables.scan import reading
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import bootstrap

SCHEMA = {
    "model": pl.String(),
    "placement": pl.String(),
    "window": pl.Int32(),
    "user": pl.String(),
    "item": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "rank": pl.Float64(),
    "warm_user": pl.Boolean(),
    "warm_item": pl.Boolean(),
    "history": pl.Int32(),
}
"""Columns of the file. window counts from 1; time: the moment that the event is predicted for.

rank: 1-based, ties at mid-rank, infinite where the item is not in the list of DEPTH. warm_user, warm_item: whether
the user or the item has a positive event before the cut; history: positive events of the user before the time. Files
of version 0.2 and earlier lack these three: they are null.
"""

SEGMENTS = {
    "known users": pl.col("warm_user"),
    "new users": ~pl.col("warm_user"),
    "known items": pl.col("warm_item"),
    "cold items": ~pl.col("warm_item"),
    "1 to 9 events": pl.col("history").is_between(1, 9),
    "10 to 49 events": pl.col("history").is_between(10, 49),
    "50 events and more": pl.col("history") >= 50,
}
"""Name -> which evaluated events belong to it: by user, by item, and by the length of the history."""

_FIRST_SCHEMA = dict(list(SCHEMA.items())[:7])

METRICS = {"hr": metrics.hit, "ndcg": metrics.ndcg}

EVENT = ("placement", "window", "user", "item", "time")
"""Columns that name one evaluated event of one model."""


def outcome_rows(outcome: Outcome, placement: str, window: int, users: IdMap, items: IdMap) -> pl.DataFrame:
    """The rows (SCHEMA) of one model in one window, one for each of its m events."""
    m = len(outcome.ranks)
    return pl.DataFrame(
        {
            "model": pl.repeat(outcome.name, m, eager=True),
            "placement": pl.repeat(placement, m, eager=True),
            "window": pl.repeat(window, m, dtype=pl.Int32, eager=True),
            "user": pl.Series(users.ids, dtype=pl.String)[outcome.users],
            "item": pl.Series(items.ids, dtype=pl.String)[outcome.items],
            "time": pl.Series(outcome.times).cast(pl.Datetime("us", "UTC")),
            "rank": outcome.ranks,
            "warm_user": outcome.warm_user,
            "warm_item": outcome.warm_item,
            "history": outcome.history.astype(np.int32),
        },
        schema=SCHEMA,
    )


def write_outcomes(path: Path, rows: Sequence[pl.DataFrame], facts: Mapping[str, str]) -> None:
    """Write the rows as one parquet file, whole or not at all; facts go into its metadata. Raises FileError."""
    table = pl.concat([pl.DataFrame(schema=SCHEMA), *rows])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_file(path, lambda part: table.write_parquet(part, metadata=dict(facts)))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FileError(f"outcomes cannot be written: {describe_write_error(path, error)}") from error


def check_replaceable(path: Path) -> None:
    """Raises FileError where something else than outcomes stands at the path. A missing or empty file is fine."""
    if not path.exists():
        return
    if not path.is_file():
        raise FileError(f"{path} is not a regular file: outcomes are written to a file; choose another path")
    try:
        if path.stat().st_size == 0 or dict(pl.read_parquet_schema(path)) in (SCHEMA, _FIRST_SCHEMA):
            return
    except pl.exceptions.PolarsError:  # no parquet file
        pass
    raise FileError(f"{path} is no file of outcomes, and would be replaced: move it, or choose another path")


def read_outcomes(path: Path) -> pl.DataFrame:
    """The rows of a file. Raises DataError where it cannot be read, or is not a file of outcomes."""
    try:
        with reading(f"{path}: outcomes"):
            table = scan_parquet(path).collect()
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror))
        raise DataError(f"{path}: outcomes cannot be read: {reason}") from error
    if dict(table.schema) not in (SCHEMA, _FIRST_SCHEMA):
        raise DataError(f"{path} is no file of outcomes; `recsys evaluate CONFIG --outcomes FILE` writes one")
    if repeated := len(table) - table.select("model", *EVENT).n_unique():
        raise DataError(f"{path}: {repeated:,} rows repeat the model and event of another row; evaluate again")
    lacking = {name: kind for name, kind in SCHEMA.items() if name not in table.columns}
    return table.with_columns(pl.lit(None, kind).alias(name) for name, kind in lacking.items())


@dataclass(frozen=True)
class PairedComparison:
    """Two files compared, event by event.

    rows: one for each model and placement; unpaired: events that only one of the files has, by file.
    """

    rows: list[dict[str, Any]]
    unpaired: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"rows": self.rows, "unpaired": list(self.unpaired)}

    def render(self) -> Table:
        """A table for a rich console."""
        caption = (
            "in brackets: 95 % interval over users; Δ: B minus A, paired by event and user; p: permutation test, "
            "adjusted for all rows by Holm's method;\ndetectable: the difference that so many users show with a "
            "probability of 80 %"
        )
        if any(self.unpaired):
            caption += (
                f"\nleft out: {self.unpaired[0]:,} events that only A has, {self.unpaired[1]:,} that only B has"
            )
        names = ("model", "placement", "users", "events", "metric", "A", "B", "Δ", "p", "detectable")
        table = Table(*names, caption=caption)
        for row in self.rows:
            for metric in ("hr", "ndcg"):
                name = f"{metric}_at_{K}"
                a, b, change = (
                    show_interval(row[f"{name}{end}"], sign)
                    for end, sign in (("_a", ""), ("_b", ""), ("_change", "+"))
                )
                counts = (f"{row['users']:,}", f"{row['events']:,}") if metric == "hr" else ("", "")
                of = (row["model"], row["placement"]) if metric == "hr" else ("", "")
                least = row[f"{name}_detectable"]
                test = (f"{row[f'{name}_p_adjusted']:.4f}", "" if least is None else f"{least:.4f}")
                table.add_row(*of, *counts, f"{metric.upper()}@{K}", a, b, change, *test)
        return table


def compare_outcomes(a: Path, b: Path, *, model: str | None = None, seed: int = 0) -> PairedComparison:
    """B against A for each model that both files have, or for one of them; files of one model each are compared
    whatever its name.

    The figure of a user is the mean over the events of that user that both files have. Intervals are over users.
    p-values are adjusted for all models, placements and metrics that are compared: with many, some differ by chance.
    Raises DataError where a file cannot be read, or the files share no model or no event.
    """
    tables = [read_outcomes(path) for path in (a, b)]
    names = [list(table.get_column("model").unique(maintain_order=True)) for table in tables]
    if model is None and names[0] != names[1] and len(names[0]) == len(names[1]) == 1:
        names = [[f"{names[1][0]} against {names[0][0]}"]] * 2
        tables = [table.with_columns(pl.lit(names[0][0]).alias("model")) for table in tables]
    common = [name for name in names[0] if name in names[1] and model in (None, name)]
    if not common:
        available = "; ".join(f"{path}: {', '.join(models)}" for path, models in zip((a, b), names, strict=True))
        raise DataError(f"no model {'' if model is None else f'{model!r} '}is in both files: {available}")
    paired = tables[0].join(tables[1], on=["model", *EVENT], how="inner", suffix="_b", maintain_order="left")
    paired = paired.filter(pl.col("model").is_in(common))
    if not len(paired):
        raise DataError(f"{a} and {b} have no event in common: were they written from the same split?")
    rows = [
        _row(name, placement, part, seed)
        for name in common
        for (placement,), part in paired.filter(model=name).group_by("placement", maintain_order=True)
    ]
    tests = [(row, f"{metric}_at_{K}") for row in rows for metric in METRICS]
    for (row, name), p in zip(tests, holm(np.array([row[f"{name}_p"] for row, name in tests])), strict=True):
        row[f"{name}_p_adjusted"] = float(p)
    events = [table.filter(pl.col("model").is_in(common)) for table in tables]
    return PairedComparison(rows, (len(events[0]) - len(paired), len(events[1]) - len(paired)))


def _row(model: str, placement: str, paired: pl.DataFrame, seed: int) -> dict[str, Any]:
    users = paired.get_column("user").rank("dense").cast(pl.Int64).to_numpy() - 1
    row: dict[str, Any] = {
        "model": model,
        "placement": placement,
        "users": len(np.unique(users)),
        "events": len(paired),
    }
    for metric, function in METRICS.items():
        by_user: list[Doubles] = [
            metrics.per_user(function(paired.get_column(name).to_numpy(), K, depth=DEPTH), users)[0]
            for name in ("rank", "rank_b")
        ]
        name = f"{metric}_at_{K}"
        row[f"{name}_a"], row[f"{name}_b"] = (interval_dict(bootstrap(values, seed=seed)) for values in by_user)
        change = by_user[1] - by_user[0]  # (u,)
        row[f"{name}_change"] = interval_dict(bootstrap(change, seed=seed))
        row[f"{name}_p"] = permutation_test(change, seed=seed)
        row[f"{name}_detectable"] = detectable_of(change)
    return row
