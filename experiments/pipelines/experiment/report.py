"""The result of an experiment for people: a table, text for a pull request, and a page that asks no other host."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.evaluation.ranking import K, show_interval
from experiments.pipelines.experiment.result import ALL, QUARTERS, ExperimentResult
from experiments.tracking.plots import accuracy_against_lists, differences_by_segment, figures_by_segment

RESULT_FILES = ("result.json", "result.md", "result.html")

COLUMNS = (
    *("placement", "segment", "metric", "variant", "users", "mean"),
    *("Δ", "between seeds", "p", "detectable", "better", "worse"),
)

OF_LISTS = {
    "diversity": "diversity",
    "cold_share": "share of cold items",
    "popularity": "popularity percentile",
    "novelty": "novelty, bits",
    "coverage": "coverage",
}
"""Figure of the lists -> its name for people."""

LIST_COLUMNS = ("placement", "variant", *OF_LISTS.values())

NOTE = (
    "Brackets: 95 % interval over users, and over seeds where there are several. Δ: minus the control, paired by "
    "event and user. p: permutation test over users, adjusted by Holm's method over all events and by Benjamini and "
    "Hochberg's over segments. Detectable: the difference that so many users show with a probability of 80 %. "
    "Better, worse: share of the users whose own figure rises or falls."
)


def write_result(folder: Path, result: ExperimentResult) -> None:
    """Write RESULT_FILES. Raises OSError."""
    texts = json.dumps(result.to_dict(), indent=1), markdown(result), page(result)
    for name, text in zip(RESULT_FILES, texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")


def table(result: ExperimentResult) -> Table:
    """A table for a rich console."""
    caption = "\n".join((NOTE, *_decisions(result)))
    out = Table(*COLUMNS, title=_title(result), caption=caption, caption_justify="left")
    for row in result.rows:
        out.add_row(*_cells(row), style="bold" if row["variant"] == result.control else None)
    return out


def markdown(result: ExperimentResult) -> str:
    """Text for a pull request."""
    lines = [f"## {_title(result)}", "", *(f"* {line}" for line in _decisions(result)), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in result.rows]
    lines += ["", f"| {' | '.join(LIST_COLUMNS)} |", "|---" * len(LIST_COLUMNS) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in _cells_of_lists(result)]
    return "\n".join([*lines, "", NOTE, ""])


def page(result: ExperimentResult) -> str:
    """A page of its own, light or dark as the reader's system is; a click on a column sorts by it."""
    decisions = "".join(f"<li>{html.escape(line)}</li>" for line in _decisions(result))
    is_control = [row["variant"] == result.control for row in result.rows]
    rows = _html_table(COLUMNS, [_cells(row) for row in result.rows], is_control)
    is_control = [row["variant"] == result.control for row in result.lists]
    lists = _html_table(LIST_COLUMNS, _cells_of_lists(result), is_control)
    title = html.escape(_title(result))
    facts = html.escape(json.dumps(result.facts))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><main><h1>{title}</h1>'
        f"<ul>{decisions}</ul>{_plots(result)}<h2>Figures</h2>{rows}<p>{html.escape(NOTE)}</p>"
        f"<h2>Lists</h2>{lists}<p><code>{facts}</code></p></main><script>{_SCRIPT}</script></html>\n"
    )


def _title(result: ExperimentResult) -> str:
    return f"{result.name}, control {result.control}, seeds {', '.join(map(str, result.facts['seeds']))}"


def _decisions(result: ExperimentResult) -> list[str]:
    return [f"{row['variant']}: {row['decision'].upper()}. {row['reason']}" for row in result.decisions]


def _cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of COLUMNS."""
    cells = [row["placement"], row["segment"], f"{row['metric'].upper()}@{K}", row["variant"], f"{row['users']:,}"]
    cells.append(f"{row['mean']:.4f}")
    if (change := row["change"]) is None:
        return [*cells, *[""] * 6]
    spread, least = ("" if row[name] is None else f"{row[name]:.4f}" for name in ("between_seeds", "detectable"))
    shares = (f"{row[name]:.1%}" for name in ("better", "worse"))
    return [*cells, show_interval(change, "+"), spread, f"{row['p_adjusted']:.4f}", least, *shares]


def _cells_of_lists(result: ExperimentResult) -> list[list[str]]:
    """The texts of LIST_COLUMNS."""
    return [
        [row["placement"], row["variant"], *(f"{row[n]:.3f}" if math.isfinite(row[n]) else "" for n in OF_LISTS)]
        for row in result.lists
    ]


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], is_control: Sequence[bool]) -> str:
    head = "".join(f'<th scope="col"><button>{html.escape(name)}</button></th>' for name in columns)
    body = "".join(
        f"<tr{' class=control' if control else ''}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for cells, control in zip(rows, is_control, strict=True)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _plots(result: ExperimentResult) -> str:
    """Of each placement and metric the differences by segment and the figures over time; then the lists. As SVG."""
    kinds = dict.fromkeys((row["placement"], row["metric"]) for row in result.rows)
    figures = []
    for placement, metric in kinds:
        rows = [row for row in result.rows if (row["placement"], row["metric"]) == (placement, metric)]
        name = f"{placement}: {metric.upper()}@{K}"
        by_segment = [row for row in rows if row["segment"] not in QUARTERS]
        figures.append((f"{name}, difference to {result.control}", differences_by_segment(by_segment)))
        if over_time := [row for row in rows if row["segment"] in QUARTERS]:
            figures.append((f"{name} over time", figures_by_segment(over_time)))
        if metric == "ndcg":
            means = {row["variant"]: row["mean"] for row in rows if row["segment"] == ALL}
            points = {
                row["variant"]: (means[row["variant"]], row) for row in result.lists if row["placement"] == placement
            }
            plot = accuracy_against_lists(points, dict(list(OF_LISTS.items())[:3]))
            figures.append((f"{name} against diversity, cold items and popularity of the lists", plot))
    return "".join(
        f"<figure><figcaption>{html.escape(name)}</figcaption>{plot}</figure>" for name, plot in figures if plot
    )


_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { margin: 0; background: light-dark(#fff, #14171c); color: light-dark(#1c2330, #e6e9ee) }
main { max-width: 75rem; margin: auto; padding: 1.5rem; overflow-x: auto }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2rem }
figure { margin: 1.5rem 0 } figcaption { font-weight: 600 } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid light-dark(#d9dee6, #333a45) }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " ▲" } th[aria-sort=descending] button::after { content: " ▼" }
tr.control { font-weight: 600 }
"""

_SCRIPT = """
const number = text => parseFloat(text.replaceAll(",", ""));
document.querySelectorAll("th").forEach(head => head.firstChild.addEventListener("click", () => {
  const up = head.ariaSort !== "ascending", table = head.closest("table"), column = head.cellIndex;
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.ariaSort = up ? "ascending" : "descending";
  const compare = (a, b) => {
    const [x, y] = [a, b].map(row => row.cells[column].textContent), [m, n] = [x, y].map(number);
    return (isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n) * (up ? 1 : -1);
  };
  body.append(...[...body.rows].sort(compare));
}));
"""
