"""`recsys bench serve`: one recommendation over HTTP against its bare parts, and the service under load."""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.runner import Bar, Result
from experiments.bench.serve.parts import Parts
from experiments.bench.serve.service import (
    DEADLINE,
    EMPTY,
    RECOMMEND,
    Answers,
    Cores,
    Service,
    on_cores,
    serving,
    store_bytes,
)
from experiments.bench.serve.world import HISTORY, SHORT_USERS, USERS, World, build
from features.errors import ConfigError, RecsysError

CLIENTS = 16
"""Clients that saturate the service."""

ROUNDS = 4
"""Parts and one client are measured in turn, so often."""

WARM_SHARE = 0.1
"""Share of a load whose answers do not count: its beginning."""

OVERLOAD = 3.0
"""Requests of the overload, as a multiple of those that saturate the service."""

NORMAL, WINDOW = 1.5, 0.5
"""An overload has ended when the median of WINDOW seconds is at most NORMAL times one client's of before."""

TARGET = 2.5 * 89
"""Requests for each second of CPU: 2.5 times what version 0.2 answered."""


def run(
    *, short: bool = False, seed: int = 0, items: int = 100_000, seconds: float = 8.0, runs: int = 3, threads: int = 4
) -> Result:
    """The service with keys, a real Redis or Valkey server and the reranker, under load from another process.

    One worker has a core of its own, where the machine has several; two workers have all cores. Figures are medians
    of the runs. items: of the catalogue; seconds: of each load; threads: `THREADS` of the service. short: 1,000
    items, one run, no bars.
    """
    if seconds <= 0 or min(runs, threads) < 1 or items < 1000:
        given = f"--seconds {seconds:g} --runs {runs} --threads {threads} --items {items}"
        raise ConfigError(f"{given}: seconds above 0, runs and threads from 1, items from 1,000 on are needed")
    if short:
        items, seconds, runs = 1000, 0.5, 1
    found, cores = list[dict[str, float]](), Cores.of_machine()
    with tempfile.TemporaryDirectory(prefix="recsys-serve-") as name:
        folder = Path(name)
        world = build(folder, items, SHORT_USERS if short else USERS, "exact" if short else "hnsw", seed)
        with (
            serving(folder / "one", world, 1, threads, cores) as one,
            serving(folder / "two", world, 2, threads, cores) as two,
            on_cores(cores.service),
        ):
            parts = Parts(world.bundle, one.store, folder / "parts", one.answer(world.users[0]))
            try:
                for number in range(runs):
                    rng = np.random.default_rng([seed, number])
                    found.append(_measure(one, two, parts, world, seconds, rng))
                    print(f"run {number + 1}: {found[-1]}", file=sys.stderr, flush=True)
            finally:
                parts.close()
            sizes = _sizes(one, world, items)
    figures = {name: statistics.median(each[name] for each in found) for name in found[0]}
    described: dict[str, Any] = {
        "items": items,
        "users": len(world.users),
        "events of a user": HISTORY,
        "clients": CLIENTS,
        "threads": threads,
    }
    described |= {"cores": {name: sorted(of) for name, of in vars(cores).items()}}
    return Result({**described, **figures, **sizes}, [] if short else _bars(figures))


def _measure(
    one: Service, two: Service, parts: Parts, world: World, seconds: float, rng: np.random.Generator
) -> dict[str, float]:
    """All figures once."""
    users = rng.permutation(world.users).tolist()
    found = _one_client(one, parts, users, seconds)
    normal = found["one client: p50 ms"]
    rate, found["CPU ms a request, one worker"] = _saturated(one, users, seconds)
    found["saturation: answers a second, one worker"] = rate
    found["answers a second of CPU, one worker"] = 1e3 / found["CPU ms a request, one worker"]
    rate_of_two, found["CPU ms a request, two workers"] = _saturated(two, users, seconds)
    found["saturation: answers a second, two workers"] = rate_of_two
    found["CPU of two workers / of one"] = (
        found["CPU ms a request, two workers"] / found["CPU ms a request, one worker"]
    )
    half = one.load(RECOMMEND, users, arrivals=arrivals(rate / 2, 2 * seconds, rng))
    found |= _half(half, normal)
    over = one.load(RECOMMEND, users, arrivals=arrivals(OVERLOAD * rate, seconds, rng))
    after = one.load(RECOMMEND, users, clients=1, seconds=seconds / 2)
    found |= _overload(over, seconds) | {"overload: seconds until normal": until_normal(over, after, normal)}
    return found | {"load average": os.getloadavg()[0]}


def _one_client(service: Service, parts: Parts, users: list[str], seconds: float) -> dict[str, float]:
    """One client and the bare parts, in turn. Raises RecsysError when most of its answers are not whole."""
    empty, asked, cpu = list[Answers](), list[Answers](), dict.fromkeys((EMPTY, RECOMMEND), 0.0)
    for turn in range(ROUNDS):
        parts.measure(users[turn::ROUNDS][:50])
        for path, answers, length in ((EMPTY, empty, seconds / 8), (RECOMMEND, asked, seconds / 2)):
            before = service.cpu_seconds()
            answers.append(service.load(path, users, clients=1, seconds=length))
            cpu[path] += service.cpu_seconds() - before
    whole = np.concatenate([answers.whole for answers in asked])
    if whole.mean() < 0.5:
        raise RecsysError("bench serve: most answers to one client are not whole: the store or the model failed")
    bare = {"empty route": {"ms": _ms(empty, 0.5), "CPU ms": 1e3 * cpu[EMPTY] / sum(map(len, empty))}}
    bare |= parts.medians()
    one = {"ms": _ms(asked, 0.5), "CPU ms": 1e3 * cpu[RECOMMEND] / len(whole)}
    sums = {unit: sum(part[unit] for part in bare.values()) for unit in one}
    return {
        **{f"part: {name} {unit}": value for name, part in bare.items() for unit, value in part.items()},
        **{f"parts: sum {unit}": value for unit, value in sums.items()},
        "one client: p50 ms": one["ms"],
        "one client: p99 ms": _ms(asked, 0.99),
        "one client: CPU ms": one["CPU ms"],
        "one client: degraded": float((~whole).sum()),
        "one client / parts": one["ms"] / sums["ms"],
        "one client / parts, CPU": one["CPU ms"] / sums["CPU ms"],
    }


def _ms(answers: list[Answers], q: float) -> float:
    """A quantile of the answers of several loads, without their beginnings."""
    warm = [each.seconds[each.at > WARM_SHARE * each.at.max()] for each in answers]
    return float(np.quantile(np.concatenate(warm), q) * 1e3)


def _saturated(service: Service, users: list[str], seconds: float) -> tuple[float, float]:
    """Answers a second with many clients, and milliseconds of CPU for each."""
    before = service.cpu_seconds()
    answers = service.load(RECOMMEND, users, clients=CLIENTS, seconds=seconds)
    cpu, n = service.cpu_seconds() - before, int(answers.accepted.sum())
    return n / float((answers.at + answers.seconds).max()), 1e3 * cpu / n


def arrivals(rate: float, seconds: float, rng: np.random.Generator) -> list[float]:
    """Seconds at which independent visitors ask, so many a second: a Poisson process."""
    gaps: list[float] = np.cumsum(rng.exponential(1 / rate, int(rate * seconds))).tolist()
    return gaps


def _half(answers: Answers, normal: float) -> dict[str, float]:
    """Figures of a load of half of saturation. normal: one client's median (ms)."""
    return {
        "half of saturation: p50 ms": answers.ms(0.5),
        "half of saturation: p99 ms": answers.ms(0.99),
        "half of saturation: p50 / one client": answers.ms(0.5) / normal,
        "half of saturation: p99 / one client": answers.ms(0.99) / normal,
        "half of saturation: not accepted": float(answers.asked - answers.accepted.sum()),
        "half of saturation: degraded": float((answers.accepted & ~answers.whole).sum()),
        "half of saturation: sent late, p99 ms": float(np.quantile(answers.late, 0.99) * 1e3),
    }


def _overload(answers: Answers, seconds: float) -> dict[str, float]:
    """Figures of a load beyond saturation."""
    refusals = answers.seconds[answers.refused]
    return {
        "overload: asked a second": answers.asked / seconds,
        "overload: accepted a second": float(answers.accepted.sum() / (answers.at + answers.seconds).max()),
        "overload: accepted p99 ms": answers.ms(0.99),
        "overload: refused": float(len(refusals)),
        "overload: refusals p95 ms": float(np.quantile(refusals, 0.95) * 1e3) if len(refusals) else float("nan"),
        "overload: degraded": float((answers.accepted & ~answers.whole).sum()),
        "overload: neither accepted nor refused": float(
            answers.asked - answers.accepted.sum() - answers.refused.sum()
        ),
        "overload: sent late, p99 ms": float(np.quantile(answers.late, 0.99) * 1e3),
    }


def until_normal(over: Answers, after: Answers, normal: float) -> float:
    """Seconds from the last request of an overload until the median of WINDOW is as before; inf for never.

    after: answers to one client, asked when all answers of the overload had come; normal: its median (ms) before.
    """
    waited = float((over.at + over.seconds).max() - over.at.max())
    for at in np.sort(after.at):
        window = after[(after.at >= at) & (after.at < at + WINDOW)]
        if window.ms(0.5) <= NORMAL * normal:
            return waited + float(at)
    return float("inf")


def _sizes(service: Service, world: World, items: int) -> dict[str, Any]:
    """Memory of a worker and of the store."""
    memory, used = service.megabytes(), store_bytes(service, world)
    return {
        "memory of a worker, MB": memory,
        "store: bytes a user": used / len(world.users),
        "bundle on disk: bytes an item": sum(file.stat().st_size for file in world.bundle.iterdir()) / items,
    }


def _bars(figures: dict[str, float]) -> list[Bar]:
    limits = {
        "one client / parts": ("<=", 1.3),
        "half of saturation: p50 / one client": ("<=", 1.5),
        "half of saturation: p99 / one client": ("<=", 5.0),
        "CPU of two workers / of one": ("<=", 1.15),
        "answers a second of CPU, one worker": (">=", TARGET),
        "overload: accepted p99 ms": ("<=", 1e3 * DEADLINE),
        "overload: refusals p95 ms": ("<=", 100.0),
        "overload: neither accepted nor refused": ("==", 0.0),
        "overload: seconds until normal": ("<=", 2.0),
    }
    return [Bar(name, figures[name], op, limit) for name, (op, limit) in limits.items()]
