"""Quality over several data sets and draws in one table: cold items, and the served order against the best baseline.

No single draw is believed. For cold items a draw is a seed of `bench cold`, which decides which tenth of the items is
cold; for the served order it is a seed of the training. Intervals are of a mean over draws, by Student's t.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.bench.quality import cold
from experiments.bench.runner import Bar, Result
from experiments.config import load_config
from experiments.pipelines.train import evaluate_run
from features.errors import ConfigError
from features.progress import silent

PARTS = ("cold", "served")
CONFIGS = "configs/demo-posters.yaml,configs/ml-1m.yaml,configs/complete-journey.yaml"


class _Silent:
    """A Reporter that says nothing: of many trainings only the figures matter."""

    def say(self, text: str) -> None:
        """Nothing."""

    steps = staticmethod(silent)


def run(
    *, short: bool = False, configs: str = CONFIGS, seeds: int = 5, passes: int | None = None, only: str | None = None
) -> Result:
    """Ratios of each configuration, their means over draws with 95 % intervals, and the bars of the cold protocol.

    configs: files, separated by commas, whose data exist. seeds: number of draws. passes: of the towers in the cold
    protocol, by default as configured. only: cold or served. short: two draws, two passes.
    Raises ConfigError for another part, or for less than one draw.
    """
    if only is not None and only not in PARTS:
        raise ConfigError(f"bench quality --only {only}: choose from {', '.join(PARTS)}")
    if seeds < 1:
        raise ConfigError(f"bench quality --seeds {seeds}: at least one draw is needed")
    seeds = 2 if short else seeds
    figures: dict[str, Any] = {}
    ratios: dict[str, list[list[float]]] = {cold.COLD_BAR: [], cold.ALL_BAR: []}
    for path in configs.split(","):
        name = Path(path).stem
        if only in (None, "cold"):
            draws = [_cold_ratios(path, seed, passes, short, figures) for seed in range(seeds)]
            for at, bar in enumerate(ratios):
                of_bar = [draw[at] for draw in draws]
                ratios[bar].append(of_bar)
                figures[f"{name}, {bar}"] = summary(of_bar)
        if only in (None, "served"):
            for placement, values in _served_ratios(path, seeds, short).items():
                figures[f"{name}, {placement}: NDCG@10 over the best baseline"] = summary(values)
    return Result(figures, _bars(ratios) if only in (None, "cold") else [])


def _cold_ratios(path: str, seed: int, passes: int | None, short: bool, figures: dict[str, Any]) -> list[float]:
    """The two ratios of one draw of the cold protocol, which are also added to the figures and printed."""
    result = cold.run(short=short, config=path, seed=seed, passes=passes)
    for bar in result.bars:
        _add(figures, f"{Path(path).stem}, seed {seed}, {bar.name}", bar.value)
    for key, value in result.figures.items():
        if key.endswith("hr_at_10"):
            figures[f"{Path(path).stem}, seed {seed}, {key}"] = value
    return [bar.value for bar in result.bars]


def _served_ratios(path: str, seeds: int, short: bool) -> dict[str, list[float]]:
    """Placement -> for each seed, NDCG@10 of the served order over that of the best baseline, on the test window."""
    ratios: dict[str, list[float]] = {}
    config = load_config(Path(path))
    if short:
        config = config.changed({"training.epochs": 1})
    for seed in range(seeds):
        for table in evaluate_run(config.model_copy(update={"seed": seed}), _Silent()):
            ndcg = {row["name"]: row["ndcg_at_10"]["mean"] for row in table.rows}
            best = max(value for name, value in ndcg.items() if name in config.baselines)
            ratios.setdefault(table.placement, []).append(ndcg[table.ours] / best if best else float("nan"))
    return ratios


def _add(figures: dict[str, Any], key: str, value: float) -> None:
    """A run takes hours: each figure is printed as soon as it is known."""
    figures[key] = value
    print(f"{key} {value:.4g}", file=sys.stderr, flush=True)


def summary(ratios: Sequence[float]) -> dict[str, float]:
    """Mean, 95 % interval of the mean by Student's t (NaN with one draw), smallest and number of draws."""
    values = np.asarray(ratios, dtype=np.float64)
    mean, n = float(values.mean()), len(values)
    margin = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else float("nan")
    return {"mean": mean, "low": mean - margin, "high": mean + margin, "min": float(values.min()), "draws": n}


def _bars(ratios: dict[str, list[list[float]]]) -> list[Bar]:
    """The bars over the draws of all configurations. ratios: name of the ratio -> of each configuration its draws."""
    among_cold, among_all = (summary(np.concatenate(of_configs).tolist()) for of_configs in ratios.values())
    return [
        Bar(f"{cold.COLD_BAR}: mean", among_cold["mean"], ">=", 1.1),
        Bar(f"{cold.COLD_BAR}: lower end", among_cold["low"], ">", 1.0),
        Bar(f"{cold.COLD_BAR}: smallest draw", among_cold["min"], ">=", 0.9),
        Bar(f"{cold.ALL_BAR}: mean", among_all["mean"], ">=", 2.0),
    ]
