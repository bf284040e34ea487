"""The metrics of the service, for Prometheus. No other module imports prometheus_client.

Where the variable PROMETHEUS_MULTIPROC_DIR names a folder, the processes that share it write their values into files
there, and each of them answers with the sums over all of them. Gauges that are 0 say nothing: a process that has set
none changes no sum and no maximum.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable; prometheus_client opens its files when this module is imported."""

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper ends of the buckets of durations."""

SHARES: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
"""Upper ends of the buckets of probabilities."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

OTHER: Final = "other"
"""Label of a path that no route has, and of an unusual method: what clients choose must not make labels."""

Metric = TypeVar("Metric", Counter, Histogram)

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"recsys_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"recsys_{name}", text, labels, registry=REGISTRY, buckets=buckets)


def _sum(name: str, text: str, *labels: str) -> Gauge:
    text = f"{text}; the sum over processes"
    return Gauge(f"recsys_{name}", text, labels, registry=REGISTRY, multiprocess_mode="livesum")


def _largest(name: str, text: str) -> Gauge:
    text = f"{text}; the largest of a process"
    return Gauge(f"recsys_{name}", text, registry=REGISTRY, multiprocess_mode="livemax")


REQUESTS = _counter("requests_total", "Requests, by route and status", "method", "route", "status")
REQUEST_SECONDS = _histogram("request_seconds", "Seconds to answer a request", SECONDS, "method", "route")
REFUSED = _counter("refused_requests_total", "Error responses, by status and code", "status", "code")
SHED = _counter("shed_requests_total", "Requests that were not begun, by reason: queue, deadline, gone", "reason")
CONNECTIONS = _sum("open_connections", "Open connections")

ANSWERS = _counter("answers_total", "Lists that were answered", "placement", "source", "degraded")
DEGRADED = _counter(
    "degraded_answers_total", "Answers that are not as they should be, by component", "placement", "component"
)
STAGE_SECONDS = _histogram("stage_seconds", "Seconds of a stage of an answer", SECONDS, "placement", "stage")
SHOWN = _counter("shown_items_total", "Items in answers, by the source that brought them", "placement", "reason")
SHOWN_COLD = _counter(
    "shown_cold_items_total", "Items in answers that had no positive event before the training", "placement"
)
SHOWN_PROBABILITY = _histogram(
    "shown_probability",
    "Mean over the items of an answer of the probability that the item is the user's next one",
    SHARES,
    *("placement", "bundle"),
)
CANDIDATES = _counter(
    "sampled_candidates_total", "Candidates of the answers whose exposure holds them (EXPOSURE_SAMPLE)", "source"
)
EVENTS = _counter("events_total", "Events that were sent, by result: accepted or rejected", "result")
UNLOGGED = _counter("unlogged_exposures_total", "Answers whose exposure the log could not take")

PROCESSES = _sum("processes", "Processes of the service")
READY = _sum("ready_processes", "Processes that answer requests: they have a bundle and can write the log")
BUNDLE = _sum("bundle_info", "Processes that serve a bundle, by its fingerprint", "version", "bundle")
BUNDLE_AGE = _largest("bundle_age_seconds", "Seconds since the newest event that the served bundle was trained on")
PROBLEMS = _sum("problems", "Processes with a note of this component in /readyz", "component")
STORE_AWAY = _sum("store_away", "Processes whose last call of the feature store failed")
STORE_LAG = _largest("store_lag_seconds", "Seconds since the store had every event of the log")
STORE_LAG_BYTES = _largest("store_lag_bytes", "Bytes of events in the log beyond the watermark of the store")
LOG_UNWRITABLE = _sum("log_unwritable", "Processes that cannot write the event log")
LOG_DISK = _largest("log_disk_used_ratio", "Used share of the disk that the event log lies on, 0 to 1")
LOG_WAITING = _sum("log_waiting_writes", "Appends that wait for the writer of the event log")
LOG_WAITING_BYTES = _sum("log_waiting_bytes", "Bytes that wait for the writer of the event log")
WAITING = _sum("waiting_requests", "Work that waits for its turn in a queue: threads or encoder", "queue")

MEMORY = _sum("process_resident_memory_bytes", "Resident memory, with memory-mapped files that are shared")
DESCRIPTORS = _sum("process_open_fds", "Open file descriptors")
MAX_DESCRIPTORS = _sum("process_max_fds", "Largest number of open file descriptors")
CPU = _counter("process_cpu_seconds_total", "Seconds of CPU time")

_process = ProcessCollector(registry=None)
_cpu = 0.0


@lru_cache(maxsize=4096)
def _series(metric: Metric, *labels: str | int) -> Metric:
    """`metric.labels`, which takes longer than to count."""
    return metric.labels(*labels)


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request. route: the template of its path, or OTHER."""
    known = method if method in METHODS else OTHER
    _series(REQUESTS, known, route, status).inc()
    _series(REQUEST_SECONDS, known, route).observe(seconds)


def count_answer(placement: str, source: str, degraded: Iterable[str], trace: Mapping[str, float]) -> None:
    """Count a list that was answered. trace: stage -> milliseconds."""
    components = [*degraded]
    _series(ANSWERS, placement, source, "true" if components else "false").inc()
    count_degraded(placement, components)
    for stage, ms in trace.items():
        _series(STAGE_SECONDS, placement, stage).observe(ms / 1e3)


def count_degraded(placement: str, components: Iterable[str]) -> None:
    """Count the components that failed for an answer; placement: "events" for events."""
    for component in components:
        _series(DEGRADED, placement, component).inc()


def count_shown(
    placement: str, reasons: Mapping[str, int], cold: int, bundle: str, probability: float | None
) -> None:
    """Count the items of an answer. reasons: source -> items; cold: items without an event before the training;
    probability: their mean one, None where it is not known."""
    for reason, items in reasons.items():
        _series(SHOWN, placement, reason).inc(items)
    _series(SHOWN_COLD, placement).inc(cold)
    if probability is not None:
        _series(SHOWN_PROBABILITY, placement, bundle).observe(probability)


def count_candidates(sources: Mapping[str, int]) -> None:
    """Count the candidates of a sampled answer: source -> candidates."""
    for source, candidates in sources.items():
        _series(CANDIDATES, source).inc(candidates)


def measure_process() -> None:
    """Set the figures of this process."""
    global _cpu
    found = {metric.name: metric.samples[0].value for metric in _process.collect()}
    MEMORY.set(found.get("process_resident_memory_bytes", 0))
    DESCRIPTORS.set(found.get("process_open_fds", 0))
    MAX_DESCRIPTORS.set(found.get("process_max_fds", 0))
    total = found.get("process_cpu_seconds", 0)
    CPU.inc(total - _cpu)
    _cpu = total


def exposition() -> bytes:
    """All metrics in the text format of Prometheus; the sums over the processes of FOLDER where it is set."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return bytes(generate_latest(REGISTRY))
    _forget_dead(Path(folder))
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry))


def _forget_dead(folder: Path) -> None:
    """Remove the gauges of processes that have ended. Their counters stay: a sum must not fall."""
    for process in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*_*.db")}:
        with suppress(PermissionError):  # it is another user's, and lives
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                mark_process_dead(int(process), str(folder))  # type: ignore[no-untyped-call]
