"""Progress where there is no terminal: lines from time to time."""

import io

from rich.console import Console

from experiments.config import RunConfig
from experiments.pipelines.train import stage_names
from experiments.tracking.progress import Lines, Stages


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
