"""The benchmark of the warm start, on a tiny data set."""

import numpy as np
import pytest
from toy_data import DAY, toy_config, write_tables

from experiments.bench import warm_start as warm
from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.splits import window_cuts


def test_a_warm_start_is_compared_with_a_fit_on_all_events(tmp_path):
    write_tables(tmp_path / "data")
    path = toy_config(tmp_path, training={"epochs": 9, "batch_events": 256, "learning_rate": 0.01})
    result = warm.run(short=True, config=str(path))
    config = load_config(path, {})
    events = load_dataset(config).events
    times, cut = events.times, window_cuts(events, config.split)[-1][1]
    figures = result.figures
    assert figures["passes"] == 2
    assert figures["events"] == (times < cut).sum()
    assert figures["events_of_the_last_day"] == ((times < cut) & (times >= cut - DAY)).sum()
    assert [bar.name for bar in result.bars] == [
        "seconds, warm over anew",
        "home: NDCG@10, warm over anew",
        "home: high end of warm - anew",
        "again: NDCG@10, warm over anew",
        "again: high end of warm - anew",
    ]
    for name in ("home", "again"):
        warmed, anew = (figures[f"{how} · {name}: ndcg_at_10"] for how in ("warm", "anew"))
        assert 0 < warmed <= 1
        difference = figures[f"warm - anew · {name}: ndcg_at_10, 95 %"]
        assert difference["mean"] == pytest.approx(warmed - anew)
        assert np.isfinite([*difference.values()]).all()
