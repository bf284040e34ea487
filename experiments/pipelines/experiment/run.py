"""`recsys experiment run`: the cells that are missing, in processes of their own, then the result."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from experiments.dataset import load_dataset
from experiments.pipelines.experiment.cells import Cell, cells_of, groups_of, run_group
from experiments.pipelines.experiment.definition import Experiment
from experiments.pipelines.experiment.result import ExperimentResult, result_of, write_result
from experiments.pipelines.train import code_version
from experiments.preflight import preflight
from experiments.tracking.progress import Reporter
from features.errors import FileError, RecsysError, describe_os_error
from features.files import check_writable


def run_experiment(
    experiment: Experiment, folder: Path, reporter: Reporter, *, jobs: int | None = None
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
    cells = cells_of(experiment, dataset.hash, folder)
    groups = groups_of(cells)
    done = len({cell.path for cell in cells}) - sum(map(len, groups))
    reporter.say(f"{len(cells)} cells: {done} are there, {sum(map(len, groups))} in {len(groups)} groups are missing")
    _run(groups, folder, reporter, jobs or len(os.sched_getaffinity(0)))
    facts = {"data_hash": dataset.hash, "code_version": code_version(), "seeds": experiment.definition.seeds}
    result = result_of(experiment, cells, facts)
    try:
        write_result(folder, result)
    except OSError as error:
        raise FileError(f"{folder}: the result cannot be written: {describe_os_error(error)}") from error
    return result


def _run(groups: Sequence[list[Cell]], folder: Path, reporter: Reporter, jobs: int) -> None:
    """Run all groups in processes that are started anew. After a failure, no other is started."""
    if not groups:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: several with several threads each wait for each other
    step = reporter.steps("groups", len(groups))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(groups)), mp_context=context, max_tasks_per_child=1) as pool:
        running = {pool.submit(run_group, group, folder / f"{group[0].path.stem}.log"): group for group in groups}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                group = running.pop(future)
                if (error := future.exception()) is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise failed(error, group)
                reporter.say(", ".join(f"{cell.variant}, seed {cell.seed}" for cell in group) + ": done")
                step(1)


def failed(error: BaseException, group: Sequence[Cell]) -> BaseException:
    """The error of a group, with its cells."""
    names = ", ".join(f"{cell.variant}, seed {cell.seed}" for cell in group)
    if isinstance(error, BrokenProcessPool):
        return RecsysError(f"{names}: the process was killed, perhaps for memory: run again with fewer --jobs")
    return type(error)(f"{names}: {error}") if isinstance(error, RecsysError) else error
