"""Progress of a run on standard error: lines and bars on a terminal, lines alone in a file or a pipe."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from features.progress import Step


class Reporter(Protocol):
    """Shows the progress of a run to a person."""

    def say(self, text: str) -> None:
        """Print one line."""
        ...

    def steps(self, description: str, total: int) -> Step:
        """Add a progress bar; the returned function advances it by a number of steps."""
        ...


class Rate(ProgressColumn):
    """Column with the rate of a bar, in steps per second."""

    def render(self, task: Task) -> Text:
        """The rate; from 10 steps per second on, as a whole number."""
        speed = task.speed or 0
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")


class Terminal:
    """Prints lines above the bars. A bar is removed when it is full."""

    def __init__(self, bars: Progress) -> None:
        """bars: the display, which is already started."""
        self._bars = bars

    def say(self, text: str) -> None:
        """Print one line."""
        self._bars.console.print(text, markup=False, highlight=False)

    def steps(self, description: str, total: int) -> Callable[[int], None]:
        """Add a bar; the returned function advances it by a number of steps."""
        bars = self._bars
        task = bars.add_task(description, total=total)

        def step(done: int) -> None:
            bars.update(task, advance=done)
            if bars.tasks[bars.task_ids.index(task)].finished:
                bars.remove_task(task)

        return step


LINE_SECONDS = 10.0
"""Seconds between two lines of one task where there are no bars."""


class Lines:
    """Prints lines only, for a file or a pipe: of a long task one every LINE_SECONDS, and one when it is done."""

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        """now: a clock in seconds."""
        self._console, self._now = console, now

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def steps(self, description: str, total: int) -> Callable[[int], None]:
        """A function that counts steps of a task and prints the sum from time to time."""
        started = shown = self._now()
        count, printed = 0, False

        def step(done: int) -> None:
            nonlocal shown, count, printed
            count, now = count + done, self._now()
            if now - shown >= LINE_SECONDS or (printed and count >= total):
                shown, printed = now, True
                share = f" ({count / total:.0%})" if total else ""
                rate = count / max(now - started, 1e-9)
                self.say(f"{description}: {count:,} of {total:,}{share}, {rate:,.3g}/s")

        return step


class Stages:
    """Announces the stages of a run, each with its number: `stage 2 of 5: ...`."""

    def __init__(self, reporter: Reporter, names: Sequence[str]) -> None:
        """names: what each stage does, in order."""
        self._reporter, self._names, self._number = reporter, names, 0

    def next(self) -> None:
        """Announce the next stage."""
        self._number += 1
        self._reporter.say(f"stage {self._number} of {len(self._names)}: {self._names[self._number - 1]}")


@contextmanager
def terminal() -> Iterator[Reporter]:
    """A reporter on standard error. On a terminal each bar shows its rate and the remaining time."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield Terminal(bars)
