"""Plots of a run. The only file that imports matplotlib."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from experiments.evaluation.lifts import Judgement
from experiments.evaluation.ranking import Outcome
from features.arrays import Doubles
from features.errors import missing_package
from recsys.evaluation.calibration import ReliabilityBin

logger = logging.getLogger(__name__)

COLOURS = ("#3b82f6", "#e07a1f", "#2a9d5c", "#b5529b", "#8a7a1f", "#6b7280")
"""Of variants; readable on a light and on a dark background."""

INK = "#010203"
"""Colour of texts and axes in an SVG, in whose place a page puts its own."""


def draw(
    history: list[dict[str, float]], outcomes: Sequence[Outcome], judgement: Judgement | None = None
) -> dict[str, Any]:
    """All plots of a run by name; none where matplotlib is not installed, which is logged.

    history: figures of each epoch, empty for no learning curve; outcomes: of all models in one placement;
    judgement: of the reranker.
    """
    if find_spec("matplotlib") is None:
        logger.warning("no plots are drawn: %s", missing_package("a plot", "matplotlib", "track"))
        return {}
    figures = {"learning_curve": learning_curve(history)} if history else {}
    figures |= {
        "ndcg_by_history_length": ndcg_by_history(outcomes),
        "popularity_bias": popularity_bias(outcomes),
    }
    if judgement is not None:
        figures |= {"cold_items": cold_items(judgement), "reliability": reliability(judgement.reliability)}
    return figures


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def learning_curve(history: list[dict[str, float]]) -> Any:
    """Loss (left axis) and validation NDCG@10 (right axis) by epoch."""
    figure, axes = _axes("Learning curve", "epoch", "loss")
    epochs = [line["epoch"] for line in history]
    axes.plot(epochs, [line["loss"] for line in history], color="tab:blue", label="loss")
    right = axes.twinx()
    right.set_ylabel("validation NDCG@10")
    right.plot(epochs, [line.get("ndcg_at_10", np.nan) for line in history], color="tab:orange", label="NDCG@10")
    return figure


def cold_items(judgement: Judgement) -> Any:
    """NDCG@10 against HR@10 of cold items on the validation window, by their lift; the chosen lift is marked."""
    figure, axes = _axes("What cold items give and cost", "HR@10 of cold items", "NDCG@10 of all")
    axes.plot([each.hr_cold for each in judgement.lifts], [each.ndcg for each in judgement.lifts], ".-")
    chosen = [each for each in judgement.lifts if each.lift == judgement.chosen]
    axes.plot([each.hr_cold for each in chosen], [each.ndcg for each in chosen], "o", label="chosen")
    axes.legend()
    return figure


def reliability(bins: Sequence[ReliabilityBin]) -> Any:
    """The share of predictions that happened against their probability, on logarithmic axes."""
    figure, axes = _axes("Reliability of probabilities", "predicted", "happened")
    known = [each for each in bins if each.predicted > 0 and each.observed > 0]
    axes.plot([each.predicted for each in known], [each.observed for each in known], "o-")
    ends = [min((each.predicted for each in known), default=1e-3), 1]
    axes.plot(ends, ends, "--", color="gray", label="equal")
    axes.set(xscale="log", yscale="log")
    axes.legend()
    return figure


def ndcg_by_history(outcomes: Sequence[Outcome]) -> Any:
    """Mean NDCG@10 of the targets by the number of earlier positive events of their user."""
    figure, axes = _axes("NDCG@10 by history length", "positive events before the target", "NDCG@10")
    edges = np.array([0, 1, 5, 10, 20, 50, 100, 200, 500, np.inf])
    for outcome in outcomes:
        bin_of = np.digitize(outcome.history, edges) - 1  # (m,)
        values: Doubles = outcome.per_event("ndcg")
        bins = np.unique(bin_of)
        axes.plot(
            [str(int(edges[b])) + "+" for b in bins],
            [values[bin_of == b].mean() for b in bins],
            "o-",
            label=outcome.name,
        )
    axes.legend()
    return figure


def popularity_bias(outcomes: Sequence[Outcome]) -> Any:
    """NDCG@10 against the mean popularity percentile of the recommended items, one point for each model."""
    figure, axes = _axes("Popularity bias", "mean popularity percentile of the top 10 (.5: none)", "NDCG@10")
    for outcome in outcomes:
        y = float(outcome.per_user("ndcg").mean())
        axes.plot(outcome.popularity, y, "o")
        axes.annotate(outcome.name, (outcome.popularity, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    return figure


def differences_by_segment(rows: Sequence[Mapping[str, Any]]) -> str:
    """Differences to the control with their intervals: a line of each segment, a colour of each variant; as SVG.

    rows: of an `ExperimentResult`, of one placement and metric. See `_svg`.
    """
    changed = [row for row in rows if row["change"] is not None]
    segments, variants = (list(dict.fromkeys(row[name] for row in changed)) for name in ("segment", "variant"))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        for number, variant in enumerate(variants):
            own = [row for row in changed if row["variant"] == variant]
            aside = (number - (len(variants) - 1) / 2) * 0.7 / len(variants)
            mean, low, high = (np.array([row["change"][name] for row in own]) for name in ("mean", "low", "high"))
            at = [segments.index(row["segment"]) + aside for row in own]
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(mean, at, xerr=[mean - low, high - mean], fmt="o", color=colour, capsize=3, label=variant)
        axes.set_yticks(range(len(segments)), segments)
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return _svg((8, 1.2 + 0.28 * len(segments) * len(variants)), draw)


def figures_by_segment(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figure of each variant by segment, segments in their order from left to right; as SVG.

    rows: of an `ExperimentResult`, of one placement and metric. See `_svg`.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            own = [row for row in rows if row["variant"] == variant]
            points = [row["segment"] for row in own], [row["mean"] for row in own]
            axes.plot(*points, "o-", color=COLOURS[number % len(COLOURS)], label=variant)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return _svg((8, 3), draw)


def accuracy_against_lists(
    points: Mapping[str, tuple[float, Mapping[str, float]]], figures: Mapping[str, str]
) -> str:
    """The accuracy of each variant against figures of its lists, one panel for each figure; as SVG.

    points: variant -> its accuracy, and the figures of its lists by name; figures: name -> label. A figure that no
    variant has is left out. See `_svg`.
    """
    known = {
        name: label for name, label in figures.items() if any(np.isfinite(of[name]) for _, of in points.values())
    }

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for panel, (name, label) in zip(panels, known.items(), strict=True):
            for number, (variant, (accuracy, of)) in enumerate(points.items()):
                panel.plot(of[name], accuracy, "o", color=COLOURS[number % len(COLOURS)], label=variant)
            panel.set_xlabel(label)
            panel.spines[["top", "right"]].set_visible(False)
        panels[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return _svg((2 + 2.4 * len(known), 2.6), draw) if known else ""


def _svg(size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """A figure as SVG. size: inches; draw: draws on the figure.

    Texts and axes have the colour of the page that the SVG stands in. "" where matplotlib is not installed, which is
    logged.
    """
    if find_spec("matplotlib") is None:
        logger.warning("no plots are drawn: %s", missing_package("a plot", "matplotlib", "track"))
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "recsys", "font.family": "sans-serif", **ink}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
