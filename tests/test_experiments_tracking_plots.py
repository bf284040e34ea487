"""The plots of a run: every point and label by hand."""

import logging

import numpy as np
import pytest

from experiments.evaluation.lifts import Judgement, LiftResult
from experiments.evaluation.ranking import Outcome
from experiments.tracking import plots
from recsys.evaluation.calibration import ReliabilityBin


def outcome(name: str, history: list[int], ranks: list[float], popularity: float = 0.75) -> Outcome:
    n = len(ranks)
    rows, flags = np.arange(n), np.ones(n, bool)
    return Outcome(
        name=name,
        ranks=np.array(ranks),
        users=rows // 2,
        items=rows,
        times=rows,
        warm_user=flags,
        warm_item=flags,
        history=np.array(history),
        seconds=1.0,
        coverage=0.5,
        novelty=0.5,
        diversity=0.5,
        popularity=popularity,
    )


def test_the_learning_curve() -> None:
    lines = [{"epoch": 1.0, "loss": 3.0, "ndcg_at_10": 0.25}, {"epoch": 2.0, "loss": 2.0}]
    figure = plots.learning_curve(lines)
    left, right = figure.axes
    assert (left.get_title(), left.get_xlabel(), left.get_ylabel()) == ("Learning curve", "epoch", "loss")
    assert right.get_ylabel() == "validation NDCG@10"
    (loss,), (ndcg,) = left.lines, right.lines
    assert (loss.get_label(), loss.get_color()) == ("loss", "tab:blue")
    assert (ndcg.get_label(), ndcg.get_color()) == ("NDCG@10", "tab:orange")
    np.testing.assert_array_equal(loss.get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal(ndcg.get_xydata(), [[1, 0.25], [2, np.nan]])
    assert figure.get_size_inches().tolist() == [6, 4]
    assert figure.get_layout_engine() is not None


def test_ndcg_by_the_length_of_histories() -> None:
    history = [0, 1, 4, 5, 9, 10, 19, 20, 49, 50, 99, 100, 199, 200, 499, 500, 10_000]
    ranks = [1.0, 3.0] * 8 + [1.0]  # NDCG 1 and .5
    figure = plots.ndcg_by_history([outcome("a", history, ranks), outcome("b", [7, 7], [1.0, 1.0])])
    (axes,) = figure.axes
    first, second = axes.lines
    names = ["0+", "1+", "5+", "10+", "20+", "50+", "100+", "200+", "500+"]
    assert first.get_xdata().tolist() == names
    assert first.get_ydata().tolist() == [1, *[0.75] * 7, 0.75 + 0.25 * 0]
    assert (second.get_xdata().tolist(), second.get_ydata().tolist()) == (["5+"], [1])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert (first.get_marker(), first.get_linestyle()) == ("o", "-")
    assert axes.get_title() == "NDCG@10 by history length"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("positive events before the target", "NDCG@10")


def test_popularity_bias() -> None:
    figure = plots.popularity_bias([outcome("a", [1, 1, 1, 1], [1.0, 3.0, 1.0, 1.0], 0.875)])
    (axes,) = figure.axes
    (point,), (name,) = axes.lines, axes.texts
    np.testing.assert_allclose(point.get_xydata(), [[0.875, (0.75 + 1) / 2]])  # the mean of users
    assert (name.get_text(), name.xy, name.get_position(), name.get_fontsize()) == ("a", (0.875, 0.875), (4, 4), 8)
    assert axes.get_xlabel() == "mean popularity percentile of the top 10 (.5: none)"
    assert axes.get_title() == "Popularity bias"


LIFTS = (LiftResult(0.0, 0.1, 0.0, 0.2, 0.05, 0.1), LiftResult(0.5, 0.099, 0.04, 0.19, 0.1, 0.1))


def test_cold_items() -> None:
    figure = plots.cold_items(Judgement(LIFTS, 0.5, ()))
    (axes,) = figure.axes
    curve, chosen = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0, 0.1], [0.04, 0.099]])
    np.testing.assert_allclose(chosen.get_xydata(), [[0.04, 0.099]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("HR@10 of cold items", "NDCG@10 of all")


def test_reliability() -> None:
    figure = plots.reliability((ReliabilityBin(9, 0.001, 0.0), ReliabilityBin(5, 0.01, 0.02)))
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.01, 0.02]])  # 0 is not on a logarithmic axis
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[0.01, 0.01], [1.0, 1.0]])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_without_matplotlib_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = outcome("a", [1], [1.0])
    line = {"epoch": 1.0, "loss": 1.0}
    assert sorted(plots.draw([line], [one])) == ["learning_curve", "ndcg_by_history_length", "popularity_bias"]
    judged = plots.draw([line], [one], Judgement(LIFTS, 0.5, (ReliabilityBin(5, 0.01, 0.02),)))
    assert {"cold_items", "reliability"} <= judged.keys()
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else 1)
    with caplog.at_level(logging.WARNING):
        assert plots.draw([line], [one]) == {}
    assert "a plot needs the package matplotlib" in caplog.text
