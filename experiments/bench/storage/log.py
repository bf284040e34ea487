"""Appends to the event log a second, and what a start reads of a log with few and with many exposures behind it.

Exposures have twenty items, about 1 kB each. Between them, 100 items are put again and again. The log is pruned
before the starts are measured, as the service does every hour. A start opens the log for writing and reads the item
changes.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread

from experiments.bench.runner import Bar, Result
from features.errors import ConfigError
from features.log.event_log import EventLog
from features.log.item_feed import item_changes
from features.log.records import Event, Exposure, ItemPut, Record
from features.log.upkeep.prune import prune

FEW, MANY, SHORT_MANY = 10_000, 1_000_000, 30_000
WRITERS, APPENDS, SHORT_APPENDS = 16, 2_000, 200
BATCH = 1_000
STARTS = 51
ITEMS = 100


def run(*, short: bool = False, exposures: int | None = None) -> Result:
    """Figures of appends by 16 threads, of one event each and of events and exposures in turn, and of starts.

    exposures: number behind the larger log: a million, or 30,000 when short.
    """
    many = exposures or (SHORT_MANY if short else MANY)
    if many < FEW:
        raise ConfigError(f"bench log --exposures {many}: give {FEW} or more; the smaller log has that many")
    appends = SHORT_APPENDS if short else APPENDS
    figures: dict[str, object] = {
        "events_per_second": _appends(appends, lambda n: [_event(n)]),
        "events_and_exposures_per_second": _appends(appends, lambda n: [_exposure(n) if n % 2 else _event(n)]),
    }
    starts = dict[int, tuple[int, float]]()
    with tempfile.TemporaryDirectory() as name:
        folders = {number: Path(name) / str(number) for number in (FEW, many)}
        for number, folder in folders.items():
            _fill(folder, number)
        for number, (read, seconds) in _starts(folders).items():
            figures[f"start_after_{number}_exposures"] = {"bytes_read": read, "cpu_seconds": round(seconds, 5)}
            starts[number] = read, seconds
    ratios = [starts[many][i] / starts[FEW][i] for i in range(2)]
    names = ("bytes that a start reads, many over few", "CPU time of a start, many over few")
    return Result(figures, [Bar(name, ratio, "<=", 1.2) for name, ratio in zip(names, ratios, strict=True)])


def _appends(number: int, records: Callable[[int], Sequence[Record]]) -> int:
    """Appends a second of WRITERS threads, each of which waits until its records are on disk."""
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder))

        def append() -> None:
            for n in range(number):
                log.append_now(records(n))

        threads = [Thread(target=append) for _ in range(WRITERS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        log.close()
    return round(WRITERS * number / seconds)


def _fill(folder: Path, exposures: int) -> None:
    """Write and prune a log."""
    log = EventLog(folder)
    for start in range(0, exposures, BATCH):
        log.append_now([_exposure(n) for n in range(start, start + BATCH)])
        fields = {"title": f"title {start}" * 5}
        log.append_now([ItemPut(item_id=str(n), timestamp=start, fields=fields) for n in range(ITEMS)])
    log.close()
    prune(folder, {})


def _starts(folders: Mapping[int, Path]) -> dict[int, tuple[int, float]]:
    """Bytes that one start of each log reads, and the median CPU seconds of STARTS of them, in turn."""
    read, seconds = dict.fromkeys(folders, 0), {number: list[float]() for number in folders}
    for _ in range(STARTS):
        for number, folder in folders.items():
            before, started = _bytes_read(), time.process_time()
            EventLog(folder).close()
            item_changes(folder)
            seconds[number].append(time.process_time() - started)
            read[number] += _bytes_read() - before
    return {number: (read[number] // STARTS, statistics.median(seconds[number])) for number in folders}


def _bytes_read() -> int:
    """Bytes that this process has read so far. Raises ConfigError where the system does not tell."""
    file = Path("/proc/self/io")
    if not file.exists():
        raise ConfigError(f"bench log needs {file}, which Linux has")
    return int(file.read_text().split("rchar: ")[1].split()[0])


def _event(number: int) -> Event:
    return Event(user_id=f"u{number}", item_id="item", event="click", timestamp=number, event_id=f"e{number}")


def _exposure(number: int) -> Exposure:
    items = tuple(f"item-{number + n}" for n in range(20))
    numbers = tuple(1 / (n + number % 7 + 1) for n in range(20))
    return Exposure(
        request_id=f"request-{number}",
        user_id=f"u{number}",
        placement="home",
        timestamp=number,
        fingerprint="0123456789abcdef",
        variant="default",
        source="model",
        degraded=(),
        items=items,
        scores=numbers,
        propensities=numbers,
    )
