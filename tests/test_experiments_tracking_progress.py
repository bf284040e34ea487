"""Progress where there is no terminal: lines from time to time."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn

from experiments.config import RunConfig
from experiments.pipelines.train import stage_names
from experiments.tracking import progress
from experiments.tracking.progress import Lines, Rate, Stages, Terminal


class Clock:
    """A clock that the test advances."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_long_task_is_told_every_ten_seconds_and_at_its_end() -> None:
    clock, console = Clock(), Console(file=io.StringIO(), width=20)
    step = Lines(console, clock).steps("embed image [x]", 1_000)
    for _ in range(10):
        clock.seconds += 3
        step(100)
    assert lines_of(console) == [
        "embed image [x]: 400 of 1,000 (40%), 33.3/s",
        "embed image [x]: 800 of 1,000 (80%), 33.3/s",
        "embed image [x]: 1,000 of 1,000 (100%), 33.3/s",
    ]


def test_a_short_task_is_not_told() -> None:
    clock, console = Clock(), Console(file=io.StringIO())
    step = Lines(console, clock).steps("reading", 2)
    clock.seconds = 9
    step(2)
    assert lines_of(console) == []


def test_stages_are_numbered() -> None:
    console = Console(file=io.StringIO())
    stages = Stages(Lines(console), ["read", "write"])
    stages.next()
    stages.next()
    assert lines_of(console) == ["stage 1 of 2: read", "stage 2 of 2: write"]


def test_the_stages_of_a_training_depend_on_its_configuration() -> None:
    data = {"source": "folder", "path": ".", "events": {"positive": {"take": None}}}
    full = RunConfig.model_validate({"name": "x", "data": data})
    bare = RunConfig.model_validate({"name": "x", "data": data, "encoder": None, "split": {"kind": "leave-last-out"}})
    assert len(stage_names(full)) == 5
    assert len(stage_names(bare)) == 3
    assert set(stage_names(bare)) < set(stage_names(full))


def test_the_rate_of_a_bar() -> None:
    def shown(speed: float | None) -> str:
        task: Any = SimpleNamespace(speed=speed)
        return Rate().render(task).plain

    speeds = (None, 0.0, 0.123, 9.94, 10.0, 10.6, 1234.5)
    assert [shown(speed) for speed in speeds] == ["0/s", "0/s", "0.12/s", "9.9/s", "10/s", "11/s", "1,234/s"]


def test_a_full_bar_is_removed_and_others_stay() -> None:
    console = Console(file=io.StringIO(), width=60)
    with Progress(TextColumn("{task.description}"), console=console, auto_refresh=False) as bars:
        terminal = Terminal(bars)
        first, second = terminal.steps("one", 3), terminal.steps("two", 2)
        first(2)
        assert [(task.description, task.completed, task.total) for task in bars.tasks] == [
            ("one", 2, 3),
            ("two", 0, 2),
        ]
        first(1)
        assert [task.description for task in bars.tasks] == ["two"]
        second(1)
        assert [task.completed for task in bars.tasks] == [1]
        terminal.say("[x] 3 of 4")
    assert "[x] 3 of 4" in console.file.getvalue()  # type: ignore[attr-defined]


def test_bars_are_shown_on_a_terminal_alone(monkeypatch: Any) -> None:
    def opened(is_terminal: bool) -> object:
        console = Console(file=io.StringIO(), force_terminal=is_terminal)
        monkeypatch.setattr(progress, "Console", lambda stderr: console if stderr else None)
        with progress.terminal() as reporter:
            return reporter

    assert isinstance(opened(False), Lines)
    bars = opened(True)
    assert isinstance(bars, Terminal)
    assert bars._bars.live.transient
    names = [type(column).__name__ for column in bars._bars.columns]
    assert names == ["TextColumn", "BarColumn", "MofNCompleteColumn", "Rate", "TimeRemainingColumn"]
    description: Any = bars._bars.columns[0]
    assert description.text_format == "{task.description}"
