"""Progress of a run on the terminal: lines and progress bars on standard error."""

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


@contextmanager
def terminal() -> Iterator[Reporter]:
    """A reporter on standard error; each bar shows its rate and the remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Terminal(bars)
