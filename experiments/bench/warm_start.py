"""Warm start: towers trained further on one day's events, against towers fitted from scratch on all events.

The towers are first fitted on the events until a day before the newest window of the split. They are then fitted on
the events until that window: from scratch, and by a warm start with the last day's events alone. Both are judged on
the events of the window, by retrieval only.
"""

import time
from pathlib import Path
from typing import Any

from experiments.bench.runner import Bar, Result
from experiments.config import load_config
from experiments.dataset import encode_contents, load_dataset
from experiments.evaluation.ranking import evaluate, interval_dict
from experiments.pipelines.fit import build_two_stage
from experiments.pipelines.rolling_windows import evaluation_windows
from features.errors import ConfigError
from features.instants import DAY
from recsys.evaluation.bootstrap import paired_bootstrap
from recsys.towers.training import FittedTowers, fit_towers
from recsys.towers.warm_start import PASSES, transfer_weights


def run(*, short: bool = False, config: str = "configs/complete-journey.yaml") -> Result:
    """Seconds and test NDCG@10 of the towers before the last day, from scratch (`anew`) and by a warm start (`warm`).

    config: a configuration that splits by time and whose data exist; short: two passes in place of the configured
    ones. Raises ConfigError when the configuration splits leave-last-out.
    """
    settings = load_config(Path(config)).model_copy(update={"reranker": None})
    dataset, splits = evaluation_windows(settings, load_dataset(settings))[-1]
    dataset = encode_contents(dataset, settings)
    first = next(iter(splits.values()))
    if first.cut is None:
        raise ConfigError(f"{config}: split.kind is leave-last-out; bench warm needs split.kind time")
    old = first.train.before(first.cut - DAY)
    passes = 2 if short else settings.training.epochs
    seconds = {}

    def fit(name: str, **options: Any) -> FittedTowers:
        started = time.perf_counter()
        events = old if name == "before" else first.train
        options = {"seed": settings.seed, "epochs": passes} | options
        fitted = fit_towers(dataset.catalog, events, settings.towers, settings.training, **options)
        seconds[name] = time.perf_counter() - started
        return fitted

    before = fit("before")
    start = transfer_weights(before.model, dataset.catalog, dataset.catalog, first.train, settings.towers)
    fitted = {
        "before": before,
        "anew": fit("anew"),
        "warm": fit("warm", start=start, only=first.train.times > old.latest, epochs=PASSES),
    }
    figures: dict[str, Any] = {
        "events": len(first.train),
        "events_of_the_last_day": len(first.train) - len(old),
        "passes": passes,
        "data_hash": dataset.hash,
    }
    figures |= {f"{name}: seconds": round(value, 1) for name, value in seconds.items()}
    bars = [Bar("seconds, warm over anew", seconds["warm"] / seconds["anew"], "<=", 0.2)]
    for placement, split in splits.items():
        repeats = settings.data.placements[placement].repeats
        users = {}
        for name, towers in fitted.items():
            stage = build_two_stage(towers.model, old if name == "before" else first.train, settings)
            outcome = evaluate(name, stage, split, dataset.catalog, split.test, repeats=repeats, seconds=0)
            users[name] = outcome.per_user("ndcg")
            figures[f"{name} · {placement}: ndcg_at_10"] = float(users[name].mean())
        difference = paired_bootstrap(users["warm"], users["anew"], seed=settings.seed)
        figures[f"warm - anew · {placement}: ndcg_at_10, 95 %"] = interval_dict(difference)
        bars.append(
            Bar(
                f"{placement}: NDCG@10, warm over anew",
                float(users["warm"].mean() / users["anew"].mean()),
                ">=",
                0.98,
            )
        )
        bars.append(Bar(f"{placement}: high end of warm - anew", difference.high, ">=", 0.0))
    return Result(figures, bars)
