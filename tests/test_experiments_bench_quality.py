"""Quality over several configurations and draws: means, intervals over draws, and bars."""

import numpy as np
import pytest
from test_experiments_bench_cold import config as themes

from experiments.bench.quality import cold, over_draws
from experiments.bench.runner import Bar, Result
from features.errors import ConfigError

themes_config = themes


def test_the_interval_is_students_by_hand():
    found = over_draws.summary([1.0, 1.2, 1.4])
    margin = 4.302653 * 0.2 / 3**0.5  # t of two degrees of freedom
    expected = {"mean": 1.2, "low": 1.2 - margin, "high": 1.2 + margin, "min": 1.0, "draws": 3}
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.isnan(over_draws.summary([1.0])["low"])


def test_ratios_of_all_draws_are_joined(monkeypatch):
    ratios = {("a", 0): (1.2, 3.0), ("a", 1): (1.0, 1.0), ("b", 0): (1.4, 2.0), ("b", 1): (0.8, 2.4)}
    asked = []

    def run(*, short, config, seed, passes):
        asked.append((config, seed, passes))
        among_cold, among_all = ratios[config[0], seed]
        bars = [Bar(cold.COLD_BAR, among_cold, ">=", 1.1), Bar(cold.ALL_BAR, among_all, ">=", 2.0)]
        return Result({"two towers, among cold: hr_at_10": 0.1}, bars)

    monkeypatch.setattr(over_draws.cold, "run", run)
    result = over_draws.run(configs="a.yaml,b.yaml", seeds=2, passes=6, only="cold")
    assert asked == [("a.yaml", 0, 6), ("a.yaml", 1, 6), ("b.yaml", 0, 6), ("b.yaml", 1, 6)]
    assert result.figures[f"a, {cold.COLD_BAR}"]["mean"] == pytest.approx(1.1)
    assert result.figures["b, seed 1, two towers, among cold: hr_at_10"] == 0.1
    bars = {bar.name: (bar.value, bar.holds) for bar in result.bars}
    assert bars[f"{cold.COLD_BAR}: mean"] == (pytest.approx(1.1), True)
    assert bars[f"{cold.COLD_BAR}: smallest draw"] == (0.8, False)
    assert bars[f"{cold.ALL_BAR}: mean"] == (pytest.approx(2.1), True)
    assert not bars[f"{cold.COLD_BAR}: lower end"][1]


def test_cold_items_and_the_served_order_of_real_runs(themes_config):
    figures = over_draws.run(short=True, configs=str(themes_config)).figures
    assert figures[f"themes, {cold.COLD_BAR}"]["draws"] == 2
    served = figures["themes, home: NDCG@10 over the best baseline"]
    assert served["draws"] == 2
    assert served["min"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"only": "warm"}, "--only warm: choose from cold, served"), ({"seeds": 0}, "--seeds 0: at least one draw")],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        over_draws.run(**options)
