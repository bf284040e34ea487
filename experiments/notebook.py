"""Experiments from Python, for notebooks: what the commands of the same names do, as objects.

`frame(result)` is the table of a result in polars. Examples: `examples/experiment.py`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import polars as pl

from experiments.evaluation.off_policy.judgement import Judgement, judge
from experiments.evaluation.off_policy.policies import of_bundle
from experiments.evaluation.off_policy.slots import read_slots
from experiments.evaluation.outcomes import PairedComparison, compare_outcomes
from experiments.pipelines.batch_slates import load_served
from experiments.pipelines.experiment.definition import load_experiment
from experiments.pipelines.experiment.result import ExperimentResult
from experiments.pipelines.experiment.run import run_experiment
from experiments.tracking.mlflow import MlflowTracker, NullTracker
from experiments.tracking.progress import Reporter, terminal
from experiments.tracking.recorded import RunArchive, outcomes_of
from features.progress import silent
from recsys.bundle.formats import MANIFEST
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import find_bundle

BUNDLES = Path("bundles")


def run(
    file: Path | str,
    *,
    out: Path | str | None = None,
    jobs: int | None = None,
    track: bool = True,
    reporter: Reporter | None = None,
) -> ExperimentResult:
    """Compare the variants of a file with several seeds, as `recsys experiment run` does.

    out: folder of outcomes and result, data/experiments/NAME by default; jobs: processes at a time, one for each core
    by default; track: whether it is recorded in MLflow. Raises ConfigError, DataError and FileError.
    """
    experiment = load_experiment(Path(file))
    folder = folder_of(experiment.definition.name) if out is None else Path(out)
    tracker = MlflowTracker() if track else NullTracker()
    with terminal() if reporter is None else nullcontext(reporter) as shown:
        return run_experiment(experiment, folder, tracker, shown, jobs=jobs)


def folder_of(name: str) -> Path:
    """Where the outcomes and the result of an experiment are, unless another folder is given."""
    return Path("data/experiments") / name


def compare(
    first: Path | str, second: Path | str, *, model: str | None = None, bundles: Path | str = BUNDLES
) -> PairedComparison:
    """The second evaluation minus the first, event by event.

    Each is a run in MLflow, a bundle, or a file of outcomes. model: this one only; bundles: their folder. Raises
    DataError.
    """
    archive = RunArchive()
    files = [outcomes_of(archive, str(name), Path(bundles)) for name in (first, second)]
    return compare_outcomes(*files, model=model)


def ope(
    outcomes: Path | str,
    event: str,
    names: Sequence[str] = (),
    *,
    bundles: Path | str = BUNDLES,
    log: Path | str = "state/log",
    reporter: Reporter | None = None,
) -> Judgement:
    """What other bundles would have earned on the explored slots of a log.

    outcomes: a file of `recsys log outcomes`; event: the type that is the reward; names: of the bundles, each a
    fingerprint, the beginning of one, or a folder; log: the folder that the outcomes are of. Answers until the newest
    event that a bundle was trained on are left out. Raises DataError,
    BundleError and LogError.
    """
    paths = [Path(name) if (Path(name) / MANIFEST).is_file() else find_bundle(Path(bundles), name) for name in names]
    judged = [load_bundle(path) for path in paths]
    until = max((bundle.recommender.fitted_until for bundle in judged), default=None)
    slots, policies = read_slots(Path(outcomes), Path(log), event, until), []
    for bundle in judged:
        served = load_served(bundle, silent if reporter is None else reporter.steps, Path(log))
        policies.append(of_bundle(bundle.fingerprint, bundle, served, slots))
    return judge(slots, event, policies)


def frame(result: ExperimentResult | PairedComparison | Judgement) -> pl.DataFrame:
    """The rows of a result as a table; the parts of an interval are columns, such as `change_low`."""
    facts = result.to_dict()
    return pl.json_normalize(facts["policies" if isinstance(result, Judgement) else "rows"], separator="_")
