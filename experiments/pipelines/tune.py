"""Hyper-parameter search: Optuna proposes settings of the towers, and the newest validation window evaluates them.

The sampler is TPE (Bergstra et al. 2011), the pruner is the median rule (Golovin et al. 2017), and the objective is
NDCG@10 of the first placement on validation. Test events are not read. Each trial is on disk when it ends, and the
same search continues from there when it is started again. A search must run in one process at a time: it treats a
running trial of another process as lost.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from pydantic import ValidationError
from rich.console import Group
from rich.table import Table
from rich.text import Text

from experiments.config import RunConfig
from experiments.dataset import Dataset, encode_contents, load_dataset
from experiments.pipelines.fit import select_model
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.pipelines.train import report_dataset, run_tags
from experiments.preflight import preflight
from experiments.splits import Split
from experiments.tracking.mlflow import Tracker
from experiments.tracking.progress import Reporter
from experiments.tracking.record import run_name
from features.errors import ConfigError, FileError, describe_sqlite_error
from recsys.towers import distributed

SEARCH_SPACE: dict[str, BaseDistribution] = {
    "towers.dimension": CategoricalDistribution((32, 64, 128)),
    "towers.layers": IntDistribution(1, 3),
    "towers.dropout": FloatDistribution(0.0, 0.6),
    "towers.id_dropout": FloatDistribution(0.0, 0.5),
    "training.learning_rate": FloatDistribution(3e-4, 1e-2, log=True),
    "training.weight_decay": CategoricalDistribution((0.0, 0.01, 0.1)),
    "training.batch_events": CategoricalDistribution((1024, 2048, 4096, 8192)),
    "training.negatives": CategoricalDistribution((0, 256, 1024)),
}
"""Range of each setting. The configuration's own value is added to the range and tried first."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

Settings = dict[str, Any]
"""Key of SEARCH_SPACE -> value."""


@dataclass(frozen=True)
class Trial:
    """One trial that has ended.

    state: complete or pruned; ndcg_at_10: of its best epoch, on validation; passes: number of epochs; seconds: of all
    epochs.
    """

    number: int
    state: str
    ndcg_at_10: float
    passes: int
    seconds: float
    settings: Settings


@dataclass(frozen=True)
class TuningResult:
    """trials: complete ones first, each kind by descending NDCG@10; best: the best settings as YAML sections."""

    trials: tuple[Trial, ...]
    best: str

    def render(self) -> Group:
        """The trials and the best settings for a rich console."""
        keys = list(self.trials[0].settings)
        table = Table("trial", "state", "NDCG@10", "passes", "seconds", *keys, title="on validation, best first")
        for trial in self.trials:
            figures = (str(trial.number), trial.state, f"{trial.ndcg_at_10:.4f}", str(trial.passes))
            values = (f"{value:g}" for value in trial.settings.values())
            table.add_row(*figures, f"{trial.seconds:.0f}", *values)
        return Group(table, Text(self.best.rstrip()))


def tune(
    config: RunConfig,
    tracker: Tracker,
    reporter: Reporter,
    *,
    trials: int,
    minutes: float | None = None,
    only: Sequence[str] = (),
) -> TuningResult:
    """Run trials until `trials` of them have ended, including those of earlier calls, or `minutes` have passed.

    only: keys of SEARCH_SPACE; empty: all. No trial starts after `minutes`, except the very first one. Each trial is
    tracked as a nested run of the run of the search. Raises ConfigError for an unknown key or under torchrun, and
    whatever a training raises.
    """
    if distributed.size() > 1:  # pruning ends a trial in this process only: the others would wait for it
        raise ConfigError("a search runs in one process: start it without torchrun")
    space = _space(config, only)
    preflight(config, cache=True)
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    dataset, splits = evaluation_windows(config, dataset)[-1]
    dataset = encode_contents(dataset, config, reporter.steps)
    name, split = next(iter(splits.items()))
    facts = run_tags(config, dataset)
    study = _study(config, space, facts)
    step = reporter.steps("trials", trials)
    step(n_before := len(study.get_trials(states=ENDED)))
    started = time.monotonic()
    tracker.start(f"{config.name} tune", config.recorded(), facts | run_name("tune"))
    try:
        for _ in range(n_before, trials):
            late = minutes is not None and time.monotonic() - started > 60 * minutes
            if late and study.get_trials(states=ENDED):  # one trial at least, so that there is a result
                break
            trial = study.ask(space)
            try:
                study.tell(trial, _run_trial(config, dataset, {name: split}, trial, tracker.nested(), reporter))
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
            except Exception:  # not retried: it would fail again
                study.tell(trial, state=TrialState.FAIL)
                raise
            step(1)
        result = _collect(config, study)
        tracker.metrics({"ndcg_at_10": result.trials[0].ndcg_at_10, "trials": len(result.trials)})
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    return result


def _space(config: RunConfig, only: Sequence[str]) -> dict[str, BaseDistribution]:
    """The distribution of each setting to search, extended by the configured value."""
    if unknown := [key for key in only if key not in SEARCH_SPACE]:
        raise ConfigError(f"no setting {unknown[0]!r} is searched; choose from: {', '.join(SEARCH_SPACE)}")
    out: dict[str, BaseDistribution] = {}
    for key in only or SEARCH_SPACE:
        distribution, configured = SEARCH_SPACE[key], _configured(config, key)
        if isinstance(distribution, CategoricalDistribution):
            others = (
                value for value in distribution.choices if value != configured and _is_valid(config, key, value)
            )
            out[key] = CategoricalDistribution((configured, *others))
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            low, high = min(distribution.low, configured), max(distribution.high, configured)
            out[key] = type(distribution)(low, high, log=distribution.log)
    return out


def _configured(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _is_valid(config: RunConfig, key: str, value: Any) -> bool:
    """Whether the value goes with the other settings: a dimension below `towers.nested` does not, for example."""
    try:
        config.changed({key: value})
    except ValidationError:
        return False
    return True


def _study(config: RunConfig, space: dict[str, BaseDistribution], facts: dict[str, str]) -> optuna.Study:
    """The study of this configuration, space, data and commit, with the trials that were run before.

    Uncommitted changes of the code are not distinguished: do not continue a search after changing the code.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = Path(config.cache) / "tune.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    distributions = {key: optuna.distributions.distribution_to_json(kind) for key, kind in space.items()}
    identity = json.dumps([config.model_dump(mode="json"), distributions, facts], sort_keys=True)
    try:
        study = optuna.create_study(
            study_name=f"{config.name} {hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            storage=f"sqlite:///{file}",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=3),  # prunes from the third epoch on
            load_if_exists=True,
        )
    except Exception as error:  # of Optuna, SQLAlchemy or SQLite
        reason = describe_sqlite_error(getattr(error, "orig", None) or error.__cause__ or error)
        raise FileError(f"{file}: the trials cannot be read: {reason}; without the file they start anew") from error
    for lost in study.get_trials(states=(TrialState.RUNNING,)):  # their process was killed
        study.tell(lost.number, state=TrialState.FAIL)
        study.enqueue_trial(lost.params)
    # with the same seed, a new sampler would repeat its earlier proposals
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
    study.enqueue_trial({key: _configured(config, key) for key in space}, skip_if_exists=True)
    return study


def _run_trial(
    config: RunConfig,
    dataset: Dataset,
    splits: dict[str, Split],
    trial: optuna.Trial,
    tracker: Tracker,
    reporter: Reporter,
) -> float:
    """Run one trial: NDCG@10 of its best epoch, without the reranker.

    Raises TrialPruned when the trial is below the median of the others at the same epoch.
    """
    settings = {key: _rounded(value, _configured(config, key)) for key, value in trial.params.items()}
    trial_config = config.changed(settings).model_copy(update={"reranker": None})
    trial.set_user_attr("settings", settings)
    tags = {"trial": str(trial.number), "mlflow.runName": f"trial {trial.number}"}
    tracker.start(f"{config.name} tune", settings, tags)
    lines: list[dict[str, float]] = []

    def report(line: dict[str, float]) -> None:
        lines.append(line)
        epoch = int(line["epoch"])
        tracker.metrics(line, epoch)
        trial.report(line["ndcg_at_10"], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        select_model(trial_config, dataset, splits, report, reporter.steps)
    except optuna.TrialPruned:
        tracker.finish(pruned=True)
        raise
    except BaseException:
        tracker.finish(failed=True)
        raise
    finally:
        best = max((line["ndcg_at_10"] for line in lines), default=0.0)
        trial.set_user_attr("seconds", sum(line["seconds"] for line in lines))
        description = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        reporter.say(f"trial {trial.number}: NDCG@10 {best:.4f} after {len(lines)} epochs; {description}")
    tracker.finish()
    return best


def _rounded(value: Any, configured: Any) -> Any:
    """A proposed float rounded to three digits, so that the printed value is the one that was tried.

    The configured value itself is not rounded.
    """
    return float(f"{value:.3g}") if isinstance(value, float) and value != configured else value


def _collect(config: RunConfig, study: optuna.Study) -> TuningResult:
    """All trials that have ended, and the sections of the configuration with the best settings."""
    ended = [
        Trial(
            number=trial.number,
            state=trial.state.name.lower(),
            ndcg_at_10=max(trial.intermediate_values.values()),
            passes=len(trial.intermediate_values),
            seconds=round(trial.user_attrs["seconds"], 1),
            settings=trial.user_attrs["settings"],
        )
        for trial in study.get_trials(states=ENDED)
    ]
    ended.sort(key=lambda trial: (trial.state, -trial.ndcg_at_10))  # "complete" sorts before "pruned"
    best = config.changed(ended[0].settings)
    sections = {name: getattr(best, name) for name in dict.fromkeys(key.split(".")[0] for key in ended[0].settings)}
    values = {name: section.model_dump(mode="json", exclude_unset=True) for name, section in sections.items()}
    return TuningResult(tuple(ended), yaml.safe_dump(values, default_flow_style=None, sort_keys=False, width=118))
