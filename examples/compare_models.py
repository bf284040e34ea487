"""Compare two models on the same users: is the second one better, or is the difference noise?

Both evaluations are offline: they train on the events before a cut in time and predict the events after it. The
first model reads the last 2 events of a user, the second the last 20. Each evaluation writes every predicted event to
a file, and the two files are compared event by event. `recsys evaluate --outcomes FILE` does the first step on the
command line, `recsys experiment compare` the second.
"""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from train_and_search import configuration, write_tables

from experiments.config import load_config
from experiments.evaluation.outcomes import compare_outcomes
from experiments.pipelines.train import evaluate_run
from experiments.tracking.progress import terminal


def with_history(base: Path, history: int) -> Path:
    """A copy of a configuration file whose towers read the last `history` events of a user."""
    settings: dict[str, Any] = yaml.safe_load(base.read_text())
    settings["towers"]["history"] = history
    path = base.with_name(f"history-{history}.yaml")
    path.write_text(yaml.safe_dump(settings))
    return path


def main() -> None:
    """Evaluate two configurations on the same split and print the paired difference of every model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder / "data")
        base = configuration(folder)
        files = []
        for history in (2, 20):
            files.append(folder / f"history-{history}.parquet")
            with terminal() as reporter:
                evaluate_run(load_config(with_history(base, history)), reporter, outcomes_file=files[-1])
        Console(width=150).print(compare_outcomes(*files).render())


if __name__ == "__main__":
    main()
