"""The benchmark of one recommendation, with few items and requests."""

import pytest
import torch

from experiments.bench import rerank as bench
from recsys.config import RetrieverConfig


def test_stages_are_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "HISTORIES", (5, 200))
    monkeypatch.setattr(bench, "SHORT_REQUESTS", 2)
    threads = torch.get_num_threads()
    result = bench.run(short=True)
    assert torch.get_num_threads() == threads
    assert result.bars == []
    stages = ("user tower ms", "features ms", "trees ms", "retrieval ms", "p50 ms", "p99 ms")
    for history in (5, 200):
        found = {stage: result.figures[f"1000 items, {history} events: {stage}"] for stage in stages}
        assert all(value > 0 for stage, value in found.items() if stage != "retrieval ms")
        ratio = (found["features ms"] + found["trees ms"]) / found["trees ms"]
        assert result.figures[f"1000 items, {history} events: (features + trees) / trees"] == pytest.approx(ratio)
        assert found["p50 ms"] <= found["p99 ms"]
    assert result.figures["1000 items: recall@500 of exact"] == 1


def test_bars_are_those_of_the_judged_history() -> None:
    found = {"user tower ms": 0.8, "features ms": 1.1, "(features + trees) / trees": 3, "p50 ms": 1, "p99 ms": 6.1}
    assert [(bar.name, bar.holds) for bar in bench._bars(7, found)] == [
        ("7 items, 200 events: user tower ms", True),
        ("7 items, 200 events: features ms", False),
        ("7 items, 200 events: (features + trees) / trees", True),
        ("7 items, 200 events: p50 ms", True),
        ("7 items, 200 events: p99 ms", False),
    ]


def test_the_recommender_has_all_its_parts() -> None:
    recommender, groups = bench.make(600, RetrieverConfig(), seed=0)
    assert (len(groups), recommender.candidates) == (600, 500)
    found = recommender.recommend(bench.states_of(600, 5, 2, 0), 3)
    assert (found.rows >= 0).all()
    assert set(found.source_names(0)) <= {"own", "long_term", "recent"}
