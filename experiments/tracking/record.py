"""What a run of `train`, `evaluate` and `nightly` records: figures, tables, plots, ranks of all events."""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from experiments.evaluation.outcomes import write_outcomes
from experiments.evaluation.ranking import Comparison, K
from experiments.tracking.mlflow import Tracker
from features.files import working_folder

OUTCOMES = "outcomes"
"""Folder of the artefacts with the ranks of all events, which `recsys experiment compare` reads."""

WIDTH = 175
"""Characters of a line of a table."""


def run_name(kind: str) -> dict[str, str]:
    """The tag with the name of a run: what it does, and when it began, in UTC."""
    return {"mlflow.runName": f"{kind} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"}


def metric_name(text: str) -> str:
    """A text with the characters alone that a name of a metric may have."""
    return "".join(c if c.isalnum() else "_" for c in text)


def record_tables(tracker: Tracker, tables: Sequence[Comparison], figures: Mapping[str, Any]) -> None:
    """Record metrics, tables as text and JSON, choices of settings, and plots.

    The figure of the first table's own model is the headline, which MLflow's page draws first.
    """
    for table in tables:
        for row in table.rows:
            name = metric_name(f"{table.placement}.{row['name']}")
            tracker.metrics({f"{name}.{key}": row[key]["mean"] for key in (f"hr_at_{K}", f"ndcg_at_{K}")})
        settings = {metric_name(f"{table.placement}.{name}"): text for name, text in table.settings.items()}
        tracker.tags({f"settings.{name}": text for name, text in settings.items()})
    if tables:
        first = tables[0]
        tracker.headline(f"{metric_name(f'{first.placement}.{first.ours}')}.ndcg_at_{K}")
        page = Console(file=io.StringIO(), width=WIDTH)
        for table in tables:
            page.print(table.render())
        assert isinstance(page.file, io.StringIO)
        tracker.text("tables.txt", page.file.getvalue())
        tracker.text("tables.json", json.dumps([table.to_dict() for table in tables], indent=1))
    for plot, figure in figures.items():
        tracker.figure(plot, figure)


def record_outcomes(
    tracker: Tracker, rows: Sequence[pl.DataFrame], facts: Mapping[str, str], path: Path | None = None
) -> None:
    """Record the ranks of all events as one parquet file, see `write_outcomes`. path: where to keep it as well."""
    with working_folder(Path(tempfile.gettempdir()), "recsys-outcomes-of-run-") as folder:
        file = path or folder / "outcomes.parquet"
        write_outcomes(file, rows, facts)
        tracker.artifact(file, OUTCOMES)
