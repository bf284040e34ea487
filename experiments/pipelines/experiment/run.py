"""`recsys experiment run`: the cells that are missing, in processes of their own, then the result."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from experiments.dataset import load_dataset
from experiments.pipelines.experiment.cells import Cell, cells_of, groups_of, run_group
from experiments.pipelines.experiment.definition import Experiment
from experiments.pipelines.experiment.report import RESULT_FILES, write_result
from experiments.pipelines.experiment.result import ExperimentResult, result_of
from experiments.preflight import preflight
from experiments.tracking.mlflow import Tracker
from experiments.tracking.progress import Reporter
from experiments.tracking.record import OUTCOMES, metric_name, run_name
from experiments.tracking.versions import code_version
from features.errors import FileError, RecsysError, describe_os_error
from features.files import check_writable
from features.schema import CATEGORIES, ITEM

THREADS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")
"""Variables that libraries read their number of threads from when they are loaded."""


def run_experiment(
    experiment: Experiment, folder: Path, tracker: Tracker, reporter: Reporter, *, jobs: int | None = None
) -> ExperimentResult:
    """Fit and evaluate what is missing, and compare.

    folder: of the outcomes, the result, and a log of each group of cells. jobs: processes at a time, each with one
    thread; None: as many as this process may use cores. A killed run goes on where it was; an unchanged cell is not
    computed again. Raises ConfigError, DataError and FileError.
    """
    first = next(iter(experiment.configs.values()))
    preflight(first, cache=True)
    check_writable(folder, "the folder of the experiment")
    dataset = load_dataset(first, reporter.steps)
    cells = cells_of(experiment, dataset, folder, reporter)
    groups = groups_of(cells)
    done = len({cell.path for cell in cells}) - sum(map(len, groups))
    reporter.say(f"{len(cells)} cells: {done} are there, {sum(map(len, groups))} in {len(groups)} groups are missing")
    run_groups(groups, dataset.hash, folder, reporter, jobs or len(os.sched_getaffinity(0)))
    facts = {"data_hash": dataset.hash, "code_version": code_version(), "seeds": experiment.definition.seeds}
    frame = dataset.catalog.frame.select(ITEM, pl.col(CATEGORIES).list.first()).drop_nulls()
    result = result_of(experiment, cells, facts, dict(frame.iter_rows()))
    try:
        write_result(folder, result)
    except OSError as error:
        raise FileError(f"{folder}: the result cannot be written: {describe_os_error(error)}") from error
    _record(tracker, experiment, cells, result, folder)
    return result


def _record(
    tracker: Tracker, experiment: Experiment, cells: Sequence[Cell], result: ExperimentResult, folder: Path
) -> None:
    """Record a run of the experiment with its result, and in it a run of each variant with its outcomes."""
    facts = {key: str(value) for key, value in result.facts.items()}
    name, decisions = result.name, {row["variant"]: row["decision"] for row in result.decisions}
    tracker.start(name, experiment.definition.model_dump(), facts | run_name(name))
    tracker.tags({f"decision.{metric_name(variant)}": decision for variant, decision in decisions.items()})
    for variant, config in experiment.configs.items():
        run = tracker.nested()
        tags = {"mlflow.runName": variant, "decision": decisions.get(variant, "control")}
        run.start(name, config.recorded(), facts | tags)
        run.metrics(result.figures(variant))
        for cell in cells:
            if cell.variant == variant:
                run.artifact(cell.path, f"{OUTCOMES}/seed-{cell.seed}")
        run.finish()
    for file in RESULT_FILES:
        tracker.artifact(folder / file)
    tracker.finish()


def run_groups(groups: Sequence[list[Cell]], data_hash: str, folder: Path, reporter: Reporter, jobs: int) -> None:
    """Run all groups in processes that are started anew. After a failure or Ctrl-C, no other is started."""
    if not groups:
        return
    step = reporter.steps("groups", len(groups))
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread(),
        ProcessPoolExecutor(min(jobs, len(groups)), mp_context=context, max_tasks_per_child=1) as pool,
    ):
        running = {
            pool.submit(run_group, group, data_hash, folder / f"{group[0].path.stem}.log"): group for group in groups
        }
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    group = running.pop(future)
                    if (error := future.exception()) is not None:
                        raise failed(error, group)
                    reporter.say(", ".join(f"{cell.variant}, seed {cell.seed}" for cell in group) + ": done")
                    step(1)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that are started meanwhile have one thread: several with several each wait for each other."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def failed(error: BaseException, group: Sequence[Cell]) -> BaseException:
    """The error of a group, with its cells."""
    if isinstance(error, BrokenProcessPool):  # of all groups at once, so that none can be named
        return RecsysError("a process was killed, perhaps for memory: run again with fewer --jobs")
    names = ", ".join(f"{cell.variant}, seed {cell.seed}" for cell in group)
    return type(error)(f"{names}: {error}") if isinstance(error, RecsysError) else error
