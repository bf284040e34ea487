"""What a person at a terminal sees of a run: lines and progress bars on standard error."""

from collections.abc import Callable, Iterator
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
    """Tells a person how a run goes on."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def steps(self, what: str, total: int) -> Step:
        """A progress bar; call what it returns with the size of each step done."""
        ...


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """Whole ones where they are many."""
        speed = task.speed or 0
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")


class Terminal:
    """Lines above the bars; each bar is gone when it is full."""

    def __init__(self, bars: Progress) -> None:
        """On bars that are shown."""
        self._bars = bars

    def say(self, text: str) -> None:
        """One line."""
        self._bars.console.print(text, markup=False, highlight=False)

    def steps(self, what: str, total: int) -> Callable[[int], None]:
        """A new bar; call what it returns with the size of each step done."""
        bars = self._bars
        task = bars.add_task(what, total=total)

        def step(done: int) -> None:
            bars.update(task, advance=done)
            if bars.tasks[bars.task_ids.index(task)].finished:
                bars.remove_task(task)

        return step


@contextmanager
def terminal() -> Iterator[Reporter]:
    """Rate and time left of whatever takes long, as long as it takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Terminal(bars)
