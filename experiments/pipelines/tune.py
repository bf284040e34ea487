"""Hyper-parameter search: Optuna proposes settings of the towers, the newest validation window judges them.

TPE (Bergstra et al. 2011) with median pruning (Golovin et al. 2017), by NDCG@10 of the first placement. Nothing of
the test window is read. Each trial is on disk when it ends: the same search, started again, goes on where it was. One
process at a time: a trial that another has begun is taken for lost.
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
from experiments.pipelines.train import code_version, report_dataset
from experiments.splits import Split
from experiments.tracking.mlflow import Tracker
from experiments.tracking.progress import Reporter
from features.errors import ConfigError
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
"""What is searched, besides the configuration's own value of each, which is tried first."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

Settings = dict[str, Any]
"""Key of SEARCH_SPACE -> value."""


@dataclass(frozen=True)
class Trial:
    """state: complete or pruned; ndcg_at_10: of its best pass on validation; seconds: of all passes."""

    number: int
    state: str
    ndcg_at_10: float
    passes: int
    seconds: float
    settings: Settings


@dataclass(frozen=True)
class Search:
    """trials: complete ones first, best first; best: sections of a configuration, as YAML."""

    trials: tuple[Trial, ...]
    best: str

    def render(self) -> Group:
        """For a rich console."""
        keys = list(self.trials[0].settings)
        table = Table("trial", "state", "NDCG@10", "passes", "seconds", *keys, title="on validation, best first")
        for one in self.trials:
            figures = (str(one.number), one.state, f"{one.ndcg_at_10:.4f}", str(one.passes), f"{one.seconds:.0f}")
            table.add_row(*figures, *(f"{value:g}" for value in one.settings.values()))
        return Group(table, Text(self.best.rstrip()))


def tune(
    config: RunConfig,
    tracker: Tracker,
    reporter: Reporter,
    *,
    trials: int,
    minutes: float | None = None,
    only: Sequence[str] = (),
) -> Search:
    """Try settings until there are `trials` of them, those of earlier calls among them, or time is up.

    only: keys of SEARCH_SPACE, empty for all. No trial begins after `minutes`. Each trial is a run inside that of
    the search. Raises ConfigError for an unknown key or among several processes, and what a training raises.
    """
    if distributed.size() > 1:  # those that help would wait in the middle of a trial that is pruned
        raise ConfigError("a search runs in one process: start it without torchrun")
    space = _space(config, only)
    dataset = load_dataset(config, reporter.steps)
    report_dataset(dataset, reporter)
    dataset, splits = evaluation_windows(config, dataset)[-1]
    dataset = encode_contents(dataset, config, reporter.steps)
    name, split = next(iter(splits.items()))
    facts = {"data_hash": dataset.hash, "code_version": code_version(), "seed": str(config.seed)}
    study = _study(config, space, facts)
    done = reporter.steps("trials", trials)
    done(before := len(study.get_trials(states=ENDED)))
    began = time.monotonic()
    tracker.start(f"{config.name} tune", config.model_dump(), facts)
    try:
        for _ in range(before, trials):
            late = minutes is not None and time.monotonic() - began > 60 * minutes
            if late and study.get_trials(states=ENDED):  # of one at least there is something to tell
                break
            trial = study.ask(space)
            try:
                study.tell(trial, _try(config, dataset, {name: split}, trial, tracker.nested(), reporter))
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
            except Exception:  # tried again, it would fail again
                study.tell(trial, state=TrialState.FAIL)
                raise
            done(1)
        found = _search(config, study)
        tracker.metrics({"ndcg_at_10": found.trials[0].ndcg_at_10, "trials": len(found.trials)})
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
    return found


def _space(config: RunConfig, only: Sequence[str]) -> dict[str, BaseDistribution]:
    if unknown := [key for key in only if key not in SEARCH_SPACE]:
        raise ConfigError(f"no setting {unknown[0]!r} is searched; there are: {', '.join(SEARCH_SPACE)}")
    out: dict[str, BaseDistribution] = {}
    for key in only or SEARCH_SPACE:
        kind, own = SEARCH_SPACE[key], _configured(config, key)
        if isinstance(kind, CategoricalDistribution):
            others = (choice for choice in kind.choices if choice != own and _fits(config, key, choice))
            out[key] = CategoricalDistribution((own, *others))
        elif isinstance(kind, FloatDistribution | IntDistribution):
            out[key] = type(kind)(min(kind.low, own), max(kind.high, own), log=kind.log)
    return out


def _configured(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _fits(config: RunConfig, key: str, value: Any) -> bool:
    """As a dimension does not that vectors are to be cut to."""
    try:
        config.changed({key: value})
    except ValidationError:
        return False
    return True


def _study(config: RunConfig, space: dict[str, BaseDistribution], facts: dict[str, str]) -> optuna.Study:
    """The search of this configuration, space, data and commit, with the trials that it has had.

    What is not committed is not told apart: a search that went on over other changes would mix them up.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = Path(config.cache) / "tune.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {key: optuna.distributions.distribution_to_json(kind) for key, kind in space.items()}
    same = json.dumps([config.model_dump(mode="json"), kinds, facts], sort_keys=True)
    study = optuna.create_study(
        study_name=f"{config.name} {hashlib.sha256(same.encode()).hexdigest()[:16]}",
        storage=f"sqlite:///{file}",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=3),  # judges from the third pass on
        load_if_exists=True,
    )
    for lost in study.get_trials(states=(TrialState.RUNNING,)):  # of a process that has ended in the middle
        study.tell(lost.number, state=TrialState.FAIL)
        study.enqueue_trial(lost.params)
    # a sampler that begins again would propose again what it has proposed
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
    study.enqueue_trial({key: _configured(config, key) for key in space}, skip_if_exists=True)
    return study


def _try(
    config: RunConfig,
    dataset: Dataset,
    splits: dict[str, Split],
    trial: optuna.Trial,
    tracker: Tracker,
    reporter: Reporter,
) -> float:
    """One trial: NDCG@10 of the best pass. Raises TrialPruned when half of the others were better by then."""
    settings = {key: _short(value, _configured(config, key)) for key, value in trial.params.items()}
    tried = config.changed(settings).model_copy(update={"reranker": None})
    trial.set_user_attr("settings", settings)
    tracker.start(f"{config.name} tune", settings, {"trial": str(trial.number)})
    lines: list[dict[str, float]] = []

    def report(line: dict[str, float]) -> None:
        lines.append(line)
        passed = int(line["epoch"])
        tracker.metrics(line, passed)
        trial.report(line["ndcg_at_10"], passed)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        select_model(tried, dataset, splits, report, reporter.steps)
    except optuna.TrialPruned:
        tracker.finish(pruned=True)
        raise
    except BaseException:
        tracker.finish(failed=True)
        raise
    finally:
        best = max((line["ndcg_at_10"] for line in lines), default=0.0)
        trial.set_user_attr("seconds", sum(line["seconds"] for line in lines))
        told = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        reporter.say(f"trial {trial.number}: NDCG@10 {best:.4f} after {len(lines)} passes; {told}")
    tracker.finish()
    return best


def _short(value: Any, own: Any) -> Any:
    """Three digits of a number, but for the configuration's own: what is printed is what was tried."""
    return float(f"{value:.3g}") if isinstance(value, float) and value != own else value


def _search(config: RunConfig, study: optuna.Study) -> Search:
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
    ended.sort(key=lambda one: (one.state, -one.ndcg_at_10))  # "complete" comes before "pruned"
    best = config.changed(ended[0].settings)
    sections = {name: getattr(best, name) for name in dict.fromkeys(key.split(".")[0] for key in ended[0].settings)}
    told = {name: section.model_dump(mode="json", exclude_unset=True) for name, section in sections.items()}
    return Search(tuple(ended), yaml.safe_dump(told, default_flow_style=None, sort_keys=False, width=118))
