"""The result of an experiment for people: a table, text for a pull request, and a page that asks no other host."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.evaluation.ranking import K, show_interval
from experiments.pipelines.experiment.result import ExperimentResult
from experiments.tracking.plots import differences_by_segment

RESULT_FILES = ("result.json", "result.md", "result.html")

COLUMNS = ("placement", "segment", "metric", "variant", "users", "mean", "Δ", "between seeds", "p", "detectable")

NOTE = (
    "Brackets: 95 % interval over users, and over seeds where there are several. Δ: minus the control, paired by "
    "event and user. p: permutation test over users, adjusted by Holm's method over all events and by Benjamini and "
    "Hochberg's over segments. Detectable: the difference that so many users show with a probability of 80 %."
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
    return "\n".join([*lines, "", NOTE, ""])


def page(result: ExperimentResult) -> str:
    """A page of its own, light or dark as the reader's system is; a click on a column sorts by it."""
    decisions = "".join(f"<li>{html.escape(line)}</li>" for line in _decisions(result))
    head = "".join(f'<th scope="col"><button>{html.escape(name)}</button></th>' for name in COLUMNS)
    rows = "".join(
        f"<tr{' class=control' if row['variant'] == result.control else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))
        + "</tr>"
        for row in result.rows
    )
    title = html.escape(_title(result))
    facts = html.escape(json.dumps(result.facts))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><main><h1>{title}</h1>'
        f"<ul>{decisions}</ul>{_plots(result)}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{html.escape(NOTE)}</p><p><code>{facts}</code></p></main><script>{_SCRIPT}</script></html>\n"
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
        return [*cells, "", "", "", ""]
    spread, least = ("" if row[name] is None else f"{row[name]:.4f}" for name in ("between_seeds", "detectable"))
    return [*cells, show_interval(change, "+"), spread, f"{row['p_adjusted']:.4f}", least]


def _plots(result: ExperimentResult) -> str:
    """The differences with their intervals by segment, a figure of each placement and metric, as SVG."""
    kinds = dict.fromkeys((row["placement"], row["metric"]) for row in result.rows)
    figures = []
    for placement, metric in kinds:
        rows = [row for row in result.rows if (row["placement"], row["metric"]) == (placement, metric)]
        name = html.escape(f"{placement}: {metric.upper()}@{K}, difference to {result.control}")
        figures.append(f"<figure><figcaption>{name}</figcaption>{differences_by_segment(rows)}</figure>")
    return "".join(figures)


_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { margin: 0; background: light-dark(#fff, #14171c); color: light-dark(#1c2330, #e6e9ee) }
main { max-width: 75rem; margin: auto; padding: 1.5rem; overflow-x: auto }
h1 { font-size: 1.4rem }
figure { margin: 1.5rem 0 } figcaption { font-weight: 600 } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid light-dark(#d9dee6, #333a45) }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " ▲" } th[aria-sort=descending] button::after { content: " ▼" }
tr.control { font-weight: 600 }
"""

_SCRIPT = """
const number = text => parseFloat(text.replaceAll(",", ""));
document.querySelectorAll("th").forEach((head, column) => head.firstChild.addEventListener("click", () => {
  const up = head.ariaSort !== "ascending", body = document.querySelector("tbody");
  document.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.ariaSort = up ? "ascending" : "descending";
  const compare = (a, b) => {
    const [x, y] = [a, b].map(row => row.cells[column].textContent), [m, n] = [x, y].map(number);
    return (isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n) * (up ? 1 : -1);
  };
  body.append(...[...body.rows].sort(compare));
}));
"""
