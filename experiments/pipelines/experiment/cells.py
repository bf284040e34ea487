"""The cells of an experiment, one of each variant and seed: what each depends on, and its outcomes in a file.

Cells whose towers are trained alike are one group: a process trains the towers once and evaluates every cell with
them. A file is written whole or not at all, so a run that was killed goes on with the cells that have none.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from pydantic_core import to_json
from rich.console import Console

from experiments.config import RunConfig
from experiments.dataset import Dataset, encode_contents, load_dataset
from experiments.evaluation.other_catalog import InCatalog
from experiments.evaluation.outcomes import outcome_rows, write_outcomes
from experiments.evaluation.ranking import Outcome, RulesAt, evaluate
from experiments.pipelines.experiment.definition import Experiment
from experiments.pipelines.fit import RERANKED, FittedOnce, train_two_stage
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.pipelines.train import chosen_baseline, format_line, run_tags
from experiments.pipelines.warm_start import new_to
from experiments.splits import Split, refuse_leaks
from experiments.tracking.progress import Lines, Reporter
from experiments.tracking.versions import code_version
from features.errors import ConfigError, DataError
from recsys import baselines
from recsys.bundle.io import load_bundle
from recsys.interfaces import Recommender
from recsys.ranking.rules import load_rules
from recsys.ranking.slate_rules import compile_rules, rules_by_user


@dataclass(frozen=True)
class Cell:
    """A variant with a seed. path: of its outcomes, whose name is a digest of all that they depend on.

    bundle: what is evaluated as it is; None for what is fitted.
    """

    variant: str
    config: RunConfig
    model: str
    rules: Path | None
    path: Path
    bundle: Path | None = None

    @property
    def seed(self) -> int:
        """The seed of the cell."""
        return self.config.seed


def cells_of(experiment: Experiment, dataset: Dataset, folder: Path, reporter: Reporter) -> list[Cell]:
    """All cells, variants in the order of the file, each with all seeds. dataset: all items and events."""
    cells, code = list[Cell](), code_version()
    contents = dict[str, str]()  # by the settings of the encoder
    for name, variant in experiment.definition.variants.items():
        rules, encoding, bundle = experiment.rules.get(name), experiment.configs[name], experiment.bundles.get(name)
        if (settings := _encoding(encoding)) not in contents:
            contents[settings] = _contents(encoding, dataset, reporter)
        for seed in experiment.definition.seeds:
            if bundle is not None:  # no seed changes it
                seed = experiment.definition.seeds[0]
            config = experiment.configs[name].model_copy(update={"seed": seed})
            key = _digest(
                code,
                _recorded(config),
                variant.model,
                "" if rules is None else rules.read_text(),
                "" if bundle is None else bundle.name,
                dataset.hash,
                contents[settings],
            )
            cells.append(Cell(name, config, variant.model, rules, folder / f"{key}.parquet", bundle))
    return cells


def groups_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells that have no file yet, those of the same towers together. Equal cells are one."""
    groups: dict[str, dict[Path, Cell]] = defaultdict(dict)
    for cell in cells:
        if not cell.path.exists():
            towers = cell.config.model_copy(
                update={"reranker": None, "discovery": None, "baselines": {"popular": {}}}
            )
            alone = cell.bundle is not None or cell.model in baselines.KINDS
            key = cell.path.name if alone else _digest(_recorded(towers))
            groups[key].setdefault(cell.path, cell)
    return [list(group.values()) for group in groups.values()]


def _encoding(config: RunConfig) -> str:
    """The settings that the vectors of contents depend on."""
    return to_json(config.model_dump(include={"encoder", "limits", "alignment"})).decode()


def _contents(config: RunConfig, dataset: Dataset, reporter: Reporter) -> str:
    """Digest of the vectors of contents in the newest window: files and cache may have changed, settings not."""
    if config.encoder is None:
        return ""
    kept = encode_contents(evaluation_windows(config, dataset)[-1][0], config, reporter.steps)
    return hashlib.sha256(np.ascontiguousarray(kept.catalog.content).tobytes()).hexdigest()


def _recorded(config: RunConfig) -> str:
    """What the outcomes of a configuration depend on: not its name, nor where files are kept."""
    return to_json(config.model_dump(exclude={"name", "bundles", "cache"})).decode()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def run_group(cells: Sequence[Cell], data_hash: str, log: Path) -> None:
    """Fit and evaluate the cells of one group, and write a file for each in the last window. Progress goes to `log`.

    Raises DataError where the data are no longer those with `data_hash`.
    """
    with log.open("a", encoding="utf-8") as stream:
        reporter = Lines(Console(file=stream, width=200))
        first = cells[0].config
        dataset = load_dataset(first, reporter.steps)
        if dataset.hash != data_hash:
            raise DataError("the data have changed since the run began: run it again")
        rows = {cell.path: list[pl.DataFrame]() for cell in cells}
        lists = {cell.path: list[dict[str, dict[str, float]]]() for cell in cells}
        windows = evaluation_windows(first, dataset)
        for number, (kept, splits) in enumerate(windows, 1):
            kept = encode_contents(kept, first, reporter.steps)
            fit = FittedOnce()
            for cell in cells:
                reporter.say(f"window {number}, {cell.variant}, seed {cell.seed}")
                outcomes = _evaluate(cell, kept, splits, fit, reporter)
                for placement, outcome in outcomes.items():
                    rows[cell.path].append(outcome_rows(outcome, placement, number, kept.users, kept.catalog.ids))
                lists[cell.path].append({placement: outcome.of_lists for placement, outcome in outcomes.items()})
                if number == len(windows):
                    facts = {"variant": cell.variant, "lists": to_json(lists[cell.path]).decode()}
                    write_outcomes(cell.path, rows[cell.path], facts | run_tags(cell.config, dataset))


def bundle_in(path: Path, config: RunConfig, dataset: Dataset, split: Split) -> InCatalog:
    """A bundle in the catalogue of the data set: it lists the items that both have.

    Raises ConfigError where its events have another meaning, LeakError where it knows an event of the test window,
    and BundleError.
    """
    bundle = load_bundle(path)
    for section in ("events", "placements"):
        if getattr(bundle.data, section) != getattr(config.data, section):
            raise ConfigError(
                f"{path} has other data.{section} than the configuration of the experiment: its lists answer another "
                "question; compare it with variants of its own configuration"
            )
    if split.cut is None:
        raise ConfigError(f"{path}: leave-last-out holds back events that the bundle may know: split by time")
    known = ~new_to(bundle, dataset) & (dataset.events.times >= split.cut)
    if known.any():
        until = np.datetime64(int(dataset.events.times[known].max()), "us")
        n = f"{int(known.sum()):,} events of the test window, up to {until}"
        text = f"the bundle {path.name} was trained on {n}"
        refuse_leaks(split.cut, [text], "evaluate it when there are newer events, or train one without these")
    return InCatalog(bundle.recommender, bundle.catalog.ids, dataset.catalog.ids)


def _evaluate(
    cell: Cell, dataset: Dataset, splits: dict[str, Split], fit: FittedOnce, reporter: Reporter
) -> dict[str, Outcome]:
    """The outcomes of one cell in one window, by placement. Raises DataError where a baseline cannot be fitted."""
    models: dict[str, Recommender] = {}
    ruling: dict[str, RulesAt] = {}
    if cell.bundle is not None:
        models = dict.fromkeys(splits, bundle_in(cell.bundle, cell.config, dataset, next(iter(splits.values()))))
    elif cell.model in baselines.KINDS:
        fitted = chosen_baseline(cell.model, cell.config, dataset, splits, reporter)
        if not fitted:  # a line of the log says why
            raise DataError(f"{cell.model} cannot be fitted on these data: remove the variant; see the log beside")
        models = {placement: baseline.recommender for placement, baseline in fitted.items()}
    else:
        config = cell.config if cell.model == RERANKED else cell.config.model_copy(update={"reranker": None})
        trained = train_two_stage(
            config, dataset, splits, lambda line: reporter.say(format_line(line)), reporter.steps, fit
        )[1]
        models = dict.fromkeys(splits, trained.recommender)
        if config.reranker is not None and trained.recommender.reranker is None:
            reporter.say("no reranker could be fitted: the order is that of the retrieval")
        if cell.rules is not None:
            rules, vectors = load_rules(cell.rules), trained.recommender.vectors
            latest = next(iter(splits.values())).train.latest
            for note in compile_rules(rules.rules, dataset.catalog, vectors, latest).notes:
                reporter.say(note)
            ruling = {at: partial(rules_by_user, rules, at, dataset.catalog, vectors) for at in splits}
    return {
        placement: evaluate(
            cell.variant,
            model,
            splits[placement],
            dataset.catalog,
            splits[placement].test,
            repeats=cell.config.data.placements[placement].repeats,
            seconds=0.0,
            rules=ruling.get(placement),
        )
        for placement, model in models.items()
    }
