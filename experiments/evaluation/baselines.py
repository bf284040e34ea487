"""The baselines of a run: their settings are chosen on the validation window, then they are fitted on train."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.evaluation.choice import Choice
from experiments.evaluation.leaks import check_no_leak
from experiments.evaluation.ranking import headline_metrics
from experiments.splits import Split, check_split
from features.catalog import item_texts
from features.errors import ConfigError, FileError, describe_os_error
from features.files import put_file
from features.interactions import Interactions
from recsys import baselines
from recsys.baselines import Grid, Setting, Settings
from recsys.dense_recommender import DenseRecommender


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline for one placement, fitted on train; choice: of its settings; seconds: of its fit."""

    recommender: DenseRecommender
    choice: Choice
    seconds: float


@dataclass(frozen=True)
class Trials:
    """settings: what was tried, in order; ndcg: rule of repeats ("true", "false") -> NDCG@10 on validation of each.

    seconds: what trying took.
    """

    settings: list[Settings]
    ndcg: dict[str, list[float]]
    seconds: float

    def choice(self, repeats: bool, fixed: Mapping[str, Setting]) -> Choice:
        """The best settings; of equals, those that were tried first."""
        ndcg = self.ndcg[_rule(repeats)]
        best = int(np.argmax(ndcg))
        return Choice(dict(fixed), self.settings[best], len(ndcg), ndcg[best], min(ndcg))


def fit_baseline(
    name: str, arguments: Mapping[str, Setting], dataset: Dataset, events: Interactions
) -> DenseRecommender:
    """Fit one baseline. Its kind is the first word of its name. Raises ConfigError for arguments it cannot use."""
    kind = name.split()[0]
    contents: list[Any] = [item_texts(dataset.catalog.frame)] if kind in baselines.NEED_TEXTS else []
    contents += [dataset.catalog.content] if kind in baselines.NEED_VECTORS else []
    try:
        return baselines.KINDS[kind](events, *contents, **arguments)
    except ArithmeticError as error:
        raise ConfigError(f"baselines.{name}: {dict(arguments)} cannot be used: {error}") from error


def fit_chosen(
    name: str, config: RunConfig, dataset: Dataset, splits: Mapping[str, Split], code: str
) -> tuple[dict[str, FittedBaseline], float]:
    """One baseline, fitted on train for each placement with settings of its own; and the seconds of the choice.

    Settings that the configuration names are fixed. The others are those of `baselines.GRIDS` with the best NDCG@10
    on the validation window, fitted on the events before it. All are judged on one sample of the window, which is the
    sample that the epochs of the towers are chosen on. They are kept in the cache under `code`, the version of
    the code, and everything else that they depend on; a choice from the cache takes 0 seconds.
    Raises LeakError, see `check_no_leak`; DependencyError and DataError where the baseline cannot be fitted on such
    data; FileError.
    """
    for split in splits.values():
        check_split(dataset.events, split)
    fixed = config.baselines[name]
    grid = _grid(name, fixed, dataset)
    rules = {placement.repeats: splits[at] for at, placement in config.data.placements.items() if at in splits}
    trials, seconds = None, 0.0
    if grid.fitted or grid.applied:
        path = Path(config.cache) / "baselines" / f"{_key(name, config, grid, dataset, rules, code)}.json"
        if (trials := _read(path)) is None:
            trials = _try_all(name, config, grid, dataset, rules)
            seconds = trials.seconds
            _write(path, trials)
    models: dict[str, tuple[DenseRecommender, float]] = {}  # by the settings that they are fitted with
    out = {}
    for at, split in splits.items():
        repeats = config.data.placements[at].repeats
        choice = Choice(dict(fixed), {}) if trials is None else trials.choice(repeats, fixed)
        arguments = dict(fixed) | {key: value for key, value in choice.chosen.items() if key in grid.fitted}
        started = time.perf_counter()
        if (known := json.dumps(arguments)) not in models:
            model = fit_baseline(name, arguments, dataset, split.train)
            check_no_leak(split.train, split.cut, **{name: model})
            models[known] = model, time.perf_counter() - started
        model, fit_seconds = models[known]
        applied = {key: value for key, value in choice.chosen.items() if key in grid.applied}
        out[at] = FittedBaseline(_with_settings(model, applied), choice, fit_seconds)
    return out, seconds


def _with_settings(model: DenseRecommender, applied: Mapping[str, Any]) -> DenseRecommender:
    """The fitted model with other values of settings that only its scores depend on."""
    return replace(model, **applied)


def _grid(name: str, fixed: Mapping[str, Setting], dataset: Dataset) -> Grid:
    """What is tried for a baseline: its grid without settings that are fixed, or that need what the data lacks."""
    lacking = () if dataset.catalog.has_content.any() else baselines.OF_CONTENT_VECTORS
    return baselines.GRIDS[name.split()[0]].without({*fixed, *lacking})


def _try_all(name: str, config: RunConfig, grid: Grid, dataset: Dataset, rules: Mapping[bool, Split]) -> Trials:
    """NDCG@10 of all combinations on validation, fitted on the events before it. rules: repeats -> split."""
    started = time.perf_counter()
    tried, ndcg = list[Settings](), {_rule(repeats): list[float]() for repeats in rules}
    targets = {
        repeats: split.validation.sample(config.training.validation_states, config.seed)
        for repeats, split in rules.items()
    }
    first = next(iter(rules.values()))
    for fitted, applied in grid.combinations():
        model = fit_baseline(name, config.baselines[name] | fitted, dataset, first.fit)
        check_no_leak(first.fit, first.validation_cut, vocabulary=dataset, **{name: model})
        for settings in applied:
            tried.append(fitted | settings)
            for repeats, sample in targets.items():
                figures = headline_metrics(_with_settings(model, settings), sample, dataset.catalog, repeats=repeats)
                ndcg[_rule(repeats)].append(figures["ndcg_at_10"])
    return Trials(tried, ndcg, time.perf_counter() - started)


def _key(name: str, config: RunConfig, grid: Grid, dataset: Dataset, rules: Mapping[bool, Split], code: str) -> str:
    """32 hex digits, a digest of everything that the choice depends on."""
    kind = name.split()[0]
    digest = hashlib.sha256()
    parts = {
        "code": code,
        "data": dataset.hash,
        "splits": {_rule(repeats): split.hash for repeats, split in rules.items()},
        "kind": kind,
        "fixed": config.baselines[name],
        "grid": asdict(grid),
        "states": config.training.validation_states,
        "seed": config.seed,
    }
    digest.update(json.dumps(parts).encode())
    if kind in baselines.NEED_VECTORS:
        digest.update(np.ascontiguousarray(dataset.catalog.content).tobytes())
    return digest.hexdigest()[:32]


def _rule(repeats: bool) -> str:
    return json.dumps(repeats)


def _read(path: Path) -> Trials | None:
    """The trials of an earlier run; None where there are none that can be read."""
    try:
        return Trials(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, trials: Trials) -> None:
    """Keep the trials for later runs. Raises FileError."""
    text = json.dumps(asdict(trials))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise FileError(f"the chosen settings of a baseline cannot be kept: {describe_os_error(error)}") from error
